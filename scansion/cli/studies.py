"""``scansion study run | study plan | compare | demo | synth``: plans carried out from end to end, and compared."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from scansion.cli.app import output, tables
from scansion.cli.reporting import write_pages
from scansion.distributed.cluster import ClusterConfig, connect, require_shared_disk
from scansion.errors import ConfigError, DamagedError, ScansionError, StudyError, did_you_mean
from scansion.evals.position.world import world_like
from scansion.files import require_writable, url_of
from scansion.locks import only_writer
from scansion.mirroring import fetched, send
from scansion.progress import say
from scansion.records import read_json
from scansion.remote import local_copy, named
from scansion.report import FeatureConfig
from scansion.study import ArmInfo, StudyPlan, StudyRecord, compare, execute, infos_of, load_plan
from scansion.study.audit import audit
from scansion.study.checks import check_entries, check_plan
from scansion.study.compare.comparison import by_world
from scansion.study.compare.tables import lines_below, terminal_tables, write_comparison
from scansion.study.estimate import estimate
from scansion.study.final_info import FINAL_INFO
from scansion.study.on_cluster import require_fit_for_cluster
from scansion.study.plan import slug
from scansion.study.tracking import Tracker, import_study, open_tracker, require_tracker
from scansion.synth import SynthConfig
from scansion.text_table import TextTable

_FIRST_OF_DEMO = "0,4"  # the baseline, and early / middle / late groups


def run_study(
    plan: str,
    *,
    only: str = "",
    seeds: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    retry: bool = False,
    report: bool = True,
    track: Tracker | None = None,
    out: Path | None = None,
    cluster: Annotated[ClusterConfig | None, Parameter(name="*", group="Many machines")] = None,
) -> None:
    """Run a plan: harvest once, train and evaluate every run at every seed, compare them, and write notes and a report.

    Finished work is skipped, so after an interruption the same command resumes. If a run fails, its error is recorded,
    the other runs go on, and the command ends with exit status 2.

    Example: scansion study run positional_masking --only 0,1 --seeds 3

    On all machines of a Ray cluster that share a disk (docs/many_machines.md):
    scansion study run positional_masking --on auto --gpus-per-task 0.25

    Parameters
    ----------
    plan
        The plan: a YAML file, or the name of a bundled plan such as positional_masking.
    only
        Numbers of the runs to do, counted from 0 and separated by commas; default: all runs.
    seeds
        Number of seeds, which are then 0, 1, ...; default: the seeds of the plan.
    retry
        Also try runs again that failed before, from their last checkpoint.
    report
        Write the HTML report at the end; `scansion report` can write it later.
    track
        Import the finished runs into this experiment tracker at the end: trackio or wandb, as `scansion ui` does.
    out
        Folder for run_0, run_1, ..., notes.txt, the comparison and the report, or its URL; default: a folder with the plan's
        name in runs/.
    """
    settings = _with_seeds(load_plan(plan), None if seeds is None else range(seeds))
    cluster = cluster or ClusterConfig()
    require_shared_disk(cluster, out)
    if cluster.on is not None:
        require_fit_for_cluster(settings)
    if track is not None:
        require_tracker(track)
    folder = fetched(out or _home(settings), to_write=True)
    _carry_out(settings, folder, only, retry, report, cluster, out)
    if track is not None:
        output.print(f"{import_study(StudyRecord.open(folder), track)} runs are in {track}", markup=False)


def _carry_out(
    settings: StudyPlan,
    folder: Path,
    only: str,
    retry: bool,
    report: bool,
    cluster: ClusterConfig,
    out: Path | None = None,
) -> None:
    start = time.monotonic()
    folders = _folders(settings, folder, only)
    with connect(cluster, out) as joined:
        execute(settings, folders, retry=retry, cluster=joined)
    with only_writer(folder, "comparing", wait=True):  # so that the last of several processes compares all their runs
        record = StudyRecord.open(folder)
        show_comparison({arm.name: arm.info for arm in record.arms}, folder)
    output.print(f"notes: {named(folder / 'notes.txt')}", markup=False)
    if report:
        write_pages(record, folder / "report", FeatureConfig())
    send(folder)
    output.print(f"time: {time.monotonic() - start:.0f} s")
    failed = [arm.name for arm in record.arms if arm.run in folders and arm.info.status == "failed"]
    if failed:
        raise StudyError(f"{', '.join(failed)} failed, as said above; --retry tries again")


def plan_study(
    plan: str,
    *,
    only: str = "",
    seeds: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    out: Path | None = None,
) -> None:
    """Check a plan and print what it would run: tokens, disk space and time.

    Times are estimated by running the plan's model and SAEs for a few seconds. Nothing is harvested or trained.

    Example: scansion study plan positional_masking

    Parameters
    ----------
    plan
        The plan: a YAML file, or the name of a bundled plan such as positional_masking.
    only
        Numbers of the runs to count, counted from 0 and separated by commas; default: all runs.
    seeds
        Number of seeds, which are then 0, 1, ...; default: the seeds of the plan.
    out
        Folder of the runs, or its URL; finished work in it is not counted. Default: a folder with the plan's name in runs/.
    """
    settings = _with_seeds(load_plan(plan), None if seeds is None else range(seeds))
    folders = _folders(settings, fetched(out or _home(settings), checkpoints=False), only)
    if settings.corpus is None:
        check_plan(settings, folders)
        what = "synthetic worlds" if settings.store is None else "a store"
        output.print(
            f"the plan {settings.name} is sound; times are estimated only for plans on text, not on {what}",
            markup=False,
        )
        return
    found = estimate(settings, folders)
    headings = [
        "run",
        "name",
        "SAE",
        "mask",
        "seeds to do",
        "tokens",
        "steps",
        "training, s per seed",
        "evaluation, s per seed",
    ]
    rows = [
        [
            str(arm.run),
            arm.name,
            f"{arm.sae.architecture} {arm.sae.d_sae:,}",
            arm.sae.mask.family,
            f"{one.missing} of {len(arm.seeds)}",
            f"{arm.training.tokens:,}",
            f"{one.steps:,}",
            f"{one.train_seconds:.0f}",
            f"{one.evaluation_seconds:.0f}",
        ]
        for one in found.arms
        for arm in (one.arm,)
    ]
    if settings.hypothesis:
        output.print(f"asked: {settings.hypothesis}", markup=False)
    effect = "" if settings.minimum_effect is None else f", smallest effect that matters {settings.minimum_effect:g}"
    effect += "".join(f"; {name} {margin:g}" for name, margin in settings.equivalence_margins.items())
    output.print(f"decided by: {settings.primary_metric}{effect}; ends with: {settings.stopping_rule}", markup=False)
    tables.print(TextTable(headings, [rows], left=4, repeated=2))
    for line in found.lines():
        output.print(line, markup=False)
    if all(len(one.arm.seeds) == 1 for one in found.arms):
        output.print(
            "one seed per run: how much seeds vary will not be seen; list several in `seeds`, or give --seeds 3"
        )


def audit_results(results: Path) -> None:
    """Compute every figure of finished comparisons again, with code that shares nothing with the tables.

    Reads comparison.json, comparison.md and final_info.json in the folder and below it, with by_text.json, and computes
    means, intervals, differences, p-values, Holm's corrections and fronts again from the values of each seed and the sums over
    text. Also compares checksums, and what comparison.json holds of each run with the run's own folder. Prints how many
    figures were checked and each difference; ends with exit status 2 if there is one.

    Example: scansion study audit results

    Parameters
    ----------
    results
        Folder of a study, or of several.
    """
    if not results.is_dir():
        raise ConfigError(f"{results} is no folder; give that of a study, such as runs/demo")
    found = audit(results)
    found.differences += _changed_since_written(results, found.differences)
    for line in found.not_checked:
        output.print(f"not checked: {line}", markup=False)
    for line in found.differences:
        output.print(line, markup=False)
    differ = f"{len(found.differences)} differ" if found.differences else "all as computed again"
    output.print(f"{found.checked:,} figures checked: {differ}", markup=False)
    if found.differences or not found.checked:
        raise StudyError(f"{results}: {differ}, as said above" if found.differences else f"{results}: nothing to check")


def _changed_since_written(results: Path, damaged: Sequence[str]) -> list[str]:
    """A line for each JSON file whose checksum is not that of its values. Files without one are taken as they are."""
    lines: list[str] = []
    for file in sorted(results.rglob("*.json")):
        if any(line.startswith(f"{file}: damaged: ") for line in damaged):
            continue
        try:
            # Each run in a final_info.json has a checksum of its own.
            infos_of(file.parent) if file.name == FINAL_INFO else read_json(file)
        except DamagedError as error:
            lines.append(str(error))
        except ScansionError:
            continue  # of another form: the audit says so
    return lines


def compare_runs(
    runs: list[Path], *, baseline: str | None = None, every: bool = False, out: Path | None = None
) -> None:
    """Compare runs of studies: metrics with intervals over seeds, differences from a baseline, and Pareto fronts.

    All numbers come from final_info.json in each folder. Runs that differ in model, hook point, text, token count or
    evaluation are not compared; nor are degenerate, failed or unfinished runs. The table gives the reason.

    Example: scansion compare runs/demo/run_*

    Parameters
    ----------
    runs
        Folders of runs (run_0, run_1, ...), in the order of the table.
    baseline
        Name of the run that the others are compared with; default: the first one with status ok.
    every
        Show all metrics instead of the main ones.
    out
        Folder to write comparison.md and comparison.json to.
    """
    infos: dict[str, ArmInfo] = {}
    for run in runs:
        for name, info in infos_of(run).items():
            # Runs of different studies may share a name.
            infos[name if name not in infos else f"{name} ({run})"] = info
    show_comparison(infos, out, baseline, every=every)


def ui(study: Path, *, tracker: Tracker = "trackio", show: bool = True) -> None:
    """Import the runs of a study into an experiment tracker on this machine, and open it.

    Run it again when the run folders have changed. Needs `pip install 'scansion[track]'`.

    Example: scansion ui runs/demo

    Parameters
    ----------
    study
        Folder of a study, which holds run_0, run_1, ...
    tracker
        Experiment tracker: trackio, or wandb in offline mode.
    show
        Open the dashboard of trackio afterwards; Ctrl-C closes it.
    """
    record = StudyRecord.open(study)
    output.print(f"{import_study(record, tracker)} runs are in {tracker}", markup=False)
    if show and tracker == "trackio":
        open_tracker(record)


def demo(*, plan: str = "demo", out: Path = Path("runs/demo")) -> None:
    """Run a small study from end to end: harvest, train, evaluate, compare and report.

    There is a first page after two runs, the baseline and one with a mask. The page of all runs then takes its place.

    Example: scansion demo

    Parameters
    ----------
    plan
        The plan to run: a YAML file, or the name of a bundled plan.
    out
        Folder for run_0, run_1, ... and the report, or its URL.
    """
    if plan == "demo" and not (fetched(out, to_write=True) / "report").exists():
        run_study(plan, only=_FIRST_OF_DEMO, out=out)
        page = local_copy(out) / "report/index.html"
        say(f"a first page, of two runs, is in {named(page)}; the other runs follow")
    run_study(plan, out=out)


def synth(
    *,
    plan: str = "synthetic",
    out: Path = Path("runs/synthetic"),
    seeds: list[int] | None = None,
    like: Path | None = None,
    report: bool = True,
) -> None:
    """Run a study on synthetic activations made from known features: how many of them does each SAE find?

    Each true feature has a known direction and a known position profile. Measured are variance explained, the share of
    true features found (position-bound and unbound ones separately), and how well learnt position profiles match the
    true ones, next to chance. Each number has an interval over seeds and a paired difference from the baseline of the
    same synthetic world. Finished work is skipped, so after an interruption the same command resumes.

    Example: scansion synth --seeds 0 --seeds 1 --out runs/synthetic
    Example: scansion synth --like runs/mine/run_0/seed_0 --out runs/synthetic_like_mine

    Parameters
    ----------
    plan
        A plan with a `world`: a YAML file, or the name of a bundled plan.
    out
        Folder for run_0, run_1, ..., notes.txt, and one comparison per world, or its URL. The activations go to the cache.
    seeds
        Seeds to run instead of the plan's. Each seed has its own worlds, initial weights, masks and order of the data.
    like
        Folder of an SAE whose evaluation `position` is done, or its URL. The arms of the plan's first run then meet one world
        alone, in which as many features are bound to positions, by profiles of the same kinds, as in that SAE.
    report
        Write the HTML report at the end, one page per world.
    """
    settings = load_plan(plan)
    if settings.world is None:
        raise ConfigError(f"the plan {settings.name!r} has no world; `scansion study run` carries out the other plans")
    if like is not None:
        settings = _like(settings, like)
    _carry_out(_with_seeds(settings, seeds), fetched(out, to_write=True), "", False, report, ClusterConfig())


def _like(plan: StudyPlan, run: Path) -> StudyPlan:
    """The plan's first run alone, in a world like the features of a trained SAE."""
    settings = plan.model_dump(mode="json")
    # Equally frequent features, so that each has room in the narrowest profile.
    room = {"zipf_exponent": 0.0, "max_probability": 1.0}
    world = room | world_like(fetched(run, checkpoints=False), SynthConfig.model_validate(plan.world).context_length)
    say(f"a world like the features of {url_of(run) or run}: {world}")
    settings["name"] = f"{plan.name}_like"
    settings["runs"] = [{**settings["runs"][0], "name": "as measured", "world": world}]
    return StudyPlan.model_validate(settings)


