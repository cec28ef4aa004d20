"""Draw the picture of the documentation's first page: ``python docs/pictures.py``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from scansion import BandMaskConfig, NoMaskConfig, SoftMaskConfig, build_mask
from scansion.masks import MaskConfig

POSITIONS, FEATURES = 24, 48
SHOWN: dict[str, MaskConfig] = {
    "no mask": NoMaskConfig(),
    "bands, a quarter of the features free": BandMaskConfig(count=3, shared=0.25),
    "soft mask, before it learns": SoftMaskConfig(),
}


def idea() -> Figure:
    """Positions by features, for three masks."""
    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    for axis, (title, config) in zip(figure.subplots(1, len(SHOWN), sharey=True), SHOWN.items(), strict=True):
        weights = build_mask(config, POSITIONS, FEATURES).table().detach().numpy()
        image = axis.imshow(weights.T, cmap="Greys", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("token position")
        axis.set_xticks(np.arange(0, POSITIONS, 8))
    figure.axes[0].set_ylabel("feature")
    figure.colorbar(image, ax=figure.axes, label="weight: 1 may fire, 0 may not")
    return figure


if __name__ == "__main__":
    idea().savefig(Path(__file__).parent / "images/idea.png", dpi=110, metadata={"Software": None})
