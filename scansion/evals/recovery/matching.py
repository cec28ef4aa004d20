"""Comparing learnt features with planted ones: who is whose counterpart, and how alike two position profiles are."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def cosines(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """Cosine similarity of every row of ``a`` with every row of ``b``, in [-1, 1]; a zero row has 0 with all."""
    return torch.nn.functional.normalize(a.double(), dim=1) @ torch.nn.functional.normalize(b.double(), dim=1).T


def one_to_one(similarity: Float[Tensor, "n m"]) -> tuple[Int[Tensor, "k"], Int[Tensor, "k"]]:
    """The pairing of rows with columns, each used at most once, whose summed similarity is largest; k = min(n, m).

    Kuhn's assignment problem, by :func:`scipy.optimize.linear_sum_assignment`.
    """
    rows, columns = linear_sum_assignment(similarity.numpy(), maximize=True)
    return torch.from_numpy(rows), torch.from_numpy(columns)


def shares(profiles: Float[Tensor, "L n"]) -> Float[Tensor, "L n"]:
    """Each column scaled to sum 1 over positions; a column of zeros stays zero, and so overlaps with nothing."""
    profiles = profiles.double()
    return profiles / profiles.sum(dim=0).clamp_min(torch.finfo(torch.float64).tiny)


def profile_overlap(a: Float[Tensor, "L n"], b: Float[Tensor, "L m"]) -> Float[Tensor, "n m"]:
    """1 - total variation distance of every column of ``a`` and every column of ``b``, both scaled to sum 1.

    ``sum_p min(a_p, b_p)``, in [0, 1]: 1 for proportional profiles, 0 for profiles that share no position.
    """
    a, b = shares(a), shares(b)
    overlap = torch.zeros(a.shape[1], b.shape[1], dtype=torch.float64)
    for at, bt in zip(a, b, strict=True):  # all positions at once would take L times the memory
        overlap += torch.minimum(at[:, None], bt[None])
    return overlap


def support(profiles: Float[Tensor, "L n"]) -> Bool[Tensor, "L n"]:
    """Where a profile is at least half its typical height, which is its mean weighted by itself, ``sum q^2 / sum q``.

    On a flat profile that is exactly where it is not zero. The typical height, unlike the maximum, hardly notices one
    position that stands out by chance, and unlike the plain mean it hardly notices a thin background.
    """
    profiles = profiles.double()
    typical = profiles.square().sum(dim=0) / profiles.sum(dim=0).clamp_min(torch.finfo(torch.float64).tiny)
    return (profiles >= typical / 2) & (profiles > 0)


def support_iou(a: Float[Tensor, "L n"], b: Float[Tensor, "L m"]) -> Float[Tensor, "n m"]:
    """Intersection over union of the supports of every column of ``a`` and every column of ``b``, in [0, 1]."""
    a, b = support(a).double(), support(b).double()
    both = a.T @ b
    return both / (a.sum(dim=0)[:, None] + b.sum(dim=0)[None] - both).clamp_min(1.0)
