"""Outlier tokens are found whatever their number of contexts, and how much of the variance they hold is right."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scansion.activations import ActivationStore, ActivationStream
from scansion.activations.outliers import NORMS, TokenExclusion
from scansion.errors import StoreError
from tests.outliers import D_IN, LENGTH, N_CONTEXTS, SHARE, WORD, outlier_store


def test_one_word_of_huge_norm_is_found_and_position_0_is_apart(tmp_path: Path) -> None:
    store = outlier_store(tmp_path)
    outliers = store.outliers
    assert torch.equal(outliers.mask, store.tokens == WORD)
    assert outliers.token_share == pytest.approx(SHARE, rel=0.01)
    assert outliers.most_frequent == (WORD, 1.0)
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


def test_more_than_a_tenth_of_the_variance_is_said_in_a_line_or_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outlier_store(tmp_path).outliers.warn(tmp_path)
    err = " ".join(capsys.readouterr().err.split())
    assert "0.8% of the tokens and hold 99% of the variance" in err and f"100% with the id {WORD}" in err
    assert "docs/evaluations.md" in err
    assert len(err) - len(str(tmp_path)) < 2 * 80


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
    assert torch.equal(ActivationStore(tmp_path).norms, norms) and not capsys.readouterr().err
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


def test_excluded_tokens_are_never_drawn_and_every_position_has_equally_many(tmp_path: Path) -> None:
    store = outlier_store(tmp_path)
    excluded = TokenExclusion(exclude="outliers", exclude_tokens=(9,)).excluded(store)
    assert excluded is not None
    stream = ActivationStream(store, per_position=30, seed=0, excluded=excluded)
    drawn = stream.store.norms.new_zeros(LENGTH, N_CONTEXTS)
    by_norm = {round(float(norm), 9): at for at, norm in zip(*_cells(store), strict=True)}
    for step in range(20):
        batch = stream.batch(step)
        assert batch.x.shape == (LENGTH - 1, 30, D_IN)
        for norm in batch.x.double().norm(dim=2).flatten().tolist():
            drawn[by_norm[round(norm, 9)]] += 1
    assert not drawn[excluded].any() and not drawn[0].any()
    # 600 draws without replacement from fewer than 500 tokens: every other token once or twice.
    assert set(drawn[1:][~excluded[1:]].tolist()) == {1.0, 2.0}
    assert torch.equal(stream.batch(7).x, ActivationStream(store, 30, 0, in_memory=False, excluded=excluded).batch(7).x)


def _cells(store: ActivationStore) -> tuple[list[tuple[int, int]], list[float]]:
    cells = [(p, c) for p in range(LENGTH) for c in range(N_CONTEXTS)]
    return cells, store.norms.flatten().tolist()


def test_means_are_of_the_tokens_that_are_drawn_and_the_scale_is_without_outliers(tmp_path: Path) -> None:
    store = outlier_store(tmp_path)
    x, out = store.contexts(0, N_CONTEXTS).x.double(), store.outliers.mask
    excluded = TokenExclusion(exclude_tokens=(9, 10, 11)).excluded(store)
    assert excluded is not None
    stream = ActivationStream(store, 4, seed=0, excluded=excluded)
    expected = torch.stack([x[p][~excluded[p]].mean(dim=0) for p in range(1, LENGTH)])
    torch.testing.assert_close(stream.mean_by_position, expected.float())
    ordinary = torch.stack([x[p][~(excluded | out)[p]].norm(dim=1).mean() for p in range(1, LENGTH)])
    assert stream.input_scale == pytest.approx(1 / float(ordinary.mean()), rel=1e-9)
    assert stream.input_scale_with_outliers < stream.input_scale / 5


def test_the_scale_of_a_store_without_outliers_is_that_of_all_tokens(tmp_path: Path) -> None:
    stream = ActivationStream(outlier_store(tmp_path, factor=1.0), 4, seed=0)
    assert stream.input_scale == stream.input_scale_with_outliers == 1 / float(stream.store.mean_norm[1:].mean())


def test_a_position_whose_tokens_are_all_excluded_is_not_used(tmp_path: Path) -> None:
    store = outlier_store(tmp_path)
    excluded = torch.zeros_like(store.valid)
    excluded[3] = True
    assert ActivationStream(store, 4, seed=0, excluded=excluded).positions.tolist() == [1, 2, *range(4, LENGTH)]
    with pytest.raises(StoreError, match="no token that is not left out"):
        ActivationStream(store, 4, seed=0, excluded=torch.ones_like(store.valid))


def test_ids_that_the_store_lacks_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert TokenExclusion(exclude_tokens=(999_999,)).excluded(outlier_store(tmp_path)) is None
    assert "has no token with the id 999999, which is to be left out" in capsys.readouterr().err
