"""The sparse autoencoder itself; an architecture adds its activation function and its penalty, a mask its positions."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn.functional import linear

from scansion.activations.batch import PositionedBatch
from scansion.cards import card
from scansion.errors import ShapeError
from scansion.execution import Encoder, SparseActs, banded_decode, banded_encode, rows_of_bands
from scansion.execution.cpu import native
from scansion.masks import AnyMaskConfig, Bands, LiftedMask, NoMaskConfig, PositionalMask, build_mask, gated_product
from scansion.masks.base import MaskedActs
from scansion.sae.forward import ForwardPass, Losses, Part, squared_norm
from scansion.sae.metadata import SAEMetadata
from scansion.sae.sparse import sparse_forward
from scansion.shapes import require_shape

# Numbers that are sure to stay in a CPU's cache from one operation to the next.
CACHED = 1 << 16


class SAEConfig(BaseModel, extra="forbid", frozen=True):
    """Settings common to all architectures; each adds its own and an ``architecture`` that names it."""

    architecture: str
    d_sae: int = Field(ge=1, description="Number of features.")
    mask: AnyMaskConfig = NoMaskConfig()


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

    provenance: SAEMetadata | None = None
    """Where a saved SAE comes from; None if it was built and not loaded."""

    uses_pairs: bool = False
    """Whether :meth:`losses` needs ``previous``: the token before each of the batch's."""

    def __init__(self, config: SAEConfig, d_in: int, n_positions: int, generator: torch.Generator) -> None:
        super().__init__()
        directions = torch.randn(config.d_sae, d_in, generator=generator)
        directions /= directions.norm(dim=1, keepdim=True)
        self.config = config
        self.d_in = d_in
        self.d_sae = config.d_sae
        self.n_positions = n_positions
        self.mask = build_mask(config.mask, n_positions, config.d_sae)
        # Feature by feature in memory, like the decoder, so that all there is about a feature lies together.
        self.W_enc: Float[Tensor, "d_in d_sae"] = nn.Parameter(directions.clone().T)
        self.b_enc: Float[Tensor, "d_sae"] = nn.Parameter(torch.zeros(config.d_sae))
        self.W_dec: Float[Tensor, "d_sae d_in"] = nn.Parameter(directions)
        shape = (d_in,) if self.mask.n_decoder_biases == 1 else (self.mask.n_decoder_biases, d_in)
        self.b_dec: Float[Tensor, "*n_biases d_in"] = nn.Parameter(torch.zeros(shape))

    @abstractmethod
    def activate(
        self, pre_acts: Float[Tensor, "*batch w"], features: Int[Tensor, "w"] | None = None
    ) -> Float[Tensor, "*batch w"]:
        """The activation function. Masked features arrive as minus infinity and must leave as 0.

        Args:
            pre_acts: of the features named.
            features: their indices; None for all, in order.
        """

    def activate_bands(
        self, pre_acts: Sequence[Float[Tensor, "_ n _"]], features: Sequence[Int[Tensor, "_"]]
    ) -> list[Float[Tensor, "_ n _"]]:
        """:meth:`activate` for a batch cut into bands; one that compares tokens must compare those of all bands."""
        return [self.activate(pre, names) for pre, names in zip(pre_acts, features, strict=True)]

    def select_active(self, encoders: Sequence[Encoder]) -> SparseActs | None:
        """The active entries of a training batch; None where there are too many for sparse execution to pay.

        Must select what :meth:`activate` leaves above 0.

        Args:
            encoders: of all bands.
        """
        return None

    def reconstruction_loss(self, forward: ForwardPass) -> Float[Tensor, ""]:
        """The squared error to be minimised, a mean over tokens."""
        return squared_norm(forward.residual)

    def sparsity_loss(self, forward: ForwardPass) -> Float[Tensor, ""]:
        """The penalty on activity, with its coefficient, a mean over tokens; 0 unless the architecture has one."""
        return forward.residual.new_zeros(())

    def auxiliary_loss(self, forward: ForwardPass, dead: Bool[Tensor, "d_sae"]) -> Float[Tensor, ""]:
        """A loss that gives dead features a gradient, or any other; 0 unless the architecture has one.

        Args:
            forward: with ``previous`` where :attr:`uses_pairs`.
            dead: the features that should be revived.
        """
        return forward.residual.new_zeros(())

    def after_forward(self, forward: ForwardPass) -> None:
        """Called with every training forward pass, for an architecture that keeps statistics."""

    def losses_of(self, forward: ForwardPass, dead: Bool[Tensor, "d_sae"]) -> Losses:
        """All losses of a forward pass: the one place that asks an architecture for them, whichever way was taken.

        Raises:
            ShapeError: the architecture learns from pairs of tokens, and the batch has no ``previous``.
        """
        if self.uses_pairs and forward.previous is None:
            raise ShapeError(f"{self.config.architecture} learns from pairs of tokens: losses() needs previous")
        self.after_forward(forward)
        return Losses(
            reconstruction=self.reconstruction_loss(forward),
            sparsity=self.sparsity_loss(forward),
            auxiliary=self.auxiliary_loss(forward, dead),
            residual=forward.residual,
            fired=forward.fired,
        )

    @torch.no_grad()
    def start_at(self, means: Float[Tensor, "P d_in"], positions: Int[Tensor, "P"]) -> None:
        """Put the decoder bias at the data's mean: over all positions, or over those of each band."""
        if self.b_dec.ndim == 1:
            self.b_dec.copy_(means.mean(dim=0))
            return
        band = self.mask.band_at(positions)
        for index in range(len(self.b_dec)):
            if (band == index).any():
                self.b_dec[index] = means[band == index].mean(dim=0)

    @torch.no_grad()
    def permute_features(self, order: Int[Tensor, "d_sae"]) -> None:
        """Move feature ``order[i]`` to place ``i``, in place; the mask stays where it is."""
        for parameter, axis in self.feature_axes():
            parameter.copy_(parameter.index_select(axis, order.to(parameter.device)))

    def feature_axes(self) -> list[tuple[Tensor, int]]:
        """The parameters that belong to features, each with the axis along which features lie."""
        return [(self.W_enc, 1), (self.b_enc, 0), (self.W_dec, 0)]

    def with_mask(self, mask: PositionalMask) -> SAE:
        """The same SAE, sharing its weights, under another mask: lifted, permuted, rounded."""
        other = copy.copy(self)
        other._modules = dict(self._modules)
        other.mask = mask
        return other

    def lifted(self) -> SAE:
        """The same SAE, sharing its weights, with its mask lifted: every feature may fire everywhere."""
        return self.with_mask(LiftedMask(self.mask))

    def fold_scale(self, scale: float) -> None:
        """Rewrite the weights of an SAE trained on ``scale * x`` so that it takes ``x`` itself, in place.

        Activations shrink by ``1 / scale`` and reconstructions are in the units of ``x``.
        """
        with torch.no_grad():
            self.b_enc /= scale
            self.b_dec /= scale

    def bias_at(self, positions: Int[Tensor, "*batch"]) -> Float[Tensor, "..."]:
        """The decoder bias: [d_in], or where each band has its own, [*batch, d_in]."""
        return self.b_dec if self.b_dec.ndim == 1 else self.b_dec[self.mask.band_at(positions)]

    def pre_acts(
        self, x: Float[Tensor, "*batch d_in"] | PositionedBatch, positions: Int[Tensor, "..."] | None = None
    ) -> Float[Tensor, "*batch d_sae"]:
        """Encoder output as the penalties see it: minus infinity where the mask does not let a feature train.

        Arguments as for :meth:`encode`.
        """
        return self._gated(*self._unpacked(x, positions)).pre_acts

    def encode(
        self, x: Float[Tensor, "*batch d_in"] | PositionedBatch, positions: Int[Tensor, "..."] | None = None
    ) -> Float[Tensor, "*batch d_sae"]:
        """Feature activations, zero or above.

        Args:
            x: activations, whose leading axes are kept; or a batch of a store or a stream, which carries its positions
                and is moved to the SAE's device and type.
            positions: each token's position in its context, broadcasting against the leading axes of ``x``. They may be
                left out if ``x`` is one context [L, d_in], whose positions are 0 .. L-1, and if the SAE treats all
                positions alike (no mask, or a placebo).

        Raises:
            ShapeError: ``x`` is not [..., d_in]; positions are missing, do not broadcast, or are outside the mask.

        Example:
            >>> sae.encode(store.contexts(0, 16))  # [L, 16, d_sae]
            >>> sae.encode(x, torch.arange(128))  # x: [batch, 128, d_in] -> [batch, 128, d_sae]
        """
        return self._gated(*self._unpacked(x, positions)).acts

    def encode_sparse(
        self, x: Float[Tensor, "*batch d_in"], positions: Int[Tensor, "..."] | None = None
    ) -> SparseActs | None:
        """What :meth:`encode` gives, as its active entries alone, token by token and without a gradient.

        None where they are not to be had in less time than all of it: the architecture sets no number of active features, or
        its mask does more than close some. Arguments as for :meth:`encode`.
        """
        return None

    def decode(
        self, acts: Float[Tensor, "*batch d_sae"], positions: Int[Tensor, "..."] | None = None
    ) -> Float[Tensor, "*batch d_in"]:
        """Reconstruction from feature activations; leading axes are kept.

        Args:
            acts: feature activations.
            positions: as for :meth:`encode`; needed only if each band has a decoder bias of its own.

        Raises:
            ShapeError: ``acts`` is not [..., d_sae], or positions are needed and missing.
        """
        require_shape("acts", acts, "... d_sae", d_sae=self.d_sae)
        if self.b_dec.ndim == 1:
            return acts @ self.W_dec + self.b_dec
        return acts @ self.W_dec + self.bias_at(self._positions_of(acts, positions))

    def forward(
        self, x: Float[Tensor, "*batch d_in"] | PositionedBatch, positions: Int[Tensor, "..."] | None = None
    ) -> Float[Tensor, "*batch d_in"]:
        """``decode(encode(x, positions), positions)``; arguments and errors as for :meth:`encode`."""
        x, positions = self._unpacked(x, positions)
        return self.decode(self.encode(x, positions), positions)

    def losses(
        self,
        x: Float[Tensor, "P n d_in"],
        positions: Int[Tensor, "P"],
        dead: Bool[Tensor, "d_sae"],
        previous: Float[Tensor, "P_less_1 n d_in"] | None = None,
    ) -> Losses:
        """One training forward pass: by bands where the mask has them, from active entries where they are few.

        Args:
            x: a batch grouped by position.
            positions: ascending; the position of each row of ``x``.
            dead: the features that an auxiliary loss should revive.
            previous: for each row but the first, the token before each of its tokens. Needed where
                :attr:`uses_pairs`, which also needs positions without gaps.
        """
        forward = sparse_forward(self, x, positions)
        if forward is None and self.mask.is_binary_gate:
            forward = self.fused_forward(x, positions)
        if forward is None:
            bands = self.mask.bands()
            if bands is None:
                return self.dense_losses(x, positions, dead, previous)
            forward = self._banded_forward(x, positions, bands)
        return self.losses_of(replace(forward, previous=previous), dead)

    def fused_forward(self, x: Float[Tensor, "P n d_in"], positions: Int[Tensor, "P"]) -> ForwardPass | None:
        """A forward pass in an architecture's own way, where too many features are active for the sparse one; else None.

        For masks that only select. Arguments as for :meth:`losses`.
        """
        return None

    def dense_losses(
        self,
        x: Float[Tensor, "P n d_in"],
        positions: Int[Tensor, "P"],
        dead: Bool[Tensor, "d_sae"],
        previous: Float[Tensor, "P_less_1 n d_in"] | None = None,
    ) -> Losses:
        """:meth:`losses` computed over all features and positions: the reference for every faster way."""
        pre_acts, acts = self._gated(x, positions[:, None])
        weights = self.mask(positions[:, None]) if self.mask.gates_decoder else None
        decoded = acts @ self.W_dec if weights is None else gated_product(acts, self.W_dec, weights)
        residual = x - (decoded + self.bias_at(positions[:, None]))
        parts = [Part.computed(slice(None), None, pre_acts, acts)]
        fired = self._fired(parts)
        return self.losses_of(ForwardPass(x, positions, residual, parts, fired, previous, weights), dead)

    def _banded_forward(self, x: Tensor, positions: Tensor, bands: Bands) -> ForwardPass:
        rows = rows_of_bands(positions, bands.edges, bands.shared, bands.sizes)
        features = [band.features(bands.shared, x.device) for band in rows]
        bias = self.bias_at(positions[:, None])
        pre_acts = banded_encode(x - bias, self.W_enc, self.b_enc, rows, bands.shared)
        acts = self.activate_bands(pre_acts, features)
        residual = x - (banded_decode(acts, self.W_dec, rows, bands.shared) + bias)
        parts = [
            Part.computed(band.rows, names, pre, act)
            for band, names, pre, act in zip(rows, features, pre_acts, acts, strict=True)
            if band.rows.stop > band.rows.start
        ]
        return ForwardPass(x, positions, residual, parts, self._fired(parts))

    def _fired(self, parts: Sequence[Part]) -> Int[Tensor, "d_sae"]:
        fired = torch.zeros(self.d_sae, dtype=torch.int64, device=self.W_dec.device)
        for part in parts:
            fired[slice(None) if part.features is None else part.features] += (part.acts > 0).sum(dim=(0, 1))
        return fired

    def _gated(self, x: Tensor, positions: Tensor | None) -> MaskedActs:
        return self._gated_by(self.activate, x, positions)

    def _gated_by(self, activate: Callable[[Tensor], Tensor], x: Tensor, positions: Tensor | None) -> MaskedActs:
        require_shape("x", x, "... d_in", d_in=self.d_in)
        positions = self._positions_of(x, positions)
        pre_acts = linear(x - self.bias_at(positions), self.W_enc.T, self.b_enc)
        return self.mask.apply_to(pre_acts, positions, activate)

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        """Put decoder rows back on the unit sphere."""
        if native.supports(self.W_dec):
            native.normalise(self.W_dec)
            return
        for rows in self.W_dec.split(self._rows_at_once):
            rows /= torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)

    @torch.no_grad()
    def remove_parallel_gradient(self) -> None:
        """Take from the decoder's gradient the part along each row, which would only change the row's norm."""
        if self.W_dec.grad is None:
            return
        if native.supports(self.W_dec, self.W_dec.grad):
            native.remove_parallel(self.W_dec, self.W_dec.grad)
            return
        size = self._rows_at_once
        for gradient, rows in zip(self.W_dec.grad.split(size), self.W_dec.split(size), strict=True):
            gradient.addcmul_(rows, (gradient * rows).sum(dim=1, keepdim=True), value=-1)

    @property
    def _rows_at_once(self) -> int:
        """Rows of the decoder that the CPU's cache holds, so that they come from memory once; elsewhere, all."""
        return max(1, CACHED // self.d_in) if self.W_dec.device.type == "cpu" else self.d_sae

    @property
    def treats_positions_alike(self) -> bool:
        """True if the same activation gives the same features and reconstruction at every position."""
        return self.mask.treats_positions_alike and self.b_dec.ndim == 1

    def _unpacked(self, x: Tensor | PositionedBatch, positions: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Activations and positions of a batch that carries both, on this SAE's device; anything else as it is."""
        if not isinstance(x, PositionedBatch):
            return x, positions
        if positions is not None:
            raise ShapeError("a PositionedBatch carries its positions; do not give positions as well")
        return x.x.to(self.W_enc), x.token_positions.to(self.W_enc.device)

    def _positions_of(self, x: Tensor, positions: Tensor | None) -> Tensor:
        leading = x.shape[:-1]
        if positions is None:
            if self.treats_positions_alike:
                return torch.zeros((1,) * len(leading), dtype=torch.int64, device=x.device)
            if len(leading) != 1:
                raise ShapeError(
                    f"positions are needed: this SAE's {self.config.mask.family} mask treats positions differently, and a "
                    f"tensor of shape {list(x.shape)} does not say which axis is the context. Give positions that "
                    f"broadcast to {list(leading)} (for [batch, L, d]: torch.arange(L)), or the PositionedBatch that "
                    "store.contexts() returns"
                )
            return torch.arange(leading[0], device=x.device)
        try:
            fits = torch.broadcast_shapes(positions.shape, leading) == leading
        except RuntimeError:
            fits = False
        if not fits:
            raise ShapeError(f"positions should broadcast to {list(leading)} but have shape {list(positions.shape)}")
        return positions

    def _repr_html_(self) -> str:
        """A card for notebooks."""
        mask, origin = self.config.mask, self.provenance
        settings = mask.model_dump(mode="json", exclude_defaults=True, exclude={"family"})
        facts = {
            "features": f"{self.d_sae:,}, of activations of width {self.d_in:,}",
            "positions": f"{self.n_positions:,}",
            "mask": ", ".join([mask.family, *(f"{name} {value}" for name, value in settings.items())]),
            "free of the mask": f"{self.mask.n_shared:,} features" if self.mask.n_shared < self.d_sae else "",
        }
        if origin is not None:
            facts |= {
                "model": f"{origin.model}, {origin.hook_point}",
                "trained": f"{origin.tokens:,} tokens in {origin.steps:,} steps, seed {origin.seed}",
            }
        return card(f"{self.config.architecture} SAE", facts)
