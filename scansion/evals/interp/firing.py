"""When chosen features fire on a held-out store: their activations at every token, and which features are worth asking."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from scansion.activations import ActivationStore
from scansion.evals.base import LoadedSAE
from scansion.evals.reading.contexts import read_contexts
from scansion.evals.reading.training import CountsPositions
from scansion.progress import progress

_BATCH_CONTEXTS = 16


@dataclass(frozen=True)
class Firing:
    """Activations of some features at the used positions of a store.

    Attributes:
        features: their indices.
        acts: their activations.
        positions: the positions used.
        valid, counted: whether there is a token, and whether it counts; ``acts`` is 0 where it does not.
        tokens, previous: ids of each token and of the one before it (-1 at position 0).
        documents: of each token.
        allowed: where each feature's mask lets it fire.
    """

    features: Int[np.ndarray, " f"]
    acts: Float[np.ndarray, "P C f"]
    positions: Int[np.ndarray, " P"]
    valid: Bool[np.ndarray, "P C"]
    counted: Bool[np.ndarray, "P C"]
    tokens: Int[np.ndarray, "P C"]
    previous: Int[np.ndarray, "P C"]
    documents: Int[np.ndarray, "P C"]
    allowed: Bool[np.ndarray, "P f"]


@torch.no_grad()
def firing_of_sample(
    subject: LoadedSAE, store: ActivationStore, n_features: int, least: int, config: CountsPositions, seed: int
) -> Firing:
    """The activations of ``n_features`` features drawn from those that fired on at least ``least`` tokens that count.

    Reads the store twice: to count, and to keep what the drawn ones do. Fewer features come back where fewer fired.
    """
    sae = subject.sae
    places, counted = config.counted_tokens(store)
    counts = torch.zeros(sae.d_sae, dtype=torch.int64)
    parts: list[torch.Tensor] = []
    device = sae.W_enc.device
    with progress(f"firing {subject.name}", 2 * store.n_contexts, "contexts") as advance:
        for part in read_contexts(store, places, store.n_contexts, _BATCH_CONTEXTS, advance, device, counted):
            counts += (part.encode(sae) > 0).sum(dim=(0, 1)).cpu()
        alive = torch.nonzero(counts >= least).squeeze(1).numpy()
        drawn = np.sort(np.random.default_rng(seed).permutation(alive)[:n_features])
        for part in read_contexts(store, places, store.n_contexts, _BATCH_CONTEXTS, advance, device, counted):
            acts = part.encode(sae)
            parts.append(acts[..., torch.from_numpy(drawn).to(acts.device)].float().cpu())
    tokens = store.tokens.long()
    before = torch.cat([torch.full_like(tokens[:1], -1), tokens[:-1]])
    return Firing(
        features=drawn,
        acts=torch.cat(parts, dim=1).numpy(),
        positions=places.numpy(),
        valid=store.valid[places].numpy(),
        counted=counted.numpy(),
        tokens=tokens[places].numpy(),
        previous=before[places].numpy(),
        documents=store.doc_ids[places].long().numpy(),
        allowed=sae.mask.can_fire(places.to(sae.W_enc.device)).cpu().numpy()[:, drawn],
    )
