"""Division by features: each rank has some features of an SAE without a mask, and reads every token.

A rank encodes with its own features. The k-th largest pre-activation of each token over all ranks comes from the k largest of
each rank, gathered at once. A search for it by halving would sum counts some thirty times, of as many bytes in all where k is
32, and wait thirty times. Then the ranks' parts of the reconstruction are summed.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scansion.activations import PositionedBatch
from scansion.distributed.ranks import Ranks
from scansion.execution.blocks import whole_block
from scansion.sae.architectures.topk import TopKConfig, TopKSAE
from scansion.sae.forward import ForwardPass, Part, count_fired


class TopKShare(TopKSAE):
    """A rank's features of a TopK SAE, of which the k largest *over all ranks* fire.

    Args:
        config: with the number of this rank's features.
        d_in, n_positions: of the whole SAE.
        ranks: this rank and the others.
    """

    def __init__(self, config: TopKConfig, d_in: int, n_positions: int, ranks: Ranks) -> None:
        super().__init__(config, d_in, n_positions, torch.Generator().manual_seed(0))
        self._ranks = ranks

    def activate(
        self, pre_acts: Float[Tensor, "*batch w"], features: Int[Tensor, "w"] | None = None
    ) -> Float[Tensor, "*batch w"]:
        return _largest_of_all(pre_acts, self.config.k, self._ranks)

    def auxiliary_loss(self, forward: ForwardPass, dead: Bool[Tensor, "d_sae"]) -> Float[Tensor, ""]:
        """As for one process; the dead features of all ranks reconstruct the residual together."""
        residual = forward.residual.detach()
        n_dead = self._ranks.add(dead.sum())
        if self.config.auxiliary_coefficient == 0 or not int(n_dead):
            return residual.new_zeros(())
        (part,) = forward.parts
        columns = dead.nonzero().squeeze(1)
        acts = _largest_of_all(part.pre_acts_of(columns), max(1, self.d_in // 2), self._ranks)
        error = residual - _sum(acts @ self.W_dec[columns], self._ranks)
        # A perfect reconstruction leaves nothing to model and would divide by zero.
        relative = torch.nan_to_num(error.pow(2).sum() / residual.pow(2).sum(), nan=0.0, posinf=0.0)
        return self.config.auxiliary_coefficient * relative

    def training_forward(self, batch: PositionedBatch) -> ForwardPass:
        """A forward pass over all features of all ranks; its parts hold this rank's."""
        pre_acts, acts = self.masked_acts(batch.x, batch.positions[:, None])
        # The sum has the bias once, and its gradient is what the ranks' gradients add up to.
        decoded = _sum(acts @ self.W_dec + self.b_dec / self._ranks.size, self._ranks)
        parts = [Part.computed(whole_block(len(batch.x), self.d_sae), pre_acts, acts)]
        return ForwardPass(batch.x, batch.positions, batch.x - decoded, parts, count_fired(parts, self.d_sae))


class _Sum(torch.autograd.Function):
    """The sum over ranks. Every rank computes the same loss of it, so that its gradient is that of each part."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, ranks: Ranks) -> Tensor:
        return ranks.add(tensor.contiguous().clone())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def _sum(tensor: Tensor, ranks: Ranks) -> Tensor:
    return _Sum.apply(tensor, ranks)


def _largest_of_all(pre_acts: Float[Tensor, "*batch w"], k: int, ranks: Ranks) -> Float[Tensor, "*batch w"]:
    """Keep this rank's entries among the k largest positive ones of all ranks, along the last axis.

    Ranks may have different numbers of entries. If several entries equal the k-th largest, all of them are kept.
    """
    n_own = min(k, pre_acts.shape[-1])
    largest = pre_acts.new_zeros(*pre_acts.shape[:-1], k)
    largest[..., :n_own] = pre_acts.detach().topk(n_own, dim=-1).values.clamp_min(0)
    threshold = ranks.gather(largest).topk(k, dim=-1).values[..., -1:]
    return torch.where((pre_acts >= threshold) & (pre_acts > 0), pre_acts, 0.0)
