"""Masks in numbers small enough to work out by hand: what each way of acting computes, and the limits of each setting."""

from __future__ import annotations

import pytest
import torch

from scansion.errors import ConfigError, ShapeError
from scansion.masks import (
    AdaptiveMaskConfig,
    BandMaskConfig,
    ImportanceMaskConfig,
    MaskUpdates,
    NoMaskConfig,
    RandomHardMaskConfig,
    SoftMaskConfig,
    Start,
    Temperature,
    UsageBandMaskConfig,
    build_mask,
)
from tests.masks.families import D_SAE, L, with_acts_on

WEIGHTS = torch.tensor([[0.25, 0.5, 0.75, 0.0]])
PRE_ACTS = torch.tensor([[4.0, -2.0, 8.0, 6.0]])


def acting(acts_on: str):
    """What a soft mask of the weights above makes of the pre-activations, and the gradients of both."""
    mask = build_mask(SoftMaskConfig(acts_on=acts_on), 1, 4)
    with torch.no_grad():
        mask.logits.copy_(torch.tensor([[*WEIGHTS[0, :3].logit(), -200.0]]))
    pre_acts = PRE_ACTS.clone().requires_grad_()
    seen, acts = mask.apply_to(pre_acts, torch.tensor([0]), torch.relu)
    acts.sum().backward()
    to_weights = torch.zeros(4) if mask.logits.grad is None else mask.logits.grad[0] / (WEIGHTS * (1 - WEIGHTS))[0]
    return seen.detach(), acts.detach(), pre_acts.grad[0], to_weights.nan_to_num(0)


@pytest.mark.parametrize(
    ("acts_on", "seen", "acts", "to_pre_acts", "to_weights"),
    [
        ("placebo", [4, -2, 8, 6], [4, 0, 8, 6], [1, 0, 1, 1], [0, 0, 0, 0]),
        ("forward", [1, -1, 6, -torch.inf], [1, 0, 6, 0], [0.25, 0, 0.75, 0], [4, 0, 8, 0]),
        # Once by the product, once by the gate.
        ("both", [1, -1, 6, -torch.inf], [1, 0, 6, 0], [0.0625, 0, 0.5625, 0], [1, 0, 6, 0]),
        ("gradient", [4, -2, 8, -torch.inf], [4, 0, 8, 6], [0.25, 0, 0.75, 0], [0, 0, 0, 0]),
        # Open from one half up. The closed first feature would have been 4, which is what its weight learns from.
        ("straight_through", [-torch.inf, -2, 8, -torch.inf], [0, 0, 8, 0], [0, 0, 1, 0], [4, 0, 8, 0]),
    ],
)
def test_what_a_mask_makes_of_pre_activations_and_gradients(acts_on, seen, acts, to_pre_acts, to_weights) -> None:
    found = acting(acts_on)
    for tensor, expected in zip(found, ([seen], [acts], to_pre_acts, to_weights), strict=True):
        torch.testing.assert_close(tensor, torch.tensor(expected, dtype=torch.float32))


def test_where_a_feature_can_fire_and_learn_follows_from_where_the_mask_acts() -> None:
    def of(acts_on: str) -> tuple[list[list[bool]], list[list[bool]]]:
        mask = build_mask(SoftMaskConfig(acts_on=acts_on), 1, 4)
        with torch.no_grad():
            mask.logits.copy_(torch.tensor([[*WEIGHTS[0, :3].logit(), -200.0]]))
        position = torch.tensor([0])
        return mask.can_fire(position).tolist(), mask.gets_gradient(position).tolist()

    every, weighted, rounded = [[True] * 4], [[True, True, True, False]], [[False, True, True, False]]
    assert of("placebo") == (every, every)
    assert of("forward") == of("both") == (weighted, weighted)
    assert of("gradient") == (every, weighted)
    assert of("straight_through") == (rounded, rounded)


