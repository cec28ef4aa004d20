"""Dead features are counted at the positions they may use, and come back where reconstruction is worst."""

from __future__ import annotations

import torch

from scansion.masks import RandomHardMaskConfig
from scansion.sae import ReluConfig, build_sae
from scansion.training.dead import DeadFeatures, resample
from tests.execution.curves import losses_of

P, N, D_IN, D_SAE = 6, 5, 8, 24


def make_sae():
    config = ReluConfig(d_sae=D_SAE, mask=RandomHardMaskConfig(positions_per_feature=2))
    return build_sae(config, D_IN, P, torch.Generator().manual_seed(0))


def moments_of(optimiser: torch.optim.Adam):
    return lambda parameter: {name: optimiser.state[parameter][name] for name in ("exp_avg", "exp_avg_sq")}


def test_only_tokens_a_feature_could_fire_on_are_counted() -> None:
    sae = make_sae()
    dead = DeadFeatures(sae, after_tokens=4 * N)
    allowed = sae.mask.can_fire(torch.arange(P))
    fired = torch.zeros(D_SAE, dtype=torch.int64)
    fired[0] = 1
    for batches in (1, 2):
        dead.observe(fired, allowed, N)
        assert dead.tokens_since_fired[0] == 0
        assert (dead.tokens_since_fired[1:] == batches * 2 * N).all()
    assert not dead.mask[0] and dead.mask[1:].all()


def test_a_revived_feature_points_at_a_residual_at_a_position_it_may_use() -> None:
    sae = make_sae()
    optimiser = torch.optim.Adam(sae.parameters(), lr=1e-3, fused=True)
    x = torch.randn(P, N, D_IN, generator=torch.Generator().manual_seed(1))
    positions = torch.arange(P)
    losses = losses_of(sae, x, positions, torch.zeros(D_SAE, dtype=torch.bool))
    losses.reconstruction.backward()
    optimiser.step()
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    dead = DeadFeatures(sae, after_tokens=10)
    dead.tokens_since_fired[3:9] = 10
    allowed = sae.mask.can_fire(positions)
    resample(sae, moments_of(optimiser), dead, x, losses, allowed, torch.Generator().manual_seed(2))

    directions = torch.nn.functional.normalize(losses.residual, dim=-1)
    for feature in range(3, 9):
        permitted = directions[allowed[:, feature]].flatten(0, 1)
        assert (permitted @ sae.W_dec[feature]).max() > 1 - 1e-5
        assert (optimiser.state[sae.W_enc]["exp_avg"][:, feature] == 0).all()
        assert sae.b_enc[feature] == 0
    living = [i for i in range(D_SAE) if not 3 <= i < 9]
    assert torch.equal(sae.W_dec[living], before["W_dec"][living])
    assert torch.equal(sae.W_enc[:, living], before["W_enc"][:, living])
    assert not dead.mask.any()


def test_nothing_is_done_where_nothing_is_dead_or_everything_is() -> None:
    for n_dead in (0, D_SAE):
        sae = make_sae()
        optimiser = torch.optim.Adam(sae.parameters(), lr=1e-3)
        dead = DeadFeatures(sae, after_tokens=10)
        dead.tokens_since_fired[:n_dead] = 10
        x = torch.ones(P, N, D_IN)
        losses = losses_of(sae, x, torch.arange(P), dead.mask)
        before = sae.W_dec.clone()
        resample(sae, moments_of(optimiser), dead, x, losses, sae.mask.can_fire(torch.arange(P)), torch.Generator())
        assert torch.equal(sae.W_dec, before)
