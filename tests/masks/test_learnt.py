"""Learnt masks: where they start, how they move, and what they keep to."""

from __future__ import annotations

import pytest
import torch

from scansion.masks import (
    AdaptiveMaskConfig,
    ImportanceMaskConfig,
    MaskUpdates,
    SoftMaskConfig,
    Start,
    Temperature,
    UsageBandMaskConfig,
    build_mask,
)

L, D = 24, 60
EVERYWHERE = torch.arange(L)


def pushed(mask, steps: int = 40, lr: float = 1.0):
    """The mask after an optimiser has pushed it hard in a random direction."""
    optimiser = torch.optim.Adam(mask.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        mask.begin_step(step, steps)
        optimiser.zero_grad()
        (mask(EVERYWHERE) * torch.randn(L, D, generator=generator)).sum().backward()
        optimiser.step()
        mask.end_step(step)
    return mask


@pytest.mark.parametrize("temperature", [0.0, 0.01, 0.5, 1.0, 4.0])
@pytest.mark.parametrize(("low", "high"), [(0.1, 0.2), (0.3, 0.7), (0.01, 0.99)])
def test_random_weights_start_uniform_in_their_range_at_any_temperature(temperature, low, high) -> None:
    start = Start(low=low, high=high)
    mask = build_mask(SoftMaskConfig(start=start, temperature=Temperature(start=temperature)), 128, 200)
    weights = mask(torch.arange(128))
    if temperature == 0:
        assert mask.hard and weights.mean().item() == pytest.approx(
            (high - 0.5) / (high - low) if high > 0.5 else 0, abs=0.02
        )
        return
    assert weights.min() >= low - 1e-5 and weights.max() <= high + 1e-5
    quartiles = weights.detach().flatten().quantile(torch.tensor([0.25, 0.5, 0.75]))
    torch.testing.assert_close(quartiles, low + (high - low) * torch.tensor([0.25, 0.5, 0.75]), atol=0.01, rtol=0)


@pytest.mark.parametrize("lr", [1e-2, 1.0, 1e4])
@pytest.mark.parametrize("temperature", [0.0, 1e-3, 1.0])
def test_soft_weights_stay_in_range_under_any_optimiser_step(lr: float, temperature: float) -> None:
    weights = pushed(build_mask(SoftMaskConfig(temperature=Temperature(start=temperature)), L, D), lr=lr)(EVERYWHERE)
    assert (weights >= 0).all() and (weights <= 1).all()


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_importance_always_has_mean_one(temperature: float) -> None:
    mask = pushed(build_mask(ImportanceMaskConfig(temperature=Temperature(start=temperature)), L, D))
    torch.testing.assert_close(mask(EVERYWHERE).mean(dim=0), torch.ones(D))
    assert (mask(EVERYWHERE) >= 0).all() and mask(EVERYWHERE).max() <= L


def test_the_pressures_have_their_closed_forms() -> None:
    flat = Start(low=0.25, high=0.25)
    l1 = build_mask(SoftMaskConfig(start=flat, l1_coefficient=3.0), L, D)
    assert l1.regulariser().item() == pytest.approx(3 * 0.25)
    entropy = build_mask(SoftMaskConfig(start=flat, entropy_coefficient=2.0), L, D)
    expected = -0.25 * torch.tensor(0.25).log() - 0.75 * torch.tensor(0.75).log()
    assert entropy.regulariser().item() == pytest.approx(2 * expected.item(), rel=1e-5)
    assert build_mask(SoftMaskConfig(), L, D).regulariser() == 0


@pytest.mark.parametrize("n", [1, 3, 12, 24])
@pytest.mark.parametrize("budget", ["each", "average"])
@pytest.mark.parametrize("lr", [0.0, 0.03, 10.0])
def test_an_adaptive_mask_meets_its_budget_at_every_step(n: int, budget, lr: float) -> None:
    mask = pushed(build_mask(AdaptiveMaskConfig(positions_per_feature=n, budget=budget), L, D), lr=lr)
    opened = mask.can_fire(EVERYWHERE)
    if budget == "each":
        assert (opened.sum(dim=0) == n).all()
    else:
        assert opened.sum().item() == pytest.approx(n * D, rel=0.02)
        assert (opened.sum(dim=0) >= 1).all(), "a feature has nowhere left to fire"


def test_an_adaptive_mask_starts_soft_and_ends_hard() -> None:
    config = AdaptiveMaskConfig(
        positions_per_feature=3, temperature=Temperature(start=1.0, end=1e-4, shape="geometric")
    )
    mask = build_mask(config, L, D)
    spread = mask(EVERYWHERE)
    assert ((spread > 0.2) & (spread < 0.8)).all()
    pushed(mask)
    ends = mask(EVERYWHERE)
    assert ((ends < 0.01) | (ends > 0.99)).float().mean() > 0.99


def test_an_adaptive_mask_opens_where_it_is_told_to() -> None:
    """A gradient that asks for one band a feature gets just that."""
    mask = build_mask(AdaptiveMaskConfig(positions_per_feature=6), L, D)
    wanted = (EVERYWHERE[:, None] // 6 == torch.arange(D) % 4).float()
    optimiser = torch.optim.Adam(mask.parameters(), lr=0.05)
    for step in range(100):
        mask.begin_step(step, 100)
        optimiser.zero_grad()
        (-(mask(EVERYWHERE) * (2 * wanted - 1)).sum()).backward()
        optimiser.step()
        mask.end_step(step)
    assert torch.equal(mask.can_fire(EVERYWHERE), wanted.bool())


@pytest.mark.parametrize("kind", ["contiguous", "strided", "gaussian"])
def test_structured_starts_cover_all_positions_alike(kind) -> None:
    start = Start(kind=kind, low=0.1, high=0.9, width=6)
    weights = build_mask(SoftMaskConfig(start=start), L, D)(EVERYWHERE).detach()
    assert weights.min() >= 0.1 - 1e-5 and weights.max() <= 0.9 + 1e-5
    inner = weights[6:-6].mean(dim=1)
    assert inner.max() - inner.min() < 0.05
    above = weights > 0.5
    if kind == "gaussian":
        assert above.sum(dim=0).max() in (6, 7)
        centres = weights.argmax(dim=0)
        assert (centres[1:] >= centres[:-1]).all() and centres[0] == 0 and centres[-1] == L - 1
        return
    assert (above.sum(dim=0) == 6).all()
    gaps = above[:, 0].nonzero().squeeze(1).diff()
    assert (gaps == (1 if kind == "contiguous" else 4)).all()


def test_a_start_from_usage_peaks_where_the_feature_fires() -> None:
    usage = torch.rand(L, D, generator=torch.Generator().manual_seed(1)) ** 4
    config = SoftMaskConfig(shared=0.1, start=Start(kind="from_usage", sae="anywhere", low=0.05, high=0.95))
    mask = build_mask(config, L, D)
    mask.start_from_usage(usage)
    weights = mask(EVERYWHERE)[:, 6:]
    torch.testing.assert_close(weights.amax(dim=0), torch.full((54,), 0.95))
    assert torch.equal(weights.argmax(dim=0), usage[:, 6:].argmax(dim=0))
    assert torch.equal(weights.argsort(dim=0), usage[:, 6:].argsort(dim=0))
    never = build_mask(config, L, D)
    never.start_from_usage(torch.zeros(L, D))
    torch.testing.assert_close(never(EVERYWHERE)[:, 6:], torch.full((L, 54), 0.05))


def test_temperature_schedules() -> None:
    assert [Temperature(start=2.0).at(s, 10) for s in (0, 9)] == [2.0, 2.0]
    linear = Temperature(start=1.0, end=0.0)
    assert [linear.at(s, 10) for s in range(10)] == pytest.approx([0.9 - 0.1 * s for s in range(10)])
    geometric = Temperature(start=1.0, end=0.01, shape="geometric", until=0.5)
    assert [geometric.at(s, 100) for s in (24, 49, 99)] == pytest.approx([0.1, 0.01, 0.01])


def test_when_a_mask_may_move() -> None:
    def steps(updates: MaskUpdates) -> list[int]:
        return [step for step in range(12) if updates.at(step)]

    assert steps(MaskUpdates()) == list(range(12))
    assert steps(MaskUpdates(every=None)) == []
    assert steps(MaskUpdates(every=4)) == [0, 4, 8]
    assert steps(MaskUpdates(start=3, stop=9, every=2)) == [3, 5, 7]


def usage_mask(**settings):
    return build_mask(UsageBandMaskConfig(count=4, shared=0.2, every=1, measure_every=1, decay=0.0, **settings), L, 60)


def test_features_move_to_the_band_where_they_would_fire_most() -> None:
    mask = usage_mask()
    mask.begin_step(0, 100)
    wanted = torch.randperm(48, generator=torch.Generator().manual_seed(3)) % 4
    usage = torch.zeros(L, 60)
    usage[:, 12:] = 0.1 + (EVERYWHERE[:, None] // 6 == wanted).float()
    mask.observe(usage, EVERYWHERE)
    order = mask.end_step(0)
    assert order is not None and sorted(order.tolist()) == list(range(60))
    assert order[:12].tolist() == list(range(12)), "a shared feature moved"
    assert torch.equal(wanted[order[12:] - 12], torch.arange(48) // 12)
    stayed = wanted == torch.arange(48) // 12
    assert torch.equal(order[12:][stayed], 12 + torch.arange(48)[stayed]), "a feature moved without need"
    mask.observe(usage[:, order], EVERYWHERE)
    assert mask.end_step(1) is None, "features that are where they want to be moved"


def test_a_band_takes_no_more_than_its_number_and_those_who_lose_most_come_first() -> None:
    mask = usage_mask(stay=0.0)
    mask.begin_step(0, 100)
    usage = torch.zeros(L, 60)
    eagerness = torch.linspace(0.1, 0.9, 48)
    usage[:6, 12:] = eagerness  # everybody prefers the first band
    usage[6:, 12:] = (1 - eagerness) / 3
    mask.observe(usage, EVERYWHERE)
    order = mask.end_step(0)
    assert sorted(order[12:24].tolist()) == list(range(48, 60))


def test_little_to_gain_is_no_reason_to_move() -> None:
    mask = usage_mask(stay=0.2)
    mask.begin_step(0, 100)
    mask.observe(1 + 0.1 * torch.rand(L, 60, generator=torch.Generator().manual_seed(0)), EVERYWHERE)
    assert mask.end_step(0) is None


def test_features_stay_after_the_stop() -> None:
    mask = usage_mask(stop=0.5)
    mask.begin_step(50, 100)
    assert not mask.wants_usage_at(50) and mask.end_step(50) is None and mask.wants_usage_at(49)
