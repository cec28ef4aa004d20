"""Which code a run was made with: plugins, recorded in its config.yaml and compared with those loaded now; and this package."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import xxhash

from scansion.errors import DamagedError
from scansion.progress import say
from scansion.records import read_yaml
from scansion.registry import loaded_plugins


def plugins_record() -> dict[str, Any]:
    """What a run's config.yaml holds about the plugins that are loaded; empty if there are none."""
    plugins = loaded_plugins()
    return {"plugins": plugins} if plugins else {}


@cache
def package_sources() -> bytes:
    """A hash of every Python file of this package; read once, as it is this code that runs."""
    digest = xxhash.xxh3_128()
    home = Path(__file__).parent
    for path in sorted(home.rglob("*.py")):
        digest.update(f"{path.relative_to(home)}\0".encode() + path.read_bytes())
    return digest.digest()


def missing_plugins(runs: Iterable[Path]) -> str:
    """What to add to the error of runs that cannot be read; empty unless they were made with plugins not loaded now.

    Args:
        runs: folders that hold a config.yaml.
    """
    loaded = {_name(plugin) for plugin in loaded_plugins()}
    missing: dict[str, Path] = {}
    for run in runs:
        for plugin in _plugins_of(run / "config.yaml"):
            if _name(plugin) not in loaded:
                missing.setdefault(_name(plugin), run)
    return "".join(
        f"; {run} was made with the plugin {name}: "
        + (f"put --plugin {name} before the command's name" if name.endswith(".py") else "install this package")
        for name, run in missing.items()
    )


def say_if_plugins_differ(run: Path) -> None:
    """Say in one line, once per plugin and run folder, if a plugin is not the version that the run was made with."""
    now = {_name(plugin): _version(plugin) for plugin in loaded_plugins()}
    for plugin in _plugins_of(run / "config.yaml"):
        name, then = _name(plugin), _version(plugin)
        if now.get(name, then) != then:
            _say_once(f"{name} is not as it was when {run} was made ({then} then, {now[name]} now); results may differ")


def _plugins_of(config: Path) -> Iterator[dict[str, str]]:
    """Nothing where there is no such file, or one without a record, as of runs made before there was one."""
    if not config.is_file():
        return
    try:
        yield from read_yaml(config).get("plugins", [])
    except DamagedError:  # whoever needs the settings themselves says so
        return


def _name(plugin: dict[str, str]) -> str:
    return plugin.get("file") or plugin.get("package", "")


def _version(plugin: dict[str, str]) -> str:
    return f"sha256 {plugin['sha256']}" if "sha256" in plugin else plugin.get("version", "")


@cache
def _say_once(message: str) -> None:
    say(message)
