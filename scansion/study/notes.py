"""``notes.txt``: after each run an entry on what was run, what it showed, and what may and may not be concluded.

Every number in an entry is read from ``final_info.json`` at the moment of writing. Entries are only ever added.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from scansion.files import atomic_file, fingerprint, flatten
from scansion.locks import only_writer
from scansion.progress import printable
from scansion.study.compare.comparison import SPARSITY_NOTE, Comparison, Difference, compare, family_wise, figures_of
from scansion.study.compare.figures import figure
from scansion.study.compare.tables import difference_text, figure_text
from scansion.study.final_info import ArmInfo
from scansion.study.plan import Arm, StudyPlan
from scansion.study.record import ArmRecord, open_run, read_registration

NOTES = "notes.txt"


def append_notes(folder: Path) -> None:
    """Add an entry on the run in ``folder`` to ``notes.txt`` next to it, unless it has one on the same figures.

    A run that is not finished gets no entry. The comparison is with the plan's first run, if it is in the same folder.
    """
    records = open_run(folder)
    if any(record.info.status == "unfinished" for record in records):
        return
    with only_writer(folder.parent, "adding to the notes", wait=True):
        _append(folder.parent / NOTES, folder.name, records, read_registration(folder).plan)


def _append(path: Path, run: str, records: Sequence[ArmRecord], plan: StudyPlan) -> None:
    baseline = _baseline(plan, path.parent, records[0].arm)
    # Names may hold line breaks; what is indented is the entry's own.
    lines = ((line, len(line) - len(line.lstrip())) for line in _entry(records, baseline, plan))
    entry = "\n".join(" " * indent + " ".join(line.split()) for line, indent in lines)
    name = fingerprint([entry, [record.info.model_dump(mode="json") for record in records]])[:12]
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    if f"[{name}]" in before:
        return
    heading = f"{run} [{name}]"
    with atomic_file(path) as temporary:
        temporary.write_text(
            printable("\n".join([*([before] if before else []), heading, entry, ""])), encoding="utf-8"
        )


def _baseline(plan: StudyPlan, parent: Path, arm: Arm) -> ArmRecord | None:
    """The plan's first arm on the same activations as this one, if its run is in the same folder."""
    run = next((other.run for other in plan.arms() if other.world == arm.world), arm.run)
    first = parent / f"run_{run}"
    if not (first / "plan.json").is_file():
        return None
    records = open_run(first)
    return records[0] if records and read_registration(first).plan.name == plan.name else None


def _entry(records: Sequence[ArmRecord], baseline: ArmRecord | None, plan: StudyPlan) -> Iterator[str]:
    first = records[0]
    where = first.info.provenance
    yield f"  study: {plan.name} (plan {where.get('plan', '?')[:12]}); figures: {first.folder.name}/final_info.json"
    if first.arm.changes:
        yield f"  what changes: {first.arm.changes}"
    if "model" in where:
        yield (
            f"  data: {where['model']}, {where['hook_point']}, contexts of {where['context_length']}, "
            f"{where['tokens']:,} training tokens"
        )
    for record in records:
        yield f"  {record.name}: {record.info.status}, {_seeds(record.info)}"
        yield from (f"    {remark}; its figures would change with more steps" for remark in record.info.remarks)
        if baseline is not None and record.name != baseline.name:
            yield f"    differs from {baseline.name} in: {_changed(baseline, record)}"
        yield from (f"    {line}" for line in conclusions(record, baseline, plan))
        yield from (f"    {line}" for line in _figures(record.info))


def _seeds(info: ArmInfo) -> str:
    return f"{len(info.seeds)} seed{'' if len(info.seeds) == 1 else 's'} ({', '.join(map(str, info.seeds)) or 'none'})"


def _changed(baseline: ArmRecord, record: ArmRecord) -> str:
    before, after = flatten(baseline.arm.settings()), flatten(record.arm.settings())
    names = [
        name
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name) and not name.endswith(".seed")  # the trial's, whatever it says here
    ]
    return "; ".join(f"{name}: {before.get(name, '-')} -> {after.get(name, '-')}" for name in names) or "nothing"


