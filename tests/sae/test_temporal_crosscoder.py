"""A temporal crosscoder's windows are those of the context, wherever tokens come from; a missing token is never overlooked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import scansion
from scansion.activations import ActivationStream, PositionedBatch
from scansion.attaching import attach
from scansion.distributed.division import division_of
from scansion.errors import ConfigError, ShapeError
from scansion.evals.core.evaluate import CoreConfig, evaluate_core
from scansion.evals.reading.contexts import read_contexts
from scansion.evals.registry import evaluations
from scansion.execution.sparse import encode_sparse
from scansion.interop import write_saelens
from scansion.lm import HookPoint, activations_at
from scansion.masks import BandMaskConfig, RandomHardMaskConfig
from scansion.sae import SAE, TemporalCrosscoderConfig, TopKConfig, build_sae, load_sae, save_sae
from scansion.training import TrainingConfig, TrainingRun, train
from scansion.training.learner import require_memory
from tests.conftest import WIDTH, make_lm, random_contexts
from tests.evals.core.test_core import subject  # noqa: F401  a fixture
from tests.execution.curves import losses_of, require_same_as_dense
from tests.interop.made import metadata

L, D_IN, W = 12, 8, 3
MASKS = {
    "none": {},
    "bands": {"mask": BandMaskConfig(count=4, shared=0.25)},
    "hard": {"mask": RandomHardMaskConfig(positions_per_feature=4)},
    "slices": {"mask": BandMaskConfig(preset="static_slicing", count=4)},
}


def crosscoder(mask: str = "none", d_in: int = D_IN, length: int = L, seed: int = 0) -> SAE:
    config = TemporalCrosscoderConfig(d_sae=32, k=4, window=W, **MASKS[mask])
    generator = torch.Generator().manual_seed(seed)
    sae = build_sae(config, d_in, length, generator)
    with torch.no_grad():
        sae.b_dec.copy_(0.1 * torch.randn(sae.b_dec.shape, generator=generator))
    return sae.eval()


def by_hand(contexts: torch.Tensor) -> torch.Tensor:
    """The windows of contexts [B, L, d]: from the token itself back, never past position 1."""
    rows = []
    for context in contexts:
        for p in range(len(context)):
            window = [context[p - back] if back == 0 or p - back >= 1 else torch.zeros(D_IN) for back in range(W)]
            rows.append(torch.cat(window))
    return torch.stack(rows).view(*contexts.shape[:2], W * D_IN)


@pytest.mark.parametrize("mask", MASKS)
def test_whichever_axis_is_the_context_the_codes_are_those_of_its_windows(mask: str) -> None:
    sae, x = crosscoder(mask), torch.randn(5, L, D_IN, generator=torch.Generator().manual_seed(1))
    at = torch.arange(L)
    with torch.no_grad():
        expected = sae.masked_acts(by_hand(x), at).acts
        by_position = x.transpose(0, 1).contiguous()
        found = {
            "contexts first": sae.encode(x, at),
            "one context": torch.stack([sae.encode(context) for context in x]),
            "positions first": sae.encode(by_position, at[:, None]).transpose(0, 1),
            "a batch of a store": sae.encode(PositionedBatch(by_position, at)).transpose(0, 1),
            "windows": sae.encode(by_hand(x), at),
        }
        texts = sae.encode(x[:, 1:].flatten(0, 1), at[1:].repeat(5))  # one after another, without position 0
    for name, acts in found.items():
        torch.testing.assert_close(acts, expected, msg=lambda m, n=name: f"{n}: {m}")
    torch.testing.assert_close(texts.view(5, L - 1, -1), expected[:, 1:])
    entries = encode_sparse(sae, x, at)
    if entries is not None:
        dense = torch.zeros(5 * L, 32)
        dense[entries.tokens, entries.features] = entries.values
        torch.testing.assert_close(dense.view(5, L, -1), expected)


def test_a_code_depends_on_its_window_and_on_nothing_else() -> None:
    sae, x = crosscoder(), torch.randn(L, D_IN, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        plain = sae.encode(x)
        for changed in range(L):
            other = x.clone()
            other[changed] += 1.0
            moved = (sae.encode(other) != plain).any(dim=1).nonzero().squeeze(1).tolist()
            assert set(moved) <= ({0} if changed == 0 else set(range(changed, changed + W)))
            assert changed in moved


def test_what_is_outside_the_window_counts_for_nothing_even_if_it_is_no_number() -> None:
    sae, x = crosscoder(), torch.randn(L, D_IN, generator=torch.Generator().manual_seed(1))
    other = x.clone()
    other[0] = torch.nan  # as padding may be, which is at position 0
    with torch.no_grad():
        assert torch.equal(sae.encode(other)[1:], sae.encode(x)[1:])


@pytest.mark.parametrize(
    ("shape", "positions"),
    [
        ((5,), torch.full((5,), 4)),  # single tokens
        ((5, 3), torch.tensor([4, 5, 6])),  # the middle of contexts
        ((4, L), torch.arange(L).flip(0)),
        ((3,), torch.tensor([1, 3, 4])),
    ],
)
def test_a_token_without_those_before_it_is_refused(shape: tuple[int, ...], positions: torch.Tensor) -> None:
    with pytest.raises(ShapeError, match="reads each token with those before it, and here some are missing"):
        crosscoder().encode(torch.randn(*shape, D_IN), positions)


def test_positions_are_needed_to_find_the_context() -> None:
    with pytest.raises(ShapeError, match=r"positions are needed: this SAE reads windows of 3 tokens.*\[4, 12, 8\]"):
        crosscoder().encode(torch.randn(4, L, D_IN))
    with pytest.raises(ConfigError, match="a window of 3 tokens does not fit in contexts of 2"):
        crosscoder(length=2)


def test_a_stream_returns_the_windows_of_the_tokens_it_draws(store) -> None:
    sae = crosscoder(d_in=WIDTH, length=8)
    batch = ActivationStream(store, 4, seed=0, n_previous=W - 1).batch(2)
    whole = store.contexts(0, store.n_contexts)
    everywhere = sae.read_batch(whole)
    for row, position in zip(sae.read_batch(batch).x, batch.positions.tolist(), strict=True):
        for window in row:
            context = (whole.x[position] == window[:WIDTH]).all(dim=1).nonzero()[0, 0]
            assert torch.equal(window, everywhere.x[position, context])
    with pytest.raises(ShapeError, match=r"need the 2 tokens before each one, and this batch has 1: .*n_previous=2"):
        sae.encode(ActivationStream(store, 4, seed=0, n_previous=1).batch(2))
    with pytest.raises(ShapeError, match="and this batch has 0"):
        sae.encode(ActivationStream(store, 4, seed=0).batch(2))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("positions", [[5, 6, 7], [1, 3, 4, 7], [0, 2]])
def test_evaluations_may_skip_positions_that_its_windows_read(store, mask: str, positions: list[int]) -> None:
    """From position 5 on (``first_position``), or without one where every token is left out (``exclude_tokens``)."""
    sae = crosscoder(mask, WIDTH, length=8)
    every = torch.cat([part.encode(sae) for part in read_contexts(store, torch.arange(8), 9, 4)], dim=1)
    used = torch.cat([part.encode(sae) for part in read_contexts(store, torch.tensor(positions), 9, 4)], dim=1)
    torch.testing.assert_close(used, every[positions])
    assert used.any()


@pytest.mark.parametrize("mask", MASKS)
def test_the_fast_ways_train_it_as_the_dense_form_does(mask: str) -> None:
    fast, dense = crosscoder(mask).train(), crosscoder(mask).train()
    x = by_hand(torch.randn(6, L, D_IN, generator=torch.Generator().manual_seed(3))).transpose(0, 1).contiguous()
    dead = torch.zeros(32, dtype=torch.bool)
    dead[::5] = True
    found = losses_of(fast, x, torch.arange(L), dead, way="sparse")
    require_same_as_dense(found, losses_of(dense, x, torch.arange(L), dead, way="dense"), fast, dense)


def test_it_learns_what_single_tokens_do_not_show(tmp_path: Path) -> None:
    """A feature of the token before is in the code of this one; and each token is reconstructed from its own window."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(24, 16, generator=generator), dim=1)
    # Each run of three tokens has one event; what it looks like depends on its place in the run.
    event = torch.randint(8, (400, 5), generator=generator)
    place = torch.arange(15) % 3
    which = event.repeat_interleave(3, dim=1) * 3 + place
    contexts = directions[which] + 0.02 * torch.randn(400, 15, 16, generator=generator)
    stores = [
        scansion.ActivationStore.from_tensors(some, tmp_path / name, split=name)
        for name, some in (("train", contexts[:300]), ("held_out", contexts[300:]))
    ]
    training = TrainingConfig(tokens=40_000, batch_tokens=56, lr=3e-3, use_position_0=False, device="cpu")
    runs = [
        TrainingRun("window", tmp_path / "window", TemporalCrosscoderConfig(d_sae=48, k=2, window=3), training),
        TrainingRun("token", tmp_path / "token", TopKConfig(d_sae=48, k=2), training),
    ]
    train(runs, stores[0])
    loaded = [scansion.LoadedSAE(run.name, *load_sae(run.folder)) for run in runs]
    window, token = evaluate_core(loaded, stores[1], None, CoreConfig(loss_contexts=0))
    assert window.fve.value > 0.9 and token.fve.value > 0.9
    assert window.by_position["fve"][5] > 0.9
    # Where a run has ended, its last window holds one event: one feature can say which. Single tokens need three.
    sae = loaded[0].sae
    with torch.no_grad():
        codes = sae.encode(contexts[300:], torch.arange(15))[:, 5]
    main = codes.argmax(dim=1)
    for event_ in range(8):
        mine = main[event[300:, 1] == event_]
        assert (mine == mine.mode().values).float().mean() > 0.8


