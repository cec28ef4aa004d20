"""Batches follow the length of a run, and a run of few steps is said to be short before it, in it and after it."""

from __future__ import annotations

from pathlib import Path

import pytest

from scansion.activations import ActivationStore
from scansion.sae import TopKConfig
from scansion.study.compare.comparison import SHORT_NOTE, compare
from scansion.study.compare.tables import lines_below, write_comparison
from scansion.study.final_info import ArmInfo
from scansion.training import TrainingConfig, TrainingRun, train
from scansion.training.config import LARGEST_BATCH, SHORT_STEPS, SMALLEST_BATCH, is_short

POSITIONS = 127


@pytest.mark.parametrize("tokens", [SHORT_STEPS * POSITIONS, 200_000, 1_000_000, 5_000_000, 50_000_000, 10**9])
def test_the_default_batch_makes_no_run_short_that_need_not_be(tokens: int) -> None:
    config = TrainingConfig(tokens=tokens)
    batch = config.per_position(POSITIONS) * POSITIONS
    assert config.short_warning(POSITIONS) is None and not is_short(config.n_steps(batch))
    assert 0.5 * SMALLEST_BATCH < batch < 1.5 * LARGEST_BATCH


def test_longer_runs_have_larger_batches_and_a_given_batch_is_kept() -> None:
    batches = [TrainingConfig(tokens=n).per_position(1) for n in (1_000, 200_000, 1_000_000, 4_000_000, 10**8)]
    assert batches == sorted(batches) and batches[0] == SMALLEST_BATCH and batches[-1] == LARGEST_BATCH
    assert TrainingConfig(tokens=200_000, batch_tokens=1024).per_position(1) == 1024
    assert TrainingConfig(batch_tokens=5).per_position(POSITIONS) == 1


@pytest.mark.parametrize(("tokens", "batch"), [(200_000, 2048), (126_000, None), (300, None), (998_000, 1024)])
def test_what_the_warning_says_would_be_enough_is_enough(tokens: int, batch: int | None) -> None:
    config = TrainingConfig(tokens=tokens, batch_tokens=batch)
    warning = config.short_warning(POSITIONS)
    assert warning is not None and "marked short" in warning
    numbers = [int(word.replace(",", "")) for word in warning.split("; ")[1].split() if word[0].isdigit()]
    for key, value in zip(("batch_tokens", "tokens") if len(numbers) == 2 else ("tokens",), numbers, strict=True):
        longer = config.model_copy(update={key: value})
        assert longer.short_warning(POSITIONS) is None, (key, value)


def test_nothing_is_said_of_a_run_that_takes_no_step() -> None:
    assert TrainingConfig(tokens=0).short_warning(POSITIONS) is None
    assert not is_short(None) and not is_short(0) and is_short(1) and not is_short(SHORT_STEPS)


def test_training_says_so_first(store: ActivationStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = TrainingConfig(tokens=900, batch_tokens=30, device="cpu")
    train([TrainingRun("few", tmp_path / "few", TopKConfig(d_sae=8, k=2), settings)], store)
    said = capsys.readouterr().err
    assert "few: " in said and "fewer than 1,000, and the run will be marked short" in said


def test_tables_mark_short_runs_and_those_of_earlier_versions_too(tmp_path: Path) -> None:
    def info(steps: int, fve: float) -> ArmInfo:
        provenance = {"steps": steps, "tokens": 100, "model": "m", "model_revision": "r"}
        return ArmInfo(means={"fve": fve}, values={"fve": [fve]}, seeds=[0], status="ok", provenance=provenance)

    short, whole = info(99, 0.5), info(5000, 0.6)
    assert short.remarks == ["short: 99 training steps, fewer than 1,000"] and short.is_short
    assert whole.remarks == [] and not whole.is_short
    # final_info.json of an earlier version has no remarks; what it says of steps is enough.
    earlier = ArmInfo.model_validate({k: v for k, v in short.model_dump().items() if k != "remarks"})
    assert earlier == short == ArmInfo.model_validate(short.model_dump())
    comparison = compare({"few": short, "many": whole})
    assert [arm.label for arm in comparison.arms] == ["few (short)", "many"]
    assert SHORT_NOTE in lines_below(comparison)
    text = write_comparison(comparison, {"few": short, "many": whole}, tmp_path)[0].read_text()
    assert "| few (short) |" in text and "| many |" in text and SHORT_NOTE in text
    assert SHORT_NOTE not in lines_below(compare({"many": whole}))
