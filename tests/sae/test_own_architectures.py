"""An architecture of one's own: known by its decorator, to plans and saved SAEs; and what is said where it is not."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pydantic import BaseModel

from scansion import registry
from scansion.errors import ConfigError
from scansion.masks import BandMaskConfig
from scansion.registry import load_plugin
from scansion.sae import ARCHITECTURES, AnySAEConfig, ReluConfig, build_sae, load_sae, parse_sae_config, save_sae
from tests.execution.curves import losses_of
from tests.masks.families import D_IN, D_SAE, EVERYWHERE, NONE_DEAD, L, some_x
from tests.sae.test_sae import METADATA

EXAMPLE = Path(__file__).parents[2] / "examples" / "architecture.py"


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The example is loaded, and forgotten afterwards."""
    monkeypatch.setenv(registry.PLUGINS, "")
    before = dict(ARCHITECTURES._items)
    modules = set(importlib.sys.modules)
    load_plugin(EXAMPLE)
    yield
    ARCHITECTURES._items.clear()
    ARCHITECTURES._items.update(before)
    for name in set(importlib.sys.modules) - modules:
        del importlib.sys.modules[name]


class Plan(BaseModel):
    sae: AnySAEConfig


@pytest.mark.usefixtures("plugin")
def test_it_is_trained_saved_and_loaded_by_its_name(tmp_path: Path) -> None:
    settings = {"architecture": "tanh", "d_sae": D_SAE, "width": 0.2, "mask": {"family": "bands", "count": 3}}
    plan = Plan.model_validate({"sae": settings})
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
    assert plan.sae.mask == BandMaskConfig(count=3)
    sae = build_sae(plan.sae, D_IN, L, torch.Generator().manual_seed(0)).train()
    fast, dense = (
        losses_of(sae, some_x(), EVERYWHERE, NONE_DEAD),
        losses_of(sae, some_x(), EVERYWHERE, NONE_DEAD, way="dense"),
    )
    torch.testing.assert_close(fast.sparsity, dense.sparsity)
    acts = sae.encode(some_x(), EVERYWHERE[:, None])
    torch.testing.assert_close(fast.sparsity, 0.04 * 0.2 * (acts / 0.2).tanh().sum() / (L * 4))
    save_sae(sae, tmp_path / "sae", METADATA)
    loaded, _ = load_sae(tmp_path / "sae")
    assert loaded.config == plan.sae and torch.equal(loaded.W_dec, sae.W_dec)


def test_without_its_plugin_it_is_not_known(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no architecture is called 'tanh'.*--plugin FILE.py"):
        parse_sae_config({"architecture": "tanh", "d_sae": 8})


def test_a_subclass_of_a_built_in_config_must_be_registered_itself() -> None:
    class Mine(ReluConfig, frozen=True):
        """Not registered."""

    with pytest.raises(ConfigError, match=r"Mine is not registered: give it its own architecture"):
        build_sae(Mine(d_sae=8), 4, 4, torch.Generator())


def test_settings_of_another_architecture_are_named_in_the_error_of_the_plan() -> None:
    with pytest.raises(ValueError, match="k: there is no such setting; the settings here are architecture"):
        Plan.model_validate({"sae": {"architecture": "relu", "d_sae": 4, "k": 3}})
