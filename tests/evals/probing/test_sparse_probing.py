"""Laws of sparse probing: what separates is found, what is noise is chance, and every score stands beside its controls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from scansion.corpus import Contexts
from scansion.errors import ConfigError, EvalError, ModelError, ShapeError
from scansion.evals.base import LoadedSAE
from scansion.evals.probing import evaluate as sparse_probing
from scansion.evals.probing.accuracy import over_data_sets, over_tasks
from scansion.evals.probing.cached_baselines import CachedBaselines
from scansion.evals.probing.evaluate import SparseProbingConfig, SparseProbingResult, evaluate_sparse_probing
from scansion.evals.probing.pooling import pool_texts
from scansion.evals.probing.probes import ProbeOutcome, ProbeTask, fit_all, fit_probes
from scansion.evals.probing.sets import load_probing_set
from scansion.evals.probing.untrained import random_controls
from scansion.evals.reading import cache as activation_cache
from scansion.evals.reading import texts as text_activations
from scansion.evals.reading.cache import ActivationCache
from scansion.evals.reading.texts import TextReader
from scansion.evals.registry import figures_in
from scansion.evals.statistics import Estimate
from scansion.lm import HookPoint, LanguageModel
from scansion.masks import RandomHardMaskConfig
from scansion.sae import build_sae
from tests.evals.probing.constructed import make_subject, telling_texts, use_asset, write_set

HOOK_POINT = HookPoint(1)


def task(features: np.ndarray, labels: np.ndarray, n_test: int) -> ProbeTask:
    rows = np.arange(len(labels))
    return ProbeTask(features, rows[n_test:], labels[n_test:], rows[:n_test], labels[:n_test])


def noise_with_labels(n: int, d: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    features = generator.exponential(size=(n, d)).astype(np.float32)
    return features, generator.permutation(np.arange(n) % 2)


def test_one_feature_that_separates_the_labels_is_all_a_probe_needs() -> None:
    features, labels = noise_with_labels(400, 30, seed=0)
    features[:, 17] = 5.0 * labels
    outcome = fit_probes(task(features, labels, 100), [1, 2, 500])
    np.testing.assert_array_equal(outcome.correct, 1.0)
    assert outcome.unconverged == 0


def test_probes_on_labels_that_say_nothing_are_at_chance() -> None:
    n_test = 1000
    features, labels = noise_with_labels(3000, 20, seed=1)
    outcome = fit_probes(task(features, labels, n_test), [1, 5, 20])
    # Four standard deviations of a fair coin.
    assert np.abs(outcome.correct.mean(axis=1) - 0.5).max() < 4 * 0.5 / np.sqrt(n_test)


def test_the_order_of_features_does_not_matter() -> None:
    features, labels = noise_with_labels(400, 30, seed=2)
    features[:, :5] += labels[:, None] * np.array([1.0, 0.8, 0.6, 0.4, 0.2], dtype=np.float32)
    shuffled = features[:, np.random.default_rng(3).permutation(30)]
    one, other = fit_all([task(features, labels, 200), task(shuffled, labels, 200)], [1, 2, 5, 10])
    np.testing.assert_array_equal(one.correct, other.correct)


def test_features_without_variation_give_chance_and_those_not_finite_give_nothing() -> None:
    features, _ = noise_with_labels(100, 4, seed=4)
    labels = np.arange(100) % 2
    silent = fit_probes(task(np.zeros_like(features), labels, 40), [1])
    np.testing.assert_array_equal(silent.correct.mean(axis=1), 0.5)
    features[3, 2] = np.inf
    assert np.isnan(fit_probes(task(features, labels, 40), [1]).correct).all()


def test_every_task_and_every_data_set_counts_the_same() -> None:
    few, many = np.array([[1.0, 1.0], [1.0, 0.0]]), np.array([[0.0] * 8, [1.0] * 8])
    scores = over_tasks([few, many], [np.arange(2), np.arange(8)], seed=[0])
    np.testing.assert_allclose(scores.value, [0.5, 0.75])
    assert scores.samples.min() >= 0 and scores.samples.max() <= 1
    sure = over_tasks([np.ones((2, 5))], [np.arange(5)], seed=[0])
    np.testing.assert_allclose(over_data_sets([scores, sure]).value, [0.75, 0.875])
    assert [(e.low, e.high) for e in sure.estimates()] == [(1.0, 1.0), (1.0, 1.0)]


def test_the_interval_of_a_coin_has_the_width_that_theory_gives() -> None:
    hits = (np.arange(1000) % 2)[None].astype(float)
    (estimate,) = over_tasks([hits], [np.arange(1000)], seed=[0]).estimates()
    assert estimate.low is not None and estimate.high is not None
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(1000), rel=0.1)


@pytest.fixture
def asset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    use_asset(monkeypatch, tmp_path)
    write_set(tmp_path, "1_words", telling_texts(60, seed=1))
    write_set(tmp_path, "2_words", [*telling_texts(40, seed=2), ("", 0)])
    return tmp_path


CONFIG = SparseProbingConfig(
    datasets=("1_words", "2_words"), train_size=60, test_size=40, context_length=16, k_values=(1, 5), lm_batch_size=8,
    cache_gb=0, untrained_draws=1,
)  # fmt: skip


def test_an_evaluation_says_what_every_probe_scored(asset: Path, lm: LanguageModel) -> None:
    subjects = [make_subject("one"), make_subject("two", d_sae=40)]
    results = evaluate_sparse_probing(subjects, lm, HOOK_POINT, CONFIG)
    for subject, result in zip(subjects, results, strict=True):
        assert (result.sae, result.status, result.reasons) == (subject.name, "ok", [])
        assert result.sae_metadata == subject.metadata
        assert result.data["config"] == CONFIG.model_dump(mode="json")
        assert [one.name for one in result.datasets] == list(CONFIG.datasets)
        assert list(result.sae_top_k) == [1, 5]
        means = [one.sae_top_k[5].value for one in result.datasets]
        assert result.sae_top_k[5].value == pytest.approx(np.mean([value for value in means if value is not None]))
        assert (result.datasets[0].tasks[0].n_train, result.datasets[0].tasks[0].n_test) == (60, 40)
        assert all(value is not None and 0 <= value <= 1 for value in result.saebench_headline().values())
        assert result.lm_test_accuracy.value is not None and result.lm_test_accuracy.value > 0.8
        assert SparseProbingResult.model_validate_json(result.model_dump_json()) == result
    assert results[0].lm_top_k == results[1].lm_top_k


def test_an_sae_scores_the_same_alone_as_in_company(asset: Path, lm: LanguageModel) -> None:
    alone = evaluate_sparse_probing([make_subject("one")], lm, HOOK_POINT, CONFIG)
    together = evaluate_sparse_probing([make_subject("two", d_sae=40), make_subject("one")], lm, HOOK_POINT, CONFIG)
    assert alone[0] == together[1]


def test_a_text_runs_through_the_lm_once(asset: Path, lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    run = text_activations.activations_at

    def counting(lm: LanguageModel, hook_point: HookPoint, contexts: Contexts) -> torch.Tensor:
        seen.append(len(contexts))
        return run(lm, hook_point, contexts)

    monkeypatch.setattr(text_activations, "activations_at", counting)
    subjects = [make_subject(str(index)) for index in range(3)]
    (result, *_) = evaluate_sparse_probing(subjects, lm, HOOK_POINT, CONFIG)
    assert sum(seen) == sum(one.n_train + one.n_test for data in result.datasets for one in data.tasks)


def test_worthless_dictionaries_are_named(asset: Path, lm: LanguageModel) -> None:
    silent, broken, untrained = make_subject("silent"), make_subject("broken"), make_subject("untrained", steps=0)
    with torch.no_grad():
        silent.sae.b_enc.fill_(-1e6)
        broken.sae.W_enc[0, 3] = torch.nan
    results = evaluate_sparse_probing([silent, broken, untrained], lm, HOOK_POINT, CONFIG)
    assert [result.status for result in results] == ["degenerate"] * 3
    assert results[0].reasons[0].startswith("all features are dead")
    assert results[0].reasons[1].startswith("every probe is at chance (best 0.500)")
    assert results[0].sae_top_k[1].value == results[0].sae_test_accuracy.value == 0.5
    assert results[1].reasons == ["weights are not finite: W_enc", "feature activations are not finite"]
    assert results[1].sae_test_accuracy.value is None and results[1].sae_top_k[1].value is None
    assert results[1].datasets[0].tasks[0].sae_test_accuracy is None
    assert results[1].lm_test_accuracy == results[0].lm_test_accuracy
    assert results[2].reasons == ["no training step was taken"]


def test_what_can_fail_fails_before_the_lm_runs(
    asset: Path, lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_activations, "activations_at", lambda *_: pytest.fail("the LM was run"))
    subject = make_subject()
    short = make_subject("short", mask=RandomHardMaskConfig(), n_positions=8)
    for error, match, subjects, hook_point, changes in (
        (ConfigError, "no probing data set is called", [subject], HOOK_POINT, {"datasets": ("1_wrods",)}),
        (ModelError, "a context of 65 tokens", [subject], HOOK_POINT, {"context_length": 65}),
        (ModelError, "asks for layer 7", [subject], HookPoint(7), {}),
        (EvalError, "was trained on resid_post.1, but the texts are read by resid_post.2", [subject], HookPoint(2), {}),
        (ShapeError, "position 15 is outside this mask of 8", [subject, short], HOOK_POINT, {}),
    ):
        with pytest.raises(error, match=match):
            evaluate_sparse_probing(subjects, lm, hook_point, CONFIG.model_copy(update=changes))


@pytest.mark.parametrize("wrong", [{"dataset": ("a",)}, {"k_values": (0,)}, {"train_size": 1}, {"datasets": ()}])
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SparseProbingConfig.model_validate(wrong)


def test_an_sae_that_is_its_own_control_gains_nothing_and_a_better_one_gains_what_is_between(
    asset: Path, lm: LanguageModel
) -> None:
    # The control of a data set has its bias at that set's texts' mean.
    config = CONFIG.model_copy(update={"datasets": ("1_words",)})
    trained = make_subject("trained")
    ((control,),), _ = random_controls([trained], config.seed)
    (split,) = load_probing_set("1_words", 60, 40, config.seed)
    reader = TextReader(lm, HOOK_POINT, 16, 8, "bfloat16", ActivationCache(Path("nowhere"), 0))
    pool_texts([*split.train.texts, *split.test.texts], reader, [], [control])
    twin = LoadedSAE("twin", control, trained.metadata)
    own, other = evaluate_sparse_probing([twin, trained], lm, HOOK_POINT, config)
    assert own.random_top_k == other.random_top_k, "equal settings share a control"
    for result in (own, other):
        for k in CONFIG.k_values:
            gain, sae, random = (getattr(result, f"{kind}_top_k")[k] for kind in ("gain", "sae", "random"))
            assert gain.value == pytest.approx(sae.value - random.value)
    nothing = Estimate(value=0, low=0, high=0)
    assert own.gain_test_accuracy == nothing and set(own.gain_top_k.values()) == {nothing}
    assert other.gain_test_accuracy.low < other.gain_test_accuracy.high


def test_any_training_seed_has_untrained_saes_of_its_own() -> None:
    subject = make_subject()
    seeded = [
        replace(subject, metadata=subject.metadata.model_copy(update={"seed": seed})) for seed in (None, 0, 1, -1, 1)
    ]
    controls, kinds = random_controls(seeded, 0)
    assert kinds == [0, 0, 1, 2, 1]
    weights = [control.W_enc for (control,) in controls]
    assert not any(torch.equal(weights[i], weights[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    expected = int(np.random.SeedSequence([0, 1]).generate_state(1, np.uint64)[0])
    fresh = build_sae(
        subject.sae.config, subject.sae.d_in, subject.sae.n_positions, torch.Generator().manual_seed(expected)
    )
    assert torch.equal(weights[1], fresh.W_enc)


def test_the_control_is_the_mean_of_several_untrained_saes(
    asset: Path, lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(activation_cache, "default_folder", lambda: tmp_path / "cache")
    config = CONFIG.model_copy(update={"datasets": ("1_words",), "untrained_draws": 3})
    trained = make_subject("trained")
    (found,) = evaluate_sparse_probing([trained], lm, HOOK_POINT, config)
    assert len(found.random_by_draw) == 3
    assert found.random_test_accuracy.value == pytest.approx(np.mean(found.random_by_draw))
    assert found.gain_test_accuracy.value == pytest.approx(
        found.sae_test_accuracy.value - found.random_test_accuracy.value
    )
    (kept,) = evaluate_sparse_probing([trained], lm, HOOK_POINT, config.model_copy(update={"cache_gb": 1.0}))
    assert kept.model_copy(update={"data": found.data}) == found, "a draw at a time, or all together"
    alone = evaluate_sparse_probing([trained], lm, HOOK_POINT, config.model_copy(update={"untrained_draws": 1}))[0]
    assert alone.random_by_draw == found.random_by_draw[:1] and alone.random_top_k != found.random_top_k
    other = LoadedSAE("seed 1", trained.sae, trained.metadata.model_copy(update={"seed": 1}))
    assert evaluate_sparse_probing([other], lm, HOOK_POINT, config)[0].random_top_k != found.random_top_k


def test_groups_of_test_texts_give_the_accuracies_back(asset: Path, lm: LanguageModel) -> None:
    (found,) = evaluate_sparse_probing([make_subject()], lm, HOOK_POINT, CONFIG)
    figures = figures_in(found)
    assert set(found.by_text) == set(figures)
    for name, groups in found.by_text.items():
        assert sum(groups.numerators) == pytest.approx(figures[name].value, abs=1e-9)
        assert sum(groups.denominators) == pytest.approx(1) and len(groups.numerators) == 20


def test_a_set_qualifies_where_order_tells_and_not_where_words_do(asset: Path, lm: LanguageModel) -> None:
    generator = np.random.default_rng(0)
    ordered: list[tuple[str, int]] = []
    for index in range(300):
        words = [f"w{word}" for word in generator.integers(5, 40, 14)]
        # w3 and w4 are in every text as often; which half has which is the label.
        for half in (0, 1):
            for place in generator.choice(6, 4, replace=False):
                words[8 * half + int(place)] = f"w{3 + (half + index) % 2}"
        ordered.append((" ".join(words), index % 2))
    write_set(asset, "3_order", ordered)
    write_set(asset, "4_words", telling_texts(150, seed=4))
    config = CONFIG.model_copy(
        update={"datasets": ("3_order", "4_words"), "train_size": 200, "test_size": 100, "pooling": "bands", "bands": 2}
    )
    (result,) = evaluate_sparse_probing([make_subject()], lm, HOOK_POINT, config)
    order, words = result.datasets
    assert order.qualified and not words.qualified and result.qualified == ["3_order"]
    for one in result.datasets:
        assert one.lm_over_bag.value == pytest.approx(one.lm_test_accuracy.value - one.bag_test_accuracy.value)
        assert one.tasks[0].qualified == one.qualified
    assert order.bag_test_accuracy.value < 0.65 < 0.9 < words.bag_test_accuracy.value
    assert result.pooling == "bands"


def test_a_second_sae_does_not_run_the_lm(
    asset: Path, lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(activation_cache, "default_folder", lambda: tmp_path / "cache")
    config = CONFIG.model_copy(update={"cache_gb": 1.0})
    (first,) = evaluate_sparse_probing([make_subject("one")], lm, HOOK_POINT, config)
    monkeypatch.setattr(text_activations, "activations_at", lambda *_: pytest.fail("the LM was run"))
    again, _ = evaluate_sparse_probing([make_subject("one"), make_subject("two", d_sae=40)], lm, HOOK_POINT, config)
    assert again == first
    for pooling in ("last", "bands"):
        evaluate_sparse_probing([make_subject()], lm, HOOK_POINT, config.model_copy(update={"pooling": pooling}))


def test_what_stands_beside_an_sae_is_fitted_once_and_is_the_same_from_disk(
    asset: Path, lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(activation_cache, "default_folder", lambda: tmp_path / "cache")
    kept = CONFIG.model_copy(update={"cache_gb": 1.0})
    fitted: list[int] = []
    fit = sparse_probing.fit_all

    def counting(tasks: Sequence[ProbeTask], k_values: Sequence[int]) -> Iterator[ProbeOutcome]:
        fitted.append(len(tasks))
        return fit(tasks, k_values)

    def probe(subjects: list[LoadedSAE], **changes: object) -> list[SparseProbingResult]:
        fitted.clear()
        return evaluate_sparse_probing(subjects, lm, HOOK_POINT, kept.model_copy(update=changes))

    monkeypatch.setattr(sparse_probing, "fit_all", counting)
    one, other = make_subject("one"), make_subject("other")
    with torch.no_grad():
        other.sae.b_enc += 0.1  # other weights, the same settings
    probe([one])
    assert fitted == [4, 4], "a data set of one task: the bag, the LM, the untrained SAE and the SAE"
    found = probe([other])
    assert fitted == [1, 1], "only the SAE itself"
    apart = evaluate_sparse_probing([other], lm, HOOK_POINT, CONFIG)
    assert found[0].model_copy(update={"data": apart[0].data}) == apart[0]
    probe([make_subject("wider", d_sae=40)])
    assert fitted == [2, 2], "and an untrained SAE of other settings"
    for change in ({"k_values": (1, 2)}, {"pooling": "last"}, {"seed": 7}, {"train_size": 50}, {"context_length": 8}):
        probe([one], **change)
        assert fitted == [4, 4], change


def test_outcomes_on_the_same_texts_under_other_labels_are_others(
    asset: Path, lm: LanguageModel, tmp_path: Path
) -> None:
    (split,) = load_probing_set("1_words", 60, 40, 0)
    swapped = replace(split, train=replace(split.train, labels=1 - split.train.labels))
    reader = TextReader(lm, HOOK_POINT, 16, 8, "bfloat16", ActivationCache(tmp_path, 10**6))
    ((control,),), _ = random_controls([make_subject()], seed=1)
    names = {CachedBaselines(reader, [one], CONFIG).key(what) for one in (split, swapped) for what in ("lm", control)}
    assert len(names) == 4
