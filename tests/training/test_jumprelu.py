"""JumpReLU's thresholds follow the L0 coefficient within about a hundred steps, whatever the learning rate."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from scansion.activations import PositionedBatch
from scansion.masks import AdaptiveMaskConfig
from scansion.sae import JumpReluConfig, build_sae
from scansion.training import TrainingConfig
from scansion.training.learner import Learner

D_IN, FEATURES, POSITIONS, TOKENS = 32, 96, 4, 64
POSITIONS_USED = torch.arange(POSITIONS)
COEFFICIENTS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def batches(n: int) -> list[PositionedBatch]:
    """Sums of 6 of 96 known directions on average, scaled to unit mean norm as by training."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(FEATURES, D_IN, generator=generator), dim=1)
    strengths = torch.rand(n, POSITIONS, TOKENS, FEATURES, generator=generator) + 0.5
    x = strengths.where(torch.rand(strengths.shape, generator=generator) < 6 / FEATURES, 0.0) @ directions
    return [PositionedBatch(part, POSITIONS_USED) for part in x / x.norm(dim=-1).mean()]


def trained(coefficient: float, n_steps: int = 100, **training: float) -> Learner:
    tokens = POSITIONS * TOKENS
    config = TrainingConfig.model_validate(
        {"tokens": n_steps * tokens, "batch_tokens": tokens, "device": "cpu", **training}
    )
    sae = build_sae(
        JumpReluConfig(d_sae=192, l0_coefficient=coefficient), D_IN, POSITIONS, torch.Generator().manual_seed(0)
    )
    learner = Learner(sae, config, n_steps)
    for batch in batches(n_steps):
        learner.advance(batch)
    return learner


@pytest.mark.parametrize("lr", [3e-4, 1e-3])
def test_l0_falls_with_the_coefficient_within_100_steps(lr: float) -> None:
    batch = batches(1)[0]
    l0 = [float((trained(one, lr=lr).sae.encode(batch) > 0).sum(dim=-1).float().mean()) for one in COEFFICIENTS]
    assert all(more > less for more, less in pairwise(l0)), l0
    assert all(more > 3 * less for more, less in zip(l0[1:], l0[3:], strict=False)), l0
    assert l0[0] > 10 and l0[-1] < 1, l0


def rates(n_steps: int, travel: float = 6.0, lr: float = 3e-4) -> dict[str, float]:
    """Each parameter's learning rate at a step with the full rate."""
    config = JumpReluConfig(d_sae=8, threshold_travel=travel, mask=AdaptiveMaskConfig(positions_per_feature=2))
    sae = build_sae(config, D_IN, POSITIONS, torch.Generator().manual_seed(0))
    learner = Learner(sae, TrainingConfig(lr=lr, device="cpu"), n_steps)
    names = {parameter: name for name, parameter in sae.named_parameters()}
    return {names[one]: lr * multiplier for group, multiplier in learner.optimiser._groups for one in group}


def test_only_thresholds_have_a_rate_of_their_own_and_long_runs_keep_that_of_the_weights() -> None:
    plain, short, long = rates(100, travel=0.0), rates(100), rates(1_000_000)
    assert plain == long and plain["log_threshold"] == plain["W_enc"] == pytest.approx(3e-4)
    assert short == plain | {"log_threshold": pytest.approx(0.06)}
    assert rates(3)["log_threshold"] == pytest.approx(0.1)


def test_a_run_from_before_the_setting_keeps_its_identity() -> None:
    assert "threshold_travel" not in JumpReluConfig(d_sae=8, threshold_travel=0).model_dump()
    assert JumpReluConfig(d_sae=8).model_dump()["threshold_travel"] == 6.0


def test_a_short_run_resumes_to_the_same_bytes() -> None:
    whole, half = trained(1e-2, n_steps=20), trained(1e-2, n_steps=20)
    tensors, counters = half.state()
    again = Learner(half.sae, whole.config, 20)
    again.restore(tensors, counters)
    for learner in (whole, again):
        learner.advance(batches(1)[0])
    assert torch.equal(again.state()[0]["sae.log_threshold"], whole.state()[0]["sae.log_threshold"])
