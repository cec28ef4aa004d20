"""The forward pass stops where it should, does not care about padding, and goes on from a replaced activation."""

from __future__ import annotations

import pytest
import torch

from scansion.errors import ModelError
from scansion.lm import HookPoint, activations_at, activations_at_each, logits
from scansion.lm.hook_points import decoder_blocks
from tests.conftest import FAMILIES, LAYERS, MAX_POSITIONS, make_lm, random_contexts


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_after_the_hook_point_is_computed(family: str) -> None:
    lm, calls = make_lm(family), []
    for index, block in enumerate(decoder_blocks(lm.model)):
        block.register_forward_pre_hook(lambda *_, index=index: calls.append(index))
    lm.model.get_output_embeddings().register_forward_pre_hook(lambda *_: calls.append("head"))
    for layer in range(LAYERS):
        calls.clear()
        activations_at(lm, HookPoint(layer), random_contexts(2))
        assert calls == list(range(layer + 1))
    calls.clear()
    logits(lm, random_contexts(2), HookPoint(0))
    assert calls == [*range(LAYERS), "head"]


@pytest.mark.parametrize("family", FAMILIES)
def test_several_hook_points_in_one_pass_are_each_as_alone(family: str) -> None:
    lm, contexts, calls = make_lm(family), random_contexts(4, shortest=3), []
    for index, block in enumerate(decoder_blocks(lm.model)):
        block.register_forward_pre_hook(lambda *_, index=index: calls.append(index))
    sites = ("mlp_out", "resid_post", "attn_out", "resid_pre")
    points = [HookPoint(layer, site) for layer in (1, 0) for site in sites]
    together = activations_at_each(lm, points, contexts)
    assert calls == [0, 1]
    assert all(torch.equal(x, activations_at(lm, point, contexts)) for point, x in zip(points, together, strict=True))


def test_what_the_rest_of_the_pass_does_in_place_changes_no_activation() -> None:
    lm, contexts = make_lm(), random_contexts(2)
    expected = activations_at(lm, HookPoint(0), contexts)
    decoder_blocks(lm.model)[1].register_forward_pre_hook(lambda block, args: (args[0].zero_(),))
    found, after = activations_at_each(lm, [HookPoint(0), HookPoint(1)], contexts)
    assert torch.equal(found, expected) and not torch.equal(after, activations_at(make_lm(), HookPoint(1), contexts))


def test_a_hook_point_that_is_not_reached_is_named() -> None:
    lm = make_lm()
    decoder_blocks(lm.model)[1].forward = lambda hidden_states, **_: hidden_states
    with pytest.raises(ModelError, match=r"never reaches mlp_out\.1; choose"):
        activations_at_each(lm, [HookPoint(0), HookPoint(1, "mlp_out")], random_contexts(2))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_belong_to_positions_wherever_the_padding_is(family: str, dtype: torch.dtype) -> None:
    lm = make_lm(family, dtype)
    right = random_contexts(6, length=12, shortest=3)
    left = right.left_padded()
    assert not torch.equal(right.valid, left.valid)
    for hook_point in (HookPoint(1), HookPoint(2, "attn_out")):
        from_right = activations_at(lm, hook_point, right)[right.valid]
        from_left = activations_at(lm, hook_point, left)[left.valid]
        tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.06}
        torch.testing.assert_close(from_right, from_left, **tolerance)


def test_a_context_alone_is_as_in_a_batch() -> None:
    lm, contexts = make_lm(), random_contexts(4, length=10, shortest=4)
    together = activations_at(lm, HookPoint(1), contexts)
    for index in range(len(contexts)):
        one = contexts[index : index + 1]
        alone = activations_at(lm, HookPoint(1), one)
        torch.testing.assert_close(alone[one.valid], together[index : index + 1][one.valid])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("site", ["resid_pre", "resid_post", "attn_out", "mlp_out"])
def test_replacing_an_activation_by_itself_changes_nothing_and_by_zero_everything(family: str, site) -> None:
    lm, contexts = make_lm(family), random_contexts(3)
    plain = logits(lm, contexts, HookPoint(1, site))
    assert torch.equal(logits(lm, contexts, HookPoint(1, site), lambda x: x), plain)
    assert not torch.allclose(logits(lm, contexts, HookPoint(1, site), torch.zeros_like), plain, atol=1e-6)
    assert torch.equal(logits(lm, contexts, HookPoint(1, site)), plain), "the hook outlived its use"


def test_a_context_longer_than_the_model_allows() -> None:
    with pytest.raises(ModelError, match=f"{MAX_POSITIONS + 1} tokens is longer than llama allows .{MAX_POSITIONS}"):
        activations_at(make_lm(), HookPoint(0), random_contexts(1, length=MAX_POSITIONS + 1))
