"""``scansion study run | study plan | compare | demo | synth``: plans carried out from end to end, and compared."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from cyclopts.validators import Number
from rich.table import Table
from rich.text import Text

from scansion.cli.app import app, output, table_console
from scansion.cli.reporting import write_pages
from scansion.errors import ConfigError, StudyError
from scansion.locks import only_writer
from scansion.report import FeatureConfig
from scansion.study import ArmInfo, StudyPlan, StudyRecord, compare, execute, infos_of, load_plan
from scansion.study.checks import check_entries
from scansion.study.compare.comparison import by_world
from scansion.study.compare.tables import lines_below, terminal_tables, write_comparison
from scansion.study.estimate import estimate
from scansion.study.plan import slug
from scansion.study.tracking import Tracker, import_study, open_tracker

study_app = App(name="study", help="Carry out a plan of runs, or say beforehand what it would take.")
app.command(study_app)


@study_app.command(name="run")
def run_study(
    plan: str,
    *,
    only: str = "",
    seeds: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    retry: bool = False,
    report: bool = True,
    out: Path | None = None,
) -> None:
    """Carry a plan out: one harvest, every run at every seed, a comparison, notes and a report.

    What is finished is not done again, so the same command goes on after an interruption. A run that fails is recorded
    with its error and the others go on; the exit status then says that one has.

    Example: scansion study run positional_masking --only 0,1 --seeds 3

    Parameters
    ----------
    plan
        The plan: a YAML file, or the name of a bundled plan such as positional_masking.
    only
        Numbers of the runs to carry out, from 0, separated by commas; default all.
    seeds
        Use seeds 0, 1, ... up to this many, instead of the plan's.
    retry
        Try failed runs again, from their last checkpoint.
    report
        Write the HTML report, with a page for every feature, at the end; `scansion report` does so later.
    out
        Folder for run_0, run_1, ..., notes.txt, the comparison and the report; default runs/<name of the plan>.
    """
    settings = _with_seeds(load_plan(plan), None if seeds is None else range(seeds))
    _carry_out(settings, out or Path("runs") / settings.name, only, retry, report)


def _carry_out(settings: StudyPlan, folder: Path, only: str, retry: bool, report: bool) -> None:
    start = time.monotonic()
    folders = _folders(settings, folder, only)
    execute(settings, folders, retry=retry)
    with only_writer(folder, "comparing", wait=True):  # so that the last of several processes compares all their runs
        record = StudyRecord.open(folder)
        show_comparison({arm.name: arm.info for arm in record.arms}, folder)
    output.print(f"notes: {folder / 'notes.txt'}", markup=False)
    if report:
        write_pages(record, folder / "report", FeatureConfig())
    output.print(f"time: {time.monotonic() - start:.0f} s")
    failed = [arm.name for arm in record.arms if arm.run in folders and arm.info.status == "failed"]
    if failed:
        raise StudyError(f"{', '.join(failed)} failed, as said above; --retry tries again")


@study_app.command(name="plan")
def plan_study(
    plan: str,
    *,
    only: str = "",
    seeds: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    out: Path | None = None,
) -> None:
    """Check all of a plan and say what would run, on how many tokens, with how much disk, and for how long.

    Times come from a few seconds' measurement with the real model and the real SAEs. Nothing is harvested or trained.

    Example: scansion study plan positional_masking

    Parameters
    ----------
    plan
        The plan: a YAML file, or the name of a bundled plan such as positional_masking.
    only
        Numbers of the runs, from 0, separated by commas; default all.
    seeds
        Use seeds 0, 1, ... up to this many, instead of the plan's.
    out
        Folder the runs would go to; what is finished there is not counted.
    """
    settings = _with_seeds(load_plan(plan), None if seeds is None else range(seeds))
    found = estimate(settings, _folders(settings, out or Path("runs") / settings.name, only))
    table = Table("run", "name", "SAE", "mask", "seeds to do", "tokens", "training a seed, s", "evaluation a seed, s")
    for one in found.arms:
        arm = one.arm
        table.add_row(
            str(arm.run),
            Text(arm.name),
            f"{arm.sae.architecture} {arm.sae.d_sae:,}",
            arm.sae.mask.family,
            f"{one.missing} of {len(arm.seeds)}",
            f"{arm.training.tokens:,}",
            f"{one.train_seconds:.0f}",
            f"{one.evaluation_seconds:.0f}",
        )
    if settings.hypothesis:
        output.print(f"asked: {settings.hypothesis}", markup=False)
    effect = "" if settings.minimum_effect is None else f", smallest effect that matters {settings.minimum_effect:g}"
    output.print(f"decided by: {settings.primary_metric}{effect}; ends with: {settings.stopping_rule}", markup=False)
    table_console(160).print(table)
    for line in found.lines():
        output.print(line, markup=False)


@app.command(name="compare")
def compare_runs(
    runs: list[Path], *, baseline: str | None = None, every: bool = False, out: Path | None = None
) -> None:
    """Compare runs: figures with intervals over seeds, differences from a baseline, Pareto fronts.

    Figures come from final_info.json alone. Runs that differ in model, hook point, text, token count or evaluation are
    not compared, nor are degenerate, failed and unfinished ones, and the table says why.

    Example: scansion compare runs/demo/run_*

    Parameters
    ----------
    runs
        Folders of runs, in the order of the table.
    baseline
        Name of the arm to compare with; default the first sound one.
    every
        Show every figure instead of the most telling ones.
    out
        Folder to write comparison.md and comparison.json to.
    """
    infos: dict[str, ArmInfo] = {}
    for run in runs:
        for name, info in infos_of(run).items():
            # Runs of different studies may share a name.
            infos[name if name not in infos else f"{name} ({run})"] = info
    show_comparison(infos, out, baseline, every=every)


@app.command
def ui(study: Path, *, tracker: Tracker = "trackio", show: bool = True) -> None:
    """Give a study's runs to an experiment tracker on this machine, and open it.

    The run folders stay the record; call it again whenever they have changed. Needs `pip install 'scansion[track]'`.

    Example: scansion ui runs/demo

    Parameters
    ----------
    study
        Folder that holds run_0, run_1, ...
    tracker
        Where to: trackio, or wandb in offline mode.
    show
        Open trackio's dashboard afterwards, until interrupted.
    """
    record = StudyRecord.open(study)
    output.print(f"{import_study(record, tracker)} runs are in {tracker}", markup=False)
    if show and tracker == "trackio":
        open_tracker(record)


@app.command
def demo(*, plan: str = "demo", out: Path = Path("runs/demo")) -> None:
    """Run the demonstration study from end to end: harvest, train, evaluate, compare and report.

    Example: scansion demo

    Parameters
    ----------
    plan
        The plan to run: a YAML file, or the name of a bundled plan.
    out
        Folder for run_0, run_1, ... and the report.
    """
    run_study(plan, out=out)


@app.command
def synth(
    *,
    plan: str = "synthetic",
    out: Path = Path("runs/synthetic"),
    seeds: list[int] | None = None,
    report: bool = True,
) -> None:
    """Train SAEs on activations made from known features, and measure how much of the truth each of them finds.

    Every true feature has a known direction and position profile. Figures: variance explained, recovered features
    (position-bound and unbound ones separately), the match of true and learnt position profiles and its chance level,
    all with intervals over seeds and paired differences from the baseline of the same world. What is finished is not
    done again, so the same command resumes.

    Example: scansion synth --seeds 0 --seeds 1 --out runs/synthetic

    Parameters
    ----------
    plan
        A plan with a `world`: a YAML file, or the name of a bundled plan.
    out
        Folder for run_0, run_1, ..., notes.txt, and a folder per world with its comparison; the stores go to the cache.
    seeds
        Seeds to run instead of the plan's. Each draws its own worlds, initial weights, masks and order of the data.
    report
        Write the HTML report, a page per world, at the end.
    """
    settings = load_plan(plan)
    if settings.world is None:
        raise ConfigError(f"the plan {settings.name!r} has no world; `scansion study run` carries out plans on text")
    _carry_out(_with_seeds(settings, seeds), out, "", False, report)


def show_comparison(
    infos: dict[str, ArmInfo], out: Path | None, baseline: str | None = None, *, every: bool = False
) -> None:
    """Print a comparison for each synthetic world, or one of everything, and write it if a folder is given."""
    if baseline is not None and baseline not in infos:
        raise ConfigError(f"there is no run called {baseline!r}; there are {', '.join(map(repr, infos))}")
    for world, within in by_world(infos).items():
        comparison = compare(within, baseline if baseline in within else None)
        if world:
            output.print(f"world: {world}", markup=False)
        for table in terminal_tables(comparison, every=every):
            table_console(240).print(table)
        for line in lines_below(comparison):
            output.print(line, markup=False)
        if out is not None:
            written = write_comparison(comparison, within, out / slug(world) if world else out)
            output.print(f"comparison: {written[0]}", markup=False)


def _with_seeds(plan: StudyPlan, seeds: Sequence[int] | None) -> StudyPlan:
    if seeds is None:
        return plan
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"a seed is given twice: {list(seeds)}")
    runs = [run.model_copy(update={"seeds": None}) for run in plan.runs]
    return plan.model_copy(update={"seeds": tuple(seeds), "runs": runs})


def _folders(plan: StudyPlan, out: Path, only: str) -> dict[int, Path]:
    """Run number -> folder, of the runs asked for."""
    numbers: Sequence[int] = range(len(plan.runs))
    if only:
        try:
            numbers = [int(part) for part in only.split(",")]
        except ValueError as error:
            raise ConfigError(f"--only takes numbers of runs separated by commas, such as 1,3; not {only!r}") from error
        check_entries(plan, numbers)
    return {number: out / f"run_{number}" for number in numbers}