@pytest.mark.parametrize("acts_on", ["placebo", "gradient"])
def test_where_every_feature_can_fire_the_answer_has_the_shape_and_device_of_the_positions(acts_on: str) -> None:
    mask = build_mask(with_acts_on("random_hard", acts_on), L, D_SAE)
    assert mask.can_fire(torch.zeros(2, 3, dtype=torch.int64)).shape == (2, 3, D_SAE)
    assert mask.can_fire(torch.zeros(2, dtype=torch.int64, device="meta")).device.type == "meta"


def test_a_mask_without_a_penalty_has_a_zero_on_its_own_device() -> None:
    of_parameters, of_buffers = ImportanceMaskConfig(), BandMaskConfig(count=2)
    for config in (of_parameters, of_buffers):
        mask = build_mask(config, 4, 4)
        assert mask.regulariser().device.type == "cpu" and mask.regulariser() == 0
        assert mask.to("meta").regulariser().device.type == "meta"
    assert build_mask(NoMaskConfig(), 4, 4).regulariser() == 0


def test_what_a_mask_does_by_itself_over_a_run_is_nothing() -> None:
    mask = build_mask(RandomHardMaskConfig(), L, D_SAE)
    assert mask.moves_at(0) and mask.lr_multiplier == 1 and mask.n_decoder_biases == 1
    assert not mask.wants_usage_at(0) and not mask.reorders_features and mask.end_step(0) is None
    with pytest.raises(NotImplementedError, match="RandomHardMask cannot start from the usage of a trained SAE"):
        mask.start_from_usage(torch.ones(L, D_SAE))


@pytest.mark.parametrize("n_shared", [0, 1, 2])
def test_shared_features_come_first_with_weight_one(n_shared: int) -> None:
    mask = build_mask(SoftMaskConfig(shared=n_shared / 10), 3, 10)
    assert mask.n_shared == n_shared and mask.d_bound == 10 - n_shared
    assert mask.table().shape == (3, 10) and torch.equal(mask.table()[:, n_shared:], mask.bound_weights())
    assert (mask.table()[:, :n_shared] == 1).all()


@pytest.mark.parametrize("beyond", ["error", "clamp", "tile"])
def test_the_first_and_the_last_position_are_inside(beyond: str) -> None:
    mask = build_mask(RandomHardMaskConfig(beyond=beyond), 8, 4)
    assert mask.table_rows(torch.tensor([0, 7])).tolist() == [0, 7]
    assert mask.table_rows(torch.tensor([], dtype=torch.int64)).tolist() == []
    with pytest.raises(
        ShapeError, match=r"position -2 is outside this mask of 8 positions \(0 to 7\); cut the context to 8"
    ):
        mask.table_rows(torch.tensor([9, -2]))
    if beyond == "error":
        with pytest.raises(ShapeError, match="position 9 is outside"):
            mask.table_rows(torch.tensor([0, 9]))
    else:
        assert mask.table_rows(torch.tensor([0, 8, 9, 17])).tolist() == (
            [0, 7, 7, 7] if beyond == "clamp" else [0, 0, 1, 1]
        )


@pytest.mark.parametrize("config", [RandomHardMaskConfig, AdaptiveMaskConfig])
def test_a_feature_is_open_at_an_eighth_of_the_context_or_at_one_position(config) -> None:
    for n_positions, n_open in [(4, 1), (15, 1), (16, 2), (72, 9), (80, 10)]:
        opened = build_mask(config(), n_positions, 6).is_open(torch.arange(n_positions))
        assert (opened.sum(dim=0) == n_open).all()


@pytest.mark.parametrize("budget", ["each", "average"])
def test_an_adaptive_mask_is_one_half_at_its_threshold(budget: str) -> None:
    mask = build_mask(AdaptiveMaskConfig(positions_per_feature=2, budget=budget), 6, 2)
    with torch.no_grad():
        mask.logits.copy_(torch.tensor([[9.0, 0.0], [8.0, 1.0], [5.0, 4.0], [6.0, 3.0], [4.0, 2.0], [3.0, -1.0]]))
    mask.end_step(0)
    if budget == "each":  # between 8 and 6, and between 3 and 2
        expected = (mask.logits - torch.tensor([7.0, 2.5])).sigmoid()
        opened = [[1, 0], [1, 0], [0, 1], [0, 1], [0, 0], [0, 0]]
    else:  # 9, 8, 6 and the best of the second feature are open; the next is 5
        expected = (mask.logits - 5.5).sigmoid()
        opened = [[1, 0], [1, 0], [0, 1], [1, 0], [0, 0], [0, 0]]
    torch.testing.assert_close(mask.table(), expected)
    assert mask.is_open(torch.arange(6)).int().tolist() == opened


