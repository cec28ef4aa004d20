"""What the language model loses when an SAE's reconstruction takes the place of the activation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scansion.activations import ActivationStore
from scansion.corpus import Contexts
from scansion.evals.reading.groups import DocumentSums
from scansion.evals.statistics import Estimate, TextGroups, finite
from scansion.lm import HookPoint, LanguageModel, logits
from scansion.progress import progress
from scansion.sae import SAE


class LossTally:
    """Losses (nats) of predictions made from each used position of each context; zero where there is no prediction.

    Attributes:
        documents: [C], the document of each context.
        predicted: [P, C], whether a valid token follows.
        sums: name -> [P, C]: ``clean``, ``ablated``, ``spliced`` cross-entropy, and ``kl``.
    """

    def __init__(self, n_positions: int, documents: Int[np.ndarray, "C"]) -> None:
        n_contexts = len(documents)
        self.documents = documents
        self.predicted = np.zeros((n_positions, n_contexts), dtype=bool)
        self.sums = {name: np.zeros((n_positions, n_contexts)) for name in ("clean", "ablated", "spliced", "kl")}

    def figures(self, seed: int) -> dict[str, Any]:
        """Means over all predictions, and ``ce_loss_recovered`` with an interval over contexts, as a result names them."""
        n = max(1, self.predicted.sum())
        means = {name: finite(sums.sum() / n) for name, sums in self.sums.items()}
        clean, ablated, spliced = (self.sums[name].sum(axis=0) for name in ("clean", "ablated", "spliced"))
        return {
            "ce_loss": means["spliced"],
            "ce_loss_clean": means["clean"],
            "ce_loss_ablated": means["ablated"],
            "ce_loss_recovered": Estimate.of_ratio(ablated - spliced, ablated - clean, seed),
            "kl": means["kl"],
        }

    def by_text(self, seed: int) -> dict[str, TextGroups | None]:
        """The figures by group of documents."""
        groups = DocumentSums.of(self.documents, seed)
        predictions = self.predicted.sum(axis=0)
        clean, ablated, spliced, kl = (self.sums[n].sum(axis=0) for n in ("clean", "ablated", "spliced", "kl"))
        return {
            "ce_loss_recovered": groups.ratio(ablated - spliced, ablated - clean),
            "ce_loss": groups.ratio(spliced, predictions),
            "kl": groups.ratio(kl, predictions),
        }

    def by_position(self) -> dict[str, np.ndarray]:
        """Mean loss, KL and share recovered of predictions from each position, shape [P]; NaN where there are none."""
        counts = self.predicted.sum(axis=1)
        clean, ablated, spliced, kl = (self.sums[n].sum(axis=1) for n in ("clean", "ablated", "spliced", "kl"))
        with np.errstate(invalid="ignore", divide="ignore"):
            return {
                "ce_loss": spliced / counts,
                "ce_loss_recovered": (ablated - spliced) / (ablated - clean),
                "kl": kl / counts,
            }


@torch.no_grad()
def loss_by_splicing(
    saes: Sequence[SAE],
    store: ActivationStore,
    lm: LanguageModel,
    positions: Int[Tensor, "P"],
    counted: Bool[Tensor, "P C"],
    chosen: Int[Tensor, "n"],
    batch_contexts: int,
) -> list[LossTally]:
    """Run the LM untouched, with the activation zeroed, and with each SAE spliced in, over some contexts.

    Only the tokens that count are touched; at the others (position 0 by default) the activation passes through.

    Args:
        saes: on any device; the LM's log-probabilities are compared on the LM's own, since all of them are large to copy.
        store: gives the token ids, their validity and the hook point.
        lm: the model the store was made with.
        positions: the positions to splice at and to count predictions from.
        counted: the tokens there that count.
        chosen: the contexts.
        batch_contexts: how many at once.
    """
    hook_point = HookPoint.parse(store.identity.hook_point)
    documents, n_contexts = _documents(store)[chosen.numpy()], len(chosen)
    tallies = [LossTally(len(positions), documents) for _ in saes]
    touched = torch.zeros(store.n_contexts, store.n_positions, dtype=torch.bool)
    touched[:, positions] = counted.T
    with progress("loss recovered", n_contexts * (2 + len(saes)), "contexts") as advance:
        for start in range(0, n_contexts, batch_contexts):
            stop = min(start + batch_contexts, n_contexts)
            contexts = stored_contexts(store, chosen[start:stop])
            at = touched[chosen[start:stop]]

            def run(
                replacement: Callable[[Tensor], Tensor] | None, contexts: Contexts = contexts, at: Tensor = at
            ) -> Tensor:
                replace = None if replacement is None else _only_at(at, replacement)
                output = logits(lm, contexts, hook_point, replace)
                advance(len(contexts))
                return output[:, :-1].float().log_softmax(dim=-1)

            def place(values: Tensor, contexts: Contexts = contexts, at: Tensor = at) -> np.ndarray:
                follows = contexts.valid[:, 1:] & at[:, :-1]
                full = torch.zeros(contexts.valid.shape, dtype=torch.float64)
                full[:, :-1] = torch.where(follows, values.cpu().double(), 0.0)
                return full.T[positions].numpy()

            targets = contexts.tokens[:, 1:, None].long().to(lm.device)
            clean = run(None)
            clean_loss = place(-clean.gather(-1, targets).squeeze(-1))
            ablated_loss = place(-run(torch.zeros_like).gather(-1, targets).squeeze(-1))
            predicted = place(torch.ones(targets.shape[:2])).astype(bool)
            for sae, tally in zip(saes, tallies, strict=True):
                spliced = run(_reconstruct(sae, contexts.positions))
                columns = slice(start, stop)
                tally.predicted[:, columns] = predicted
                tally.sums["clean"][:, columns] = clean_loss
                tally.sums["ablated"][:, columns] = ablated_loss
                tally.sums["spliced"][:, columns] = place(-spliced.gather(-1, targets).squeeze(-1))
                tally.sums["kl"][:, columns] = place((clean.exp() * (clean - spliced)).sum(dim=-1))
    return tallies


def spread_over_documents(store: ActivationStore, n: int, seed: int) -> Int[Tensor, "n"]:
    """``n`` contexts in order, or all if there are no more: as many of each document as of any other, drawn at random.

    The first contexts of a store are of one document or two, whatever the store holds.
    """
    documents = _documents(store)
    order = np.random.default_rng(seed).permutation(len(documents))
    # The first context of every document, then the second of each, and so on; documents in a random order.
    met, turns = Counter[int](), list[int]()
    for document in documents[order].tolist():
        turns.append(met[document])
        met[document] += 1
    return torch.from_numpy(np.sort(order[np.argsort(turns, kind="stable")[:n]]))


def _documents(store: ActivationStore) -> Int[np.ndarray, "C"]:
    """The document of each context; of several, the last."""
    return store.doc_ids.amax(dim=0).numpy()


def stored_contexts(store: ActivationStore, chosen: Int[Tensor, "n"]) -> Contexts:
    """The text behind some of a store's contexts, as it was given to the LM."""
    valid = store.valid[:, chosen].T
    places = torch.arange(store.n_positions, dtype=torch.int32).expand(valid.shape)
    return Contexts(
        tokens=store.tokens[:, chosen].T.contiguous(),
        valid=valid.contiguous(),
        positions=torch.where(valid, places, 0),
        doc_ids=store.doc_ids[:, chosen].T.contiguous(),
        doc_positions=store.doc_positions[:, chosen].T.contiguous(),
    )


def _reconstruct(
    sae: SAE, positions: Int[Tensor, "B L"]
) -> Callable[[Float[Tensor, "B L d_in"]], Float[Tensor, "B L d_in"]]:
    def replacement(x: Tensor) -> Tensor:
        weights = sae.W_dec
        spliced = sae(x.to(weights.device, weights.dtype), positions.long().to(weights.device))
        return spliced.to(x.device, x.dtype)

    return replacement


def _only_at(touched: Bool[Tensor, "B L"], replacement: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def replace(x: Tensor) -> Tensor:
        return torch.where(touched.to(x.device)[..., None], replacement(x), x)

    return replace
