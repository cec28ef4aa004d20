"""Contexts of a held-out store, some at a time: the one loop by which evaluations read activations and encode them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scansion.activations import ActivationStore, PositionedBatch
from scansion.progress import Advance
from scansion.sae import SAE


@dataclass(frozen=True, eq=False)
class ContextBatch:
    """Some successive contexts at the positions used.

    Attributes:
        contexts: their indices in the store.
        batch: their activations in float32.
        valid: False where a context does not reach a position.
        whole: the same contexts at all positions, as they are stored. Windows reach back to positions that are not used.
    """

    contexts: slice
    batch: PositionedBatch
    valid: Bool[Tensor, "P n"]
    whole: PositionedBatch

    def __len__(self) -> int:
        """Number of contexts n."""
        return self.batch.x.shape[1]

    @torch.no_grad()
    def encode(self, sae: SAE) -> Float[Tensor, "P n d_sae"]:
        """Feature activations on the SAE's device; 0 where a token is not valid."""
        batch = self.batch
        if sae.window > 1:
            batch = sae.read_batch(self.whole.to(batch.x.device).float()).at(batch.positions)
        acts = sae.encode(batch)
        return acts * self.valid.to(acts.device)[..., None]


@torch.no_grad()
def read_contexts(
    store: ActivationStore,
    positions: Int[Tensor, "P"],
    n_contexts: int,
    batch_size: int,
    advance: Advance | None = None,
    device: torch.device | None = None,
    counted: Bool[Tensor, "P C"] | None = None,
) -> Iterator[ContextBatch]:
    """The first contexts of a store, in order.

    Args:
        store: held-out activations.
        positions: the positions to read, ascending; :meth:`ActivationStore.used_positions` leaves position 0 out.
        n_contexts: contexts to read, at most as many as the store has.
        batch_size: contexts per batch.
        advance: called after each batch has been used, with the number of its contexts.
        device: where the batches are wanted; default the CPU.
        counted: the tokens that count as valid; default all that are.
    """
    device = device or torch.device("cpu")
    valid = (store.valid[positions] if counted is None else counted).to(device)
    for start in range(0, n_contexts, batch_size):
        contexts = slice(start, min(start + batch_size, n_contexts))
        whole = store.contexts(contexts.start, contexts.stop)
        yield ContextBatch(contexts, whole.at(positions).to(device).float(), valid[:, contexts], whole)
        if advance:
            advance(contexts.stop - contexts.start)
