"""The sparse autoencoder itself; an architecture adds its activation function and its penalty, a mask its positions."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn.functional import linear

from scansion.activations.batch import PositionedBatch
from scansion.errors import ShapeError
from scansion.masks import AnyMaskConfig, LiftedMask, NoMaskConfig, PositionalMask, build_mask
from scansion.masks.base import MaskedActs
from scansion.sae.cards import sae_card
from scansion.sae.forward import ForwardPass, squared_norm
from scansion.sae.input_norm import InputNorm, NormalisedInput, normalise
from scansion.sae.metadata import SAEMetadata
from scansion.sae.positions import positions_for
from scansion.sae.structure import Routing, Selection
from scansion.shapes import require_shape


class SAEConfig(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """Settings common to all architectures; each adds its own and an ``architecture`` that names it."""

    architecture: str
    d_sae: int = Field(ge=1, description="Number of features.")
    mask: AnyMaskConfig = Field(default=NoMaskConfig(), description="Positional mask: a family and its settings.")
    input_norm: InputNorm = Field(
        default="none",
        exclude_if=lambda norm: norm == "none",
        description="Normalisation of each token before the SAE reads it (none, layer_norm or constant_norm_rescale), of "
        "imported SAEs; an SAE that has one cannot be trained.",
    )


class SAE(nn.Module, ABC):
    """``x_hat = activation(mask((x - b_dec) @ W_enc + b_enc)) @ W_dec + b_dec``.

    Decoder rows start as random unit vectors, the encoder as their transpose, ``b_enc`` at 0 and ``b_dec`` at 0 (the
    trainer moves it to the data's mean).

    Args:
        config: architecture, size and mask.
        d_in: width of the activations.
        n_positions: context length L, the length of the mask.
        generator: source of the initial decoder directions.

    Example:
        >>> sae, metadata = scansion.load_sae("runs/topk")
        >>> acts = sae.encode(store.contexts(0, 16))  # [positions, contexts, d_sae]
        >>> x_hat = sae.decode(acts, positions=store.contexts(0, 16).token_positions)
    """

    revival: Literal["none", "resample"]
    """How the trainer revives dead features; ``none`` if the architecture's auxiliary loss does it."""

    provenance: SAEMetadata | None = None
    """Model, data and training of an SAE that was loaded; None for one that was built."""

    uses_pairs: bool = False
    """True if the losses read ``previous``: the token before each token of the batch."""

    auxiliary_per: Literal["token", "error"] | None = None
    """How ranks that divide the tokens of a batch join their auxiliary losses, each relative to its own tokens: weighted by
    tokens, or by squared error (and the setting ``auxiliary_coefficient`` is the loss where there is nothing to revive). None
    if they cannot, because the auxiliary loss or the activation function compares tokens. A class does not inherit it: one
    that overrides a loss says it again."""

    def __init__(self, config: SAEConfig, d_in: int, n_positions: int, generator: torch.Generator) -> None:
        super().__init__()
        self.window = self.window_of(config)
        """Tokens that are encoded together, see :meth:`window_of`."""
        self.d_read = d_read = self.window * d_in
        """Width of what the weights read: ``d_in`` for each token of the window."""
        directions = torch.randn(config.d_sae, d_read, generator=generator)
        directions /= directions.norm(dim=1, keepdim=True)
        self.config = config
        self.d_in = d_in
        self.d_sae = config.d_sae
        self.n_positions = n_positions
        self.mask = build_mask(config.mask, n_positions, config.d_sae)
        # Stored feature by feature, like the decoder: the gradients of a feature are then written in one contiguous row.
        self.W_enc: Float[Tensor, "d_read d_sae"] = nn.Parameter(directions.clone().T)
        self.b_enc: Float[Tensor, "d_sae"] = nn.Parameter(torch.zeros(config.d_sae))
        self.W_dec: Float[Tensor, "d_sae d_read"] = nn.Parameter(directions)
        shape = (d_read,) if self.mask.n_decoder_biases == 1 else (self.mask.n_decoder_biases, d_read)
        self.b_dec: Float[Tensor, "*n_biases d_read"] = nn.Parameter(torch.zeros(shape))

    @classmethod
    def window_of(cls, config: SAEConfig) -> int:
        """Number of adjacent tokens that are encoded together, the token itself included: 1, but for a crosscoder."""
        return 1

    @classmethod
    def n_previous(cls, config: SAEConfig) -> int:
        """How many of the tokens before each token training reads."""
        return max(cls.window_of(config) - 1, int(cls.uses_pairs))

    @abstractmethod
    def activate(
        self, pre_acts: Float[Tensor, "*batch w"], features: Int[Tensor, "w"] | None = None
    ) -> Float[Tensor, "*batch w"]:
        """The activation function. Masked features arrive as minus infinity and must leave as 0.

        Args:
            pre_acts: pre-activations of w features.
            features: the indices of these features; None for all, in order.
        """

    def activate_bands(
        self, pre_acts: Sequence[Float[Tensor, "_ n _"]], features: Sequence[Int[Tensor, "_"] | None]
    ) -> list[Float[Tensor, "_ n _"]]:
        """:meth:`activate` for a batch cut into bands; one that compares tokens must compare those of all bands."""
        return [self.activate(pre, names) for pre, names in zip(pre_acts, features, strict=True)]

    def selection(self) -> Selection | None:
        """Which pre-activations :meth:`activate` keeps as they are, if that is all it does; None if it does more.

        An architecture with a selection can be trained from its active entries alone.
        """
        return None

    @property
    def n_levels(self) -> int:
        """Number of nested dictionaries, each of which reconstructs by itself; see :attr:`ForwardPass.nested`."""
        return 1

    def levels(self) -> Int[Tensor, "d_sae"]:
        """The first of the nested dictionaries that holds each feature, from 0 and on the CPU."""
        return torch.zeros(self.d_sae, dtype=torch.int64)

    def routing(self, x: Float[Tensor, "T d_in"]) -> Routing | None:
        """The group of features that each token uses, for an architecture that routes tokens; None for all others."""
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

    @torch.no_grad()
    def start_at(self, means: Float[Tensor, "P d_in"], positions: Int[Tensor, "P"]) -> None:
        """Set the decoder bias to the mean of the data: over all positions, or per band if each has its own bias."""
        if self.b_dec.ndim == 1:
            self.b_dec.copy_(means.mean(dim=0))
            return
        band = self.mask.band_at(positions)
        for index in range(len(self.b_dec)):
            if (band == index).any():
                self.b_dec[index] = means[band == index].mean(dim=0)

    @torch.no_grad()
    def permute_features(self, order: Int[Tensor, "d_sae"]) -> None:
        """Move feature ``order[i]`` to index ``i``, in place; the mask does not move with it."""
        for parameter, axis in self.feature_axes():
            parameter.copy_(parameter.index_select(axis, order.to(parameter.device)))

    def feature_axes(self) -> list[tuple[Tensor, int]]:
        """The parameters that have a feature axis, each with that axis."""
        return [(self.W_enc, 1), (self.b_enc, 0), (self.W_dec, 0)]

    def travels(self) -> list[tuple[Tensor, float]]:
        """Parameters held as logarithms that must be able to change much in a run of any length, each with how far.

        Where Adam's rate would not take one that far in the steps of the run, the trainer gives it a higher rate.
        """
        return []

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

    @torch.no_grad()
    def rescale_features(self, factor: Float[Tensor, "d_sae"]) -> None:
        """Make each feature's activation ``factor`` times as large and its decoder row that much shorter, in place.

        The reconstruction stays the same, unless the architecture compares the activations of different features.
        """
        self.W_enc *= factor
        self.b_enc *= factor
        self.W_dec /= factor[:, None]

    def normalised(self, x: Float[Tensor, "*batch d_in"]) -> NormalisedInput:
        """Tokens as the weights read them; ``x`` itself unless the settings have an ``input_norm``."""
        return normalise(x, self.config.input_norm)

    def bias_at(self, positions: Int[Tensor, "*batch"]) -> Float[Tensor, "..."]:
        """The decoder bias: [d_in], or where each band has its own, [*batch, d_in]."""
        return self.b_dec if self.b_dec.ndim == 1 else self.b_dec[self.mask.band_at(positions)]

    def pre_acts(
        self, x: Float[Tensor, "*batch d_in"] | PositionedBatch, positions: Int[Tensor, "..."] | None = None
    ) -> Float[Tensor, "*batch d_sae"]:
        """Encoder output as the penalties see it: minus infinity where the mask does not let a feature train.

        Arguments as for :meth:`encode`.
        """
        x, positions = self._unpacked(x, positions)
        return self.masked_acts(self.normalised(x).x, positions).pre_acts

    def encode(
        self, x: Float[Tensor, "*batch d_in"] | PositionedBatch, positions: Int[Tensor, "..."] | None = None
    ) -> Float[Tensor, "*batch d_sae"]:
        """Feature activations, zero or above.

        Args:
            x: activations, whose leading axes are kept and which are converted to the type of the weights; or a batch of a
                store or a stream, which carries its positions and is also moved to the SAE's device.
            positions: each token's position in its context, broadcasting against the leading axes of ``x``. They may be
                left out if ``x`` is one context [L, d_in], whose positions are 0 .. L-1, and if the SAE treats all
                positions alike (no mask, or a placebo).

        Raises:
            ShapeError: ``x`` is not [..., d_in]; positions are missing, do not broadcast, or are outside the mask.

        Example:
            >>> sae.encode(store.contexts(0, 16))  # [L, 16, d_sae]
            >>> sae.encode(x, torch.arange(128))  # x: [batch, 128, d_in] -> [batch, 128, d_sae]
        """
        x, positions = self._unpacked(x, positions)
        return self.masked_acts(self.normalised(x).x, positions).acts

    def decode(
        self,
        acts: Float[Tensor, "*batch d_sae"],
        positions: Int[Tensor, "..."] | None = None,
        x: Float[Tensor, "*batch d_in"] | None = None,
    ) -> Float[Tensor, "*batch d_in"]:
        """Reconstruction from feature activations; leading axes are kept.

        Args:
            acts: feature activations.
            positions: as for :meth:`encode`; needed only if each band has its own decoder bias.
            x: the activations that were encoded; needed only if the settings have an ``input_norm``, which is undone.

        Raises:
            ShapeError: ``acts`` is not [..., d_sae], or positions or ``x`` are needed and missing.
        """
        require_shape("acts", acts, "... d_sae", d_sae=self.d_sae)
        bias = self.b_dec if self.b_dec.ndim == 1 else self.bias_at(self.positions_of(acts, positions))
        x_hat = acts.to(self.W_dec.dtype) @ self.directions + bias[..., : self.d_in]
        if self.config.input_norm == "none":
            return x_hat
        if x is None:
            raise ShapeError(
                f"this SAE normalises each token before it encodes it ({self.config.input_norm}): to undo that, decode needs "
                "the activations that were encoded, sae.decode(acts, positions, x)"
            )
        read = self.normalised(x.to(self.W_dec))
        return x_hat * read.scale + read.mean

    def forward(
        self, x: Float[Tensor, "*batch d_in"] | PositionedBatch, positions: Int[Tensor, "..."] | None = None
    ) -> Float[Tensor, "*batch d_in"]:
        """``decode(encode(x, positions), positions, x)``; arguments and errors as for :meth:`encode`."""
        acts = self.encode(x, positions)
        if isinstance(x, PositionedBatch):
            x, positions = x.x, x.token_positions.to(acts.device)
        return self.decode(acts, positions, x[..., : self.d_in].to(self.W_enc))

    def masked_acts(self, x: Float[Tensor, "*batch d_in"], positions: Int[Tensor, "..."] | None) -> MaskedActs:
        """Pre-activations and activations under the mask; overridden by architectures that also weight activations.

        Arguments as for :meth:`encode`, but ``x`` is normalised already.
        """
        return self._masked_acts_by(self.activate, x, positions)

    def _masked_acts_by(self, activate: Callable[[Tensor], Tensor], x: Tensor, positions: Tensor | None) -> MaskedActs:
        require_shape("x", x, "... d_in", d_in=self.d_read)
        positions = self.positions_of(x, positions)
        pre_acts = linear(x - self.bias_at(positions), self.W_enc.T, self.b_enc)
        return self.mask.apply_to(pre_acts, positions, activate)

    @property
    def directions(self) -> Float[Tensor, "d_sae d_in"]:
        """What each feature adds to its own token, per unit of activation: ``W_dec``, or its part of it for a window."""
        return self.W_dec

    @property
    def treats_positions_alike(self) -> bool:
        """True if the same activation gives the same features and reconstruction at every position."""
        return self.mask.gate.kind == "none" and self.b_dec.ndim == 1

    def _unpacked(self, x: Tensor | PositionedBatch, positions: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Activations in the weights' type, and positions; those of a PositionedBatch are moved to this SAE's device too."""
        if not isinstance(x, PositionedBatch):
            return self.read(x.to(self.W_enc.dtype), positions), positions
        if positions is not None:
            raise ShapeError("a PositionedBatch carries its positions; do not give positions as well")
        batch = self.read_batch(x)
        return batch.x.to(self.W_enc), batch.token_positions.to(self.W_enc.device)

    def read(
        self, x: Float[Tensor, "*batch d_in"], positions: Int[Tensor, "..."] | None
    ) -> Float[Tensor, "*batch d_read"]:
        """What the weights read for each token: the token itself, unless this is a crosscoder over a window."""
        return x

    def read_batch(self, batch: PositionedBatch) -> PositionedBatch:
        """The same for a batch of a store or a stream."""
        return batch

    def positions_of(self, x: Float[Tensor, "*batch d"], positions: Int[Tensor, "..."] | None) -> Int[Tensor, "..."]:
        """The positions to use for ``x``; see :func:`scansion.sae.positions.positions_for`."""
        differently = f"this SAE's {self.config.mask.family} mask treats positions differently"
        return positions_for(x, positions, None if self.treats_positions_alike else differently)

    def __repr__(self) -> str:
        """Sizes, mask and hook point."""
        mask = f"{self.config.mask.family} mask over {self.n_positions} positions"
        where = f", for {self.provenance.hook_point} of {self.provenance.model}" if self.provenance else ""
        return f"{type(self).__name__}({self.d_sae:,} features of {self.d_in} dimensions, {mask}{where})"

    def _repr_html_(self) -> str:
        """A card for notebooks."""
        return sae_card(self)
