"""One pattern for masks, architectures and evaluations: a class, its config, and a decorator that registers both.

``@register_mask(MyConfig)`` makes ``MyConfig``'s name known to plans, flags, saved SAEs, tables and pages. Third-party
classes come in two ways: a package's entry points (groups ``scansion.masks``, ``scansion.architectures``,
``scansion.evaluations``; ``scansion.hook_points`` for functions with ``hook_site``), or a Python file given as
``--plugin FILE.py``.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import xxhash
from pydantic import BaseModel, ValidationError

from scansion.errors import ConfigError, ScansionError, describe, did_you_mean
from scansion.files import expanded
from scansion.progress import say

PLUGINS = "SCANSION_PLUGINS"
"""Environment variable with the paths of loaded plugins, so that worker processes load them too."""

Config = TypeVar("Config", bound=BaseModel)
Item = TypeVar("Item")
Class = TypeVar("Class", bound=type)


class Registry(Generic[Config, Item]):
    """Name -> (config class, class), for one kind of plugin.

    Args:
        kind: what is registered, for messages: ``mask family``.
        field: the config's attribute that holds the name: a field with a default (``family``), or a class variable where
            the name is the key of the config in its parent and not one of its settings (``evaluation``).
        base: what every config class must derive from.
        group: entry-point group of third-party packages.

    Example:
        >>> @register_mask(PeriodicMaskConfig)
        ... class PeriodicMask(HardMask): ...
    """

    def __init__(self, kind: str, field: str, base: type[Config], group: str) -> None:
        self.kind = kind
        self.field = field
        self.base = base
        self.group = group
        self._items: dict[str, tuple[type[Config], Item]] = {}
        self._renamed: dict[str, str] = {}

    def register(self, config: type[Config]) -> Callable[[Class], Class]:
        """Class decorator that registers the class under its config's name.

        Raises:
            ConfigError: ``config`` does not derive from the base, has no name, or the name is taken.

        Example:
            >>> @scansion.register_mask(EveryOtherConfig)
            ... class EveryOther(scansion.HardMask):
            ...     '''Even features fire at even positions, odd ones at odd positions.'''
        """
        if not issubclass(config, self.base):
            raise ConfigError(
                f"{config.__name__} should derive from {self.base.__name__} to be the config of a {self.kind}"
            )
        name = self.name_of(config)
        taken = self._items.get(name)
        if taken is not None and _origin(taken[0]) != _origin(config):
            raise ConfigError(
                f"there is a {self.kind} called {name!r} already ({taken[0].__name__} of {taken[0].__module__}); "
                "choose another name"
            )

        def keep(item: Class) -> Class:
            self._items[name] = (config, cast(Item, item))
            return item

        return keep

    def rename(self, old: str, new: str) -> None:
        """Make a former name find what has a new one; the first use is reported in a line."""
        self._renamed[old] = new

    def name_of(self, config: type[Config] | Config) -> str:
        """The name of a config class or of a config.

        Raises:
            ConfigError: it has none.
        """
        kind = config if isinstance(config, type) else type(config)
        field = kind.model_fields.get(self.field)
        name = getattr(kind, self.field, None) if field is None else field.default
        if not isinstance(name, str):
            raise ConfigError(f'{kind.__name__} needs a name: {self.field}: Literal["my_name"] = "my_name"')
        return name

    def names(self) -> list[str]:
        """All names, in the order of registration."""
        load_plugins(self.group)
        return list(self._items)

    def configs(self) -> Iterator[type[Config]]:
        """All config classes, in the order of registration."""
        load_plugins(self.group)
        return (config for config, _ in self._items.values())

    def config_called(self, name: object) -> type[Config]:
        """The config class of this name.

        Raises:
            ConfigError: nothing has this name; the message lists the names.
        """
        return self._find(name)[0]

    def about(self) -> dict[str, str]:
        """Every name -> what it is: the first line of its class's docstring."""
        return {name: (self.called(name).__doc__ or "").strip().partition("\n")[0] for name in self.names()}

    def of(self, config: Config) -> Item:
        """The class that ``config`` belongs to.

        Raises:
            ConfigError: the config's class is not registered; one that derives from a registered config is not either.
        """
        known, item = self._find(self.name_of(config))
        if type(config) is not known:
            raise ConfigError(
                f"{type(config).__name__} is not registered: give it its own {self.field} and decorate its class "
                f"with register({type(config).__name__})"
            )
        return item

    def called(self, name: str) -> Item:
        """The class of this name.

        Raises:
            ConfigError: nothing has this name; the message lists the names.
        """
        return self._find(name)[1]

    def parse(self, settings: dict[str, Any]) -> Config:
        """Settings as read from JSON or YAML -> the config of the name they give.

        Raises:
            ConfigError: an unknown name.
            pydantic.ValidationError: an unknown key, or a value out of range.
        """
        return self.config_called(settings.get(self.field)).model_validate(settings)

    def read(self, value: object) -> object:
        """Validator of a pydantic field that holds any registered config: :meth:`parse` for a dict, else the value.

        Raises:
            ValueError: what :meth:`parse` raises, on one line, because it becomes part of the error of the config around it.
        """
        if not isinstance(value, dict):
            return value
        try:
            return self.parse(cast(dict[str, Any], value))
        except ValidationError as error:
            settings = cast(dict[str, Any], value)
            raise ValueError(describe(error, "", self.config_called(settings.get(self.field)))) from error

    def _find(self, name: object) -> tuple[type[Config], Item]:
        known = isinstance(name, str)  # it may be anything that YAML can hold
        if known and name in self._renamed:
            _say_once(f"the {self.kind} {name} is now called {self._renamed[name]}; the old name still works")
            name = self._renamed[name]
        if not known or name not in self._items:
            load_plugins(self.group)
        if not known or name not in self._items:
            hint = did_you_mean(str(name), self._items) or f"; there are {', '.join(self._items)}."
            raise ConfigError(
                f"no {self.kind} is called {name!r}{hint} If it is your own, name its file with --plugin FILE.py"
            )
        return self._items[str(name)]