def show_comparison(
    infos: dict[str, ArmInfo], out: Path | None, baseline: str | None = None, *, every: bool = False
) -> None:
    """Print a comparison for each synthetic world, or one of everything, and write it if a folder is given."""
    if baseline is not None and baseline not in infos:
        meant = did_you_mean(baseline, infos) or f"; there are {', '.join(map(repr, infos))}"
        raise ConfigError(f"there is no run called {baseline!r}{meant}")
    if out is not None:
        require_writable(out)
    for world, within in by_world(infos).items():
        comparison = compare(within, baseline if baseline in within else None)
        if world:
            output.print(f"world: {world}", markup=False)
        for table in terminal_tables(comparison, every=every):
            tables.print(table)
        for line in lines_below(comparison):
            output.print(line, markup=False)
        if out is not None:
            written = write_comparison(comparison, within, out / slug(world) if world else out)
            output.print(f"comparison: {named(written[0])}", markup=False)


def _with_seeds(plan: StudyPlan, seeds: Sequence[int] | None) -> StudyPlan:
    if seeds is None:
        return plan
    if wrong := [seed for seed in seeds if not -(2**63) <= seed < 2**63]:
        raise ConfigError(f"the seed {wrong[0]} has more than 64 bits")
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"a seed is given twice: {list(seeds)}")
    runs = [run.model_copy(update={"seeds": None}) for run in plan.runs]
    return plan.model_copy(update={"seeds": tuple(seeds), "runs": runs})


def _home(plan: StudyPlan) -> Path:
    """The folder in runs/ that is called like the plan."""
    if plan.name != Path(plan.name).name or plan.name == ".." or len(plan.name.encode()) > 200:
        raise ConfigError(
            f"the plan's name {plan.name!r} is not one of a folder in runs/; change it, or give --out FOLDER"
        )
    return Path("runs") / plan.name


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
