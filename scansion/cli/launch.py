"""Start a command: load plugins, find out where settings come from, and report mistakes in one line."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, cast, get_args

from cyclopts import App, Argument, ArgumentCollection, CycloptsError, Parameter, UnusedCliTokensError
from cyclopts.config import Dict, Env
from pydantic import ValidationError

from scansion.cli.app import COMMON, app
from scansion.errors import ConfigError, DamagedError, ScansionError, describe, did_you_mean
from scansion.files import one_line_io_errors, url_of
from scansion.progress import say
from scansion.records import parse_yaml
from scansion.remote import copy_in, with_urls

_GROUPS = ("assets", "study")
"""Commands that have commands of their own."""
TAKE_URLS = {
    "harvest": {"--out"},
    "train": {"--store", "--out", "--from"},
    "eval": {"--runs", "--held-out", "--report"},
    "saebench": {"--runs", "--held-out"},
    "sae-probes": {"--runs", "--held-out"},
    "compile": {"--run", "--held-out"},
    "import": {"--store"},
    "export": {"--run", "--held-out"},
    "look": {"--run"},
    "steer": {"--run"},
    "push": {"--run"},
    "demo": {"--out"},
    "study run": {"--out"},
    "study plan": {"--out"},
    "synth": {"--out", "--like"},
}
"""Command -> its paths that can be URLs of object storage. All other paths are on disk, as are those of new commands."""
_TEXTS_WITH_PATHS = {"--plan", "--model", "--settings"}
"""Options that take the path of a file or folder, among other things."""

app.meta.help_flags = ()  # `--help` goes through _launch, so that help includes what plugins add


@app.meta.default
def _launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    config: Annotated[Path | None, Parameter(group=COMMON)] = None,
    plugin: Annotated[list[Path] | None, Parameter(group=COMMON, negative="")] = None,
) -> None:
    """Options of all commands; they come before the command's name.

    Parameters
    ----------
    config
        YAML file with settings, under the name of the command, for example `train: {lr: 0.001}`.
    plugin
        Python file with a mask, architecture, evaluation or hook point of your own. Repeat the flag for several files.
    """
    _require_on_disk("--config", [str(config or "")])
    _require_on_disk("--plugin", map(str, plugin or []))
    if plugin:
        from scansion.registry import load_plugin

        for path in plugin:
            load_plugin(path)
    sources: list[Any] = [Env("SCANSION_", command=True, show=False)]
    if config is not None:
        sources.append(Dict(_settings_in(config), source=str(config)))
    app.config = (*sources, _refuse_fractions, _refuse_urls)
    _refuse_unknown_command(app, tokens)
    if tokens[:1] == ("train",):
        from scansion.cli.training import offer_all_architectures

        offer_all_architectures()
    app(tokens, exit_on_error=False, print_error=False)


def _refuse_unknown_command(parent: App, tokens: tuple[str, ...]) -> None:
    """Answer a misspelt command at once: cyclopts would first import every command to see what it could have been."""
    if not tokens or tokens[0].startswith("-"):
        return
    commands = [name for name in parent if not name.startswith("-")]
    if tokens[0] in commands:
        if tokens[0] in _GROUPS:
            _refuse_unknown_command(parent[tokens[0]], tokens[1:])
        return
    meant = did_you_mean(tokens[0], commands) or "."
    raise ConfigError(f"there is no command {tokens[0]!r}{meant} Commands: {', '.join(sorted(commands))}")


def _settings_in(config: Path) -> dict[str, Any]:
    settings: Any = parse_yaml(config.read_bytes(), str(config))
    if not isinstance(settings, dict):
        raise ConfigError(f"{config} should hold settings under the names of commands, like `train: {{lr: 0.001}}`")
    found = cast(dict[Any, Any], settings)
    if unknown := [name for name in found if not isinstance(name, str) or name not in app]:
        raise ConfigError(f"{config}: there is no command {unknown[0]!r}; `scansion --help` lists the commands")
    if wrong := next((value for value in _keys_of(found) if not isinstance(value, str)), None):
        raise ConfigError(f"{config}: {wrong!r} is no name of a setting")
    return found


def _refuse_fractions(_app: App, _commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Raise for a fraction where a whole number is expected, which would be rounded."""
    for argument in arguments:
        for token in argument.tokens:
            if argument.hint in (int, int | None) and re.fullmatch(r"[+-]?\d*\.\d*[1-9]\d*", token.value):
                raise ConfigError(f"{argument.name} takes a whole number, not {token.value}")


def _refuse_urls(_app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Raise for a URL where only a path on disk is taken: it would name a folder `s3:` in the working folder."""
    for argument in arguments:
        if argument.name in TAKE_URLS.get(" ".join(commands), ()) or not takes_path(argument):
            continue
        _require_on_disk(argument.name, (token.value for token in argument.tokens))


def _require_on_disk(option: str, values: Iterable[str]) -> None:
    if url := next(filter(None, map(url_of, values)), None):
        raise ConfigError(
            f"{option} takes a path on disk, not {url}; docs/object_storage.md says which commands take URLs"
        )


def takes_path(argument: Argument) -> bool:
    """Whether an option is the path of a file or a folder, or several."""
    return _holds_path(argument.hint) or argument.name in _TEXTS_WITH_PATHS


def _holds_path(hint: Any) -> bool:
    return hint is Path or any(_holds_path(part) for part in get_args(hint))


def _keys_of(settings: Any) -> Iterator[Any]:
    if isinstance(settings, dict):
        for key, value in cast(dict[Any, Any], settings).items():
            yield key
            yield from _keys_of(value)


def main() -> None:
    """Run the command line; mistakes a user can mend become one line and exit status 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        with one_line_io_errors("scansion"):
            app.meta(sys.argv[1:], exit_on_error=False, print_error=False)
    except ValidationError as error:
        _fail(describe(error, ""))
    except UnusedCliTokensError as error:
        _fail(_unused(list(error.unused_tokens or ()), sys.argv[1:]))
    except DamagedError as error:
        copy = copy_in(str(error))
        _fail(str(error), f"; if only the copy in the cache is damaged, delete that: {copy}" if copy else "")
    except (ScansionError, CycloptsError) as error:
        cause = error.__cause__ if isinstance(error, CycloptsError) else None
        _fail(describe(cause, "") if isinstance(cause, ValidationError) else " ".join(str(error).split()))
    except KeyboardInterrupt:
        say("interrupted; run the same command again to resume")
        sys.exit(130)


def _unused(unused: list[str], given: list[str]) -> str:
    """What to say of words that belong to no flag: perhaps the second value of a flag that takes one at a time."""
    said = f"{', '.join(map(repr, unused))} belongs to no flag"
    for flag, value, word in zip(given, given[1:], given[2:], strict=False):
        if flag.startswith("--") and not value.startswith("--") and word == unused[0]:
            return f"{said}; if {flag} takes several values, repeat it: {flag} {value} {flag} {word}"
    return said


def _fail(message: str, more: str = "") -> None:
    say(f"error: {with_urls(message)}{more}")
    sys.exit(2)
