"""Pictures of a trained SAE: its positional mask, and where some of its features fire."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from scansion.activations import ActivationStore
from scansion.errors import ConfigError
from scansion.evals.reading.contexts import read_contexts
from scansion.exploring import CONTEXTS_AT_ONCE, opened, require_features, sae_of, used_positions
from scansion.palette import COLOURS
from scansion.sae import SAE

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_mask(sae: SAE | str | Path) -> Figure:
    """Draw an SAE's positional mask: one row per feature, sorted by where its weight is; darker is a higher weight.

    Args:
        sae: an SAE, or the folder of a run.

    Returns:
        A matplotlib figure.

    Raises:
        ConfigError: the SAE has no mask.

    Example:
        >>> scansion.plot_mask("runs/bands").savefig("mask.png")
    """
    loaded = sae_of(sae)
    if not loaded.config.mask.has_weights:
        raise ConfigError("this SAE has no positional mask to draw")
    weights = loaded.mask.table().detach().float().cpu()
    centre = (weights * torch.arange(len(weights))[:, None]).sum(dim=0) / weights.sum(dim=0).clamp_min(1e-12)
    figure, axes = _figure()
    image = axes.imshow(
        weights[:, centre.argsort()].T.numpy(), aspect="auto", cmap="Greys", vmin=0, interpolation="nearest"
    )
    figure.colorbar(image, label="weight")
    axes.set(title=f"{loaded.config.mask.family} mask", xlabel="position", ylabel="feature (sorted)")
    return figure


@torch.no_grad()
def plot_firing(
    sae: SAE | str | Path, store: ActivationStore | str | Path, features: int | Sequence[int], *, n_contexts: int = 512
) -> Figure:
    """Draw the firing rate of some features by position.

    Args:
        sae: an SAE, or the folder of a run.
        store: held-out activations of the same model and hook point.
        features: one or more of their numbers, from 0; at most 12 lines can be distinguished.
        n_contexts: contexts to read, at most.

    Returns:
        A matplotlib figure.

    Raises:
        ConfigError: there is no such feature, or more than 12 are given.

    Example:
        >>> scansion.plot_firing("runs/bands", "stores/sotu/held_out", [3, 12]).savefig("firing.png")
    """
    loaded, held_out = opened(sae, store)
    features = [features] if isinstance(features, int) else list(features)
    if not 1 <= len(features) <= len(COLOURS):
        raise ConfigError(
            f"{len(features)} features are too many or too few for one figure; give 1 to {len(COLOURS)} numbers"
        )
    require_features(loaded, features)
    places = used_positions(loaded, held_out)
    fired, tokens = torch.zeros(len(places), len(features)), torch.zeros(len(places))
    for part in read_contexts(held_out, places, min(n_contexts, held_out.n_contexts), CONTEXTS_AT_ONCE):
        fired += (part.encode(loaded)[..., list(features)] > 0).sum(dim=1)
        tokens += part.valid.sum(dim=1)
    figure, axes = _figure()
    rates = fired / tokens[:, None]
    for line, colour, feature in zip(rates.T, COLOURS, features, strict=False):
        axes.plot(places.numpy(), line.numpy(), color=colour, label=f"feature {feature}")
    axes.set(xlabel="position", ylabel="share of tokens on which it fires")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return figure


def _figure() -> tuple[Figure, Any]:
    from matplotlib.figure import Figure  # takes a third of a second

    figure = Figure(figsize=(7, 4), layout="constrained")
    return figure, figure.subplots()
