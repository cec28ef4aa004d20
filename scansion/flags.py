"""Flags that stand for an SAE: its architecture, its size, and a mask on one line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from scansion.errors import ConfigError
from scansion.masks import MASKS, MaskConfig, parse_mask_config
from scansion.sae import SAEConfig, parse_sae_config


@dataclass(frozen=True)
class SAEFlags:
    """Flags that describe an SAE; those its architecture does not have are refused.

    Parameters
    ----------
    architecture
        relu, topk, batch_topk, gated, jumprelu, matryoshka, temporal, switch, or one of a plugin.
    d_sae
        Number of features.
    k
        Active features per token (all but relu, gated and jumprelu); default 32.
    l1_coefficient
        Weight of the L1 penalty (relu, gated); default 0.04.
    l0_coefficient
        Weight of the number of active features (jumprelu); default 0.001.
    mask
        Positional mask: a family, then its settings, for example "bands, count: 8, shared: 0.25".
        `scansion masks` lists them.
    n_experts
        Experts a learnt router chooses from (switch); default 8.
    """

    architecture: str = "topk"
    d_sae: int = 2304
    k: int | None = None
    l1_coefficient: float | None = None
    l0_coefficient: float | None = None
    mask: str = "none"
    n_experts: int | None = None

    def config(self) -> SAEConfig:
        """The config these flags mean, of which only what was given is set."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return parse_sae_config({**given, "mask": parse_mask(self.mask).model_dump(exclude_unset=True)})


def parse_mask(text: str) -> MaskConfig:
    """``"bands, count: 8, shared: 0.25"`` -> the config it means: a family, then its settings as YAML.

    Raises:
        ConfigError: it cannot be read.
        pydantic.ValidationError: an unknown family or setting, or a value out of range.
    """
    try:
        settings = yaml.safe_load(f"{{family: {text}}}")
    except yaml.YAMLError as error:
        raise ConfigError(
            f"mask {text!r} cannot be read; write a family, then its settings, like 'bands, count: 8, shared: 0.25'"
        ) from error
    return parse_mask_config(settings)


def mask_families() -> dict[str, tuple[str, list[str]]]:
    """Every family -> what it is, and a line for each of its settings."""
    return {
        name: (
            (MASKS.called(name).__doc__ or "").strip().splitlines()[0],
            setting_lines(config),
        )
        for name, config in zip(MASKS.names(), MASKS.configs(), strict=True)
    }


def setting_lines(config: type[BaseModel]) -> list[str]:
    """A line for each setting that can be chosen; the name of a mask family is none."""
    return [line for name in config.model_fields if name != "family" for line in _setting(config, name)]


def _setting(kind: type[BaseModel], name: str) -> Iterator[str]:
    field = kind.model_fields[name]
    if isinstance(field.default, BaseModel):
        for inner in type(field.default).model_fields:
            default = getattr(field.default, inner)
            what = type(field.default).model_fields[inner].description or ""
            yield f"{name}.{inner} = {default}: {what}"
    else:
        default = "required" if field.default is PydanticUndefined else field.default
        yield f"{name} = {default}: {field.description or ''}"