def test_it_is_saved_and_loaded_with_its_window(tmp_path: Path) -> None:
    sae, x = crosscoder("bands"), torch.randn(3, L, D_IN)
    save_sae(sae, tmp_path / "sae", metadata())
    again, _ = load_sae(tmp_path / "sae")
    assert again.d_in == D_IN and again.window == W and again.d_read == W * D_IN
    with torch.no_grad():
        assert torch.equal(again(x, torch.arange(L)), sae(x, torch.arange(L)))
    assert sae(x, torch.arange(L)).shape == x.shape and sae.directions.shape == (32, D_IN)


def test_each_place_of_the_window_starts_at_the_mean_of_its_tokens() -> None:
    sae, means = crosscoder(), torch.randn(L - 1, D_IN)
    sae.start_at(means, torch.arange(1, L))
    expected = [means.mean(dim=0), *(means[: L - 1 - back].sum(dim=0) / (L - 1) for back in (1, 2))]
    torch.testing.assert_close(sae.b_dec.detach(), torch.cat(expected))


def test_in_a_running_model_it_sees_whole_contexts() -> None:
    lm, contexts = make_lm("llama"), random_contexts(3)
    sae = crosscoder(d_in=WIDTH, length=8)
    sae.provenance = metadata()
    with attach(lm.model, sae) as seen, torch.no_grad():
        lm.model(input_ids=contexts.tokens.long())
    x = activations_at(lm, HookPoint.parse("resid_post.1"), contexts)
    with torch.no_grad():
        expected = sae.encode(x, torch.arange(8))
    torch.testing.assert_close(seen.acts[:, 1:], expected[:, 1:], rtol=1e-4, atol=1e-5)
    with pytest.raises(ShapeError, match="use_cache=False"), attach(lm.model, sae):
        lm.model.generate(contexts.tokens[:1].long(), max_new_tokens=2, do_sample=False)


