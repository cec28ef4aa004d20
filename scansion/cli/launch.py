"""Start a command: load plugins, find out where settings come from, and report mistakes in one line."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import CycloptsError, Parameter
from cyclopts.config import Env, Yaml
from pydantic import ValidationError

from scansion.cli.app import COMMON, app
from scansion.errors import ScansionError, describe
from scansion.files import one_line_io_errors
from scansion.progress import say

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
    if plugin:
        from scansion.registry import load_plugin

        for path in plugin:
            load_plugin(path)
    sources: list[Any] = [Env("SCANSION_", command=True, show=False)]
    if config is not None:
        sources.append(Yaml(config, must_exist=True))
    app.config = tuple(sources)
    if tokens[:1] == ("train",):
        from scansion.cli.training import offer_all_architectures

        offer_all_architectures()
    app(tokens, exit_on_error=False, print_error=False)


def main() -> None:
    """Run the command line; mistakes a user can mend become one line and exit status 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        with one_line_io_errors("scansion"):
            app.meta(sys.argv[1:], exit_on_error=False, print_error=False)
    except ValidationError as error:
        _fail(describe(error, ""))
    except (ScansionError, CycloptsError) as error:
        cause = error.__cause__ if isinstance(error, CycloptsError) else None
        _fail(describe(cause, "") if isinstance(cause, ValidationError) else " ".join(str(error).split()))
    except KeyboardInterrupt:
        say("interrupted; run the same command again to resume")
        sys.exit(130)


def _fail(message: str) -> None:
    say(f"error: {message}")
    sys.exit(2)
