"""The same text read again at another offset: which features stay where they were, and which move with the text?

A feature that fires early in a context may do so for the position, or because of what texts say early (titles, leads).
Both look alike until the text is moved. The text is moved by a prefix: tokens of another document between BOS and text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from scansion.evals.position.agreement import phi
from scansion.evals.position.firing import Firing
from scansion.evals.position.moving import MovedText
from scansion.evals.reading.groups import Jackknife
from scansion.evals.statistics import Estimate
from scansion.sae import SAE

# A vote this many standard errors from 0 decides.
DECIDED = 1.96


class ReplacedFigures(BaseModel):
    """How features of one state take to being read elsewhere.

    Attributes:
        n_features: features with significant information on the position that fired in the moved text.
        stay_share: share of them whose firing, beyond doubt, follows the position.
        move_share: share whose firing follows the text.
        undecided_share: the rest.
        bits_for_position: mean over these features' firings of how much better the position explains the firing than
            the text does, in bits; 0 for features that care about neither.
        agreement: mean over features of the correlation (phi) of firing on the same token before and after, in [-1, 1].
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    n_features: int
    stay_share: float | None
    move_share: float | None
    undecided_share: float | None
    bits_for_position: Estimate
    agreement: Estimate


@dataclass(frozen=True, eq=False)
class ShiftEffect:
    """Figures of one state, and what each feature did: votes per firing (bits), their score, agreement; NaN if none."""

    figures: ReplacedFigures
    votes: Float[np.ndarray, "F"]
    score: Float[np.ndarray, "F"]
    agreement: Float[np.ndarray, "F"]


