"""The application that every command adds itself to, and where commands print."""

from __future__ import annotations

from cyclopts import App, Parameter
from rich.console import Console

app = App(
    name="scansion",
    help="Train, evaluate and compare position-aware sparse autoencoders on language-model activations.\n\n"
    "Start with `scansion demo`. Settings come from --config FILE.yaml, then the environment (SCANSION_TRAIN_LR=1e-3), "
    "then the command line; the later wins.",
    version_flags=["--version"],
    default_parameter=Parameter(negative_iterable=()),
)
output = Console(highlight=False, soft_wrap=True)
"""For lines: a file gets them whole, a terminal wraps them."""


def table_console(width: int) -> Console:
    """For tables: as wide as the terminal, or as given where there is none."""
    return Console(width=None if output.is_terminal else width, highlight=False)