_say_once = cache(say)


def _origin(config: type) -> tuple[str, str]:
    """Equal for a class and the same class of a module that is run again."""
    return config.__module__, config.__qualname__


_LOADED_GROUPS: set[str] = set()
_LOADED: dict[str, dict[str, str]] = {}


def loaded_plugins() -> list[dict[str, str]]:
    """Every plugin loaded so far: ``file`` and the start of its ``sha256``, or ``package`` and ``version``."""
    return [_LOADED[key] for key in sorted(_LOADED)]


def load_plugins(group: str) -> None:
    """Load the plugins named in the environment and the entry points of a group; a second call does nothing.

    Raises:
        ConfigError: one of them could not be loaded.
    """
    if group in _LOADED_GROUPS:
        return
    _LOADED_GROUPS.add(group)
    for path in filter(None, os.environ.get(PLUGINS, "").split(os.pathsep)):
        load_plugin(Path(path))
    for point in entry_points(group=group):
        try:
            point.load()
        except Exception as error:  # another package's code may raise anything; name the package
            raise ConfigError(f"the {group} plugin {point.value} could not be loaded: {error}") from error
        if point.dist is not None:
            _LOADED[point.dist.name] = {"package": point.dist.name, "version": point.dist.version}


def load_plugin(path: Path) -> None:
    """Run a Python file that registers masks, architectures, evaluations or hook points; a second call does nothing.

    Args:
        path: the file. Worker processes started later load it too.

    Raises:
        ConfigError: there is no such file, or running it raised an error.
    """
    path = expanded(path).resolve()
    if not path.is_file():
        raise ConfigError(f"there is no plugin at {path}; --plugin takes a Python file")
    name = f"scansion_plugin_{path.stem}_{xxhash.xxh32_hexdigest(str(path).encode())}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file; --plugin takes one that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses and pydantic look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the user's file may raise anything
        del sys.modules[name]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f" in line {lines[-1]}" if lines else ""
        what = str(error) if isinstance(error, ScansionError) else f"{type(error).__name__}: {error}"
        raise ConfigError(f"the plugin {path} failed{where}: {what}") from error
    _LOADED[name] = {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()[:16]}
    known = [each for each in os.environ.get(PLUGINS, "").split(os.pathsep) if each]
    if str(path) not in known:
        os.environ[PLUGINS] = os.pathsep.join([*known, str(path)])
