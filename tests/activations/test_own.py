"""Activations of one's own become a store like any other, whatever form they come in, or are refused in a line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from scansion.activations import ActivationStore, TokenExclusion
from scansion.errors import ShapeError, StoreError

C, L, D = 11, 6, 4
pytestmark = pytest.mark.usefixtures("as_users_run_it")


@pytest.fixture
def acts() -> torch.Tensor:
    return torch.randn(C, L, D, generator=torch.Generator().manual_seed(0))


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_tensor_is_stored_by_position(acts: torch.Tensor, tmp_path: Path) -> None:
    store = ActivationStore.from_tensors(acts, tmp_path / "x", shard_bytes=3 * L * D * 4)
    assert len(store.manifest.shards) == 4
    assert store.contexts(0, C).x.equal(acts.transpose(0, 1))
    assert bool(store.valid.all()) and store.doc_ids[0].tolist() == list(range(C))
    assert store.doc_positions[:, 0].tolist() == list(range(L)) and not bool(store.tokens.any())
    store.verify()
    assert not store.identity.has_lm and store.identity.split == "train"


def test_every_form_gives_the_same_store(acts: torch.Tensor, tmp_path: Path) -> None:
    ragged = [acts[i, : 2 + i % (L - 1)] for i in range(C)]
    lengths = torch.tensor([len(each) for each in ragged])
    padded = acts.clone()
    padded[:, max(lengths) :] = 0
    valid = torch.arange(max(lengths)) < lengths[:, None]
    padded = padded[:, : max(lengths)]
    tokens = torch.arange(C * L).view(C, L)
    documents = torch.arange(C) // 2
    whole = {"tokens": tokens[:, : max(lengths)], "documents": documents}
    made = [
        ActivationStore.from_tensors(ragged, tmp_path / "ragged", tokens=[t[:n] for t, n in zip(tokens, lengths, strict=True)],
                                     documents=documents),
        ActivationStore.from_tensors(padded, tmp_path / "padded", valid=valid, **whole),
        ActivationStore.from_tensors(padded.numpy(), tmp_path / "array", valid=valid.numpy(), **whole),
        ActivationStore.from_tensors(padded.split(3), tmp_path / "tuple", valid=valid, **whole),
        ActivationStore.from_tensors(iter(padded.split(3)), tmp_path / "chunks", valid=valid, shard_bytes=200, **whole),
    ]  # fmt: skip
    for store in made:
        assert store.identity == made[0].identity
        assert store.contexts(0, C).x.equal(made[0].contexts(0, C).x)
        for name in ("valid", "tokens", "doc_ids", "doc_positions"):
            assert torch.equal(getattr(store, name), getattr(made[0], name))
    assert made[0].valid.sum(dim=0).tolist() == lengths.tolist()
    assert files_of(tmp_path / "ragged") == files_of(tmp_path / "padded")


def test_positions_are_where_tokens_are_stored(acts: torch.Tensor, tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(1)
    positions = torch.stack([torch.randperm(10, generator=draw)[:L] for _ in range(C)])
    tokens = torch.arange(C * L).view(C, L)
    store = ActivationStore.from_tensors(acts, tmp_path / "x", positions=positions, tokens=tokens, dtype="bfloat16")
    assert store.n_positions == int(positions.max()) + 1 and store.identity.dtype == "bfloat16"
    x = store.contexts(0, C).x
    for context in range(C):
        assert x[positions[context], context].equal(acts[context].bfloat16())
        assert store.tokens[positions[context], context].equal(tokens[context].int())
    assert int(store.valid.sum()) == C * L


def test_the_same_again_is_the_same_and_others_are_refused(acts: torch.Tensor, tmp_path: Path) -> None:
    ActivationStore.from_tensors(acts, tmp_path / "x")
    before = files_of(tmp_path / "x")
    ActivationStore.from_tensors(acts, tmp_path / "x")
    assert files_of(tmp_path / "x") == before
    for others, settings in ((acts + 1, {}), (acts, {"tokens": torch.ones(C, L)}), (acts, {"name": "others"})):
        with pytest.raises(StoreError, match="holds other activations"):
            ActivationStore.from_tensors(others, tmp_path / "x", **settings)
    assert files_of(tmp_path / "x") == before
    (tmp_path / "y").mkdir()
    (tmp_path / "y/thesis.txt").write_text("all of it")
    with pytest.raises(StoreError, match="not empty and holds no store"):
        ActivationStore.from_tensors(acts, tmp_path / "y")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "y"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"acts": torch.zeros(3, 4)}, r"shape \[3, 4\]; expected \[contexts, positions, width\]"),
        ({"acts": [torch.zeros(4)]}, r"expected a tensor \[positions, width\] for each context"),
        ({"acts": [torch.zeros(4, 3), torch.zeros(4, 2)]}, "d_in"),
        ({"acts": iter([torch.zeros(4, 3, 2), torch.zeros(4, 3, 1)])}, "width 1, and those before it 3 of width 2"),
        ({"acts": []}, "holds no context"),
        ({"acts": torch.zeros(2, 3, 4), "valid": torch.zeros(2, 3, dtype=torch.bool)}, "holds no valid token"),
        ({"acts": torch.zeros(2, 3, 0)}, "acts has 3 positions of width 0; expected at least 1"),
        ({"positions": torch.arange(L).expand(C, L) + 0.5}, "positions holds fractions"),
        ({"acts": torch.zeros(2, 3, 4, dtype=torch.complex64)}, "expected real numbers"),
        ({"positions": torch.zeros(C, L, dtype=torch.int64)}, "context 0 has two tokens at one position"),
        ({"positions": -torch.arange(C * L).view(C, L)}, "positions has"),
        ({"tokens": torch.zeros(C - 1, L)}, "tokens has the shape"),
        ({"tokens": torch.zeros(C + 1, L)}, f"tokens has {C + 1} contexts, and acts has {C}"),
        ({"tokens": torch.zeros(C, L + 1)}, "of up to 6 positions"),
        ({"tokens": torch.full((C, L), 2**40)}, "expected 0 to"),
        ({"documents": -torch.ones(C)}, "documents has -1"),
        ({"acts": torch.full((2, 3, 4), torch.nan)}, "not all activations of contexts 0 to 1 are finite"),
    ],
)
def test_what_does_not_fit_is_said_in_a_line(changes: dict, message: str, acts: torch.Tensor, tmp_path: Path) -> None:
    with pytest.raises((ShapeError, StoreError), match=message) as caught:
        ActivationStore.from_tensors(**{"acts": acts, "folder": tmp_path / "x", **changes})
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


def test_tokens_can_be_left_out_by_their_ids(acts: torch.Tensor, tmp_path: Path) -> None:
    store = ActivationStore.from_tensors(np.asarray(acts), tmp_path / "x", tokens=torch.arange(L).expand(C, L))
    out = TokenExclusion(exclude_tokens=(2,)).excluded(store)
    assert out is not None and out.sum(dim=1).tolist() == [0, 0, C, 0, 0, 0]


def test_the_command_line_trains_and_measures_on_it(run, tmp_path: Path) -> None:
    import examples.own_activations as example

    result = example.main(tmp_path)
    assert result.status == "ok" and result.fve.value > 0.7
    stores = tmp_path / "stores"
    status, out, err = run("train", "--store", stores / "train", "--out", tmp_path / "plain", "--use-position-0",
                           "--d-sae", 48, "--k", 4, "--tokens", 20_000, "--batch-tokens", 600, "--device", "cpu")  # fmt: skip
    assert status == 0, err
    status, out, err = run("eval", tmp_path / "run", tmp_path / "plain", "--held-out", stores / "held_out", "--device",
                           "cpu", "--evaluations", "core,position", "--settings", "position: {null_draws: 20, groups: 4}",
                           "--report", tmp_path / "report")  # fmt: skip
    assert status == 0, err
    assert "FVE" in out and "bands" in out and (tmp_path / "report/index.html").stat().st_size > 10_000
    status, _, err = run("eval", tmp_path / "run", "--held-out", stores / "held_out", "--evaluations", "sparse_probing")
    assert status == 2 and "given as tensors, for which there is neither text nor" in err and err.count("\n") == 1
    (stores / "train/shard-00000.safetensors").write_bytes(b"")
    status, _, err = run("doctor", stores / "train", "--repair")
    assert status == 2 and "activations of your own; delete it and write it again" in err
