"""``python -m scansion`` is the ``scansion`` command."""

from scansion.cli import main

main()
