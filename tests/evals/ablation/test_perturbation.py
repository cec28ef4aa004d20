"""TPP and SCR on constructed features: what is known of the answer is what comes out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from scansion.errors import ConfigError
from scansion.evals import figures_in
from scansion.evals.ablation import classes as class_texts
from scansion.evals.ablation.classes import ClassSet, load_classes, load_quadrants
from scansion.evals.ablation.evaluation import Scr, Tpp
from scansion.evals.ablation.features import AUDIT, Pooled, effects, strongest
from scansion.evals.ablation.scr import ScrConfig, evaluate_scr, scr_directions
from scansion.evals.ablation.tpp import TppConfig, evaluate_tpp, tpp_scores
from scansion.evals.probing.pooling import pool_texts
from scansion.evals.probing.probes import LinearProbe, fit_linear
from scansion.evals.reading.cache import ActivationCache
from scansion.evals.reading.texts import TextReader
from scansion.lm import HookPoint, LanguageModel
from tests.evals.probing.constructed import make_subject, telling_texts, use_asset, write_set

N = 60


def class_data(pure: bool) -> tuple[Pooled, list[tuple[np.ndarray, np.ndarray]]]:
    """Four classes, class i along dimension i; features are those dimensions, or one feature for all of them."""
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), N)
    x = np.eye(4)[labels] * 6 + generator.normal(0, 0.1, (4 * N, 4))
    pooled = Pooled(x, np.maximum(x, 0), np.eye(4)) if pure else Pooled(x, np.ones((4 * N, 1)), np.ones((1, 4)))
    tasks = []
    for i in range(4):
        own, others = np.flatnonzero(labels == i), np.flatnonzero(labels != i)[::3]
        tasks.append((np.concatenate([own, others]), np.repeat([1, 0], [len(own), len(others)])))
    return pooled, tasks


def test_features_that_are_the_classes_hurt_their_own_probe_alone() -> None:
    pooled, tasks = class_data(pure=True)
    scores, clean = tpp_scores(pooled, tasks, tasks, (1,), seed=0)
    total, intended, unintended = scores.value
    assert clean == 1.0
    assert intended == pytest.approx(0.5, abs=0.01), "without its dimension a class is called negative: half are wrong"
    assert unintended == pytest.approx(0.0, abs=0.05)
    assert total == pytest.approx(intended - unintended)


def test_a_feature_that_every_class_shares_says_nothing() -> None:
    pooled, tasks = class_data(pure=False)
    scores, _ = tpp_scores(pooled, tasks, tasks, (1, 2), seed=0)
    np.testing.assert_allclose(scores.value, 0.0, atol=1e-12)


def crossed(entangled: bool) -> tuple[Pooled, dict[tuple[int, int], np.ndarray], dict[tuple[int, int], np.ndarray]]:
    """Two labels along two dimensions, the second three times as loud; a feature for each sign of a dimension, or of both."""
    generator = np.random.default_rng(1)
    pairs = [(a, b) for a in (0, 1) for b in (0, 1) for _ in range(2 * N)]
    x = np.array([[2 * a - 1, 3 * (2 * b - 1)] for a, b in pairs]) * 2.0 + generator.normal(0, 0.3, (8 * N, 2))
    axes = np.array([[1.0, 1.0]]) if entangled else np.eye(2)
    W_dec = np.concatenate([axes, -axes])
    acts = np.maximum(x @ W_dec.T, 0)
    rows = {pair: np.flatnonzero([p == pair for p in pairs]) for pair in sorted(set(pairs))}
    train, test = ({pair: r[half] for pair, r in rows.items()} for half in (slice(0, N), slice(N, None)))
    return Pooled(x, acts, W_dec), train, test


def test_ablating_the_spurious_label_gives_the_wanted_one_back() -> None:
    first, second = scr_directions(*crossed(entangled=False), (2,), seed=0)
    assert (first.wanted, second.wanted) == ("first", "second")
    assert first.biased_accuracy == pytest.approx(0.5, abs=0.02), "the probe follows the louder label"
    assert second.biased_accuracy == first.clean_accuracy == 1.0
    assert first.applies and first.by_n[2] is not None and first.by_n[2].value == pytest.approx(1.0, abs=0.05)
    assert not second.applies and second.by_n[2] is None
    (entangled, _) = scr_directions(*crossed(entangled=True), (2,), seed=0)
    assert entangled.by_n[2] is not None and (entangled.by_n[2].value or 0.0) < 0.2


def test_where_the_bias_costs_nothing_there_is_no_score() -> None:
    pooled, train, test = crossed(entangled=False)
    quiet = Pooled(pooled.x * [1, 0], pooled.acts, pooled.W_dec)
    first, _ = scr_directions(quiet, train, test, (1, 2), seed=0)
    assert not first.applies and set(first.by_n.values()) == {None}


def test_a_cost_that_chance_explains_gives_no_score() -> None:
    pooled, train, test = crossed(entangled=False)
    # The second label is in no dimension: a probe for it guesses, biased or not, and beats the other by luck alone.
    noise = np.random.default_rng(2).normal(size=len(pooled.x))
    _, second = scr_directions(
        Pooled(np.stack([pooled.x[:, 0], noise], 1), pooled.acts, pooled.W_dec), train, test, (1,), 0
    )
    assert second.cost.value == pytest.approx(second.clean_accuracy - second.biased_accuracy)
    assert second.cost.low <= 0 and not second.applies and second.by_n == {1: None}


@pytest.mark.parametrize("norm", ["none", "layer_norm"])
def test_ablation_of_pooled_texts_is_ablation_of_every_token(norm: str, lm: LanguageModel, tmp_path: Path) -> None:
    reader = TextReader(lm, HookPoint(1), 16, 2, "float32", ActivationCache(tmp_path, 0))
    subject, texts = make_subject(), ["w5 w6 w7", "w8", "w9 w10 w11 w12"]
    subject.sae.config = subject.sae.config.model_copy(update={"input_norm": norm})
    pooled = pool_texts(texts, reader, [subject.sae], in_units_of_input=True)
    x, acts = pooled.lm, pooled.saes[0]
    W_dec = subject.sae.W_dec.detach().numpy()
    gone = np.array([0, 3, 7])
    with torch.no_grad():
        kept = subject.sae.with_mask(subject.sae.mask)
        kept.W_enc, kept.b_enc = (torch.nn.Parameter(w.clone()) for w in (kept.W_enc, kept.b_enc))
        kept.b_enc[gone] = -1e6
    (fewer,) = pool_texts(texts, reader, [kept], in_units_of_input=True).saes
    rows = np.arange(3)
    np.testing.assert_allclose(Pooled(x, acts, W_dec).without(rows, gone), x - (acts - fewer) @ W_dec, atol=1e-4)
    np.testing.assert_array_equal(Pooled(x, acts, W_dec).without(rows, np.array([], dtype=int)), x)


def test_effects_are_attributions_and_zero_ones_are_never_taken() -> None:
    pooled = Pooled(
        np.zeros((2, 2)), np.array([[2.0, 0.0, 3.0], [1.0, 4.0, 3.0]]), np.array([[1.0, 0], [0, 2], [5, 5]])
    )
    probe = LinearProbe(np.array([3.0, 1.0]), 0.0)
    rows, labels = np.array([0, 1]), np.array([1, 0])
    signed = effects(pooled, rows, labels, probe, positive_only=False)
    np.testing.assert_allclose(signed, [1 * 3, -4 * 2, 0])
    np.testing.assert_allclose(effects(pooled, rows, labels, probe, positive_only=True), [3, 0, 0])
    assert strongest(np.abs(signed), 5).tolist() == [1, 0]


def test_a_kept_probe_says_what_it_learnt() -> None:
    x = np.random.default_rng(0).normal(size=(200, 3))
    labels = (x[:, 1] > 0).astype(int)
    probe = fit_linear(x, labels)
    assert probe.correct(x, labels).mean() > 0.97
    assert np.abs(probe.weight).argmax() == 1


@pytest.fixture
def asset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    use_asset(monkeypatch, tmp_path)
    members = tuple(f"{i}_class" for i in range(1, 4))
    for i, name in enumerate(members):
        rows = telling_texts(40, seed=i)
        write_set(tmp_path, name, [(f"{text} w{50 + i}" if label else text, label) for text, label in rows])
    monkeypatch.setitem(class_texts.CLASS_SETS, "three", ClassSet(members, "nothing"))
    for i, name in enumerate(("161_agnews_0", "162_agnews_1", "92_glue_sst2")):
        # Phrases begin with their label; four of them make a review.
        texts = telling_texts(240 if i == 2 else 60, seed=10 + i)
        marked = [(f"w{47 + label} {text}" if i == 2 else f"{text} w{45 + i}", label) for text, label in texts]
        write_set(tmp_path, name, marked)
    return tmp_path


def test_no_text_is_in_two_classes_or_on_two_sides(asset: Path) -> None:
    found = load_classes("three", 20, 10, seed=0)
    everything = [text for side in (found.train, found.test) for texts in side.values() for text in texts]
    assert len(everything) == len(set(everything)) == 3 * 30
    quadrants = load_quadrants("topic_rating", 10, 5, seed=0)
    texts = [t for side in (quadrants.train, quadrants.test) for part in side.values() for t in part]
    assert len(texts) == len(set(texts)) == 4 * 15
    for a, b in ((0, 0), (0, 1), (1, 0), (1, 1)):
        for words in (text.split() for text in quadrants.train[a, b]):
            assert words[-1] == f"w{45 + a}" and words[0] == f"w{47 + b}"
            assert words.count(f"w{47 + b}") == 4 and f"w{48 - b}" not in words
    with pytest.raises(ConfigError, match="no set of classes"):
        load_classes("four", 1, 1, 0)


def test_evaluations_carry_the_audit_and_name_stand_ins(asset: Path, lm: LanguageModel) -> None:
    subject, untrained = make_subject("one"), make_subject("untrained", steps=0)
    sizes = {"context_length": 16, "lm_batch_size": 8, "n_values": (2, 5)}
    tpp, bad = evaluate_tpp(
        [subject, untrained],
        lm,
        HookPoint(1),
        TppConfig(datasets=("three",), train_per_class=24, test_per_class=12, **sizes),
    )
    (scr,) = evaluate_scr(
        [subject],
        lm,
        HookPoint(1),
        ScrConfig(datasets=("topic_rating",), train_per_quadrant=16, test_per_quadrant=8, **sizes),
    )
    for result, layout in ((tpp, Tpp(TppConfig()).saebench), (scr, Scr(ScrConfig()).saebench)):
        assert AUDIT in result.notes and "2605.18229" in AUDIT
        assert any("stands in for" in note for note in result.notes)
        assert layout(result, subject)["eval_result_unstructured"]["scansion"]["notes"] == result.notes
    assert tpp.status == "ok" and set(figures_in(tpp)) == {"tpp_2", "tpp_5"}
    assert bad.status == "degenerate" and not figures_in(bad)
    for figures in tpp.by_n.values():
        assert figures.total.value == pytest.approx(figures.intended.value - figures.unintended.value)
