"""The sparse autoencoder itself; an architecture adds its activation function and its penalty, a mask its positions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, Field
from torch import Tensor, nn

from scansion.errors import ShapeError
from scansion.masks import AnyMaskConfig, NoMaskConfig, build_mask
from scansion.shapes import require_shape


class SAEConfig(BaseModel, extra="forbid", frozen=True):
    """Settings common to all architectures; each adds its own and an ``architecture`` that names it."""

    architecture: str
    d_sae: int = Field(ge=1, description="Number of features.")
    mask: AnyMaskConfig = NoMaskConfig()


@dataclass(frozen=True)
class Losses:
    """What one training forward pass yields. Scalars are means over tokens, in units of the SAE's (scaled) input.

    Attributes:
        mse: squared error summed over d_in.
        sparsity: the architecture's penalty with its coefficient; 0 where sparsity is by construction.
        auxiliary: what keeps features alive, with its coefficient; 0 where nothing does.
        x_hat: reconstruction.
        acts: feature activations.
    """

    mse: Float[Tensor, ""]
    sparsity: Float[Tensor, ""]
    auxiliary: Float[Tensor, ""]
    x_hat: Float[Tensor, "*batch d_in"]
    acts: Float[Tensor, "*batch d_sae"]


class SAE(nn.Module, ABC):
    """``x_hat = activation(mask((x - b_dec) @ W_enc + b_enc)) @ W_dec + b_dec``.

    Decoder rows start as random unit vectors, the encoder as their transpose, ``b_enc`` at 0 and ``b_dec`` at 0 (the
    trainer moves it to the data's mean).

    Args:
        config: architecture, size and mask.
        d_in: width of the activations.
        n_positions: context length L, the length of the mask.
        generator: source of the initial decoder directions.
    """

    revival: Literal["none", "resample"]
    """How the trainer brings dead features back; ``none`` where the architecture's auxiliary loss does it."""

    def __init__(self, config: SAEConfig, d_in: int, n_positions: int, generator: torch.Generator) -> None:
        super().__init__()
        directions = torch.randn(config.d_sae, d_in, generator=generator)
        directions /= directions.norm(dim=1, keepdim=True)
        self.config = config
        self.d_in = d_in
        self.d_sae = config.d_sae
        self.n_positions = n_positions
        self.mask = build_mask(config.mask, n_positions, config.d_sae)
        self.W_enc: Float[Tensor, "d_in d_sae"] = nn.Parameter(
            directions.T.clone(memory_format=torch.contiguous_format)
        )
        self.b_enc: Float[Tensor, "d_sae"] = nn.Parameter(torch.zeros(config.d_sae))
        self.W_dec: Float[Tensor, "d_sae d_in"] = nn.Parameter(directions)
        self.b_dec: Float[Tensor, "d_in"] = nn.Parameter(torch.zeros(d_in))

    @abstractmethod
    def activate(self, pre_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """The activation function. Masked features arrive as minus infinity and must leave as 0."""

    def sparsity_loss(
        self, pre_acts: Float[Tensor, "*batch d_sae"], acts: Float[Tensor, "*batch d_sae"]
    ) -> Float[Tensor, ""]:
        """The penalty on activity, with its coefficient; 0 unless the architecture has one."""
        return acts.new_zeros(())

    def auxiliary_loss(
        self,
        residual: Float[Tensor, "*batch d_in"],
        pre_acts: Float[Tensor, "*batch d_sae"],
        dead: Bool[Tensor, "d_sae"],
    ) -> Float[Tensor, ""]:
        """A loss that gives dead features a gradient; 0 unless the architecture has one."""
        return residual.new_zeros(())

    def fold_scale(self, scale: float) -> None:
        """Rewrite the weights of an SAE trained on ``scale * x`` so that it takes ``x`` itself, in place.

        Activations shrink by ``1 / scale`` and reconstructions are in the units of ``x``.
        """
        with torch.no_grad():
            self.b_enc /= scale
            self.b_dec /= scale

    def pre_acts(
        self, x: Float[Tensor, "*batch d_in"], positions: Int[Tensor, "..."] | None = None
    ) -> Float[Tensor, "*batch d_sae"]:
        """Masked encoder output before the activation function; see :meth:`encode` for the arguments."""
        require_shape("x", x, "... d_in", d_in=self.d_in)
        positions = self._positions_of(x, positions)
        return self.mask.apply_to((x - self.b_dec) @ self.W_enc + self.b_enc, positions)

    def encode(
        self, x: Float[Tensor, "*batch d_in"], positions: Int[Tensor, "..."] | None = None
    ) -> Float[Tensor, "*batch d_sae"]:
        """Feature activations, zero or above.

        Args:
            x: activations; leading axes are kept.
            positions: each token's position in its context, broadcasting against the leading axes of ``x``. If not
                given, the second last axis of ``x`` is taken to be the context: 0 .. L-1.

        Raises:
            ShapeError: ``x`` is not [..., d_in], or positions do not broadcast, or lie outside the mask, or are
                missing where ``x`` has no axis they could be read from.
        """
        return self.activate(self.pre_acts(x, positions))

    def decode(self, acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_in"]:
        """Reconstruction from feature activations; leading axes are kept."""
        require_shape("acts", acts, "... d_sae", d_sae=self.d_sae)
        return acts @ self.W_dec + self.b_dec

    def forward(
        self, x: Float[Tensor, "*batch d_in"], positions: Int[Tensor, "..."] | None = None
    ) -> Float[Tensor, "*batch d_in"]:
        """``decode(encode(x, positions))``."""
        return self.decode(self.encode(x, positions))

    def losses(
        self, x: Float[Tensor, "*batch d_in"], positions: Int[Tensor, "..."], dead: Bool[Tensor, "d_sae"]
    ) -> Losses:
        """One training forward pass; ``dead`` marks the features that an auxiliary loss should revive."""
        pre_acts = self.pre_acts(x, positions)
        acts = self.activate(pre_acts)
        x_hat = self.decode(acts)
        residual = x - x_hat
        return Losses(
            mse=residual.pow(2).sum(dim=-1).mean(),
            sparsity=self.sparsity_loss(pre_acts, acts),
            auxiliary=self.auxiliary_loss(residual, pre_acts, dead),
            x_hat=x_hat,
            acts=acts,
        )

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        """Put decoder rows back on the unit sphere."""
        self.W_dec /= self.W_dec.norm(dim=1, keepdim=True).clamp_min(torch.finfo(self.W_dec.dtype).tiny)

    @torch.no_grad()
    def remove_parallel_gradient(self) -> None:
        """Take from the decoder's gradient the part along each row, which would only change the row's norm."""
        gradient = self.W_dec.grad
        if gradient is not None:
            gradient -= (gradient * self.W_dec).sum(dim=1, keepdim=True) * self.W_dec

    def _positions_of(self, x: Tensor, positions: Tensor | None) -> Tensor:
        leading = x.shape[:-1]
        if positions is None:
            if not leading:
                raise ShapeError("positions are needed: x of shape [d_in] has no context axis to read them from")
            return torch.arange(leading[-1], device=x.device)
        try:
            fits = torch.broadcast_shapes(positions.shape, leading) == leading
        except RuntimeError:
            fits = False
        if not fits:
            raise ShapeError(f"positions should broadcast to {list(leading)} but have shape {list(positions.shape)}")
        return positions
