"""An SAE in a running model: padding and cache change nothing, and a change stays at its positions and features."""

from __future__ import annotations

import pytest
import torch

import scansion
from scansion.attaching import attach
from scansion.errors import ConfigError, ShapeError
from scansion.lm import HookPoint, activations_at
from scansion.masks import BandMaskConfig
from scansion.sae import SAE, ReluConfig, TopKConfig
from tests.conftest import FAMILIES, WIDTH, make_lm, random_contexts
from tests.interop.made import metadata, sae_of

POINT = "resid_post.1"


def made(mask: bool = True) -> SAE:
    config = TopKConfig(d_sae=32, k=6, mask=BandMaskConfig(count=4, shared=0.25)) if mask else ReluConfig(d_sae=32)
    sae = sae_of(config, WIDTH)
    sae.provenance = metadata()
    return sae


@torch.no_grad()
def logits_of(model, tokens: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    if mask is None:
        return model(input_ids=tokens).logits
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    return model(input_ids=tokens, attention_mask=mask, position_ids=positions).logits


def left_padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    length = max(map(len, rows))
    tokens = torch.tensor([[2] * (length - len(row)) + row for row in rows])
    return tokens, torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])


@pytest.mark.parametrize("family", FAMILIES)
def test_it_sees_what_the_sae_encodes(family: str) -> None:
    lm, sae, contexts = make_lm(family), made(), random_contexts(3)
    with attach(lm.model, sae) as seen:
        plain = logits_of(lm.model, contexts.tokens.long())
    x = activations_at(lm, HookPoint.parse(POINT), contexts)
    with torch.no_grad():
        expected = sae.encode(x, torch.arange(8))
    expected[:, 0] = 0.0  # position 0 took no part in its training
    torch.testing.assert_close(seen.acts, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(seen.positions, torch.arange(8).expand(3, 8)) and not bool(seen.applied[:, 0].any())
    assert torch.equal(plain, logits_of(lm.model, contexts.tokens.long()))


@pytest.mark.parametrize("mode", ["replace", "ablate"])
def test_a_norm_of_the_input_is_undone_at_each_token(mode: str) -> None:
    lm, contexts = make_lm("llama"), random_contexts(3)
    sae = sae_of(TopKConfig(d_sae=32, k=6, input_norm="layer_norm"), WIDTH)
    point, settings = HookPoint.parse(POINT), {"features": [3, 7]} if mode == "ablate" else {}
    x = activations_at(lm, point, contexts)
    with attach(lm.model, sae, mode, hook_point=POINT, use_position_0=True, **settings):
        changed = activations_at(lm, point, contexts)
    with torch.no_grad():
        scale = x.std(dim=-1, keepdim=True)
        removed = sae.encode(x)[..., [3, 7]] @ sae.W_dec[[3, 7]] * scale
        expected = sae(x) if mode == "replace" else x - removed
    torch.testing.assert_close(changed, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", ["replace", "steer", "ablate"])
def test_a_padded_batch_gives_what_each_text_gives_alone(family: str, mode: str) -> None:
    lm, sae = make_lm(family), made()
    rows = [[1, 5, 9, 14, 20], [1, 7, 30], [1, 8, 9, 10, 11, 12, 13]]
    settings = {"replace": {}, "steer": {"features": [3, 30], "value": 4.0}, "ablate": {"features": list(range(32))}}[
        mode
    ]
    tokens, mask = left_padded(rows)
    with attach(lm.model, sae, mode, **settings) as seen:
        together = logits_of(lm.model, tokens, mask)
    for index, row in enumerate(rows):
        with attach(lm.model, sae, mode, **settings) as alone:
            expected = logits_of(lm.model, torch.tensor([row]))
        torch.testing.assert_close(together[index, -len(row) :], expected[0], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(seen.acts[index, -len(row) :], alone.acts[0], rtol=1e-3, atol=1e-4)
        assert seen.positions[index, -len(row) :].tolist() == list(range(len(row)))
        assert not bool(seen.applied[index, : -len(row)].any())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", ["observe", "replace", "steer"])
def test_generation_with_a_cache_is_that_without(family: str, mode: str) -> None:
    lm, sae = make_lm(family), made()
    settings = {"features": [3, 30], "value": 5.0} if mode == "steer" else {}
    tokens, mask = left_padded([[1, 5, 9, 14], [1, 7]])
    results = []
    for use_cache in (True, False):
        with attach(lm.model, sae, mode, **settings) as seen:
            out = lm.model.generate(
                input_ids=tokens, attention_mask=mask, max_new_tokens=6, min_new_tokens=6, do_sample=False,
                use_cache=use_cache, pad_token_id=2,
            )  # fmt: skip
        results.append((out, seen))
    (cached, by_step), (uncached, whole) = results
    assert torch.equal(cached, uncached)
    assert [step.acts.shape[1] for step in by_step.steps] == [4, 1, 1, 1, 1, 1]
    assert by_step.positions[0].tolist() == list(range(9)) and by_step.positions[1].tolist() == [0, 0, *range(7)]
    # Positions past the mask's 8 pass through.
    assert bool(by_step.applied[0, 7]) and not bool(by_step.applied[0, 8])
    torch.testing.assert_close(by_step.acts, whole.steps[-1].acts, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_steering_at_a_position_changes_nothing_before_it(family: str) -> None:
    lm, sae, tokens = make_lm(family), made(mask=False), random_contexts(2).tokens.long()
    plain = logits_of(lm.model, tokens)
    with attach(lm.model, sae, "steer", features=[4], value=9.0, positions=[5]):
        steered = logits_of(lm.model, tokens)
    assert torch.equal(steered[:, :5], plain[:, :5])
    assert not torch.allclose(steered[:, 5:], plain[:, 5:], atol=1e-3)


def test_what_the_sae_leaves_over_is_kept() -> None:
    lm, sae, tokens = make_lm(), made(), random_contexts(2).tokens.long()
    plain = logits_of(lm.model, tokens)
    silent = [index for index in range(32) if index not in seen_features(lm, sae, tokens)]
    with attach(lm.model, sae, "ablate", features=silent or [0]):
        unchanged = logits_of(lm.model, tokens)
    assert silent and torch.allclose(unchanged, plain, atol=1e-5)
    with attach(lm.model, sae, "replace"):
        replaced = logits_of(lm.model, tokens)
    assert not torch.allclose(replaced, plain, atol=1e-2)


def seen_features(lm, sae: SAE, tokens: torch.Tensor) -> set[int]:
    with attach(lm.model, sae) as seen:
        logits_of(lm.model, tokens)
    return set(seen.acts.sum(dim=(0, 1)).nonzero().flatten().tolist())


def test_a_closed_feature_is_not_forced() -> None:
    lm, sae, tokens = make_lm(), made(), random_contexts(1).tokens.long()
    is_open = sae.mask.can_fire(torch.arange(8))
    tied = int((~is_open.all(dim=0)).nonzero()[0])
    closed = (~is_open[:, tied]).nonzero().flatten().tolist()
    opened = [position for position in range(1, 8) if position not in closed]
    plain = logits_of(lm.model, tokens)
    for positions, same in ((closed, True), (opened, False)):
        with attach(lm.model, sae, "steer", features=[tied], value=9.0, positions=positions):
            assert torch.allclose(logits_of(lm.model, tokens), plain, atol=1e-5) is same


@pytest.mark.parametrize("family", FAMILIES)
def test_no_hook_is_left_behind(family: str) -> None:
    lm, sae = make_lm(family), made()
    before = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in lm.model.modules()]
    with pytest.raises(RuntimeError, match="of mine"), attach(lm.model, sae):
        raise RuntimeError("of mine")
    wide = sae_of(ReluConfig(d_sae=8), WIDTH + 1)
    with pytest.raises(ShapeError, match="16 wide, and this SAE takes 17"), attach(lm.model, wide, hook_point=POINT):
        logits_of(lm.model, torch.tensor([[1, 5]]))
    assert [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in lm.model.modules()] == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "delete"}, "no mode 'delete'; choose one of observe"),
        ({"mode": "steer", "value": 1.0}, "steer needs features"),
        ({"mode": "steer", "features": [1]}, "needs the value"),
        ({"mode": "ablate", "features": [1], "value": 1.0}, "ablate takes no value"),
        ({"mode": "observe", "features": [1]}, "observe changes no single features"),
        ({"mode": "ablate", "features": [32]}, "no feature 32; this SAE has 32"),
    ],
)
def test_mistakes_are_said_before_the_model_runs(arguments: dict, message: str, as_users_run_it) -> None:
    with pytest.raises(ConfigError, match=message), scansion.attach(make_lm().model, made(), **arguments):
        raise AssertionError("it was attached")


def test_an_sae_that_does_not_say_where_it_belongs_needs_a_hook_point() -> None:
    sae = sae_of(ReluConfig(d_sae=8), WIDTH)
    with pytest.raises(ConfigError, match="give hook_point"), attach(make_lm().model, sae):
        pass
    with attach(make_lm().model, sae, hook_point="layers.0") as seen:
        pass
    assert seen.steps == []
