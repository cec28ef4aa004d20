"""The application with all its commands, each loaded when it is called, the groups of its help, and where commands print."""

from __future__ import annotations

import ast
from functools import cache
from importlib.resources import files

from cyclopts import App, Group, Parameter

from scansion.progress import PlainConsole

START = Group("Start here", sort_key=0)
STEPS = Group("Steps, from text to scores", sort_key=1)
STUDIES = Group("Studies: many runs, compared", sort_key=2)
LISTS = Group("What there is to choose from", sort_key=3)
COMMON = Group("Options of every command", sort_key=4)

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
for flag in ("--help", "-h", "--version"):
    app[flag].group = (COMMON,)
output = PlainConsole(highlight=False, soft_wrap=True)
"""For lines: a file gets them whole, a terminal wraps them."""


tables = PlainConsole(highlight=False, width=None if output.is_terminal else 100)
"""For tables: as wide as the terminal, or 100 columns where there is none."""


@cache
def _docstrings(module: str) -> dict[str, str]:
    """The docstring of every function in a module of this package, read from its source: importing it takes seconds."""
    tree = ast.parse(files("scansion.cli").joinpath(f"{module}.py").read_text(encoding="utf-8"))
    return {node.name: ast.get_docstring(node) or "" for node in tree.body if isinstance(node, ast.FunctionDef)}


def _command(parent: App, name: str, module: str, function: str, group: Group | None = None, order: int = 0) -> None:
    parent.command(
        f"scansion.cli.{module}:{function}",
        name=name,
        group=group,
        sort_key=order or None,
        help=_docstrings(module)[function].partition("\n\nParameters\n---")[0],
        help_flags=app.help_flags,  # else from app.meta, which has none
    )


_assets = App(
    name="assets", group=LISTS, help="Download, list or verify the bundled model, text and labelled data sets."
)
_study = App(
    name="study", group=STUDIES, help="Run a plan of many runs, estimate first what it takes, or audit its results."
)
app.command(_assets)
app.command(_study)
_command(_assets, "fetch", "assets", "fetch")
_command(_assets, "list", "assets", "list_assets")
_command(_assets, "verify", "assets", "verify")
_command(_assets, "train-gpt2", "assets", "train_gpt2")
_command(_study, "plan", "studies", "plan_study")
_command(_study, "run", "studies", "run_study")
_command(_study, "audit", "studies", "audit_results")
_command(app, "demo", "studies", "demo", START)
_command(app, "doctor", "assets", "doctor", START)
_command(app, "harvest", "training", "harvest", STEPS, 1)
_command(app, "train", "training", "train", STEPS, 2)
_command(app, "eval", "evaluating", "evaluate_runs", STEPS, 3)
_command(app, "compile", "training", "compile_mask", STEPS, 4)
_command(app, "look", "looking", "look", STEPS, 7)
_command(app, "steer", "looking", "steer", STEPS, 8)
_command(app, "import", "interop", "import_run", STEPS, 5)
_command(app, "export", "interop", "export_run", STEPS, 6)
_command(app, "saebench", "suites", "saebench", STEPS, 9)
_command(app, "sae-probes", "suites", "sae_probes", STEPS, 10)
_command(app, "push", "hub", "push", STEPS, 11)
_command(app, "compare", "studies", "compare_runs", STUDIES)
_command(app, "plan", "planning", "plan", STUDIES)
_command(app, "report", "reporting", "report", STUDIES)
_command(app, "synth", "studies", "synth", STUDIES)
_command(app, "ui", "studies", "ui", STUDIES)
_command(app, "architectures", "training", "architectures", LISTS)
_command(app, "evaluations", "evaluating", "list_evaluations", LISTS)
_command(app, "masks", "training", "masks", LISTS)
