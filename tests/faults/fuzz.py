"""Fuzz the parsers, guided by coverage: ``python -m tests.faults.fuzz SECONDS``, after ``pip install atheris``."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["scansion", "yaml"]):
    from tests.faults.parsers import PARSERS, SEEDS, parse


def main() -> None:
    """Run until the time is over, or until an input fails, which is then kept in the working folder."""
    names = list(PARSERS)
    with tempfile.TemporaryDirectory() as inputs:
        for index, name in enumerate(names):
            for number, seed in enumerate(SEEDS[name]):
                (Path(inputs) / f"{name}-{number}").write_bytes(bytes([index]) + seed)
        atheris.Setup(
            [sys.argv[0], inputs, f"-max_total_time={sys.argv[1]}", "-timeout=20", "-rss_limit_mb=4000"],
            # The first byte chooses the parser.
            lambda data: parse(names[data[0] % len(names)], data[1:]) if data else None,
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
