"""Where every feature fires on held-out text: counts and mass by position and document group, and the bits themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from scansion.activations import ActivationStore
from scansion.errors import EvalError
from scansion.evals.position.config import PositionConfig
from scansion.evals.reading.contexts import read_contexts
from scansion.evals.reading.groups import cluster_contexts, deal_documents, document_of_each
from scansion.progress import Advance
from scansion.sae import SAE

_CHUNK_BITS = 16_000_000
CLUSTERS = 64
"""Clusters of contexts: enough to tell one feature among many thousands, for signs of 64 can be drawn in 2^63 ways."""


@dataclass(frozen=True, eq=False)
class Text:
    """The held-out contexts an evaluation reads.

    Attributes:
        store: where the activations are.
        positions: the P positions used.
        lengths: tokens of each context that count at these positions.
        groups: document group of each context.
        n_documents: documents in all.
        clusters: cluster of each context, for tests of whether firing depends on the position.
        counted: which tokens count; None if those of a context fill the positions from the first on.
    """

    store: ActivationStore
    positions: Tensor
    lengths: Int[np.ndarray, "C"]
    groups: Int[np.ndarray, "C"]
    n_documents: int
    clusters: Int[np.ndarray, "C"]
    counted: Bool[Tensor, "P C"] | None = None

    @classmethod
    def of(cls, store: ActivationStore, config: PositionConfig) -> Text:
        """The contexts that ``config`` asks for.

        Raises:
            EvalError: contexts mix documents, so that position in the context is not position in the text; or there are
                too few documents.
        """
        n_contexts = min(config.n_contexts or store.n_contexts, store.n_contexts)
        documents = document_of_each(store, n_contexts)
        positions, counted = config.counted_tokens(store)
        counted = counted[:, :n_contexts]
        positions, counted = positions[counted.any(dim=1)], counted[counted.any(dim=1)]
        return cls(
            store,
            positions,
            counted.sum(dim=0).numpy(),
            deal_documents(documents, config.groups, config.seed),
            len(np.unique(documents)),
            cluster_contexts(documents, CLUSTERS, config.seed),
            None if counted.equal(store.valid[positions, :n_contexts]) else counted,
        )

    @property
    def n_contexts(self) -> int:
        """C."""
        return len(self.lengths)

    @property
    def n_groups(self) -> int:
        """G."""
        return int(self.groups.max()) + 1

    @property
    def n_clusters(self) -> int:
        """Clusters of contexts."""
        return int(self.clusters.max()) + 1

    @property
    def n_tokens(self) -> int:
        """Tokens in all."""
        return int(self.lengths.sum())

    @property
    def there(self) -> Bool[np.ndarray, "P C"]:
        """Which tokens count."""
        if self.counted is not None:
            return self.counted.numpy()
        return np.arange(len(self.positions))[:, None] < self.lengths

    def tokens_by_group(self) -> Int[np.ndarray, "P G"]:
        """Tokens at each position of each group."""
        there = self.there
        return np.stack([there[:, self.groups == group].sum(axis=1) for group in range(self.n_groups)], axis=1)


class Events(NamedTuple):
    """Every time one of some features fired, in the order of the features."""

    feature: Int[np.ndarray, "m"]
    context: Int[np.ndarray, "m"]
    place: Int[np.ndarray, "m"]
    """Index into the positions used."""


@dataclass(frozen=True, eq=False)
class Firing:
    """What one SAE does on a text.

    Attributes:
        text: what was read.
        counts: how often each feature fired, by position and document group.
        mass: sum of its activations, likewise.
        tokens: tokens read, likewise.
        bits: 1 where a feature fired, eight contexts per byte. They are kept because the null needs to know which firings
            belong to one context; at 20,000 features and 50,000 tokens they take 125 MB. None once dropped.
    """

    text: Text
    counts: Float[np.ndarray, "P G F"]
    mass: Float[np.ndarray, "P G F"]
    tokens: Int[np.ndarray, "P G"]
    bits: UInt8[np.ndarray, "P C8 F"] | None

    @property
    def d_sae(self) -> int:
        """Number of features F."""
        return self.counts.shape[2]

    def l0_by_position(self) -> list[float]:
        """Mean number of active features per token at each position."""
        return (self.counts.sum(axis=(1, 2), dtype=np.float64) / self.tokens.sum(axis=1)).tolist()

    def without(self, group: int | None) -> Profile:
        """Counts over all groups but one; None leaves none out."""
        kept = np.arange(self.text.n_groups) != (-1 if group is None else group)
        return self._over(kept)

    def half(self, which: int) -> Profile:
        """Counts over the even groups (0) or the odd ones (1): no document is in both."""
        return self._over(np.arange(self.text.n_groups) % 2 == which)

    def _over(self, kept: np.ndarray) -> Profile:
        return Profile(
            self.counts[:, kept].sum(axis=1, dtype=np.float64),
            self.mass[:, kept].sum(axis=1, dtype=np.float64),
            self.tokens[:, kept].sum(axis=1),
        )

    def events(self, features: Int[np.ndarray, "w"]) -> Iterator[tuple[Int[np.ndarray, "v"], Events]]:
        """Every firing of ``features``, as (indices into ``features``, events), a bounded number of bits at a time."""
        if self.bits is None:
            raise EvalError("the bits of this record were dropped; record the firing again")
        step = max(1, _CHUNK_BITS // (len(self.text.positions) * self.text.n_contexts))
        for start in range(0, len(features), step):
            chosen = np.arange(start, min(start + step, len(features)))
            bits = np.unpackbits(self.bits[:, :, features[chosen]], axis=1, count=self.text.n_contexts)
            feature, context, place = np.nonzero(bits.transpose(2, 1, 0))
            yield chosen, Events(feature, context, place)


@dataclass(frozen=True, eq=False)
class Profile:
    """Counts by position over some of the documents.

    Attributes:
        counts, mass: times a feature fired, and the sum of its activations.
        tokens: tokens read.
    """

    counts: Float[np.ndarray, "P F"]
    mass: Float[np.ndarray, "P F"]
    tokens: Int[np.ndarray, "P"]

    def of(self, features: slice) -> Profile:
        """The profile of some features."""
        return Profile(self.counts[:, features], self.mass[:, features], self.tokens)

    @property
    def rates(self) -> Float[np.ndarray, "P F"]:
        """Share of the tokens at each position on which a feature fires; 0 where there is no token."""
        return self.counts / np.maximum(self.tokens, 1)[:, None]


@torch.no_grad()
def record(sae: SAE, text: Text, batch_contexts: int, advance: Advance, threshold: float = 0.0) -> Firing:
    """Encode a text and note what fires where.

    Args:
        sae: on any device.
        text: what to read.
        batch_contexts: contexts encoded at once, a multiple of 8.
        advance: called with the number of contexts after each batch.
        threshold: activations up to it do not count.
    """
    device = sae.W_dec.device
    P, F = len(text.positions), sae.d_sae
    counts, mass = (torch.zeros(P, text.n_groups, F, device=device) for _ in range(2))
    bits = np.zeros((P, -(-text.n_contexts // 8), F), dtype=np.uint8)
    member = torch.from_numpy(text.groups == np.arange(text.n_groups)[:, None]).float().to(device)
    for part in read_contexts(
        text.store, text.positions, text.n_contexts, batch_contexts, advance, device, text.counted
    ):
        acts, contexts = part.encode(sae), part.contexts
        fired = acts > threshold
        if threshold:
            acts = torch.where(fired, acts, 0.0)
        counts += member[:, contexts] @ fired.float()
        mass += member[:, contexts] @ acts
        bits[:, contexts.start // 8 : -(-contexts.stop // 8)] = np.packbits(fired.cpu().numpy(), axis=1)
    return Firing(text, counts.cpu().numpy(), mass.cpu().numpy(), text.tokens_by_group(), bits)


@torch.no_grad()
def threshold_for(sae: SAE, text: Text, batch_contexts: int, l0: float) -> float:
    """The activation above which features fire ``l0`` times per token; 0 where they do not fire more often anyway."""
    device = sae.W_dec.device
    positive: list[Tensor] = []
    for part in read_contexts(text.store, text.positions, text.n_contexts, batch_contexts, None, device, text.counted):
        acts = part.encode(sae)
        positive.append(acts[acts > 0].float().cpu())
    values, kept = torch.cat(positive).numpy(), round(l0 * text.n_tokens)
    return float(np.partition(values, len(values) - kept - 1)[len(values) - kept - 1]) if len(values) > kept else 0.0
