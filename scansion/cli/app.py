"""The application that every command adds itself to, the groups that help shows commands in, and where they print."""

from __future__ import annotations

from cyclopts import App, Group, Parameter
from rich.console import Console

app = App(
    name="scansion",
    help="Train, evaluate and compare position-aware sparse autoencoders (SAEs) on language-model activations.\n\n"
    "Start with `scansion demo`. `scansion COMMAND --help` describes a command. On your own text:\n\n"
    "scansion harvest --source texts/*.txt --out stores/mine\n\n"
    "scansion train stores/mine/train --out runs/topk\n\n"
    "scansion eval runs/topk --held-out stores/mine/held_out --report runs/report\n\n"
    "A setting can be given in a file (--config FILE.yaml), in the environment (SCANSION_TRAIN_LR=1e-3) or as a flag; a flag "
    "overrides the environment, and the environment the file.",
    version_flags=["--version"],
    default_parameter=Parameter(negative_iterable=()),
)
START = Group.create_ordered("Start here")
STEPS = Group.create_ordered("Steps, from text to scores")
STUDIES = Group.create_ordered("Studies: many runs, compared")
LISTS = Group.create_ordered("What there is to choose from")
output = Console(highlight=False, soft_wrap=True)
"""For lines: a file gets them whole, a terminal wraps them."""


def table_console(width: int) -> Console:
    """For tables: as wide as the terminal, or as given where there is none."""
    return Console(width=None if output.is_terminal else width, highlight=False)