def test_where_bands_begin_and_end() -> None:
    def edges(n_positions: int, **settings) -> tuple[int, ...]:
        return BandMaskConfig(**settings).edges_for(n_positions)

    assert edges(16, preset="groups") == (0, 2, 8, 16) and edges(128, preset="groups") == (0, 16, 64, 128)
    assert edges(16) == edges(16, preset="static_slicing") == tuple(range(0, 17, 2))
    assert edges(3, count=3) == (0, 1, 2, 3) and edges(7, count=2) == (0, 4, 7)
    with pytest.raises(ConfigError, match=r"^4 bands do not fit in contexts of 3 tokens; ask for fewer$"):
        edges(3, count=4)
    for wrong in ((), (0, 4, 4, 8), (1, 8), (0, 7), (0, 9)):
        with pytest.raises(ConfigError, match="should ascend from 0 to 8, the context length, but are"):
            edges(8, edges=wrong)
    with pytest.raises(ConfigError, match=r"add up to the 36 bound features, not \[36, -1, 1\]"):
        build_mask(BandMaskConfig(count=3, sizes=(36, -1, 1)), L, D_SAE)
    with pytest.raises(ConfigError, match=r"7 bound features do not divide evenly among 2 bands; .* or give sizes"):
        build_mask(BandMaskConfig(count=2), L, 7)
    assert BandMaskConfig(preset="static_slicing").has_own_bias and not BandMaskConfig(preset="groups").has_own_bias
    assert not BandMaskConfig(preset="static_slicing", own_bias=False).has_own_bias


@pytest.mark.parametrize("own_bias", [True, False])
def test_a_position_uses_the_bias_of_its_band(own_bias: bool) -> None:
    mask = build_mask(BandMaskConfig(edges=(0, 2, 3, 6), own_bias=own_bias), 6, 9)
    assert mask.band_at(torch.arange(6)).tolist() == [0, 0, 1, 2, 2, 2]
    assert mask.band_at(torch.tensor([[5, 2]], dtype=torch.int32)).tolist() == [[2, 1]]
    assert mask.n_decoder_biases == (3 if own_bias else 1)
    assert "inner_edges" not in mask.state_dict(), "the settings determine them"
    assert build_mask(BandMaskConfig(count=1, own_bias=own_bias), 6, 9).band_at(torch.arange(6)).tolist() == [0] * 6
    assert torch.equal(mask.table()[:, ::3], torch.tensor([[1.0, 0, 0]] * 2 + [[0, 1, 0]] + [[0, 0, 1]] * 3))


def test_a_random_table_gives_each_feature_the_positions_used_least() -> None:
    table = build_mask(RandomHardMaskConfig(positions_per_feature=3), 6, 40).table()
    used = table.cumsum(dim=1)
    assert (used.amax(dim=0) - used.amin(dim=0) <= 1).all(), "uneven before the last feature"
    assert len({tuple(column.tolist()) for column in table.T}) > 5, "the same positions again and again"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"start": 3.0}, [3, 3, 3, 3]),
        ({"start": 1.0, "end": 0.0}, [0.75, 0.5, 0.25, 0]),
        ({"start": 1.0, "end": 3.0, "until": 0.5}, [2, 3, 3, 3]),
        ({"start": 1.0, "end": 1 / 16, "shape": "geometric"}, [1 / 2, 1 / 4, 1 / 8, 1 / 16]),
        ({"start": 4.0, "end": 1.0, "shape": "geometric", "until": 0.5}, [2, 1, 1, 1]),
    ],
)
def test_the_temperature_at_every_step(settings, expected) -> None:
    schedule = Temperature(**settings)
    assert [schedule.at(step, 4) for step in range(4)] == pytest.approx(expected)
    assert schedule.at(0, 0) == (schedule.start if schedule.end is None else schedule.end)
    mask = build_mask(SoftMaskConfig(temperature=schedule), 2, 2)
    assert mask.temperature == settings["start"]
    mask.begin_step(1, 4)
    assert mask.temperature == pytest.approx(expected[1])


