"""What one step does to a mask: when it moves, that features move whole, and where a warm start begins."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scansion.activations import ActivationStore, ActivationStream, PositionedBatch
from scansion.errors import TrainingError
from scansion.masks import BandMaskConfig, MaskUpdates, SoftMaskConfig, Start, UsageBandMaskConfig
from scansion.sae import ReluConfig, SAEConfig, TopKConfig, build_sae, load_sae
from scansion.sae.decoder import normalise_decoder, remove_parallel_gradient
from scansion.training import TrainingConfig, TrainingRun, train
from scansion.training.learner import Learner
from scansion.training.warm_start import start_from_trained
from tests.execution.curves import losses_of

D_SAE, N_STEPS = 48, 40
CONFIG = TrainingConfig(tokens=28 * N_STEPS, lr=3e-3, lr_warmup_steps=0, device="cpu")


def learner_of(config: SAEConfig, store: ActivationStore) -> Learner:
    return Learner(build_sae(config, store.d_in, store.n_positions, torch.Generator().manual_seed(0)), CONFIG, N_STEPS)


def batches(store: ActivationStore) -> list[PositionedBatch]:
    stream = ActivationStream(store, 4, seed=0)
    return [PositionedBatch(b.x * stream.input_scale, b.positions) for b in stream.batches(0, N_STEPS)]


@pytest.mark.parametrize(
    ("updates", "moves"),
    [
        (MaskUpdates(), range(N_STEPS)),
        (MaskUpdates(every=None), []),
        (MaskUpdates(start=10, every=5, stop=30), [10, 15, 20, 25]),
        (MaskUpdates(lr_multiplier=0.0), []),
    ],
)
def test_a_mask_moves_when_it_may_and_at_no_other_step(store, updates: MaskUpdates, moves) -> None:
    learner = learner_of(TopKConfig(d_sae=D_SAE, k=4, mask=SoftMaskConfig(updates=updates)), store)
    moved = []
    for step, batch in enumerate(batches(store)):
        before = learner.sae.mask.logits.detach().clone()
        learner.advance(batch)
        if not torch.equal(before, learner.sae.mask.logits):
            moved.append(step)
    assert moved == list(moves)


def test_the_learning_rate_of_a_mask_is_a_multiple_of_the_saes(store) -> None:
    """Adam's first step has the size of the learning rate, whatever the gradient."""
    sizes = []
    for multiplier in (1.0, 20.0):
        config = ReluConfig(d_sae=D_SAE, mask=SoftMaskConfig(updates=MaskUpdates(lr_multiplier=multiplier)))
        learner = learner_of(config, store)
        before = learner.sae.mask.logits.detach().clone()
        learner.advance(batches(store)[0])
        sizes.append((learner.sae.mask.logits - before).abs().max().item())
    assert sizes == pytest.approx([3e-3, 6e-2], rel=1e-2)


def test_clipping_within_adam_is_clipping_before_it(store) -> None:
    """Ten steps end where plain Adam ends on gradients clipped beforehand, and not where it ends on unclipped ones."""
    config = CONFIG.model_copy(update={"clip_norm": 1e-2})
    learner = Learner(learner_of(TopKConfig(d_sae=D_SAE, k=4), store).sae, config, N_STEPS)
    references = {norm: learner_of(TopKConfig(d_sae=D_SAE, k=4), store).sae for norm in (1e-2, torch.inf)}
    optimisers = {norm: torch.optim.Adam(sae.parameters()) for norm, sae in references.items()}
    for step, batch in enumerate(batches(store)[:10]):
        for norm, sae in references.items():
            losses = losses_of(sae, batch.x, batch.positions, learner.dead.mask)
            optimisers[norm].zero_grad()
            (losses.reconstruction + losses.auxiliary).backward()
            remove_parallel_gradient(sae)
            torch.nn.utils.clip_grad_norm_(sae.parameters(), norm)
            optimisers[norm].param_groups[0]["lr"] = config.lr_at(step, N_STEPS)
            optimisers[norm].step()
            normalise_decoder(sae)
        learner.advance(batch)
    clipped, unclipped = references.values()
    torch.testing.assert_close(learner.sae.W_enc, clipped.W_enc, atol=2e-5, rtol=0)
    torch.testing.assert_close(learner.sae.W_dec, clipped.W_dec, atol=2e-5, rtol=0)
    assert (learner.sae.W_enc - unclipped.W_enc).abs().max() > 1e-3


