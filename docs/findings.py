"""Write what committed studies found into the README and the docs: ``python docs/findings.py``. A test compares them.

``python docs/findings.py runs/NAME`` first copies the figures of a study, finished or not, to ``results/NAME``.
"""

from __future__ import annotations

import re
import shutil
import sys
from functools import cache
from pathlib import Path

from scansion.study import StudyRecord, compare
from scansion.study.compare.comparison import WINDOWS_NOTE, ComparedArm, Comparison, Difference
from scansion.study.compare.figures import figure
from scansion.study.compare.tables import STAR_NOTE, control_notes, difference_text, figure_text

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
KEPT = (
    *("comparison.*", "*/comparison.*", "by_text.json", "notes.txt"),
    *("run_*/plan.json", "run_*/final_info.json", "run_*/by_text.json"),
)
BLOCK = re.compile(
    r"(<!-- found: (\w+)(?:, (differences|worlds)(?: of runs ([\d ]+))?)? -->\n).*?(<!-- end -->)", re.DOTALL
)
"""``differences of runs 1 5`` has rows for the arms of these runs alone."""
ALSO = ("l0", "dead_share", "causal_ablation_share", "causal_ablation_share_control")
"""Figures of the table besides those of which the plan says what would matter, where they were measured."""
OF_WORLDS = ("recovered_bound", "recovered_unbound", "fve")
"""Figures of synthetic worlds in the table of worlds, where a world has them."""
FEWEST_SEEDS = 3
"""Arms with fewer are in the table of figures alone: of their differences nothing can be said."""


def decisive(record: StudyRecord) -> list[str]:
    """The figures of which the plan says what would matter, the primary metric first."""
    return list(dict.fromkeys([record.plan.primary_metric, *record.plan.equivalence_margins]))


@cache
def record_of(folder: Path) -> StudyRecord:
    """The study in a folder of ``results``."""
    return StudyRecord.open(folder)


@cache  # several blocks show one comparison, which takes half a minute
def compared(folder: Path) -> Comparison:
    """The arms with enough seeds, against the plan's first."""
    record = record_of(folder)
    enough = {arm.name: arm.info for arm in record.arms if len(arm.info.seeds) >= FEWEST_SEEDS}
    return compare(enough, record.arms[0].name)


def about(record: StudyRecord) -> str:
    """What was done, and what is left of the plan."""
    first = record.arms[0].info
    where = first.provenance
    done = {arm.name: arm.info.seeds for arm in record.arms if arm.info.seeds}
    seeds = "; ".join(f"{name} {len(those)}" for name, those in done.items())
    planned = [(record.plan.runs[arm.run].name, arm.name in done) for arm in record.plan.arms()]
    begun = {run for run, is_done in planned if is_done}
    left = dict.fromkeys(run for run, _ in planned if run not in begun)
    rest = f" Planned and not yet done: {'; '.join(left)}." if left else ""
    return (
        f"`scansion study run {record.plan.name}`: {where['model']}, {where['hook_point']}, "
        f"contexts of {where['context_length']} tokens, {where['tokens']:,} training tokens "
        f"in {where['steps']:,} steps for each SAE. Seeds: {seeds}.{rest} Plan `{str(where['plan'])[:12]}`."
    )


def table(record: StudyRecord) -> str:
    """A row for every arm that was trained: its figures."""
    every = compare({arm.name: arm.info for arm in record.arms if arm.info.seeds})
    names = [*decisive(record), *(name for name in ALSO if any(name in arm.figures for arm in every.arms))]
    heading = ["run", "seeds", *(figure(name).label for name in names)]
    rows = [
        [arm.label, str(len(arm.seeds)), *(figure_text(arm.figures.get(name), figure(name)) for name in names)]
        for arm in every.arms
    ]
    return _markdown([heading, *rows])


def differences(folder: Path, runs: set[int] | None = None) -> str:
    """A row for every other arm, or those of some runs: its differences from the baseline."""
    found, names = compared(folder), decisive(record_of(folder))
    chosen = {arm.name for arm in record_of(folder).arms if runs is None or arm.run in runs}
    heading = [f"against {found.baseline}", "seeds", *(figure(name).label for name in names)]
    rows = [
        [arm.label, str(len(arm.seeds)), *(difference_text(arm.differences.get(name), figure(name)) for name in names)]
        for arm in found.arms
        if arm.name in chosen - {found.baseline}
    ]
    star = STAR_NOTE if runs is None else STAR_NOTE.replace("the runs in the table", "all runs of the study")
    notes = ["95% intervals over seeds and text.", star]
    if runs is None:
        notes += [
            *control_notes(found, names),
            *(f"{note[0].upper()}{note[1:]}" for note in found.notes if WINDOWS_NOTE in note),
        ]
    return f"{_markdown([heading, *rows])}\n\n{' '.join(notes)}"