def test_a_temperature_of_zero_rounds_and_a_geometric_one_cannot_be_zero() -> None:
    mask = build_mask(SoftMaskConfig(temperature=Temperature(start=1.0, end=0.0)), 2, 2)
    with torch.no_grad():
        mask.logits.copy_(torch.tensor([[-1e-6, 1e-6], [3.0, -3.0]]))
    mask.begin_step(3, 4)
    assert mask.table().tolist() == [[0, 1], [1, 0]] and mask.hard
    for wrong in ({"start": 0.0, "end": 1.0}, {"start": 1.0, "end": 0.0}):
        with pytest.raises(ValueError, match="cannot start or end at 0; use a small number or a linear one"):
            Temperature(shape="geometric", **wrong)
    assert Temperature(start=0.0, shape="geometric").at(1, 2) == 0


def test_the_steps_that_move_a_learnt_mask_and_how_far() -> None:
    mask = build_mask(SoftMaskConfig(updates=MaskUpdates(start=2, stop=8, every=3, lr_multiplier=7.0)), 2, 2)
    assert [step for step in range(12) if mask.moves_at(step)] == [2, 5] and mask.lr_multiplier == 7
    still = build_mask(AdaptiveMaskConfig(positions_per_feature=1, updates=MaskUpdates(start=1)), 4, 2)
    with torch.no_grad():
        still.logits.copy_(still.logits.flip(0))
    before = still.opened.clone()
    still.end_step(0)
    assert torch.equal(still.opened, before)
    still.end_step(1)
    assert not torch.equal(still.opened, before)


def test_the_penalties_of_a_soft_mask_add_up() -> None:
    mask = build_mask(
        SoftMaskConfig(l1_coefficient=2.0, entropy_coefficient=3.0, temperature=Temperature(start=0.5)), 1, 2
    )
    with torch.no_grad():
        mask.logits.copy_(torch.tensor([[0.0, torch.tensor(0.75).logit() / 2]]))
    entropies = [torch.tensor(2.0).log(), -0.75 * torch.tensor(0.75).log() - 0.25 * torch.tensor(0.25).log()]
    torch.testing.assert_close(mask.regulariser(), 2 * torch.tensor(0.625) + 3 * sum(entropies) / 2)


def test_the_importance_of_a_position_is_its_softmax_times_the_length() -> None:
    mask = build_mask(ImportanceMaskConfig(temperature=Temperature(start=2.0)), 2, 1)
    with torch.no_grad():
        mask.logits.copy_(2 * torch.tensor([[3.0], [1.0]]).log())
    torch.testing.assert_close(mask.table(), torch.tensor([[1.5], [0.5]]))
    started = build_mask(ImportanceMaskConfig(start=Start(kind="contiguous", low=0.2, high=0.6, width=1)), 2, 2)
    torch.testing.assert_close(started.table(), torch.tensor([[1.5, 0.5], [0.5, 1.5]]))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("contiguous", [[1, 0, 1], [1, 0, 1], [0, 1, 0], [0, 1, 0]]),
        ("strided", [[1, 0, 1], [0, 1, 0], [1, 0, 1], [0, 1, 0]]),
        ("from_usage", [[0.5, 0.5, 0.5]] * 4),
    ],
)
def test_where_a_learnt_mask_starts(kind, expected) -> None:
    start = Start(kind=kind, width=2, low=0.2, high=0.6, sae="anywhere" if kind == "from_usage" else None)
    weights = start.weights(4, 3, torch.Generator())
    torch.testing.assert_close(weights, 0.2 + 0.4 * torch.tensor(expected, dtype=torch.float32))


