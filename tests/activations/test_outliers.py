"""Outlier tokens are found whatever their number of contexts, and how much of the variance they hold is right."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scansion.activations import ActivationStore
from scansion.activations.outliers import NORMS, TokenExclusion
from tests.outliers import N_CONTEXTS, SHARE, WORD, outlier_store


def test_one_word_of_huge_norm_is_found_and_position_0_is_apart(tmp_path: Path) -> None:
    store = outlier_store(tmp_path)
    outliers = store.outliers
    assert torch.equal(outliers.mask, store.tokens == WORD)
    assert outliers.token_share == pytest.approx(SHARE, rel=0.01)
    assert outliers.ids == (WORD,)
    x = store.contexts(0, N_CONTEXTS).x[1:].double().flatten(0, 1)
    out = outliers.mask[1:].flatten()
    variance = (x - x.mean(dim=0)).square().sum(dim=1)
    assert outliers.variance_share == pytest.approx(float(variance[out].sum() / variance.sum()), rel=1e-9)
    assert outliers.variance_share > 0.99


def test_ordinary_activations_have_no_outliers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outliers = outlier_store(tmp_path, factor=1.0).outliers
    assert not outliers.mask.any() and outliers.variance_share == 0.0
    outliers.warn(tmp_path)
    assert not capsys.readouterr().err


def test_more_than_a_tenth_of_the_variance_is_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outlier_store(tmp_path).outliers.warn(tmp_path)
    err = " ".join(capsys.readouterr().err.split())
    assert "0.8% of the tokens and hold 99% of the variance" in err and f"ids are {WORD}" in err


def test_norms_are_kept_checked_and_computed_again_when_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    norms = outlier_store(tmp_path).norms
    torch.testing.assert_close(norms, ActivationStore(tmp_path).contexts(0, N_CONTEXTS).x.double().norm(dim=2))
    file = tmp_path / NORMS
    kept = file.read_bytes()
    file.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    assert torch.equal(ActivationStore(tmp_path).norms, norms)
    assert "norms.safetensors" in capsys.readouterr().err
    assert file.read_bytes() == kept
    other = outlier_store(tmp_path / "other", seed=1)
    assert not torch.equal(other.norms, norms)
    file.write_bytes((tmp_path / "other" / NORMS).read_bytes())
    assert torch.equal(ActivationStore(tmp_path).norms, norms)


def test_a_store_that_is_not_writable_has_outliers_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = outlier_store(tmp_path)

    def refuse(*_: object) -> None:
        raise OSError("read-only file system")

    monkeypatch.setattr("scansion.activations.outliers.save_tensors", refuse)
    assert store.outliers.mask.any() and not (tmp_path / NORMS).exists()


def test_outliers_and_ids_are_excluded_together(tmp_path: Path) -> None:
    store = outlier_store(tmp_path)
    assert TokenExclusion().excluded(store) is None and not TokenExclusion().model_dump()
    out = TokenExclusion(exclude="outliers", exclude_tokens=(9, 10)).excluded(store)
    assert out is not None
    assert torch.equal(out, torch.isin(store.tokens, torch.tensor([WORD, 9, 10])))
