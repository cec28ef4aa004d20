"""What each feature of an SAE does on held-out text: where it fires, how strongly, and the contexts where it is most active."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from scansion.activations import ActivationStore
from scansion.device import float64_device
from scansion.evals.base import LoadedSAE
from scansion.evals.position.agreement import auroc
from scansion.evals.position.firing import Profile
from scansion.evals.position.information import information
from scansion.evals.position.states import weights_at
from scansion.evals.reading.contexts import read_contexts
from scansion.progress import progress
from scansion.report.features.directions import Neighbours
from scansion.report.features.together import firing_together, keep_every

BINS = 24
"""Steps of the histogram of activations."""
_MOST_BYTES = 1 << 27  # of the activations of one batch, so that memory does not grow with the number of features
_MOST_KEPT = 1 << 28  # bytes of sparse activations


@dataclass(frozen=True, eq=False)
class _Kept:
    """Activations without their zeros; torch's sparse tensors are not to be had on every device."""

    shape: torch.Size
    places: Int[Tensor, "n"]
    values: Float[Tensor, "n"]

    @classmethod
    def of(cls, acts: Tensor) -> _Kept:
        flat = acts.flatten()
        places = flat.nonzero().flatten()
        return cls(acts.shape, places, flat[places])

    def whole(self) -> Tensor:
        flat = self.values.new_zeros(self.shape.numel())
        flat[self.places] = self.values
        return flat.view(self.shape)

    @property
    def n_bytes(self) -> int:
        return self.places.nbytes + self.values.nbytes


