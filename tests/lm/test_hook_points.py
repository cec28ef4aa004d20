"""Hook points are understood in every spelling and lead to the right module in every family."""

from __future__ import annotations

import pytest
import torch

from scansion.errors import ModelError
from scansion.lm import HookPoint, activations_at
from tests.conftest import FAMILIES, LAYERS, make_lm, random_contexts


@pytest.mark.parametrize(
    ("text", "layer", "site"),
    [
        ("layers.5", 5, "resid_post"),
        ("model.layers.12", 12, "resid_post"),
        ("gpt_neox.layers.0", 0, "resid_post"),
        ("transformer.h.3", 3, "resid_post"),
        ("h.3.attn", 3, "attn_out"),
        ("model.layers.2.self_attn", 2, "attn_out"),
        ("gpt_neox.layers.2.attention", 2, "attn_out"),
        ("layers.7.mlp", 7, "mlp_out"),
        ("blocks.5.hook_resid_post", 5, "resid_post"),
        ("blocks.5.hook_resid_pre", 5, "resid_pre"),
        ("blocks.5.hook_mlp_out", 5, "mlp_out"),
        ("blocks.5.hook_attn_out", 5, "attn_out"),
        ("resid_post.5", 5, "resid_post"),
    ],
)
def test_spellings(text: str, layer: int, site: str) -> None:
    hook_point = HookPoint.parse(text)
    assert (hook_point.layer, hook_point.site) == (layer, site)
    assert HookPoint.parse(str(hook_point)) == hook_point
    assert HookPoint.parse(hook_point.transformer_lens_name) == hook_point


@pytest.mark.parametrize("text", ["", "layer.5", "layers", "layers.-1", "layers.5.", "blocks.5.hook_z", "5"])
def test_anything_else_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ModelError, match="for example"):
        HookPoint.parse(text)


def test_a_layer_that_is_not_there() -> None:
    with pytest.raises(ModelError, match=f"layer {LAYERS}.*has {LAYERS} layers, numbered 0 to {LAYERS - 1}"):
        HookPoint(LAYERS).check(LAYERS, "tiny")


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_sublayers_add_is_what_the_residual_stream_gains(family: str) -> None:
    """resid_post = resid_pre + attn_out + mlp_out in every family, sandwich norms and parallel blocks included."""
    lm, contexts = make_lm(family), random_contexts(3)
    for layer in range(LAYERS):
        at = {site: activations_at(lm, HookPoint(layer, site), contexts) for site in
              ("resid_pre", "attn_out", "mlp_out", "resid_post")}  # fmt: skip
        torch.testing.assert_close(at["resid_pre"] + at["attn_out"] + at["mlp_out"], at["resid_post"])
        if layer:
            before = activations_at(lm, HookPoint(layer - 1), contexts)
            assert torch.equal(at["resid_pre"], before)
