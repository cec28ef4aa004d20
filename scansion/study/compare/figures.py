"""How the figures of a comparison are shown: those that evaluations measure, and what training costs."""

from __future__ import annotations

from scansion.evals import Figure, evaluations

_COSTS = (
    Figure("train_seconds", "training seconds", "down", digits=0),
    Figure("step_ms", "ms per step", "down", digits=1),
)


def figure(name: str) -> Figure:
    """How the figure of this name is shown; one that nothing registered here measures keeps its name as its label."""
    return _known(name) or Figure(name, name.replace("_", " "))


def is_known(name: str) -> bool:
    """Whether what measures the figure of this name is registered here; that of a plugin may not be."""
    return _known(name) is not None


def _known(name: str) -> Figure | None:
    costs = {cost.name: cost for cost in _COSTS}
    return costs.get(name) or evaluations.figure(name)
