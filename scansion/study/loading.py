"""Read plans: YAML files, or the plans that come with Scansion, by name."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from scansion.errors import ConfigError, describe, did_you_mean
from scansion.files import expanded
from scansion.records import parse_yaml
from scansion.registry import load_plugin
from scansion.study.plan import StudyPlan


def bundled_plans() -> dict[str, bytes]:
    """Name -> YAML text of each plan that comes with Scansion."""
    folder = files("scansion.study").joinpath("plans")
    names = sorted(file.name for file in folder.iterdir() if file.name.endswith(".yaml"))
    return {name.removesuffix(".yaml"): folder.joinpath(name).read_bytes() for name in names}


def load_plan(plan: Path | str) -> StudyPlan:
    """Read a plan, after loading the plugins it names.

    Args:
        plan: path of a YAML file, or the name of a bundled plan, such as ``positional_masking``.

    Raises:
        ConfigError: there is no such plan, it is not YAML, or a key is unknown, missing or out of range.

    Example:
        >>> scansion.load_plan("positional_masking").runs[0].name
    """
    try:
        settings = read_plan(plan)
        _load_plugins(settings, Path(plan).parent)
        return StudyPlan.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(f"{plan}: {describe(error, model=StudyPlan)}") from error


def _load_plugins(settings: Any, folder: Path) -> None:
    named = cast(dict[str, Any], settings).get("plugins") if isinstance(settings, dict) else None
    # Anything else than a list of paths is refused by the plan's own check.
    for path in cast(list[Any], named) if isinstance(named, list) else []:
        load_plugin(folder / str(path))


def read_plan(plan: Path | str) -> Any:
    """What a plan's YAML says, not yet checked. A file is preferred to a bundled plan of the same name.

    Raises:
        ConfigError: there is no such plan, or it is not YAML.
    """
    bundled = bundled_plans()
    if Path(plan).is_file():
        text = Path(plan).read_bytes()
    elif str(plan) in bundled:
        text = bundled[str(plan)]
    else:
        known = [*bundled, *map(str, expanded(plan).parent.glob("*.yaml"))]
        meant = did_you_mean(str(plan), known) or "."
        raise ConfigError(
            f"there is no plan at {plan}{meant} Give a YAML file, or one of the names {', '.join(bundled)}"
        )
    return parse_yaml(text, str(plan))
