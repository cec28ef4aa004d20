"""The application: what all commands share, where settings come from, and how mistakes are reported."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter
from cyclopts.config import Env, Yaml
from pydantic import ValidationError
from rich.console import Console

from scansion.errors import ScansionError, describe
from scansion.files import one_line_io_errors
from scansion.progress import say
from scansion.registry import load_plugin

app = App(
    name="scansion",
    help="Train, evaluate and compare position-aware sparse autoencoders on language-model activations.\n\n"
    "Start with `scansion demo`. Settings come from --config FILE.yaml, then the environment (SCANSION_TRAIN_LR=1e-3), "
    "then the command line; the later wins.",
    version_flags=["--version"],
)
output = Console(highlight=False, soft_wrap=True)
"""For lines: a file gets them whole, a terminal wraps them."""


def table_console(width: int) -> Console:
    """For tables: as wide as the terminal, or as given where there is none."""
    return Console(width=None if output.is_terminal else width, highlight=False)


@app.meta.default
def _launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    config: Path | None = None,
    plugin: Annotated[list[Path] | None, Parameter(negative="")] = None,
) -> None:
    """What goes before the name of any command.

    Parameters
    ----------
    config
        YAML file of settings; keys are command names, then flags, for example `train: {lr: 0.001}`.
    plugin
        Python file that registers a mask, architecture, evaluation or hook point of your own; may be given several times.
    """
    for path in plugin or ():
        load_plugin(path)
    sources: list[Any] = [Env("SCANSION_", command=True)]
    if config is not None:
        sources.append(Yaml(config, must_exist=True))
    app.config = tuple(sources)
    app(tokens, exit_on_error=False, print_error=False)


def main() -> None:
    """Run the command line; mistakes a user can mend become one line and exit status 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        with one_line_io_errors("scansion"):
            app.meta(sys.argv[1:], exit_on_error=False, print_error=False)
    except ValidationError as error:
        _fail(describe(error))
    except (ScansionError, CycloptsError) as error:
        _fail(" ".join(str(error).split()))
    except KeyboardInterrupt:
        say("interrupted; run the same command again to resume")
        sys.exit(130)


def _fail(message: str) -> None:
    say(f"error: {message}")
    sys.exit(2)
