"""The command line: ``scansion assets | harvest | train | masks | compile | eval | study | compare | report | demo | ...``."""

from scansion.cli.app import app
from scansion.cli.launch import main

__all__ = ["app", "main"]