def test_a_gaussian_window_is_at_half_height_at_half_its_width() -> None:
    weights = Start(kind="gaussian", width=4, low=0.1, high=0.9).weights(9, 3, torch.Generator())
    assert weights.argmax(dim=0).tolist() == [0, 4, 8]
    assert weights[[0, 4, 8], [0, 1, 2]].tolist() == pytest.approx([0.9] * 3)
    assert weights[[2, 2, 6, 6], [0, 1, 1, 2]].tolist() == pytest.approx([0.5] * 4, abs=1e-4)


def test_a_window_is_an_eighth_of_the_context_and_never_longer_than_it() -> None:
    def opened(n_positions: int, width: int | None = None) -> int:
        weights = Start(kind="contiguous", width=width).weights(n_positions, 1, torch.Generator())
        return int((weights > 0.5).sum())

    assert [opened(n) for n in (1, 15, 16, 72)] == [1, 1, 2, 9] and opened(3, width=9) == 3
    with pytest.raises(ValueError, match=r"low \(0.6\) is above high \(0.5\)"):
        Start(low=0.6, high=0.5)
    assert Start(low=0.5, high=0.5).scaled(torch.tensor([[0.3]])).item() == 0.5
    with pytest.raises(ValueError, match="sae, the folder of a trained SAE, is for the kind from_usage"):
        Start(kind="random", sae="anywhere")


def test_usage_is_a_running_mean_over_the_tokens_of_each_band() -> None:
    config = UsageBandMaskConfig(edges=(0, 1, 4), shared=1 / 3, decay=0.75, every=4, measure_every=2, stop=0.5)
    mask = build_mask(config, 4, 3)
    mask.begin_step(0, 20)
    assert mask.reorders_features and [step for step in range(20) if mask.wants_usage_at(step)] == [1, 3, 5, 7, 9]
    usage = torch.tensor([[9.0, 1.0, 2.0], [9.0, 3.0, 4.0], [9.0, 5.0, 8.0]])
    mask.observe(usage, torch.tensor([0, 1, 3]))
    once = torch.tensor([[1.0, 2.0], [4.0, 6.0]])
    torch.testing.assert_close(mask.usage, 0.25 * once)
    mask.observe(usage[:1], torch.tensor([0]))
    torch.testing.assert_close(mask.usage, 0.75 * 0.25 * once + 0.25 * torch.tensor([[1.0, 2.0], [0.0, 0.0]]))
    # 63% of the first feature's firing is in the second band, and 56% of the second feature's: the first has more to lose.
    before = mask.usage.clone()
    assert [mask.end_step(step) for step in (0, 1, 2)] == [None] * 3, "not a step at which features move"
    assert mask.end_step(3).tolist() == [0, 2, 1]
    assert torch.equal(mask.usage, before.flip(1)), "the usage moves with its features"
    assert mask.end_step(7) is None, "they are where they want to be"
    mask.usage.copy_(before)
    assert mask.end_step(11) is None, "the run is past the stop"


def test_one_band_has_nowhere_to_move_a_feature() -> None:
    mask = build_mask(UsageBandMaskConfig(count=1, every=1), 4, 3)
    mask.begin_step(0, 10)
    mask.observe(torch.rand(4, 3, generator=torch.Generator().manual_seed(0)), torch.arange(4))
    assert mask.end_step(0) is None


def test_the_feature_that_loses_most_by_its_second_choice_chooses_first() -> None:
    mask = build_mask(UsageBandMaskConfig(edges=(0, 1, 2, 3), every=1, stay=0.0), 3, 3)
    assert mask.end_step(0) is None, "no run has begun"
    mask.begin_step(0, 10)
    # Both the first and the second feature prefer the first band, and the second would lose more by its next choice: 0.25
    # against 0.1. (By their last choice, the first would lose more: 0.4.)
    mask.usage.copy_(torch.tensor([[0.5, 0.5, 0.2], [0.4, 0.25, 0.2], [0.1, 0.25, 0.6]]))
    assert mask.end_step(0).tolist() == [1, 0, 2]
