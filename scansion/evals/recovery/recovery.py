"""Recovery: how much of a planted dictionary an SAE has found, in directions and in position profiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scansion.activations import ActivationStore
from scansion.errors import EvalError
from scansion.evals.base import LoadedSAE, reasons_before_running, reasons_from_activity
from scansion.evals.core.duplicates import duplicate_share
from scansion.evals.position.information import effective_positions
from scansion.evals.reading.contexts import read_contexts
from scansion.evals.recovery.matching import cosines, one_to_one, profile_overlap, support_iou
from scansion.evals.recovery.result import RECOVERED_COSINE, GroupRecovery, ProfileMatch, RecoveryResult
from scansion.progress import Advance, progress
from scansion.synth.dictionary import PlantedDictionary
from scansion.synth.generation import PlantedData
from scansion.synth.store import planted_identity

RESTRICTED_SHARE = 0.5
_BATCH_CONTEXTS = 256


def evaluate_recovery(
    subjects: Sequence[LoadedSAE], planted: PlantedDictionary, held_out: ActivationStore
) -> list[RecoveryResult]:
    """Compare trained SAEs with the dictionary their activations were made from.

    Args:
        subjects: SAEs trained on the world of ``planted``.
        planted: the truth.
        held_out: that world's held-out store.

    Raises:
        EvalError: the store, or an SAE, belongs to another world.
    """
    identity = planted_identity(planted.config, "held_out")
    if held_out.identity != identity:
        raise EvalError(f"{held_out.place} does not hold the held-out contexts of this planted dictionary")
    for subject in subjects:
        if subject.metadata.model_revision != identity.model_revision:
            raise EvalError(f"{subject.name} was trained on another synthetic world; recovery needs its own")
    true_counts = PlantedData(planted, "held_out").firing_counts()
    results: list[RecoveryResult] = []
    with progress("recovery", held_out.n_contexts * len(subjects), "contexts") as advance, torch.no_grad():
        for subject in subjects:
            activity = _observe(subject, held_out, advance)
            results.append(_result(subject, planted, true_counts, activity, held_out))
    return results


@dataclass(frozen=True)
class _Activity:
    """What an SAE did on held-out contexts."""

    counts: Int[Tensor, "L d_sae"]
    output_variance: float
    input_variance: float


def _observe(subject: LoadedSAE, held_out: ActivationStore, advance: Advance) -> _Activity:
    sae = subject.sae
    counts = torch.zeros(held_out.n_positions, sae.d_sae, dtype=torch.int64)
    sums = {name: torch.zeros(sae.d_in, dtype=torch.float64) for name in ("x", "x_hat")}
    squares = dict.fromkeys(sums, 0.0)
    every = torch.arange(held_out.n_positions)
    for part in read_contexts(held_out, every, held_out.n_contexts, _BATCH_CONTEXTS, advance):
        acts = part.encode(sae)
        x_hat = sae.decode(acts, part.batch.token_positions.to(acts.device), part.batch.x).cpu()
        counts += (acts > 0).sum(dim=1).cpu()
        for name, tensor in (("x", part.batch.x), ("x_hat", x_hat)):
            sums[name] += tensor.sum(dim=(0, 1), dtype=torch.float64)
            squares[name] += float(tensor.double().square().sum())
    n = held_out.n_contexts * held_out.n_positions
    variances = {name: squares[name] / n - float((sums[name] / n).square().sum()) for name in sums}
    return _Activity(counts, variances["x_hat"], variances["x"])


def _result(
    subject: LoadedSAE,
    planted: PlantedDictionary,
    true_counts: Int[Tensor, "L n_true"],
    activity: _Activity,
    held_out: ActivationStore,
) -> RecoveryResult:
    sae = subject.sae
    live = activity.counts.sum(dim=0).nonzero().squeeze(1)
    reasons = reasons_before_running(subject)
    reasons += reasons_from_activity(len(live), activity.output_variance, activity.input_variance)
    weights = sae.mask(torch.arange(held_out.n_positions).to(sae.W_dec.device)).cpu()
    learnt = sae.directions.cpu()[live]
    compared = len(live) > 0 and bool(torch.isfinite(learnt).all() and torch.isfinite(weights).all())
    figures = (
        _compare(planted, true_counts, learnt, activity.counts[:, live], weights[:, live], held_out.count)
        if compared
        else {"groups": {}}
    )
    data = {
        "store": held_out.manifest.key,
        "recovered_cosine": RECOVERED_COSINE,
        "restricted_share": RESTRICTED_SHARE,
    }
    return RecoveryResult.of(subject, data, planted.config.seed, reasons, n_live=len(live), **figures)


def _compare(
    planted: PlantedDictionary,
    true_counts: Int[Tensor, "L n_true"],
    learnt: Float[Tensor, "n_live d_in"],
    counts: Int[Tensor, "L n_live"],
    weights: Float[Tensor, "L n_live"],
    tokens: Int[Tensor, "L"],
) -> dict[str, Any]:
    """All figures of a dictionary with at least one live feature, none of them depending on the features' order."""
    cosine = cosines(planted.directions, learnt)
    true, found = one_to_one(cosine)
    close = cosine[true, found] > RECOVERED_COSINE
    best = cosine.max(dim=1).values
    profiles = planted.profiles[:, true]
    firing = _Pairs(true_counts[:, true].double(), counts[:, found].double(), close)
    mask = _Pairs(profiles, weights[:, found], close)
    members = {"all": torch.ones(len(planted.kinds), dtype=torch.bool), "bound": planted.is_bound}
    members |= {"unbound": ~planted.is_bound}
    members |= {kind: planted.of_kinds(kind) for kind in ("band", "single", "periodic")}
    uniform = ~planted.is_bound[true]
    random = torch.randn(learnt.shape, generator=planted.config.generator("chance"))
    return {
        "groups": {
            name: GroupRecovery(
                n_true=int(member.sum()),
                n_matched=int(member[true].sum()),
                mmcs=float(best[member].mean()),
                recovered=_share(best[member] > RECOVERED_COSINE),
                firing=firing.match(member[true]),
                mask=mask.match(member[true]),
            )
            for name, member in members.items()
            if member.any()
        },
        "mmcs_learnt": float(cosine.max(dim=0).values.mean()),
        "mmcs_chance": float(cosines(planted.directions, random).max(dim=1).values.mean()),
        "duplicates": duplicate_share(learnt),
        "spurious_firing": _restricted(counts[:, found[uniform]].double(), tokens),
        "spurious_mask": _restricted(weights[:, found[uniform]]),
    }


