"""Unlearning: clamping touches its features alone, the score has its closed form, and guessing is not knowing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from scansion.errors import EvalError
from scansion.evals import figures_in
from scansion.evals.unlearning import questions as questions_module
from scansion.evals.unlearning.answering import answer, clamp, firing_rates
from scansion.evals.unlearning.evaluate import UnlearningConfig, evaluate_unlearning, features_to_clamp
from scansion.evals.unlearning.evaluation import Unlearning
from scansion.evals.unlearning.questions import Question, UnlearningData, bundled_questions, hub_questions, lettered
from scansion.evals.unlearning.result import best_setting, held_out
from scansion.lm import HookPoint, LanguageModel, logits
from tests.conftest import WIDTH, random_contexts
from tests.evals.probing.constructed import make_subject, use_asset, write_set

POINT = HookPoint(1)


@pytest.mark.parametrize("norm", ["none", "layer_norm"])
def test_clamping_to_zero_is_ablation_and_leaves_the_error_alone(norm: str) -> None:
    sae = make_subject().sae
    sae.config = sae.config.model_copy(update={"input_norm": norm})
    x = torch.randn(2, 6, WIDTH, generator=torch.Generator().manual_seed(0))
    features = np.array([1, 4, 9])
    changed = clamp(sae, features, 0.0)(x)
    acts = sae.encode(x).detach()
    scale = x.std(dim=-1, keepdim=True) if norm == "layer_norm" else 1.0
    expected = x - acts[..., features] @ sae.W_dec.detach()[features] * scale
    torch.testing.assert_close(changed[:, 1:], expected[:, 1:])
    torch.testing.assert_close(changed[:, 0], x[:, 0])
    quiet = acts[..., features].amax(dim=-1) == 0
    torch.testing.assert_close(clamp(sae, features, -50.0)(x)[quiet], x[quiet])
    torch.testing.assert_close(clamp(sae, np.array([], dtype=int), -50.0)(x), x)


def test_features_to_clamp_fire_on_one_side_only() -> None:
    forget = np.array([0.5, 0.4, 0.0, 0.3, 0.2])
    retain = np.array([0.5, 0.001, 0.0, 0.0, 0.02])
    assert features_to_clamp(forget, retain, 0.01).tolist() == [1, 3]


def test_the_score_counts_only_what_keeps_the_rest() -> None:
    def right(*shares: float) -> np.ndarray:
        return np.array([np.arange(100) < 100 * share for share in shares])

    assert best_setting(right(0.2, 0.7, 0.9), right(0.98, 0.99, 1.0)) == 1
    assert best_setting(right(0.0), right(0.5)) is None
    assert best_setting(right(1.0), right(1.0)) is None
    assert best_setting(right(0.5, 0.6), np.ones((2, 0), bool)) == 0


def test_held_out_a_choice_among_settings_that_are_alike_adds_nothing() -> None:
    """Six settings that each forget a tenth by luck: the interval holds a tenth as often as it says."""
    generator = np.random.default_rng(0)
    found = [held_out(generator.random((6, 120)) < 0.9, np.ones((6, 40), bool), seed) for seed in range(400)]
    covered = [one.low <= 0.1 <= one.high for one in found if one and one.low is not None and one.high is not None]
    assert np.mean([one.value for one in found if one]) == pytest.approx(0.1, abs=0.01)
    assert len(covered) == 400 and 0.92 < np.mean(covered) < 0.98
    nothing = held_out(np.ones((2, 120), bool), np.ones((2, 40), bool), 0)
    assert nothing is not None and nothing.value == 0 and nothing.high == pytest.approx(0.060, abs=0.001)
    assert held_out(np.ones((2, 1), bool), np.ones((2, 40), bool), 0) is None


def test_an_answer_is_the_likeliest_choice(lm: LanguageModel) -> None:
    contexts = random_contexts(12, length=6)
    best = logits(lm, contexts, POINT)[:, -1].argmax(dim=1).tolist()
    asked, truth = [], []
    for row, word in zip(contexts.tokens.tolist(), best, strict=True):
        if word < 3:
            continue
        others = tuple(f"w{w}" for w in range(3, 9) if w != word)[:2]
        asked.append(Question(" ".join(f"w{t}" for t in row[1:]), (*others, f"w{word}"), len(asked) % 3))
        truth.append(asked[-1].answer == 2)
    assert any(truth) and not all(truth)
    for batch in (1, 5):
        assert answer(lm, POINT, asked, batch).tolist() == truth
    assert answer(lm, POINT, asked, 4, lambda x: x).tolist() == truth


def test_rates_are_firings_a_token(lm: LanguageModel) -> None:
    sae = make_subject().sae
    with torch.no_grad():
        sae.b_enc[0], sae.b_enc[1] = 1e6, -1e6
    (rates,) = firing_rates(["w5 w6", "w7 w8 w9"], lm, POINT, [sae], 16, 1)
    assert (rates[0], rates[1]) == (1.0, 0.0) and 0 < rates.mean() < 1
    (batched,) = firing_rates(["w5 w6", "w7 w8 w9"], lm, POINT, [sae], 16, 2)
    np.testing.assert_allclose(batched, rates)


@pytest.fixture
def asset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    use_asset(monkeypatch, tmp_path)
    write_set(
        tmp_path,
        questions_module.SCIENCE,
        [(f"Q: w{i % 30 + 5} w{i // 30 + 5}\nA: w{i % 40 + 5}", i % 2) for i in range(120)],
    )
    write_set(
        tmp_path,
        questions_module.PHYSICAL,
        [(f"w{i % 30 + 5} w{i // 30 + 5}\n\nA.w{i % 7 + 5}\nB.w{i % 9 + 20}", i % 2) for i in range(120)],
    )
    return tmp_path


def test_the_stand_in_asks_fair_questions(asset: Path) -> None:
    data = bundled_questions(20, 10, seed=0)
    assert "stand in for WMDP" in data.note
    for one in data.forget_questions:
        assert len(set(one.choices)) == len(one.choices) == 4
    for one in data.retain_questions:
        assert one.choices[0].startswith(" w") and one.answer in (0, 1)
    assert {one.answer for one in data.forget_questions} == {0, 1, 2, 3}
    asked = {one.prompt + one.choices[one.answer] for one in data.forget_questions}
    assert asked.isdisjoint(data.forget_texts)
    assert data == bundled_questions(20, 10, seed=0) != bundled_questions(20, 10, seed=1)


def test_lettered_questions_are_answered_by_letter() -> None:
    one = lettered("Which?", ["this", "that", "those", "none"], 2, "biology")
    assert one.choices == (" A", " B", " C", " D") and one.answer == 2
    assert "C. those" in one.prompt and one.prompt.endswith("Answer:")


def test_hub_sets_are_read_by_their_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    seen: list[tuple[str, str, str]] = []

    def load(path: str, name: str, split: str) -> list[dict[str, object]]:
        seen.append((path, name, split))
        return [{"question": f"{name}?", "choices": ["a", "b", "c", "d"], "answer": 3}] * 3

    monkeypatch.setattr(datasets, "load_dataset", load)
    (tmp_path / "texts.txt").write_text("some text")
    config = UnlearningConfig(
        source="hub",
        forget_corpus={"source": str(tmp_path / "texts.txt")},
        retain_corpus={"source": str(tmp_path / "texts.txt")},
    )
    data = hub_questions("wmdp-bio", ("human_aging",), 2, config.forget_corpus, config.retain_corpus)
    assert seen == [("cais/mmlu", "human_aging", "test"), ("cais/wmdp", "wmdp-bio", "test")]
    assert len(data.forget_questions) == len(data.retain_questions) == 2
    assert data.forget_texts == ["some text"] and "about biology" in data.forget_questions[0].prompt

    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(EvalError, match=r"no route.*use the stand-in"):
        hub_questions("wmdp-bio", ("human_aging",), 2, config.forget_corpus, config.retain_corpus)


def test_a_model_that_guesses_gets_no_score_and_one_that_knows_does(
    asset: Path, lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = UnlearningConfig(n_questions=20, n_texts=10, n_features=(2,), multipliers=(0.0,), context_length=32)
    (guessed,) = evaluate_unlearning([make_subject()], lm, POINT, config)
    assert guessed.status == "inapplicable" and "not clearly more than guessing" in guessed.reasons[0]
    assert guessed.score is None and not figures_in(guessed)
    data = bundled_questions(20, 10, seed=0)

    def known(asked: list[Question]) -> list[Question]:
        # The same questions, the model's own answers taken for right.
        right = [
            [bool(answer(lm, POINT, [Question(q.prompt, q.choices, i)], 8)[0]) for i in range(len(q.choices))]
            for q in asked
        ]
        return [Question(q.prompt, q.choices, r.index(True)) for q, r in zip(asked, right, strict=True)]

    easy = UnlearningData(
        known(data.forget_questions),
        known(data.retain_questions),
        data.forget_texts,
        data.retain_texts,
        "made up",
        "note",
    )
    monkeypatch.setattr("scansion.evals.unlearning.evaluate.bundled_questions", lambda *_: easy)
    (result,) = evaluate_unlearning([make_subject()], lm, POINT, config)
    assert (result.status, result.forget_accuracy, result.retain_accuracy) == ("ok", 1.0, 1.0)
    (setting,) = result.interventions
    assert result.score == pytest.approx(1 - setting.forget_kept if setting.retain_kept >= 0.99 else 0.0)
    metrics = Unlearning(config).saebench(result, make_subject())["eval_result_metrics"]
    assert metrics["unlearning"]["unlearning_score"] == result.score
    assert result.notes == ["note"]
    half = replace(easy, retain_questions=data.retain_questions)
    monkeypatch.setattr("scansion.evals.unlearning.evaluate.bundled_questions", lambda *_: half)
    (unsure,) = evaluate_unlearning([make_subject()], lm, POINT, config)
    assert unsure.status == "ok" and "that it should keep, not clearly more than guessing" in unsure.notes[1]


def test_features_drawn_at_random_are_clamped_for_comparison(
    asset: Path, lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that knows all, and forgets half of the science once any feature is set to -7."""
    clamped: list[tuple[list[int], float]] = []

    def pretend(sae: object, features: np.ndarray, value: float) -> tuple[list[int], float]:
        clamped.append((features.tolist(), value))
        return clamped[-1]

    def answered(lm: object, point: object, asked: list[Question], batch: int, what: object, advance: object) -> object:
        science = len(asked[0].choices) == 4
        forgotten = science and isinstance(what, tuple) and what[1] == -7.0
        return np.arange(len(asked)) % 2 == 0 if forgotten else np.ones(len(asked), bool)

    monkeypatch.setattr("scansion.evals.unlearning.evaluate.clamp", pretend)
    monkeypatch.setattr("scansion.evals.unlearning.evaluate.answer", answered)
    config = UnlearningConfig(
        n_questions=20,
        n_texts=10,
        n_features=(2, 3),
        multipliers=(0.0, 7.0),
        retain_thresholds=(1.0,),
        context_length=32,
    )
    (result,) = evaluate_unlearning([make_subject()], lm, POINT, config)
    assert result.score == 0.5
    assert result.held_out is not None and result.held_out.value == 0.5
    assert result.control is not None and result.control.multiplier == 7.0
    chosen, (drawn, value) = result.interventions[1].features, clamped[-1]
    assert result.control.features == drawn and value == -7.0 and len(drawn) == 2
    assert set(drawn).isdisjoint(chosen)
    assert not set(drawn) <= set(result.interventions[3].features), "drawn, not the next by rank"
    assert figures_in(result)["unlearning_control"].value == 0.5