def _figures(info: ArmInfo) -> Iterator[str]:
    figures = figures_of(info)
    shown = [
        f"{how.label} {figure_text(one, how)}"
        for name, one in figures.items()
        if (how := figure(name)).headline and one.value is not None
    ]
    if shown:
        yield f"figures: {'; '.join(shown)}"
    yield from (f"no {name}: {why}" for name, why in info.not_applicable.items())
    if (seconds := info.costs.get("train_seconds")) is not None:
        yield f"cost: {seconds:.0f} s of training per seed, {info.costs['step_ms'] or 0:.1f} ms per step"


def conclusions(record: ArmRecord, baseline: ArmRecord | None, plan: StudyPlan) -> Iterator[str]:
    """What can and cannot be concluded about one arm, in sentences."""
    info = record.info
    if info.status != "ok":
        yield f"no conclusion: {info.status}: {'; '.join(info.reasons)}"
        return
    if baseline is None:
        yield "no comparison: the plan's first run is not in the same folder as this one"
        return
    if record.name == baseline.name:
        yield "this is the baseline that other runs are compared with"
        return
    found = compare({baseline.name: baseline.info, record.name: info}, baseline.name)
    if found.baseline != baseline.name or record.name in found.set_apart:
        why = found.set_apart.get(record.name) or found.set_apart.get(baseline.name, "")
        yield f"no comparison with {baseline.name}: {why}"
        return
    yield from _verdicts(found, record.name, plan)


def _verdicts(found: Comparison, arm_name: str, plan: StudyPlan) -> Iterator[str]:
    arm = next(one for one in found.arms if one.name == arm_name)
    for name in dict.fromkeys(
        (plan.primary_metric, *plan.equivalence_margins, *(name for name in arm.differences if figure(name).headline))
    ):
        if (difference := arm.differences.get(name)) is None:
            continue
        primary = " (primary)" if name == plan.primary_metric else ""
        yield f"{figure(name).label}{primary}: {verdict(difference, name, plan.margin(name))}"
    if plan.primary_metric not in arm.differences:
        yield f"the primary metric {plan.primary_metric} was not measured"
    if arm.caveats:
        yield f"note (†): {'; '.join(arm.caveats)}. {SPARSITY_NOTE}"
    n = sum(one.p is not None for name, one in arm.differences.items() if figure(name).headline)
    if n:
        yield (
            f"these intervals are corrected neither for the {n} headline figures nor for the number of runs: if no run "
            f"differed, one would still expect intervals without zero at {family_wise(n)}; "
            "`scansion compare` corrects for the runs"
        )


def verdict(difference: Difference, name: str, minimum_effect: float | None = None) -> str:
    """One difference in words: significant or not, how large, and how large a difference the seeds could detect.

    With a smallest effect that matters: ``equivalent`` if the whole 95% interval is smaller (which is stricter than two
    one-sided tests at 5%, Schuirmann 1987), ``different`` if it excludes zero and is not, else ``undecided``.
    """
    how, n = figure(name), len(difference.seeds)
    shown = difference_text(difference.model_copy(update={"p_holm": None}), how)
    low, high = difference.estimate.low, difference.estimate.high
    if low is None or high is None:
        where = "at one seed" if n == 1 else f"at each of {n} seeds"
        return f"{shown} {where}, which does not show how much seeds vary"
    if low == high == 0:
        return f"equal to the baseline's at every seed (n={n})"
    corrected_away = difference.estimate.excludes_zero and difference.p_holm is not None and not difference.significant
    if corrected_away:
        text = f"{shown}, not significant at n={n} after Holm's correction over the runs"
    elif difference.estimate.excludes_zero:
        up = low > 0
        good = {None: "", "up": ", better" if up else ", worse", "down": ", worse" if up else ", better"}[how.better]
        text = f"{'higher' if up else 'lower'} than the baseline's: {shown}{good} (n={n})"
    else:
        text = f"no difference detectable at n={n}: {shown}"
        if difference.detectable is not None:
            text += (
                f"; 4 of 5 such studies would detect a true one of {difference.detectable * how.scale:.{how.digits}f}"
            )
    if minimum_effect is not None:
        is_different = difference.estimate.excludes_zero and not corrected_away
        matters = f"{minimum_effect * how.scale:g}, the plan's smallest effect that matters"
        if max(abs(low), abs(high)) < minimum_effect:
            text += f"; equivalent: smaller than {matters}"
        elif is_different and min(abs(low), abs(high)) >= minimum_effect:
            text += f"; different: at least {matters}"
        else:
            text += f"; {'different' if is_different else 'undecided'}: it may or may not reach {matters}"
    return text
