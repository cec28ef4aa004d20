"""What an architecture says of itself to execution, as values: which entries it keeps, and which token uses which features."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class KeepsTopK:
    """Of each token the ``k`` largest positive pre-activations, as they are."""

    k: int


@dataclass(frozen=True, eq=False)
class KeepsTopKOfBatch:
    """The ``k`` x tokens largest positive pre-activations of a batch, as they are.

    Attributes:
        k: mean number per token.
        last_place: the smallest that was kept in the steps before; a guess that saves time, 0 or below if there is none.
    """

    k: int
    last_place: Float[Tensor, ""]


@dataclass(frozen=True)
class KeepsPositive:
    """All positive pre-activations, as they are."""


@dataclass(frozen=True, eq=False)
class KeepsAbove:
    """All pre-activations above a threshold per feature, as they are.

    Attributes:
        threshold: of each feature, above 0, with its gradient.
        bandwidth: width of the window around it in which pre-activations give it a gradient.
    """

    threshold: Float[Tensor, "d_sae"]
    bandwidth: float


Selection = KeepsTopK | KeepsTopKOfBatch | KeepsPositive | KeepsAbove
"""What an activation function keeps, if that is all it does."""


@dataclass(frozen=True, eq=False)
class Routing:
    """Each token uses one group of features; its activations are multiplied by a weight.

    Attributes:
        group: of each token.
        weight: of each token, with its gradient.
        group_of_feature: the group of each feature.
        sizes: features in each group.
    """

    group: Int[Tensor, "T"]
    weight: Float[Tensor, "T"]
    group_of_feature: Int[Tensor, "d_sae"]
    sizes: tuple[int, ...]