class _Pairs:
    """Similarity of the profiles of matched features; entry [i, j] compares the i-th true with the j-th learnt one.

    Random pairing of k true features with their k learnt ones pairs each j with each i equally often, so that the
    expected figure is the mean over a true feature's whole row: exact, without drawing permutations.
    """

    def __init__(self, true: Float[Tensor, "L k"], learnt: Float[Tensor, "L k"], close: Bool[Tensor, "k"]) -> None:
        self.overlap = profile_overlap(true, learnt)
        self.iou = support_iou(true, learnt)
        self.close = close

    def match(self, rows: Bool[Tensor, "k"]) -> ProfileMatch:
        """The figures of some of the pairs."""

        def mean(values: Tensor) -> float | None:
            return float(values.mean()) if values.numel() else None

        return ProfileMatch(
            overlap=mean(self.overlap.diagonal()[rows]),
            overlap_chance=mean(self.overlap[rows]),
            overlap_recovered=mean(self.overlap.diagonal()[rows & self.close]),
            iou=mean(self.iou.diagonal()[rows]),
            iou_chance=mean(self.iou[rows]),
            iou_recovered=mean(self.iou.diagonal()[rows & self.close]),
        )


def _share(flags: Bool[Tensor, "n"]) -> float:
    return float(flags.double().mean())


def _restricted(profiles: Float[Tensor, "L n"], tokens: Int[Tensor, "L"] | None = None) -> float | None:
    spread = effective_positions(profiles.double().numpy(), None if tokens is None else tokens.numpy())
    spread = spread[~np.isnan(spread)]
    return float((spread < RESTRICTED_SHARE * profiles.shape[0]).mean()) if len(spread) else None
