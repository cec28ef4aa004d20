"""The command line: ``scansion assets | harvest | train | masks | compile | eval | study | demo | synth | doctor``."""

from scansion.cli import assets, evaluating, studies, training  # noqa: F401 - each adds its commands
from scansion.cli.app import app, main

__all__ = ["app", "main"]
