"""The registry: names, refusals that say what to do, and plugins from files."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Literal

import pytest
from pydantic import BaseModel

from scansion.errors import ConfigError
from scansion.registry import PLUGINS, Registry, load_plugin


class Base(BaseModel, extra="forbid", frozen=True):
    name: str


class OneConfig(Base, frozen=True):
    name: Literal["one"] = "one"
    size: int = 3


@pytest.fixture
def registry() -> Registry[Base, type]:
    found: Registry[Base, type] = Registry("thing", "name", Base, "scansion.no_such_group")

    @found.register(OneConfig)
    class One: ...

    return found


def test_a_registered_class_is_found_by_name_and_by_config(registry) -> None:
    assert registry.names() == ["one"]
    assert registry.parse({"name": "one", "size": 5}) == OneConfig(size=5)
    assert registry.of(OneConfig()).__name__ == registry.called("one").__name__ == "One"


@pytest.mark.parametrize(
    ("name", "says"), [("onne", "did you mean one"), (None, "--plugin FILE.py"), ("x", "there are one")]
)
def test_an_unknown_name_says_what_there_is(registry, name, says) -> None:
    with pytest.raises(ConfigError, match=says):
        registry.parse({"name": name})


def test_a_name_is_given_once(registry) -> None:
    class Other(Base, frozen=True):
        name: Literal["one"] = "one"

    with pytest.raises(ConfigError, match="called 'one' already"):
        registry.register(Other)


def test_a_config_without_a_name_is_refused(registry) -> None:
    with pytest.raises(ConfigError, match="needs a name"):
        registry.register(Base)


def test_a_config_of_another_kind_is_refused(registry) -> None:
    class Stranger(BaseModel):
        name: str = "stranger"

    with pytest.raises(ConfigError, match="should derive from Base"):
        registry.register(Stranger)


def test_an_unregistered_subclass_says_how_to_register_it(registry) -> None:
    class Derived(OneConfig, frozen=True):
        extra: int = 1

    with pytest.raises(ConfigError, match="Derived is not registered"):
        registry.of(Derived())


def test_a_plugin_is_run_once_and_handed_to_worker_processes(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv(PLUGINS, "")
    path = tmp_path / "mine.py"
    path.write_text(f"with open({str(tmp_path / 'runs')!r}, 'a') as file: file.write('run ')\n")
    before = set(sys.modules)
    for _ in range(2):
        load_plugin(path)
    assert (tmp_path / "runs").read_text() == "run "
    assert os.environ[PLUGINS] == str(path)
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("text", "says"), [(None, "no plugin at"), ("raise ValueError('no')", "ValueError: no"), ("x = (", "SyntaxError")]
)
def test_a_plugin_that_cannot_be_loaded_is_named(tmp_path: Path, monkeypatch, text, says) -> None:
    monkeypatch.setenv(PLUGINS, "")
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=says):
        load_plugin(path)
    assert os.environ[PLUGINS] == ""
