"""The table of position figures: one row per run and state, so that no figure stands without its control."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from scansion.evals.position import PositionResult, excess_over_unmasked
from scansion.evals.position.result import StateFigures
from scansion.evals.registry import Value
from scansion.evals.statistics import Estimate
from scansion.pipeline.run_results import RunResults
from scansion.report.tables.table import ReportTable, row_name
from scansion.study.compare.figures import figure
from scansion.study.compare.tables import figure_text

STATES = {"in_force": "in use", "lifted": "mask lifted", "permuted": "masks permuted", "start": "before training"}
"""State of an SAE -> its name in tables and charts."""

# Figure -> its value in any state, whichever state the evaluation itself reads it in.
_OF_STATE: dict[str, Callable[[StateFigures], Value]] = {
    "l0": lambda state: state.l0,
    "position_information": lambda state: state.information,
    "position_share_lifted": lambda state: state.information_share,
    "positional_features": lambda state: state.significant_share,
    "localised_features": lambda state: state.localised and state.localised.n,
    "localised_own": lambda state: state.localised and state.localised.own_share,
    "localised_own_chance": lambda state: state.localised and state.localised.own_share_chance,
    "positional_fidelity": lambda state: state.auroc.value,
    "positional_overlap": lambda state: state.overlap.value,
    "position_retention": lambda state: state.retention,
}
_MOVED = ("stay_share", "move_share")


def position_table(runs: Sequence[RunResults]) -> ReportTable | None:
    """A group of rows for each run with position figures; None if no run has them."""
    results = [run.position for run in runs if run.position is not None]
    if not results:
        return None
    columns = ["run", "state", *(_label(name) for name in (*_OF_STATE, *_MOVED))]
    groups: list[list[list[str]]] = []
    for result, over in zip(results, excess_over_unmasked(results), strict=True):
        rows = [_row(result, state, result.states[state]) for state in STATES if state in result.states]
        for label, excess in (
            (figure("excess_specialisation").label, result.excess_specialisation),
            ("excess over unmasked, mbit", over.value),
        ):
            if excess is not None:
                rows.append(["", label, "", _text("position_information", excess)])
        groups.append([row + [""] * (len(columns) - len(row)) for row in rows])
    return ReportTable(
        "position, in each state",
        "How firing depends on the position: with the mask in use, lifted and permuted, and before training.",
        columns,
        groups,
        [
            "A mask in use raises information, fidelity, overlap and retention by construction. Evidence is the excess over "
            "permuted masks, and what remains when the mask is lifted.",
            "Position is the mutual information of firing and position above chance; chance is the same contexts rotated. "
            "Positional features are the share of features whose information is significant. Retention is the share of "
            "activation inside the mask, above chance. Localised features are positional features that are concentrated on at "
            "most half of the positions; localised at own positions is the share of them that peak where their hard mask is "
            "open, its chance the same share with permuted masks. When the text is moved, 'stay' is the share of positional "
            "features that keep firing at the old position, 'move' the share that follow the text. Brackets hold 95% intervals "
            "over documents. docs/position.md defines each figure.",
        ],
        left=2,
    )


def _label(name: str) -> str:
    """The figure's label without the state that the evaluation reads it in."""
    return figure(name).label.replace(", mask lifted", "").replace(", lifted", "")


def _row(result: PositionResult, state: str, figures: StateFigures) -> list[str]:
    moved = result.replacement.states.get(state) if result.replacement else None
    return [
        row_name(result) if state == "in_force" else "",
        STATES[state] + ("" if result.mask == "own" else " (drawn mask)"),
        *(_text(name, read(figures)) for name, read in _OF_STATE.items()),
        *(_text(name, moved and getattr(moved, name)) for name in _MOVED),
    ]


def _text(name: str, value: Value) -> str:
    estimate = value if isinstance(value, Estimate) or value is None else Estimate(value=value, low=None, high=None)
    return figure_text(estimate, figure(name))