@cache
def of_worlds(folder: Path) -> dict[str, Comparison]:
    """Run of a synthetic study -> its arms compared within its world, under the names that all worlds share."""
    found: dict[str, Comparison] = {}
    for record in record_of(folder).by_world():
        run = record.plan.runs[record.arms[0].run].name
        infos = {arm.name.removeprefix(f"{run}: "): arm.info for arm in record.arms}
        found[run] = compare(infos, next(iter(infos)))
    return found


def shown_in(comparison: Comparison) -> list[str]:
    """The figures of a world that the table of worlds shows."""
    return [name for name in OF_WORLDS if any(name in arm.figures for arm in comparison.arms)]


def worlds(folder: Path) -> str:
    """A row for every variant: what it found in each world, as a difference from the first variant's, which has its own."""
    found = of_worlds(folder)
    columns = [(run, name) for run, comparison in found.items() for name in shown_in(comparison)]
    first = next(iter(found.values()))
    arms = {run: {arm.name: arm for arm in comparison.arms} for run, comparison in found.items()}
    rows = [["variant", *(f"{run}: {figure(name).label}" for run, name in columns)]]
    for variant in (arm.name for arm in first.arms):
        if variant == first.baseline:
            cells = [figure_text(arms[run][variant].figures[name], figure(name)) for run, name in columns]
        else:
            cells = [difference_text(arms[run][variant].differences.get(name), figure(name)) for run, name in columns]
        rows.append([variant, *cells])
    star = STAR_NOTE.replace("the runs in the table", "the variants of a world")
    note = f"Figures of {first.baseline}, and differences from them. 95% intervals over seeds, paired by seed. {star}"
    return f"{_markdown(rows)}\n\n{note}"


def sentences(folder: Path) -> str:
    """For each figure of which the plan says what would matter: where it differs, where it does not, and what is open."""
    record = record_of(folder)
    if all(len(arm.info.seeds) < FEWEST_SEEDS for arm in record.arms):
        return f"Fewer than {FEWEST_SEEDS} seeds: no difference is stated."
    found = compared(folder)
    others = [arm for arm in found.arms if arm.name != found.baseline]
    primary, *more = decisive(record)
    lines = [_sentence(primary, " (primary)", others, record.plan.margin(primary) or 0)]
    lines += [_sentence(name, "", others, record.plan.margin(name) or 0) for name in more]
    return "\n".join(lines)


def _sentence(name: str, role: str, arms: list[ComparedArm], margin: float) -> str:
    how = figure(name)
    kinds: dict[str, list[str]] = {}
    for arm in arms:
        if (difference := arm.differences.get(name)) is not None:
            shown = figure_text(difference.estimate, how, "+")
            kinds.setdefault(_kind(difference, margin), []).append(f"{arm.name} {shown}")
    order = ("higher", "lower", "higher, perhaps by less than that", "lower, perhaps by less than that")
    order = (*order, "equivalent", "undecided", "equal at every seed", "without an interval")
    parts = [f"{kind}: {', '.join(kinds[kind])}" for kind in order if kind in kinds]
    matters = f"; a difference of {margin * how.scale:g} matters" if margin else ""
    return f"- **{how.label}**{role}{matters}: {'; '.join(parts) or 'not measured'}."


def _kind(difference: Difference, margin: float) -> str:
    low, high = difference.estimate.low, difference.estimate.high
    if low is None or high is None:
        return "without an interval"
    if low == high == 0:
        return "equal at every seed"
    if max(abs(low), abs(high)) < margin:
        return "equivalent"
    if not (difference.estimate.excludes_zero and difference.significant):
        return "undecided"
    return ("higher" if low > 0 else "lower") + (
        "" if min(abs(low), abs(high)) >= margin else ", perhaps by less than that"
    )


def _markdown(rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def written(page: str) -> str:
    """A page's text with its findings rewritten."""

    def block(found: re.Match[str]) -> str:
        folder = RESULTS / found[2]
        record = record_of(folder)
        match found[3]:
            case "differences":
                parts = [differences(folder, {int(run) for run in found[4].split()} if found[4] else None)]
            case "worlds":
                parts = [worlds(folder)]
            case _:
                parts = [about(record), table(record), sentences(folder)]
        return found[1] + "\n\n".join(parts) + "\n" + found[5]

    return BLOCK.sub(block, page)


def publish(runs: Path) -> None:
    """Copy a study's figures into ``results``, in place of those that are there."""
    folder = RESULTS / StudyRecord.open(runs).plan.name
    shutil.rmtree(folder, ignore_errors=True)
    for pattern in KEPT:
        for path in sorted(runs.glob(pattern)):
            (folder / path.relative_to(runs)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / path.relative_to(runs))


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        publish(Path(argument))
    for path in PAGES:
        path.write_text(written(path.read_text(encoding="utf-8")), encoding="utf-8")