def test_every_evaluation_that_runs_on_it_reads_whole_contexts(store, lm, subject) -> None:  # noqa: F811
    sae = crosscoder(d_in=WIDTH, length=8)
    [core] = evaluate_core([subject(sae)], store, lambda: lm, CoreConfig(loss_contexts=4))
    assert core.l0 == pytest.approx(4, abs=0.5) and core.ce_loss_recovered is not None
    x = store.contexts(0, store.n_contexts)
    with torch.no_grad():
        error = (x.x - sae(x)).square().sum(dim=-1)[1:]
        norm = x.x.square().sum(dim=-1)[1:]
    counted = store.valid[1:]
    assert core.normalised_mse == pytest.approx(float(error[counted].sum() / norm[counted].sum()), rel=1e-5)


def test_what_takes_single_tokens_is_refused_beforehand() -> None:
    config = TemporalCrosscoderConfig(d_sae=32, k=4)
    single = {"absorption": {}, "unlearning": {}, "sparse_probing": {"pooling": "last"}}
    for name in single:
        [*_, evaluation] = evaluations.build(evaluations.parse_all({name: single[name]})).values()
        with pytest.raises(ConfigError, match=f"{name}.* encodes tokens without .* reads windows of 5: leave out one"):
            evaluation.check_sae(config)
        evaluation.check_sae(TopKConfig(d_sae=32, k=4))
    whole = {"core": {}, "position": {}, "sparse_probing": {"pooling": "bands"}, "tpp": {}, "scr": {}}
    for evaluation in evaluations.build(evaluations.parse_all(whole)).values():
        evaluation.check_sae(config)
    with pytest.raises(ConfigError, match="temporal_crosscoder reads windows of tokens"):
        division_of(config, 12, 2)


def test_it_has_no_counterpart_in_saelens(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="reads windows of 3 tokens, and SAELens gives it one at a time"):
        write_saelens(crosscoder(), metadata(), tmp_path / "out")


def test_the_memory_it_takes_counts_every_place_of_the_window() -> None:
    with pytest.raises(ConfigError, match=r"training 1,000,000 features takes 160\.\d GB"):
        require_memory(TemporalCrosscoderConfig(d_sae=1_000_000, k=4), 1_000, 8)
