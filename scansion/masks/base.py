"""What every positional mask is: a module that maps positions to a weight per feature, and a gate that says where it acts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, Field
from torch import Tensor, nn

from scansion.errors import ShapeError
from scansion.masks.application import gate_gradient, mask_pre_acts, straight_through
from scansion.masks.gate import ActsOn, Gate
from scansion.readings import Reading


class MaskConfig(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """Settings of a mask family. Each family adds settings, and sets the default of ``family`` to its name.

    Example:
        >>> isinstance(scansion.BandMaskConfig(), scansion.MaskConfig)
    """

    has_weights: ClassVar[bool] = True
    """False only for ``none``, which has no weights to show or to compare with."""

    family: str
    acts_on: ActsOn = Field(
        default="forward",
        description="forward: it multiplies pre-activations, and 0 blocks the feature; gradient: it multiplies each token's "
        "gradient to a feature; both: forward and gradient; straight_through: it is rounded in the forward pass, and its "
        "weights learn as if it were not; placebo: it is drawn and measured, but never applied.",
    )
    shared: float = Field(default=0.0, ge=0, lt=1, description="Share of the features that may fire at every position.")
    beyond: Literal["error", "clamp", "tile"] = Field(
        default="error",
        description="A position past the mask's end is an error (error), is treated as the last position (clamp), or is "
        "counted from the start again (tile).",
    )
    seed: int = Field(default=0, ge=-(2**63), lt=2**63, description="Seed of everything the mask draws at random.")

    @property
    def usage_source(self) -> Path | None:
        """Folder of a trained SAE: training starts from its weights and from where its features fire. None if not used."""
        return None

    @property
    def starts_from_usage(self) -> bool:
        """Whether the mask starts from where the features of the SAE that training starts from fire."""
        return self.usage_source is not None


class MaskedActs(NamedTuple):
    """What the mask makes of an encoder's output.

    Attributes:
        pre_acts: pre-activations as penalties see them: minus infinity where a feature is not trained.
        acts: activations under the mask.
    """

    pre_acts: Float[Tensor, "*batch d_sae"]
    acts: Float[Tensor, "*batch d_sae"]


class PositionalMask(nn.Module, ABC):
    """Which of ``d_sae`` features may fire at which of ``n_positions`` positions, and how strongly.

    The first ``n_shared`` features are shared: their weight is 1 everywhere. The others are bound: the family sets their
    weights.

    Args:
        config: the family's settings.
        n_positions: context length L.
        d_sae: number of features.

    Example:
        >>> mask = scansion.build_mask(scansion.BandMaskConfig(count=2), n_positions=4, d_sae=6)
        >>> mask.table()  # [positions, features]
    """

    def __init__(self, config: MaskConfig, n_positions: int, d_sae: int) -> None:
        super().__init__()
        self.config = config
        self.n_positions = n_positions
        self.d_sae = d_sae
        self.n_shared = round(config.shared * d_sae)

    @property
    def d_bound(self) -> int:
        """Number of features that are not shared."""
        return self.d_sae - self.n_shared

    @abstractmethod
    def bound_weights(self) -> Float[Tensor, "L d_bound"]:
        """The weight of every bound feature at every position, 0 or above."""

    def table(self) -> Float[Tensor, "L d_sae"]:
        """The weight of every feature at every position: in [0, 1], except ``importance``, whose mean is 1."""
        bound = self.bound_weights()
        if self.n_shared == 0:
            return bound
        return torch.cat([bound.new_ones(self.n_positions, self.n_shared), bound], dim=1)

    def forward(self, positions: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch d_sae"]:
        """The weight of every feature at each of ``positions``, as drawn or learnt, even if ``acts_on`` does not apply it."""
        return self.table()[self.table_rows(positions)]

    @property
    def hard(self) -> bool:
        """True if every weight is 0 or 1."""
        weights = self.bound_weights()
        return bool(((weights == 0) | (weights == 1)).all())

    @property
    def gate(self) -> Gate:
        """How this mask acts on a training step."""
        # Features that are all shared have weight 1 everywhere, which is no mask.
        return Gate("none") if self.n_shared == self.d_sae else Gate.of(self.config.acts_on, binary=False)

    @property
    def reorders_features(self) -> bool:
        """True if :meth:`end_step` may change the order of the features."""
        return False

    def start_from_usage(self, usage: Float[Tensor, "L d_sae"]) -> None:
        """Start from how often each feature of a trained SAE fires at each position.

        For families whose settings can give a ``usage_source``.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot start from the usage of a trained SAE")

    def begin_step(self, step: int, n_steps: int) -> None:
        """Called before each training step, for a mask that changes on a schedule."""

    @property
    def lr_multiplier(self) -> float:
        """Learning rate of the mask's parameters, as a multiple of the SAE's."""
        return 1.0

    def moves_at(self, step: int) -> bool:
        """Whether the optimiser may move this mask at ``step``."""
        return True

    def regulariser(self) -> Float[Tensor, ""]:
        """The mask's penalty, with its coefficient; 0 unless the family has one."""
        tensor = next(chain(self.parameters(), self.buffers()), None)
        return torch.zeros((), device=None if tensor is None else tensor.device)

    def wants_usage_at(self, step: int) -> bool:
        """Whether :meth:`observe` is to be called at ``step``; it costs a forward pass with the mask lifted."""
        return False

    def observe(self, usage: Float[Tensor, "P d_sae"], positions: Int[Tensor, "P"]) -> None:
        """Receives the mean activation of each feature at each position with the mask lifted, if :meth:`wants_usage_at`."""

    def end_step(self, step: int) -> Int[Tensor, "d_sae"] | None:
        """Called after each training step. Returns a new order of the features, or None to keep the present one.

        The trainer then moves feature ``order[i]`` to index ``i``, its optimiser state included.
        """
        return None

    def is_open(self, positions: Int[Tensor, "*batch"]) -> Bool[Tensor, "*batch d_sae"]:
        """The mask rounded: True where the weight is one half or more."""
        return self(positions) >= 0.5

    def can_fire(self, positions: Int[Tensor, "*batch"]) -> Bool[Tensor, "*batch d_sae"]:
        """Where a feature can fire at all, given where the mask acts."""
        gate = self.gate
        if not gate.forward:
            return torch.ones(*positions.shape, self.d_sae, dtype=torch.bool, device=positions.device)
        return self(positions) > 0 if gate.kind == "weights" else self.is_open(positions)

    def gets_gradient(self, positions: Int[Tensor, "*batch"]) -> Bool[Tensor, "*batch d_sae"]:
        """Where a feature's own weights can receive gradient."""
        gate = self.gate
        return self(positions) > 0 if gate.gradient and not gate.forward else self.can_fire(positions)

    def apply_to(
        self,
        pre_acts: Float[Tensor, "*batch d_sae"],
        positions: Int[Tensor, "..."],
        activate: Callable[[Tensor], Tensor],
    ) -> MaskedActs:
        """Mask pre-activations and activate them.

        Args:
            pre_acts: encoder output.
            positions: broadcasts against the leading axes of ``pre_acts``.
            activate: the activation function; takes minus infinity to 0.
        """
        gate = self.gate
        if gate.kind == "none":
            return MaskedActs(pre_acts, activate(pre_acts))
        if gate.kind == "straight_through":
            masked = mask_pre_acts(pre_acts, self.is_open(positions))
            acts = activate(masked)
            if torch.is_grad_enabled():
                with torch.no_grad():
                    let_in = torch.maximum(acts, activate(pre_acts))
                acts = straight_through(acts, self(positions), let_in)
            return MaskedActs(masked, acts)
        if gate.forward:
            masked = mask_pre_acts(pre_acts, self.is_open(positions) if gate.kind == "binary" else self(positions))
            acts = activate(masked)
            return MaskedActs(masked, gate_gradient(acts, self(positions)) if gate.gradient else acts)
        # Activations stay as they are. A penalty or an auxiliary loss must still not train a feature at a position that is
        # closed to it, so it sees minus infinity there.
        weights = self(positions)
        seen = mask_pre_acts(gate_gradient(pre_acts, weights), weights > 0)
        return MaskedActs(seen, gate_gradient(activate(pre_acts), weights))

    @property
    def n_decoder_biases(self) -> int:
        """How many decoder biases the SAE has: one, or one per band."""
        return 1

    def band_at(self, positions: Int[Tensor, "*batch"]) -> Int[Tensor, "*batch"]:
        """Index of the decoder bias that each position uses."""
        return torch.zeros_like(positions)

    def table_rows(self, positions: Int[Tensor, "*batch"]) -> Int[Tensor, "*batch"]:
        """Rows of the table for ``positions``.

        Raises:
            ShapeError: a position is outside the mask and ``beyond`` is ``error``; names both numbers.
        """
        if positions.numel() == 0:
            return positions
        # In training, positions are views of one tensor, the same at every step: if the whole tensor is in range, so is any
        # view of it. Its range is cached, which avoids waiting for the GPU at every step.
        whole = positions if positions._base is None else positions._base
        if _range_of.remembers(whole):
            lowest, highest = _range_of(whole)
            if lowest >= 0 and highest < self.n_positions:
                return positions
        lowest, highest = _lowest_and_highest(positions)
        if lowest >= 0 and highest < self.n_positions:
            return positions
        if lowest < 0 or self.config.beyond == "error":
            worst = lowest if lowest < 0 else highest
            raise ShapeError(
                f"position {worst} is outside this mask of {self.n_positions} positions (0 to "
                f"{self.n_positions - 1}); cut the context to {self.n_positions} tokens, train a longer mask, or set "
                "its 'beyond' to clamp or tile"
            )
        if self.config.beyond == "tile":
            return positions % self.n_positions
        return positions.clamp(max=self.n_positions - 1)


def _lowest_and_highest(positions: Tensor) -> tuple[int, int]:
    lowest, highest = torch.aminmax(positions)
    return int(lowest), int(highest)


_range_of = Reading(_lowest_and_highest)
