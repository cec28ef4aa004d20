"""Draw the pictures of the documentation: ``python docs/pictures.py``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from findings import RESULTS, compared, decisive, of_worlds, record_of, shown_in
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scansion import BandMaskConfig, NoMaskConfig, SoftMaskConfig, build_mask
from scansion.masks import MaskConfig
from scansion.study.compare.comparison import Comparison, Difference
from scansion.study.compare.figures import figure

IMAGES = Path(__file__).parent / "images"
POSITIONS, FEATURES = 24, 48
SHOWN: dict[str, MaskConfig] = {
    "no mask": NoMaskConfig(),
    "bands, a quarter of the features free": BandMaskConfig(count=3, shared=0.25),
    "soft mask, before it learns": SoftMaskConfig(),
}


def idea() -> Figure:
    """Positions by features, for three masks."""
    picture = Figure(figsize=(9.6, 3.4), layout="constrained")
    for axis, (title, config) in zip(picture.subplots(1, len(SHOWN), sharey=True), SHOWN.items(), strict=True):
        weights = build_mask(config, POSITIONS, FEATURES).table().detach().numpy()
        image = axis.imshow(weights.T, cmap="Greys", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("token position")
        axis.set_xticks(np.arange(0, POSITIONS, 8))
    picture.axes[0].set_ylabel("feature")
    picture.colorbar(image, ax=picture.axes, label="weight: 1 may fire, 0 may not")
    return picture


def differences(study: str) -> Figure:
    """What each arm of a study changes, for every figure of which its plan says what would matter."""
    folder = RESULTS / study
    found, plan = compared(folder), record_of(folder).plan
    names = decisive(record_of(folder))
    return _forest(
        [arm.name for arm in found.arms if arm.name != found.baseline],
        [(figure(name).label, _of(found, name), name, plan.margin(name)) for name in names],
        f"difference from {found.baseline}, 95% interval; filled: marked with a star in the table; grey: too small to matter",
    )


def worlds(study: str) -> Figure:
    """What each variant of a synthetic study changes in each world."""
    found = of_worlds(RESULTS / study)
    first = next(iter(found.values()))
    panels = [
        (f"{run}:\n{figure(name).label}", _of(comparison, name), name, None)
        for run, comparison in found.items()
        for name in shown_in(comparison)
    ]
    note = f"difference from {first.baseline}, 95% interval; filled: marked with a star in the table"
    return _forest([arm.name for arm in first.arms if arm.name != first.baseline], panels, note)


def _of(comparison: Comparison, name: str) -> dict[str, Difference]:
    return {arm.name: arm.differences[name] for arm in comparison.arms if name in arm.differences}


def _forest(
    arms: Sequence[str], panels: Sequence[tuple[str, Mapping[str, Difference], str, float | None]], note: str
) -> Figure:
    """A row for each arm, a panel for each figure: (title, arm -> difference, figure, what would matter)."""
    picture = Figure(figsize=(2.1 * len(panels) + 2.6, 0.24 * len(arms) + 1.3), layout="constrained")
    for axis, (title, found, name, margin) in zip(
        picture.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True
    ):
        scale = figure(name).scale
        axis.axvline(0, color="black", linewidth=0.8)
        if margin:
            axis.axvspan(-margin * scale, margin * scale, color="0.92")
        for row, arm in enumerate(arms):
            if arm in found:
                _row(axis, row, found[arm], scale)
        axis.set_title(title.replace(", ", ",\n"), fontsize=8)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    picture.axes[0].set_yticks(range(len(arms)), arms, fontsize=8)
    picture.axes[0].invert_yaxis()
    picture.supxlabel(note, fontsize=8)
    return picture


def _row(axis: Axes, row: int, found: Difference, scale: float) -> None:
    estimate = found.estimate
    assert estimate.value is not None
    if estimate.low is not None and estimate.high is not None:
        axis.plot([estimate.low * scale, estimate.high * scale], [row, row], color="C0", linewidth=1.2)
    face = "C0" if found.significant else "white"
    axis.plot(estimate.value * scale, row, "o", markersize=4, markerfacecolor=face, markeredgecolor="C0")


if __name__ == "__main__":
    pictures = {
        "idea": idea(),
        "positional_masking": differences("positional_masking"),
        "synthetic": worlds("synthetic"),
    }
    for name, picture in pictures.items():
        picture.savefig(IMAGES / f"{name}.png", dpi=110, metadata={"Software": None})
