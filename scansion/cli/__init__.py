"""The command line: ``scansion assets | harvest | train | masks | compile | eval | study | compare | report | demo | ...``."""

from scansion.cli import assets, evaluating, reporting, studies, training
from scansion.cli.app import app
from scansion.cli.launch import main

# The modules are named for what importing them does: each adds its commands.
__all__ = ["app", "assets", "evaluating", "main", "reporting", "studies", "training"]
