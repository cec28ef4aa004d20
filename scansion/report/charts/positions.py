"""How figures depend on the position in the context, and how specialised each arm's features are to it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from scansion.evals.position.result import StateFigures
from scansion.evals.statistics import Estimate
from scansion.report.charts.chart import Axis, Chart, Series, grouped, log_ticks, over_seeds, split
from scansion.report.data import ReportArm, ReportData

_STATES = {"in_force": "in use", "lifted": "mask lifted", "permuted": "masks permuted", "start": "before training"}


def position_charts(data: ReportData) -> list[Chart]:
    """FVE and L0 by position, the norms that lie behind them, and firing rates."""
    return [
        _by_position(data, "fve", "Held-out reconstruction by position", "FVE at the position"),
        _by_position(data, "l0", "Active features by position", "L0 at the position"),
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
            data,
            arms,
            lambda figures: figures.information,
            "specialisation",
            "Information of firing on position",
            "mbit per feature",
            "Above the chance of turned contexts. What a mask in force shows, it shows by construction: compare it with "
            "masks permuted; and what is left with the mask lifted, with the unmasked run and with features before training.",
            1000.0,
        ),
        _by_state(
            data,
            arms,
            lambda figures: figures.auroc,
            "fidelity",
            "How well the mask predicts firing",
            "AUROC of the mask's weight",
            "One half is chance; an arm without a mask of its own is compared with one drawn at random.",
            1.0,
        ),
    ]


def _by_position(data: ReportData, name: str, title: str, y_title: str) -> Chart:
    series: list[Series] = []
    for index, arm in enumerate(data.sound):
        mean, low, high = over_seeds([one.core.by_position[name] for one in arm.results])
        series.append(Series(arm.name, index, arm.results[0].core.positions, mean, "line", low, high))
    note = "On held-out text; the band is the range over seeds."
    return Chart(f"{name}_by_position", title, note, Axis("position in context"), Axis(y_title), tuple(series))


def _density(data: ReportData) -> Chart:
    series: list[Series] = []
    for index, arm in enumerate(data.sound):
        edges = arm.results[0].core.density.edges
        centres = [(a + b) / 2 for a, b in pairwise(edges)]
        mean, low, high = over_seeds([one.core.density.counts for one in arm.results])
        series.append(Series(arm.name, index, centres, mean, "line", low, high))
    note = "Firing rates at the positions a feature's mask allows; features that never fired are left out."
    x = Axis("log10 of firing rate")
    return Chart("density", "How often features fire", note, x, Axis("features"), tuple(series))


def _norms(data: ReportData) -> Chart:
    norms = [float(value) for value in data.held_out.mean_norm]
    series = Series("activations", None, list(range(len(norms))), [v if v == v else None for v in norms], "rule")
    note = "A fact of the language model: where position 0 stands out, it is left out of all figures unless asked for."
    title = f"Activation norm by position ({data.held_out.identity.hook_point})"
    y = Axis("mean L2 norm (log scale)", log=True, labels=log_ticks([series]))
    return Chart("norms", title, note, Axis("position in context"), y, (series,))


def _by_state(
    data: ReportData,
    arms: list[tuple[int, ReportArm]],
    get: Callable[[StateFigures], Estimate],
    key: str,
    title: str,
    y_title: str,
    note: str,
    scale: float,
) -> Chart:
    states = [
        name
        for name in _STATES
        if any(name in one.position.states for _, a in arms for one in a.results if one.position)
    ]
    series: list[Series] = []
    for place, (index, arm) in enumerate(arms):
        estimates = [_over_seeds(arm, name, get) for name in states]
        values, low, high = ([None if value is None else scale * value for value in part] for part in split(estimates))
        x = grouped(len(states), len(arms), place)
        series.append(Series(arm.name, index, x, values, "points", low, high))
    labels = tuple((float(number), _STATES[name]) for number, name in enumerate(states))
    return Chart(
        key, title, note, Axis("", range=(-0.5, len(states) - 0.5), labels=labels), Axis(y_title), tuple(series)
    )


def _over_seeds(arm: ReportArm, state: str, get: Callable[[StateFigures], Estimate]) -> Estimate | None:
    found = [get(one.position.states[state]) for one in arm.results if one.position and state in one.position.states]
    if len(found) <= 1:
        return found[0] if found else None
    return Estimate.of_seeds([one.value for one in found if one.value is not None])
