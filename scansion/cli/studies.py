"""``scansion study | demo | synth``: plans carried out from end to end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from scansion import assets as bundled
from scansion.cli.app import app, output, table_console
from scansion.cli.evaluating import present
from scansion.study import execute, execute_seeds, load_plan
from scansion.study.seeds import rows_of, terminal_table, write_table
from scansion.study.synthetic import compare, execute_synthetic, load_synthetic_plan, notes, tables, write_summary


@app.command(name="study")
def run_study(plan: Path, *, out: Path | None = None) -> None:
    """Carry a plan out at all its seeds and print means with intervals and differences from its first run.

    Interrupt it at any moment; the same command goes on where it was.

    Example: scansion study studies/masks.yaml

    Parameters
    ----------
    plan
        The plan, a YAML file.
    out
        Folder for the runs, table.md and results.json; default runs/<name of the plan>.
    """
    settings = load_plan(plan)
    bundled.fetch()
    folder = out or Path("runs") / settings.name
    rows = rows_of(execute_seeds(settings, folder))
    table_console(200).print(terminal_table(rows))
    output.print(f"table: {write_table(settings, rows, folder)}", markup=False)


@app.command
def demo(*, plan: Path = Path("studies/demo.yaml"), out: Path = Path("runs/demo")) -> None:
    """Run the demonstration study from end to end: harvest, train, evaluate, table and report.

    Example: scansion demo

    Parameters
    ----------
    plan
        The plan to run.
    out
        Folder for run_0, run_1, ... and the report.
    """
    start = time.monotonic()
    study = load_plan(plan)
    bundled.fetch()
    folders = {index: out / f"run_{index}" for index in range(len(study.runs))}
    results, stores = execute(study, folders)
    by_name = {run.name: folders[index] for index, run in enumerate(study.runs)}
    present(list(results.values()), by_name, stores.held_out, out / "report")
    output.print(f"time: {time.monotonic() - start:.0f} s")


@app.command
def synth(
    *,
    plan: Path = Path("studies/synthetic.yaml"),
    out: Path = Path("runs/synthetic"),
    seeds: list[int] | None = None,
    jobs: Annotated[int, Parameter(validator=Number(gte=1))] = 1,
) -> None:
    """Train SAEs on activations made from known features, and say how much of the truth each of them finds.

    Every true feature has a known direction and position profile. Scores: variance explained, recovered features
    (position-bound and others apart), the match of true and learnt position profiles beside its chance level, all with
    intervals over seeds and paired differences to the plan's reference. What is in OUT already is not done again.

    Example: scansion synth --seeds 0 --seeds 1 --jobs 2 --out runs/synthetic

    Parameters
    ----------
    plan
        YAML file of worlds, SAE variants and seeds.
    out
        Folder for stores, runs, synthetic.json, synthetic.md and synthetic.png.
    seeds
        Seeds to run instead of the plan's.
    jobs
        Processes; each takes a world and seed at a time and one core, and logs to the cell's folder in OUT/runs.
    """
    start = time.monotonic()
    study = load_synthetic_plan(plan, seeds or ())
    summary = compare(study, execute_synthetic(study, out, jobs))
    for table in tables(summary):
        table_console(240).print(table)
    for line in notes(summary):
        output.print(line, markup=False)
    for path in write_summary(summary, out):
        output.print(f"wrote {path}", markup=False)
    output.print(f"time: {time.monotonic() - start:.0f} s")
