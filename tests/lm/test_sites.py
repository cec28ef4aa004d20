"""A site of one's own is one file; it is read, harvested, replaced and recorded like a built-in one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from scansion.activations import harvest
from scansion.errors import ConfigError, ModelError
from scansion.lm import HookPoint, activations_at, hook_site, logits, sites
from scansion.registry import load_plugin
from tests.conftest import FAMILIES, WIDTH, make_lm, make_plan, random_contexts

EXAMPLE = Path(__file__).parents[2] / "examples" / "hook_point.py"


pytestmark = pytest.mark.usefixtures("own_plugins")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_example_reads_what_the_mlp_projects_back(family: str) -> None:
    load_plugin(EXAMPLE)
    lm, contexts, point = make_lm(family), random_contexts(2), HookPoint.parse("mlp_hidden.1")
    hidden = activations_at(lm, point, contexts)
    assert hidden.shape == (2, 8, point.width(lm.facts)) and hidden.shape[-1] > WIDTH
    out = point.module(lm.model)(hidden)
    # GPT-2 and Gemma do something after the projection, which at evaluation is nothing, or a norm.
    mlp = dict(HookPoint(1).module(lm.model).named_children())["mlp"]
    seen: list[torch.Tensor] = []
    handle = mlp.register_forward_hook(lambda module, args, output: seen.append(output))
    plain = logits(lm, contexts, HookPoint(0))
    handle.remove()
    torch.testing.assert_close(out, seen[0])
    assert torch.equal(logits(lm, contexts, point, lambda x: x), plain)
    assert not torch.allclose(logits(lm, contexts, point, torch.zeros_like), plain, atol=1e-6)


def test_a_store_of_it_is_as_wide_as_it_is(tmp_path: Path) -> None:
    load_plugin(EXAMPLE)
    lm, contexts = make_lm(), random_contexts(5)
    plan = make_plan(tmp_path / "s", contexts)
    identity = plan.identity.model_copy(update={"hook_point": "mlp_hidden.1", "d_in": 32})
    store = harvest(type(plan)(identity, plan.folder, contexts, plan.config), lambda: lm)
    expected = activations_at(lm, HookPoint(1, "mlp_hidden"), contexts)
    torch.testing.assert_close(store.contexts(0, 5).x.transpose(0, 1), expected, rtol=1e-5, atol=1e-6)


def test_it_is_known_only_after_its_file_is_loaded_and_then_in_worker_processes_too() -> None:
    with pytest.raises(ModelError, match=r"sites are resid_pre, resid_post.*--plugin FILE\.py"):
        HookPoint.parse("mlp_hidden.1")
    load_plugin(EXAMPLE)
    assert str(HookPoint.parse("blocks.1.hook_mlp_hidden")) == "mlp_hidden.1"
    code = "from scansion.lm import HookPoint; print(HookPoint.parse('mlp_hidden.1'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "mlp_hidden.1"


def test_names_that_cannot_be_and_names_that_are_taken() -> None:
    with pytest.raises(ConfigError, match="lower-case letters"):
        hook_site("mlp.hidden")
    with pytest.raises(ConfigError, match="'resid_post' already"):
        hook_site("resid_post")(lambda block: block)
    with pytest.raises(ConfigError, match="no hook site 'nowhere'"):
        HookPoint(1, "nowhere").module(make_lm().model)


def test_a_site_that_does_not_fit_the_model_is_one_line() -> None:
    hook_site("gone")(lambda block: block.nothing)
    with pytest.raises(ModelError, match=r"hook site gone does not fit LlamaForCausalLM: .*nothing"):
        HookPoint(1, "gone").module(make_lm().model)
    hook_site("wide", width=lambda config: config.nothing)(lambda block: block)
    with pytest.raises(ModelError, match="width function of the hook site wide"):
        HookPoint(1, "wide").width(make_lm().facts)


def test_a_site_that_misstates_its_width_is_found_out() -> None:
    @hook_site("misstated")
    def misstated(block: nn.Module) -> nn.Module:
        return sites.child_of(sites.child_of(block, "mlp"), "up_proj")

    with pytest.raises(ModelError, match=r"misstated\.1 of llama are 32 wide; expected 16"):
        activations_at(make_lm(), HookPoint(1, "misstated"), random_contexts(2))
