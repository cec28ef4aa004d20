"""Which features to intervene on, and where: those most tied to positions, and controls that fire as often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scansion.activations import ActivationStore
from scansion.device import float64_device
from scansion.evals.position.firing import Profile
from scansion.evals.position.information import firing_entropy, information
from scansion.evals.reading.contexts import read_contexts
from scansion.progress import Advance
from scansion.sae import SAE


@dataclass(frozen=True)
class Target:
    """One feature to intervene on.

    Attributes:
        feature: its number.
        share: of the entropy of its firing that position explains, above chance.
        home: its positions, the fewest that hold the wanted share of its profile; of a control, those of the feature it is
            the control of.
        other: as many positions, drawn from the rest.
        active: its mean activation where it fires.
        predicted: share of its activation at home, of that at home and at the other positions.
    """

    feature: int
    share: float
    home: tuple[int, ...]
    other: tuple[int, ...]
    active: float
    predicted: float


@torch.no_grad()
def read_profile(
    sae: SAE,
    store: ActivationStore,
    positions: Int[Tensor, "P"],
    counted: Bool[Tensor, "P C"],
    batch_contexts: int,
    advance: Advance,
) -> Profile:
    """How often and how strongly each feature fires at each position, over the tokens that count."""
    device = float64_device(sae.W_dec.device)
    counts, mass = (torch.zeros(len(positions), sae.d_sae, dtype=torch.float64, device=device) for _ in range(2))
    n_contexts = counted.shape[1]
    for part in read_contexts(store, positions, n_contexts, batch_contexts, advance, device, counted):
        acts = part.encode(sae).to(device)
        counts += (acts > 0).sum(dim=1)
        mass += acts.sum(dim=1)
    return Profile(counts.cpu().numpy(), mass.cpu().numpy(), counted.sum(dim=1).numpy())


def position_share(profile: Profile) -> Float[np.ndarray, "F"]:
    """Share of the entropy of firing that position explains, in [0, 1]; NaN for a feature that never fired.

    0 for one that fires at every token: there is nothing to explain. Less what chance gives, ``(P - 1) / (2 N ln 2)`` bits
    for N tokens at P positions (Miller 1955), so that features that fire rarely do not come first.
    """
    entropy, fired = firing_entropy(profile), profile.counts.sum(axis=0) > 0
    chance = (len(profile.tokens) - 1) / (2 * profile.tokens.sum() * np.log(2))
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.maximum(information(profile) - chance, 0) / entropy
    return np.where(entropy > 0, share, np.where(fired, 0.0, np.nan))


def choose_targets(
    profile: Profile,
    positions: Sequence[int],
    n_features: int,
    min_firings: int,
    home_share: float,
    generator: np.random.Generator,
) -> tuple[list[Target], list[Target]]:
    """The features most tied to positions, and for each a control that fires as often and is little tied to them.

    Args:
        profile: of the features, on other documents than those intervened on.
        positions: that its rows are of.
        n_features: wanted; fewer where fewer fire often enough.
        min_firings: of a feature in the profile.
        home_share: share of the profile that a feature's own positions hold; they are half of all positions at most.
        generator: draws the other positions.

    Returns:
        Both lists, equally long; empty where fewer than two features fire often enough.
    """
    share = position_share(profile)
    firings = profile.counts.sum(axis=0)
    alive = np.flatnonzero(firings >= min_firings)
    ranked = alive[np.argsort(-share[alive], kind="stable")]
    bound = ranked[: min(n_features, len(ranked) // 2)]
    # From the half least tied to positions, without one that is bound itself.
    free = list(ranked[max(len(bound), len(ranked) // 2) :])
    targets: list[Target] = []
    controls: list[Target] = []
    for feature in bound[: len(free)]:
        home = _home(profile.rates[:, feature], home_share)
        rest = np.setdiff1d(np.arange(len(positions)), home)
        other = np.sort(generator.choice(rest, size=min(len(home), len(rest)), replace=False))
        control = min(free, key=lambda one: abs(np.log(firings[one] / firings[feature])))
        free.remove(control)
        for chosen, group in ((feature, targets), (control, controls)):
            group.append(_target(profile, positions, int(chosen), float(share[chosen]), home, other))
    return targets, controls


def _home(rates: Float[np.ndarray, "P"], wanted: float) -> Int[np.ndarray, "H"]:
    """Indices of the fewest positions that hold the wanted share of a profile; half of all at most."""
    order = np.argsort(-rates, kind="stable")
    n = int(np.searchsorted(rates[order].cumsum(), wanted * rates.sum() * (1 - 1e-9))) + 1
    return np.sort(order[: min(n, len(rates) // 2)])


def _target(
    profile: Profile, positions: Sequence[int], feature: int, share: float, home: np.ndarray, other: np.ndarray
) -> Target:
    per_token = profile.mass[:, feature] / np.maximum(profile.tokens, 1)
    at_home, elsewhere = float(per_token[home].sum()), float(per_token[other].sum())
    return Target(
        feature=feature,
        share=share,
        home=tuple(positions[index] for index in home),
        other=tuple(positions[index] for index in other),
        active=float(profile.mass[:, feature].sum() / profile.counts[:, feature].sum()),
        predicted=at_home / (at_home + elsewhere) if at_home + elsewhere > 0 else 0.5,
    )
