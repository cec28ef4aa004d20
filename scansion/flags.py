"""Flags that stand for an SAE: its architecture, its size, a mask on one line, and all settings of the architectures."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, make_dataclass
from typing import Annotated, Any

from cyclopts import Parameter
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from scansion.errors import ConfigError, describe
from scansion.listing import default_of, description_of
from scansion.masks import MASKS, MaskConfig
from scansion.records import parse_yaml
from scansion.registry import Config, Registry
from scansion.sae import ARCHITECTURES, SAEConfig


@dataclass(frozen=True)
class SAEFlags:
    """Flags that every SAE has; :func:`flags_of_architectures` adds their help, and the flags of each architecture."""

    architecture: str | None = None
    d_sae: int | None = None
    mask: str = "none"


_DEFAULTS = {"architecture": "topk", "d_sae": 2304}


def flags_of_architectures(taken: Collection[str] = ()) -> type[SAEFlags]:
    """:class:`SAEFlags` with one more flag for every setting of every registered architecture, plugins included.

    Architectures that have a setting of the same name share its flag. A flag that is not given leaves the setting at its
    architecture's default.

    Args:
        taken: names of flags that mean something else already; a setting of such a name gets the flag ``--sae-NAME``.
    """
    settings: dict[str, dict[str, FieldInfo]] = {}
    for architecture, config in zip(ARCHITECTURES.names(), ARCHITECTURES.configs(), strict=True):
        for setting, field in config.model_fields.items():
            if setting not in SAEConfig.model_fields:
                settings.setdefault(setting, {})[architecture] = field
    common = {
        "architecture": f"{', '.join(ARCHITECTURES.names())}. `scansion architectures` says what each is. "
        f"[default: {_DEFAULTS['architecture']}, or as in --from]",
        "d_sae": f"{description_of(SAEConfig.model_fields['d_sae'])} [default: {_DEFAULTS['d_sae']}, or as in --from]",
        "mask": f"Positional mask: a family ({', '.join(MASKS.names())}), then its settings, for example "
        '"bands, count: 8, shared: 0.25". `scansion masks` says what each is.',
    }
    flags: list[tuple[str, Any, Any]] = [
        (each.name, Annotated[each.type, Parameter(group="SAE", help=common[each.name])], each.default)
        for each in fields(SAEFlags)
    ]
    for setting, owners in settings.items():
        first, *others = [owner.annotation for owner in owners.values()]
        # Where types differ, the config of the architecture reads the text: parsed as int, 0.75 would become 1.
        kind: Any = first if all(other == first for other in others) else str
        name = f"--sae-{setting.replace('_', '-')}" if setting in taken else None
        parameter = Parameter(name=name, group="Settings of the architecture", help=_help(owners))
        flags.append((setting, Annotated[kind | None, parameter], None))
    return make_dataclass("SAEFlags", flags, bases=(SAEFlags,), namespace={"__module__": __name__}, frozen=True)


def sae_config(flags: SAEFlags, start: SAEConfig | None = None) -> SAEConfig:
    """The config that these flags mean, of which only what was given is set.

    Args:
        flags: None where one was not given.
        start: of the SAE that training starts from; its settings are those of flags not given, except for its mask.

    Raises:
        ConfigError: an unknown architecture or setting, a value out of range, or a mask that cannot be read.
    """
    given = {each.name: value for each in fields(flags) if (value := getattr(flags, each.name)) is not None}
    architecture = str(given.get("architecture", start.architecture if start else _DEFAULTS["architecture"]))
    own = ARCHITECTURES.config_called(architecture).model_fields
    for name in given.keys() - own.keys():
        owners = ", ".join(
            other
            for other, config in zip(ARCHITECTURES.names(), ARCHITECTURES.configs(), strict=True)
            if name in config.model_fields
        )
        raise ConfigError(f"{name} is not a setting of {architecture}, but of {owners}; leave it out")
    before: dict[str, Any] = _DEFAULTS
    if (
        start is not None
    ):  # of another architecture only the size is kept: training then says that it cannot be started from
        same = start.architecture == architecture
        before = start.model_dump(exclude={"mask"}) if same else {"d_sae": start.d_sae}
    mask = parse_mask(flags.mask).model_dump(exclude_unset=True)
    return _parsed(ARCHITECTURES, {**before, "architecture": architecture, **given, "mask": mask})


def parse_mask(text: str) -> MaskConfig:
    """``"bands, count: 8, shared: 0.25"`` -> the config it means: a family, then its settings as YAML.

    Raises:
        ConfigError: it cannot be read, an unknown family or setting, or a value out of range.
    """
    try:
        settings = parse_yaml(f"{{family: {text}}}", "the mask")
    except ConfigError as error:
        raise ConfigError(
            f"mask {text!r} cannot be read; write a family, then its settings, like 'bands, count: 8, shared: 0.25' ({error})"
        ) from error
    return _parsed(MASKS, settings)


def _parsed(registry: Registry[Config, Any], settings: dict[str, Any]) -> Config:
    try:
        return registry.parse(settings)
    except ValidationError as error:
        raise ConfigError(describe(error, "", registry.config_called(settings[registry.field]))) from error


def _help(owners: Mapping[str, FieldInfo]) -> str:
    """``What it is. [relu, gated: default 0.04]``, with as many such parts as the setting has meanings."""
    meanings: dict[str, dict[str, list[str]]] = {}
    for architecture, field in owners.items():
        default = "required" if field.is_required() else f"default {default_of(field)}"
        meanings.setdefault(description_of(field), {}).setdefault(default, []).append(architecture)
    parts: list[str] = []
    for what, groups in meanings.items():
        owned = "; ".join(f"{', '.join(architectures)}: {default}" for default, architectures in groups.items())
        parts.append(f"{what} [{owned}]".strip())
    return " ".join(parts)
