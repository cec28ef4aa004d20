"""What a learnt mask looks like before it has learnt anything."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor


class Start(BaseModel):
    """How the weights of a learnt mask start, each in [low, high]."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kind: Literal["random", "contiguous", "strided", "gaussian", "from_usage"] = Field(
        default="random",
        description="First weights. random: uniform between low and high; contiguous: one window of positions per feature; "
        "strided: every n-th position; gaussian: overlapping windows; from_usage: where the features of a trained SAE "
        "without a mask fire; its weights are taken over too.",
    )
    low: float = Field(
        default=0.3, gt=0, lt=1, description="Weight outside a feature's window, or lowest random weight."
    )
    high: float = Field(
        default=0.7, gt=0, lt=1, description="Weight inside a feature's window, or highest random weight."
    )
    width: int | None = Field(
        default=None,
        ge=1,
        description="Positions in a window (for gaussian: at half height); default an eighth of the context.",
    )
    sae: Path | None = Field(
        default=None,
        description="Folder of the trained SAE, for from_usage; default the one that --from names.",
    )

    @model_validator(mode="after")
    def _check(self) -> Start:
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) is above high ({self.high})")
        if self.sae is not None and self.kind != "from_usage":
            raise ValueError("sae, the folder of a trained SAE, is for the kind from_usage; no other kind takes it")
        return self

    def weights(self, n_positions: int, d_bound: int, generator: torch.Generator) -> Float[Tensor, "L d_bound"]:
        """The starting weights; for ``from_usage`` a flat placeholder until the trainer has measured the usage."""
        width = min(n_positions, self.width or max(1, n_positions // 8))
        # Features take windows in turn, so that any stretch of features covers all positions equally.
        n_windows = -(-n_positions // width)
        window = torch.arange(d_bound) % n_windows
        places = torch.arange(n_positions)[:, None]
        match self.kind:
            case "random":
                shape = torch.rand(n_positions, d_bound, generator=generator)
            case "contiguous":
                shape = (places // width == window).float()
            case "strided":
                shape = (places % n_windows == window).float()
            case "gaussian":
                centre = torch.linspace(0, n_positions - 1, d_bound)
                sigma = width / 2.3548  # full width at half maximum of a normal density, 2 sqrt(2 ln 2)
                shape = torch.exp(-0.5 * ((places - centre) / sigma) ** 2)
            case "from_usage":
                shape = torch.full((n_positions, d_bound), 0.5)
        return self.scaled(shape)

    def scaled(self, shape: Float[Tensor, "L d_bound"]) -> Float[Tensor, "L d_bound"]:
        """Values in [0, 1] -> weights in [low, high]."""
        return self.low + (self.high - self.low) * shape
