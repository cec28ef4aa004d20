"""Run one entry of a plan: ``python experiment.py --out_dir=run_i`` runs entry i and writes ``run_i/final_info.json``."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from scansion import assets
from scansion.errors import ScansionError
from scansion.study import execute, load_plan

PLAN = Path(__file__).parent / "studies" / "demo.yaml"


def main() -> None:
    """Parse ``--out_dir``, run the entry it names, and say where the figures are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out_dir", type=Path, required=True, help="run_0, run_1, ...: the number names the plan entry"
    )
    folder: Path = parser.parse_args().out_dir
    number = re.fullmatch(r"run_(\d+)", folder.name)
    if number is None:
        parser.error(f"--out_dir should end in run_0, run_1, ..., not {folder.name!r}")
    try:
        plan = load_plan(PLAN)
        assets.fetch()
        execute(plan, {int(number[1]): folder})
    except ScansionError as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(f"wrote {folder / 'final_info.json'}\n")


if __name__ == "__main__":
    main()