class Replacement(BaseModel):
    """What moving the text showed.

    Attributes:
        offset: tokens moved by.
        n_contexts, n_tokens: read again.
        states: figures with the mask in force, and lifted.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    offset: int
    n_contexts: int
    n_tokens: int
    states: dict[str, ReplacedFigures]

    @classmethod
    def of(cls, moved: MovedText, seen: Mapping[str, ShiftEffect]) -> Replacement:
        """For the result, from what each state showed."""
        return cls(
            offset=moved.offset,
            n_contexts=len(moved.groups),
            n_tokens=int(moved.there.sum()),
            states={state: effect.figures for state, effect in seen.items()},
        )


@torch.no_grad()
def replaced(sae: SAE, firing: Firing, moved: MovedText, significant: Bool[np.ndarray, "F"]) -> ShiftEffect:
    """Compare firing on moved text with what the position and what the text would make of it.

    Each firing at a moved token casts a vote: ``log2 q_position - log2 q_text``, where q_position is the feature's own
    rate profile read at the token's new position and q_text at its old one, each normalised over the moved tokens. If
    the feature follows the position, the mean vote is the divergence of one profile from the other, above 0; if it
    follows the text, it is below 0 by the other divergence; if it cares for neither, it is 0. Profiles come from the
    documents outside the token's own group, for tokens that were part of the profile would vote for their old place. A
    distance between profiles would not do: a feature that fires twenty times in the moved text has an empirical profile
    that is far from any other, from its own as well.

    Args:
        sae: in the state in question.
        firing: of the same state, on all the text.
        moved: the text before and after.
        significant: features with information on the position.
    """
    seen = _read_again(sae, firing, moved)
    n_groups = firing.text.n_groups
    sums, fired = seen.votes.sum(axis=0), seen.after.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        score = sums / np.sqrt(np.square(seen.votes).sum(axis=0))
        votes = sums / fired
    counted = significant & (fired > 0) & np.isfinite(score)
    n_features = int(counted.sum())
    stay, move = (int((side * score[counted] > DECIDED).sum()) for side in (1, -1))
    n = _per_group(moved.there.sum(dim=0).numpy(), moved.groups, n_groups)
    both, first, second = (_per_group(part, moved.groups, n_groups) for part in (seen.both, seen.before, seen.after))
    ballots = _per_group(seen.votes[:, counted].sum(axis=1), moved.groups, n_groups)
    voters = _per_group(seen.after[:, counted].sum(axis=1), moved.groups, n_groups)

    def bits(group: int | None) -> float:
        kept = np.arange(n_groups) != (-1 if group is None else group)
        return float(ballots[kept].sum() / voters[kept].sum()) if voters[kept].any() else np.nan

    def agreement(group: int | None) -> Float[np.ndarray, "F"]:
        kept = np.arange(n_groups) != (-1 if group is None else group)
        return phi(both[kept].sum(axis=0), first[kept].sum(axis=0), second[kept].sum(axis=0), float(n[kept].sum()))

    whole = agreement(None)
    known = np.isfinite(whole)
    figures = ReplacedFigures(
        n_features=n_features,
        stay_share=stay / n_features if n_features else None,
        move_share=move / n_features if n_features else None,
        undecided_share=1 - (stay + move) / n_features if n_features else None,
        bits_for_position=Jackknife.of(n_groups, bits).estimate(),
        agreement=Jackknife.of(
            n_groups, lambda group: float(np.nan_to_num(agreement(group)[known]).mean()) if known.any() else np.nan
        ).estimate(),
    )
    return ShiftEffect(figures, votes, score, whole)


@dataclass(frozen=True, eq=False)
class _Seen:
    """For each moved context and feature: times fired before, after, on the same token both times; sum of the votes."""

    before: Float[np.ndarray, "n F"]
    after: Float[np.ndarray, "n F"]
    both: Float[np.ndarray, "n F"]
    votes: Float[np.ndarray, "n F"]


def _read_again(sae: SAE, firing: Firing, moved: MovedText) -> _Seen:
    device = sae.W_dec.device
    seen = _Seen(*(np.zeros((len(moved.groups), sae.d_sae)) for _ in range(4)))
    for group in np.unique(moved.groups):  # a group at a time, for its profiles are its own
        mine = np.flatnonzero(moved.groups == group)
        there = moved.there[:, mine]
        fired = [
            ((_acts_at(sae, x[:, mine].to(device), at.to(device)) > 0).cpu() & there[..., None]).numpy()
            for x, at in ((moved.before, moved.positions), (moved.after, moved.positions + moved.offset))
        ]
        rates = _shrunk_rates(firing, int(group))
        tokens = there.sum(dim=1, dtype=torch.float64).numpy()[:, None]
        position, text = rates[moved.after_in], rates[moved.before_in]
        vote = np.log2(position / (tokens * position).sum(axis=0)) - np.log2(text / (tokens * text).sum(axis=0))
        seen.before[mine], seen.after[mine] = (one.sum(axis=0) for one in fired)
        seen.both[mine] = (fired[0] & fired[1]).sum(axis=0)
        seen.votes[mine] = np.einsum("tnf,tf->nf", fired[1], vote)
    return seen


def _acts_at(sae: SAE, x: Float[Tensor, "L n d_in"], positions: Int[Tensor, "T"]) -> Float[Tensor, "T n d_sae"]:
    """Activations at some positions of whole contexts."""
    everywhere = torch.arange(len(x), device=x.device)[:, None]
    return sae.encode(sae.read(x, everywhere)[positions], positions[:, None])


def _shrunk_rates(firing: Firing, group: int) -> Float[np.ndarray, "P F"]:
    """Rates by position outside a group, each drawn towards the feature's overall rate by what one firing weighs."""
    profile = firing.without(group)
    n = profile.tokens.sum()
    overall = (profile.counts.sum(axis=0) + 0.5) / (n + 1)
    return (profile.counts + 1) / (profile.tokens[:, None] + 1 / overall)


def _per_group(values: np.ndarray, groups: Int[np.ndarray, "n"], n_groups: int) -> np.ndarray:
    """Sums over the contexts of each group: [n, ...] -> [G, ...]."""
    sums = np.zeros((n_groups, *values.shape[1:]))
    np.add.at(sums, groups, values)
    return sums
