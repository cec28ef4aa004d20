"""What is registered, with its settings: lines for the command line, and rows for the tables of the docs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from scansion.registry import Registry


def lines(registry: Registry[Any, Any], name: str | None) -> list[str]:
    """Every registered name with what it is, in a line each; or of one name that line and one for each of its settings.

    Raises:
        ConfigError: nothing has this name.
    """
    if name is None:
        return [f"{each}: {what}" for each, what in registry.about().items()]
    config = registry.config_called(name)
    set_ = [f"  set {shown(*setting)}" for setting in settings_of(config, registry.field)]
    return [f"{name}: {registry.about()[name]}", *set_]


def shown(setting: str, default: str, what: str) -> str:
    """A setting in one line, for example ``shared = 0.0: Share of features free to fire everywhere.``"""
    return f"{setting}{' = ' if default else ''}{default}: {what}"


def settings_of(config: type[BaseModel], name_field: str = "") -> Iterator[tuple[str, str, str]]:
    """Name, default and description of each setting, those inside a setting under dotted names.

    Args:
        config: class of the settings.
        name_field: the field that holds the name of what is registered, which is no setting.
    """
    for name, field in config.model_fields.items():
        if isinstance(field.default, BaseModel) and field.annotation is type(field.default):
            for inner, what in type(field.default).model_fields.items():
                yield f"{name}.{inner}", _as_yaml(getattr(field.default, inner)), description_of(what)
        elif name != name_field:
            yield name, default_of(field), description_of(field)


def default_of(field: FieldInfo) -> str:
    """A setting's default, as YAML; ``required`` if it has none, and empty if it depends on the machine."""
    if field.default_factory is not None:
        return ""
    return "required" if field.is_required() else _as_yaml(field.default)


def description_of(field: FieldInfo) -> str:
    """What a setting is."""
    return field.description or ""


def _as_yaml(value: object) -> str:
    """On one line, as a user would write it in a plan."""
    text = yaml.safe_dump(to_jsonable_python(value), default_flow_style=True, width=float("inf"))
    return text.removesuffix("\n...\n").strip()