class FeatureConfig(BaseModel):
    """How much feature pages show.

    Example:
        >>> scansion.FeatureConfig(n_contexts=256, examples=5)
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    n_contexts: int = Field(default=1024, ge=1, description="Held-out contexts to read, at most.")
    examples: int = Field(default=10, ge=1, description="Contexts shown per feature: those where it is most active.")
    weaker_examples: int = Field(
        default=3, ge=0, description="Contexts shown as well of those where it is half as active, and of weaker ones."
    )
    neighbours: int = Field(default=8, ge=0, description="Nearest, and jointly firing, features shown per feature.")
    lens_tokens: int = Field(default=8, ge=0, description="Tokens shown at each end of the logit lens.")
    batch_contexts: int = Field(
        default=16, ge=1, description="Contexts per encoded batch; fewer where they would take over 128 MB."
    )


@dataclass(frozen=True, eq=False)
class Examples:
    """Contexts in which each feature fires; each at most once per feature.

    First ``n_top`` where it is most active, strongest first; then equally many drawn from those where its highest
    activation is between a third and two thirds of its maximum, and from those below.

    Attributes:
        n_top: see above.
        contexts: index into the store, -1 where a feature fired in fewer.
        offsets: the firings of feature f in its k-th context are entries ``offsets[f * K + k]`` to the next offset.
        positions, acts: of each firing, in order of position.
    """

    n_top: int
    contexts: Int[np.ndarray, "F K"]
    offsets: Int[np.ndarray, "F_times_K_plus_1"]
    positions: Int[np.ndarray, "m"]
    acts: Float[np.ndarray, "m"]


@dataclass(frozen=True, eq=False)
class Features:
    """Everything the pages say of an SAE's features that comes from running it.

    Attributes:
        positions: the positions used.
        profile: firings, activation mass and tokens by position.
        max_act: highest activation.
        density: share of the tokens a feature may fire on at which it does, in [0, 1].
        mask: weights of the SAE's own mask; None if it has none.
        specialisation: information of firing on position in bits, see :func:`specialisation`; NaN if it never fired.
        fidelity: AUROC of the mask's weight as a predictor of firing, in [0, 1]; NaN where there is no mask to follow.
        sink_share: share of a feature's activation on outlier tokens and at position 0, in [0, 1]; NaN if it never fired.
        histogram: how many of its firings are in each of equal steps from 0 to ``max_act``.
        partners: features that fire on the same tokens, see :func:`firing_together`.
        examples: where it fires.
    """

    positions: Int[np.ndarray, "P"]
    profile: Profile
    max_act: Float[np.ndarray, "F"]
    density: Float[np.ndarray, "F"]
    mask: Float[np.ndarray, "P F"] | None
    specialisation: Float[np.ndarray, "F"]
    fidelity: Float[np.ndarray, "F"]
    sink_share: Float[np.ndarray, "F"]
    histogram: Int[np.ndarray, "F bins"]
    partners: Neighbours
    examples: Examples


@torch.no_grad()
def gather_features(
    subject: LoadedSAE,
    store: ActivationStore,
    config: FeatureConfig,
    information_of_eval: Float[np.ndarray, "F"] | None = None,
) -> Features:
    """Run an SAE over held-out contexts; go through its activations twice: to find what matters, and to keep it.

    The activations are kept sparse in between. Where they would take over 256 MB, the SAE is run again instead.

    Args:
        subject: an SAE of the store's model and hook point, on any device.
        store: held-out activations.
        config: how much to keep.
        information_of_eval: information in bits that the position evaluation found, whose null is better than ours.
    """
    sae, places = subject.sae, store.used_positions(subject.metadata.use_position_0)
    n_contexts = min(config.n_contexts, store.n_contexts)
    P, F = len(places), sae.d_sae
    batch = max(1, min(config.batch_contexts, _MOST_BYTES // (4 * P * F)))
    device = float64_device(sae.W_dec.device)
    counts, mass = (torch.zeros(P, F, dtype=torch.float64, device=device) for _ in range(2))
    sunk = torch.zeros(F, dtype=torch.float64, device=device)
    sinks = (store.outliers.mask[places] | (places == 0)[:, None]).to(device)
    peaks = torch.zeros(n_contexts, F, device=device)
    kept: list[tuple[slice, _Kept]] | None = []
    with progress(f"features of {subject.name}", 2 * n_contexts, "contexts") as advance:

        def encoded() -> Iterator[tuple[slice, Tensor]]:
            for part in read_contexts(store, places, n_contexts, batch, advance, device):
                yield part.contexts, part.encode(sae).to(device)

        def again() -> Iterator[tuple[slice, Tensor]]:
            if kept is None:
                yield from encoded()
                return
            for contexts, acts in kept:
                yield contexts, acts.whole()
                advance(contexts.stop - contexts.start)

        for contexts, acts in encoded():
            counts += (acts > 0).sum(dim=1)
            mass += acts.sum(dim=1)
            sunk += acts[sinks[:, contexts]].sum(dim=0)
            peaks[contexts] = acts.amax(dim=0)
            if kept is not None:
                kept.append((contexts, _Kept.of(acts)))
                kept = kept if sum(one.n_bytes for _, one in kept) <= _MOST_KEPT else None
        max_act = peaks.amax(dim=0)
        found = _choose(peaks, max_act, config)
        histogram = torch.zeros(F * BINS, dtype=torch.int64, device=device)
        every = keep_every(float(counts.sum()), n_contexts * P)
        parts: list[tuple[Tensor, Tensor]] = []
        firings: list[tuple[Tensor, Tensor]] = []
        for contexts, acts in again():
            token, feature = acts.flatten(0, 1).nonzero(as_tuple=True)
            step = (acts.flatten(0, 1)[token, feature] / max_act[feature] * BINS).long().clamp(max=BINS - 1)
            histogram += torch.bincount(feature * BINS + step, minlength=F * BINS)
            counted = token % every == 0
            firings.append((token[counted].cpu() + contexts.start * P, feature[counted].cpu()))
            parts.append(_firings(acts, contexts.start, found, places.to(device)))
    token, feature = (torch.cat([pair[side] for pair in firings]).numpy() for side in (0, 1))
    tokens = store.valid[places][:, :n_contexts].sum(dim=1)
    profile = Profile(counts.cpu().numpy(), mass.cpu().numpy(), tokens.numpy())
    alive = profile.counts.sum(axis=0) > 0
    mask = weights_at(sae.mask, places) if sae.config.mask.has_weights else None
    allowed = (tokens.double() @ sae.mask.can_fire(places.to(sae.W_dec.device)).cpu().double()).numpy()
    bound = np.arange(F) >= sae.mask.n_shared
    with np.errstate(invalid="ignore"):
        sink_share = sunk.cpu().numpy() / profile.mass.sum(axis=0)
    return Features(
        positions=places.numpy(),
        profile=profile,
        max_act=max_act.cpu().double().numpy(),
        density=profile.counts.sum(axis=0) / np.maximum(allowed, 1),
        mask=mask,
        specialisation=np.where(alive, specialisation(profile), np.nan)
        if information_of_eval is None
        else information_of_eval.astype(np.float64),
        fidelity=np.full(F, np.nan) if mask is None else np.where(bound, auroc(mask, profile), np.nan),
        sink_share=sink_share,
        histogram=histogram.view(F, BINS).cpu().numpy(),
        partners=firing_together(token, feature, n_contexts * P, F, config.neighbours),
        examples=_examples(min(config.examples, n_contexts), found, parts),
    )


def _choose(peaks: Float[Tensor, "C F"], max_act: Float[Tensor, "F"], config: FeatureConfig) -> Int[Tensor, "K F"]:
    """The contexts to show of each feature: the strongest, then some of medium and some of low activation, else -1."""
    n_contexts = len(peaks)
    strongest, found = peaks.topk(min(config.examples, n_contexts), dim=0)
    chosen = [torch.where(strongest > 0, found, -1)]
    n_weaker = min(config.weaker_examples, n_contexts)
    if n_weaker:
        # The same order for all features, drawn at random: a context is as likely to be shown as any other of its kind.
        order = torch.rand(n_contexts, generator=torch.Generator().manual_seed(0)).to(peaks.device)[:, None]
        rest = peaks.scatter(0, found, 0.0)
        for low, high in ((1 / 3, 2 / 3), (0.0, 1 / 3)):
            among = (rest > low * max_act) & (rest <= high * max_act)
            score, some = torch.where(among, order, -1.0).topk(n_weaker, dim=0)
            chosen.append(torch.where(score >= 0, some, -1))
    return torch.cat(chosen)


def specialisation(profile: Profile) -> Float[np.ndarray, "F"]:
    """Information of firing on position in bits, less what finite text gives a feature that does not depend on it.

    The bias of the plug-in estimate is ``(P - 1) / (2 N ln 2)`` bits for a feature with many firings (Miller 1955), and
    less for a rare one, of which nothing is left then: never below 0.
    """
    bias = (len(profile.tokens) - 1) / (2 * max(int(profile.tokens.sum()), 1) * np.log(2))
    return np.maximum(information(profile) - bias, 0.0)


def _firings(
    acts: Float[Tensor, "P n F"], start: int, found: Int[Tensor, "K F"], places: Int[Tensor, "P"]
) -> tuple[Tensor, Tensor]:
    """(feature, rank, position) [m, 3] and activation [m] of firings in those of these contexts that are kept."""
    rank, feature = ((found >= start) & (found < start + acts.shape[1])).nonzero(as_tuple=True)
    rows = acts[:, found[rank, feature] - start, feature].T
    row, place = rows.nonzero(as_tuple=True)
    return torch.stack([feature[row], rank[row], places[place]], dim=1), rows[row, place]


def _examples(n_top: int, found: Int[Tensor, "K F"], parts: list[tuple[Tensor, Tensor]]) -> Examples:
    K, F = found.shape
    where = torch.cat([part[0] for part in parts]).cpu().numpy()
    acts = torch.cat([part[1] for part in parts]).cpu().double().numpy()
    slot = where[:, 0] * K + where[:, 1]
    order = np.lexsort((where[:, 2], slot))
    sizes = np.bincount(slot, minlength=F * K)
    return Examples(
        n_top=n_top,
        contexts=np.ascontiguousarray(found.T.cpu().numpy()),
        offsets=np.concatenate([[0], np.cumsum(sizes)]),
        positions=where[order, 2],
        acts=acts[order],
    )
