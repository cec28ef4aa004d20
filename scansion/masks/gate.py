"""What a mask does, as a value: how its weights act, and where. Execution and evaluations read this, not the mask's type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ActsOn = Literal["forward", "gradient", "both", "straight_through", "placebo"]


@dataclass(frozen=True)
class Bands:
    """Block structure of a hard mask: contiguous bands of positions, each owning a contiguous block of features.

    The shared features come first, then the blocks in the order of the bands.

    Attributes:
        edges: ascending, from 0 to L; band g holds positions edges[g] to edges[g + 1] (exclusive).
        shared: number of features that every position may use.
        sizes: number of features each band owns.
    """

    edges: tuple[int, ...]
    shared: int
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Gate:
    """How a mask acts on a training step.

    Attributes:
        kind: ``none``: the mask is not applied; ``binary``: a feature is open or closed; ``weights``: a feature is multiplied
            by its weight; ``straight_through``: weights are rounded in the forward pass, and get the gradient they would
            get if they multiplied.
        forward: whether it acts on activations, so that there can be positions at which a feature cannot fire.
        gradient: whether it multiplies the features' gradients, those of the decoder's rows included, by the weights.
        bands: block structure in the forward pass, if any.
    """

    kind: Literal["none", "binary", "weights", "straight_through"]
    forward: bool = False
    gradient: bool = False
    bands: Bands | None = None

    @classmethod
    def of(cls, acts_on: ActsOn, *, binary: bool, bands: Bands | None = None) -> Gate:
        """The gate of a mask that acts where ``acts_on`` says.

        Args:
            acts_on: as in the mask's settings.
            binary: whether its weights are always 0 or 1.
            bands: its block structure.
        """
        kind = "binary" if binary else "weights"
        match acts_on:
            case "placebo":
                return cls("none")
            case "gradient":
                return cls(kind, gradient=True)
            case _ if binary:
                # A closed feature's activation is exactly 0, and so is its gradient: there is nothing left to gate, and a
                # table of truth values has nothing to learn. All three settings are one and the same.
                return cls(kind, forward=True, bands=bands)
            case "forward":
                return cls(kind, forward=True)
            case "both":
                return cls(kind, forward=True, gradient=True)
            case "straight_through":
                return cls("straight_through", forward=True)

    @property
    def only_blocks(self) -> bool:
        """True if the mask only keeps closed features from firing, or does nothing: no weights, no gradient gating."""
        return self.kind == "none" or (self.kind == "binary" and not self.gradient)
