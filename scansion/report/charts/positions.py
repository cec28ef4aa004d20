"""How figures depend on the position in the context, and how specialised each arm's features are to it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from scansion.evals import evaluations
from scansion.evals.position.result import StateFigures
from scansion.evals.statistics import Estimate
from scansion.report.charts.chart import Axis, Chart, Series, grouped, log_ticks, mean_estimate, over_seeds, split
from scansion.report.data import ReportArm, ReportData
from scansion.report.tables.position import STATES
from scansion.study.compare.figures import figure

_POSITION = Axis("position in context")


def position_charts(data: ReportData) -> list[Chart]:
    """Each figure that an evaluation gives by position, plugins included; firing rates and norms of activations."""
    lines: dict[str, list[Series]] = {}
    for index, arm in enumerate(data.sound):
        for name, by_seed in _by_position(arm).items():
            positions, scale = list(by_seed[0]), figure(name).scale
            rows = [[None if (v := one.get(p)) is None else scale * v for p in positions] for one in by_seed]
            mean, low, high = over_seeds(rows)
            if all(value is None for value in mean):  # not measured
                continue
            lines.setdefault(name, []).append(Series(arm.name, index, positions, mean, "line", low, high))
    note = f"Measured on held-out text.{data.band_note}"
    return [
        *(
            Chart(
                f"{name}_by_position",
                f"{figure(name).label} by position",
                note,
                _POSITION,
                Axis(figure(name).label),
                tuple(series),
                folded=figure(name).superseded_by in lines,
            )
            for name, series in lines.items()
        ),
        _density(data),
        _norms(data),
    ]


def specialisation_charts(data: ReportData) -> list[Chart]:
    """Information of firing on position, and agreement with the mask, in each state of the SAE; none if not measured."""
    arms = [(index, arm) for index, arm in enumerate(data.sound) if any(one.position for one in arm.results)]
    if not arms:
        return []
    return [
        _by_state(
            arms,
            lambda figures: figures.information,
            "specialisation",
            "Mutual information of firing and position",
            "position_information",
            "Information per feature above chance. A mask in use raises it by construction, so compare 'in use' with 'masks "
            "permuted', and 'mask lifted' with the unmasked run and with 'before training'.",
        ),
        _by_state(
            arms,
            lambda figures: figures.auroc,
            "fidelity",
            "How well the mask predicts firing",
            "positional_fidelity",
            "AUROC of the mask's weight as a predictor of firing; 0.5 is chance. A run without a mask is compared with a mask "
            "drawn at random.",
        ),
    ]


def _by_position(arm: ReportArm) -> dict[str, list[dict[int, float | None]]]:
    """Figure -> position -> value, for each seed."""
    found: dict[str, list[dict[int, float | None]]] = {}
    for result in (result for run in arm.results for result in run.results.values() if result.status == "ok"):
        for one in evaluations.called(result.eval).figures:
            if one.by_position is not None:
                found.setdefault(one.name, []).append(dict(zip(*one.by_position(result), strict=True)))
    return found


def _density(data: ReportData) -> Chart:
    series: list[Series] = []
    for index, arm in enumerate(data.sound):
        edges = arm.results[0].core.density.edges
        centres = [(a + b) / 2 for a, b in pairwise(edges)]
        mean, low, high = over_seeds([one.core.density.counts for one in arm.results])
        series.append(Series(arm.name, index, centres, mean, "line", low, high))
    note = "Firing rates at the positions that a feature's mask allows. Features that never fired are left out."
    x = Axis("log10 of firing rate")
    return Chart("density", "How often features fire", note, x, Axis("number of features"), tuple(series))


def _norms(data: ReportData) -> Chart:
    norms = [float(value) for value in data.held_out.mean_norm]
    series = Series("activations", None, list(range(len(norms))), [v if v == v else None for v in norms], "rule")
    note = (
        "A property of the language model, not of the SAEs. Position 0 often has a far larger norm; all figures leave it out "
        "unless the SAE was trained on it."
    )
    title = f"Activation norm by position ({data.held_out.identity.hook_point})"
    y = Axis("mean L2 norm (log scale)", log=True, labels=log_ticks([series]))
    return Chart("norms", title, note, _POSITION, y, (series,))


def _by_state(
    arms: list[tuple[int, ReportArm]],
    get: Callable[[StateFigures], Estimate],
    key: str,
    title: str,
    name: str,
    note: str,
) -> Chart:
    """A chart of the figure called ``name``, which ``get`` reads in each state."""
    measured = {state for _, arm in arms for one in arm.results if one.position for state in one.position.states}
    states, how = [state for state in STATES if state in measured], figure(name)
    series: list[Series] = []
    for place, (index, arm) in enumerate(arms):
        positions = [one.position.states for one in arm.results if one.position]
        estimates = [mean_estimate([get(one[state]) for one in positions if state in one]) for state in states]
        parts = split(estimates)
        values, low, high = ([None if value is None else how.scale * value for value in part] for part in parts)
        x = grouped(len(states), len(arms), place)
        series.append(Series(arm.name, index, x, values, "points", low, high))
    labels = tuple((float(number), STATES[state]) for number, state in enumerate(states))
    x_axis = Axis("", range=(-0.5, len(states) - 0.5), labels=labels)
    return Chart(key, title, note, x_axis, Axis(how.label), tuple(series))
