"""Temporal crosscoder ("Crosscoding Through Time", Mechanistic Interpretability Workshop at ICML 2026): windows of tokens.

Crosscoders (Lindsey et al. 2024) encode several layers into one code; this one encodes several adjacent tokens.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from scansion.activations.batch import PositionedBatch
from scansion.errors import ConfigError
from scansion.sae.architectures.topk import TopKKindConfig, TopKSAE
from scansion.sae.base import SAEConfig
from scansion.sae.positions import positions_for
from scansion.sae.registry import register_architecture
from scansion.sae.windows import windows_of, windows_of_batch
from scansion.shapes import require_shape


class TemporalCrosscoderConfig(TopKKindConfig, frozen=True):
    """Settings of :class:`TemporalCrosscoder`.

    Example:
        >>> scansion.sae.TemporalCrosscoderConfig(d_sae=2304, k=32, window=5)
    """

    architecture: Literal["temporal_crosscoder"] = "temporal_crosscoder"
    window: int = Field(
        default=5, ge=2, description="Tokens encoded together: the token itself and those before it in its context."
    )


@register_architecture(TemporalCrosscoderConfig)
class TemporalCrosscoder(TopKSAE):
    """TopK over windows: one code for a token and those before it, with weights for each place, reconstructs all of them.

    A token's features are the code of the window that ends with it, so they depend on no later token. In training the whole
    window is reconstructed. In use, ``decode`` gives the token's own part of it: one reconstruction of each token, as of any
    other SAE. Places before position 1 are zeros.

    Tokens have to be given with those before them: whole contexts, or a batch of a store or a stream.
    """

    config: TemporalCrosscoderConfig  # pyright: ignore[reportIncompatibleVariableOverride] - set once, never assigned again
    auxiliary_per = None  # ranks do not hold the tokens before their own

    def __init__(
        self, config: TemporalCrosscoderConfig, d_in: int, n_positions: int, generator: torch.Generator
    ) -> None:
        if config.window > n_positions:
            raise ConfigError(f"a window of {config.window} tokens does not fit in contexts of {n_positions}")
        super().__init__(config, d_in, n_positions, generator)

    @classmethod
    def window_of(cls, config: SAEConfig) -> int:
        assert isinstance(config, TemporalCrosscoderConfig)
        return config.window

    def read(
        self, x: Float[Tensor, "*batch d_in"], positions: Int[Tensor, "..."] | None
    ) -> Float[Tensor, "*batch d_read"]:
        """The windows of tokens; what is as wide as a window is taken for one.

        Raises:
            ShapeError: some token is given without the one before it, or without a position.
        """
        if x.shape[-1] == self.d_read:
            return x
        require_shape("x", x, "... d_in", d_in=self.d_in)
        positions = positions_for(x, positions, f"this SAE reads windows of {self.window} tokens")
        return windows_of(x, positions, self.window)

    def read_batch(self, batch: PositionedBatch) -> PositionedBatch:
        return batch if batch.x.shape[-1] == self.d_read else windows_of_batch(batch, self.window)

    @property
    def directions(self) -> Float[Tensor, "d_sae d_in"]:
        return self.W_dec[:, : self.d_in]

    @torch.no_grad()
    def start_at(self, means: Float[Tensor, "P d_in"], positions: Int[Tensor, "P"]) -> None:
        """Each place of the window starts at the mean of the tokens there."""
        super().start_at(windows_of(means, positions, self.window), positions)
