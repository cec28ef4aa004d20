"""Run one entry of a plan at all its seeds: ``python experiment.py --out_dir=run_3`` runs entry 3.

It writes ``run_3/final_info.json`` and adds to ``notes.txt`` beside it; the baseline, which the notes compare with, is
``--out_dir=run_0``. A run that failed is tried again once its code or settings have changed, or with ``--retry``.

Exit status: 0 all is well; 1 the run failed; 2 a mistake was found before anything was done; 3 an SAE is degenerate, that is,
it learnt nothing, and final_info.json says why; 130 interrupted.

For a new idea add a run to the plan, or to NEW_RUNS below; a mask or architecture of your own is one file, given with
``--plugin FILE.py`` or under ``plugins`` in the plan (see ``examples/``).
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from scansion.errors import ScansionError
from scansion.registry import load_plugin
from scansion.study import execute, load_plan

PLAN: Path | str = "positional_masking"  # a YAML file, or the name of a plan in scansion/study/plans
# Runs after the plan's own, as they would stand in it, for example
# {"name": "two halves", "sae": {"architecture": "relu", "d_sae": 2304, "mask": {"family": "bands", "count": 2}}}
NEW_RUNS: list[dict[str, Any]] = []


def main() -> None:
    """Parse ``--out_dir``, run the entry it names, and say where the figures are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out_dir", type=Path, required=True, help="run_0, run_1, ...: the number names the plan entry"
    )
    parser.add_argument(
        "--plugin",
        type=Path,
        action="append",
        default=[],
        help="Python file with a mask, architecture, ... of your own",
    )
    parser.add_argument(
        "--retry",
        action="store_true",
        help="try again what failed before, from its last checkpoint, though nothing changed",
    )
    arguments = parser.parse_args()
    folder: Path = arguments.out_dir
    number = re.fullmatch(r"run_(\d+)", folder.name)
    if number is None:
        parser.error(f"--out_dir should end in run_0, run_1, ..., not {folder.name!r}")
    try:
        for path in arguments.plugin:
            load_plugin(path)
        plan = load_plan(PLAN).with_runs(NEW_RUNS)
        records = execute(plan, {int(number[1]): folder}, retry=arguments.retry)
    except ScansionError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; run the same command again to resume\n")
        sys.exit(130)
    for one in records:
        sys.stdout.write(f"{': '.join([one.name, one.info.status, *one.info.reasons])}\n")
    sys.stdout.write(f"wrote {folder / 'final_info.json'}\n")
    statuses = {one.info.status for one in records}
    sys.exit(1 if "failed" in statuses else 3 if "degenerate" in statuses else 0)


if __name__ == "__main__":
    main()
