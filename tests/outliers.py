"""A store with outlier tokens: random activations, among which one word has a norm many times that of all others."""

from __future__ import annotations

from pathlib import Path

import torch

from scansion.activations import ActivationStore
from scansion.activations.filling import place_of, seal
from scansion.activations.shard import ShardBuffer
from scansion.activations.store import SHARD_NAME, StoreIdentity

LENGTH, N_CONTEXTS, D_IN, WORD = 16, 500, 24, 7
SHARE = 0.008


def outlier_store(folder: Path, factor: float = 1000.0, seed: int = 0, per_shard: int = 200) -> ActivationStore:
    """Random activations, 50 times larger at position 0; 0.8% of the others are one word at ``factor`` times the norm."""
    generator = torch.Generator().manual_seed(seed)
    acts = torch.randn(LENGTH, N_CONTEXTS, D_IN, generator=generator)
    acts[0] *= 50  # the attention sink
    tokens = torch.randint(8, 50, (LENGTH, N_CONTEXTS), generator=generator, dtype=torch.int32)
    tokens[0] = 1
    cells = torch.randperm((LENGTH - 1) * N_CONTEXTS, generator=generator)[: round(SHARE * (LENGTH - 1) * N_CONTEXTS)]
    word = torch.zeros(LENGTH, N_CONTEXTS, dtype=torch.bool)
    word[1:].view(-1)[cells] = True
    tokens[word] = WORD
    direction = torch.nn.functional.normalize(torch.randn(D_IN, generator=generator), dim=0)
    acts[word] += factor * D_IN**0.5 * direction if factor > 1 else 0.0
    identity = StoreIdentity(
        model="made", model_revision="up", model_dtype="float32", hook_point="resid_post.1", d_in=D_IN,
        context_length=LENGTH, n_contexts=N_CONTEXTS, contexts=f"{seed} {factor}", corpus={"source": "test"}, split="held_out",
        dtype="float32",
    )  # fmt: skip
    for index, start in enumerate(range(0, N_CONTEXTS, per_shard)):
        part = slice(start, min(start + per_shard, N_CONTEXTS))
        buffer = ShardBuffer.empty(LENGTH, part.stop - start, D_IN, "float32")
        buffer.acts.copy_(acts[:, part])
        buffer.tokens.copy_(tokens[:, part])
        buffer.valid.fill_(True)
        path = folder / SHARD_NAME.format(f"{index:05d}")
        buffer.write(path, place_of(identity, path))
    return seal(folder, identity, LENGTH * N_CONTEXTS, per_shard)