def test_features_move_with_all_that_is_known_about_them(store) -> None:
    """After a move each feature has the weights, moments and counts it had, at its new place."""
    mask = UsageBandMaskConfig(count=2, shared=0.25, every=N_STEPS, measure_every=1, stay=0.0, stop=1.0)
    learner = learner_of(TopKConfig(d_sae=D_SAE, k=4, mask=mask), store)
    for batch in batches(store)[:-1]:
        learner.advance(batch)
    sae = learner.sae
    seen: list[torch.Tensor] = []
    permute = learner._permute

    def spy(order: torch.Tensor) -> None:
        def known() -> list[torch.Tensor]:
            found = [learner.dead.tokens_since_fired.clone()]
            for parameter, axis in sae.feature_axes():
                moments = learner.optimiser.moments(parameter)
                assert len(moments) == 2
                found += [t.detach().clone().movedim(axis, 0) for t in (parameter, *moments.values())]
            return found

        before = known()
        permute(order)
        assert all(torch.equal(old[order], new) for old, new in zip(before, known(), strict=True))
        seen.append(order)

    learner._permute = spy
    learner.advance(batches(store)[-1])
    assert len(seen) == 1 and not torch.equal(seen[0], torch.arange(D_SAE))


@pytest.fixture(scope="module")
def plain(store: ActivationStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained SAE without a mask."""
    folder = tmp_path_factory.mktemp("plain")
    train([TrainingRun("plain", folder, TopKConfig(d_sae=D_SAE, k=4), CONFIG)], store)
    return folder / "sae"


def test_a_warm_start_is_the_trained_sae_with_weight_where_it_fires(store, plain: Path) -> None:
    config = TopKConfig(d_sae=D_SAE, k=4, mask=SoftMaskConfig(start=Start(kind="from_usage", sae=plain)))
    sae = build_sae(config, store.d_in, store.n_positions, torch.Generator().manual_seed(5))
    stream = ActivationStream(store, 4, seed=0)
    start_from_trained(sae, CONFIG, stream, stream.input_scale)
    origin, _ = load_sae(plain)
    x = store.contexts(0, 60).x[1:].float()
    places = torch.arange(1, store.n_positions)[:, None]
    torch.testing.assert_close(
        sae.lifted()(stream.input_scale * x, places) / stream.input_scale, origin(x, places), atol=1e-4, rtol=1e-4
    )
    valid = store.valid[1:, :, None]
    rates = ((origin.encode(x, places) > 0) & valid).sum(dim=1) / valid.sum(dim=1)
    weights = sae.mask(torch.arange(1, store.n_positions))
    busy = rates.sum(dim=0) > 1
    together = [
        torch.corrcoef(torch.stack([weights[:, feature], rates[:, feature]]))[0, 1].item()
        for feature in busy.nonzero().squeeze(1)
    ]
    assert len(together) >= 3 and min(together) > 0.95, "the mask does not follow the features' use"


def test_a_warm_start_that_does_not_fit_is_refused_before_training(store, plain: Path, tmp_path: Path) -> None:
    start = Start(kind="from_usage", sae=plain)
    other = TrainingRun("other", tmp_path / "x", TopKConfig(d_sae=24, k=4, mask=SoftMaskConfig(start=start)), CONFIG)
    with pytest.raises(TrainingError, match="cannot be started from: its d_sae is 48, not 24"):
        train([other], store)
    masked = TrainingRun("m", tmp_path / "m", TopKConfig(d_sae=D_SAE, k=4, mask=BandMaskConfig(count=2)), CONFIG)
    train([masked], store)
    start = Start(kind="from_usage", sae=tmp_path / "m" / "sae")
    again = TrainingRun("a", tmp_path / "a", TopKConfig(d_sae=D_SAE, k=4, mask=SoftMaskConfig(start=start)), CONFIG)
    with pytest.raises(TrainingError, match="its mask is bands, not none"):
        train([again], store)
    assert not (tmp_path / "a").exists()
