"""Groups of documents: what intervals over text are made from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from scipy.stats import t as student_t

from scansion.activations import ActivationStore
from scansion.errors import EvalError
from scansion.evals.statistics import TEXT_GROUPS, Estimate, TextGroups

_FEWEST = 4


@dataclass(frozen=True, eq=False)
class Jackknife:
    """A figure over all documents, and over all but each group of them. Sums and differences keep their intervals.

    Attributes:
        value: over all documents.
        without: [G], the same with one group left out.
    """

    value: float
    without: np.ndarray

    @classmethod
    def of(cls, n_groups: int, statistic: Callable[[int | None], float]) -> Jackknife:
        """``statistic(None)`` over everything, ``statistic(g)`` without group g."""
        return cls(statistic(None), np.array([statistic(group) for group in range(n_groups)]))

    def by_text(self) -> TextGroups | None:
        """For a result's ``by_text``."""
        return TextGroups.of_jackknife(self.without)

    @classmethod
    def mean(cls, several: list[Jackknife]) -> Jackknife:
        """The mean of several figures."""
        return cls(float(np.mean([one.value for one in several])), np.mean([one.without for one in several], axis=0))

    def __sub__(self, other: Jackknife) -> Jackknife:
        return Jackknife(self.value - other.value, self.without - other.without)

    def estimate(self) -> Estimate:
        """The figure with the jackknife's 95% interval: ``s^2 = (G - 1) / G * sum_g (without_g - mean)^2``.

        The jackknife (Quenouille 1956, Tukey 1958), not the bootstrap: resampling repeats documents, and repeated
        documents raise any estimate of information.
        """
        n = len(self.without)
        s = np.sqrt((n - 1) / n * np.square(self.without - self.without.mean()).sum())
        half = float(student_t.ppf(0.975, n - 1)) * float(s)
        return Estimate(value=self.value, low=self.value - half, high=self.value + half)


def document_of_each(store: ActivationStore, n_contexts: int) -> Int[np.ndarray, "C"]:
    """The document that each of the first contexts of a store holds.

    Raises:
        EvalError: contexts mix documents, so that position in the context is not position in the text.
    """
    valid, doc_ids = store.valid[:, :n_contexts], store.doc_ids[:, :n_contexts]
    lowest = doc_ids.where(valid, torch.iinfo(doc_ids.dtype).max).amin(dim=0)
    highest = doc_ids.amax(dim=0)
    if bool((lowest != highest).any()):
        raise EvalError(
            f"contexts of {store.place} hold several documents each, which makes positions in the context and in "
            "the document different things; harvest with layout 'documents'"
        )
    return highest.numpy()


def deal_documents(doc_ids: Int[np.ndarray, "C"], n_groups: int, seed: int) -> Int[np.ndarray, "C"]:
    """The group of each context: all of a document's in one, groups as equal in contexts as that allows.

    Args:
        doc_ids: the document of each context.
        n_groups: wanted; fewer documents give fewer groups, an even number of them.
        seed: of the order in which documents of equal size are assigned.

    Raises:
        EvalError: there are fewer than 4 documents.
    """
    documents, counts = np.unique(doc_ids, return_counts=True)
    n_groups = min(n_groups, len(documents) - len(documents) % 2)
    if n_groups < _FEWEST:
        raise EvalError(
            f"the held-out text has {len(documents)} documents, too few to say how figures vary from one to the next; "
            "hold out at least 4, or do not measure position"
        )
    shuffled = np.random.default_rng(seed).permutation(len(documents))
    largest_first = shuffled[np.argsort(-counts[shuffled], kind="stable")]
    sizes = np.zeros(n_groups, dtype=np.int64)
    group_of = np.empty(len(documents), dtype=np.int64)
    for document in largest_first:
        smallest = int(sizes.argmin())
        group_of[document] = smallest
        sizes[smallest] += counts[document]
    return group_of[np.searchsorted(documents, doc_ids)]


def cluster_contexts(doc_ids: Int[np.ndarray, "C"], n: int, seed: int) -> Int[np.ndarray, "C"]:
    """The cluster of each context, at most ``n`` or about as many: groups of whole documents, or, if there are fewer
    documents, each document's contexts in blocks of consecutive ones.

    Args:
        doc_ids: the document of each context.
        n: clusters wanted, an even number of at least 4.
        seed: see :func:`deal_documents`.
    """
    documents, document, sizes = np.unique(doc_ids, return_inverse=True, return_counts=True)
    if len(documents) >= n:
        return deal_documents(doc_ids, n, seed)
    # More blocks for longer documents, at least one and at most one per context.
    blocks = np.clip(n * sizes // sizes.sum(), 1, sizes)
    first = np.cumsum(blocks) - blocks
    order = np.argsort(document, kind="stable")
    within = np.empty(len(doc_ids), dtype=np.int64)
    within[order] = np.arange(len(doc_ids)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return first[document] + within * blocks[document] // sizes[document]


@dataclass(frozen=True, eq=False)
class DocumentSums:
    """Sums over groups of whole documents, of figures known by context.

    Attributes:
        groups: the group of each context; None where there are too few documents for groups.
    """

    groups: Int[np.ndarray, "C"] | None

    @classmethod
    def of(cls, doc_ids: Int[np.ndarray, "C"], seed: int) -> DocumentSums:
        """Groups of the documents that the contexts are of; arguments as in :func:`deal_documents`."""
        return cls(deal_documents(doc_ids, TEXT_GROUPS, seed) if len(np.unique(doc_ids)) >= _FEWEST else None)

    def ratio(self, numerators: np.ndarray, denominators: np.ndarray) -> TextGroups | None:
        """``sum(numerators) / sum(denominators)``, one entry per context, by group of documents."""
        if self.groups is None:
            return None
        return TextGroups.of_ratio(*(np.bincount(self.groups, part) for part in (numerators, denominators)))
