"""What recovery of a planted dictionary is reported as."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from scansion.evals.base import EvalResult

RECOVERED_COSINE = 0.9
"""A learnt feature counts as a true one from this cosine between their directions."""


class ProfileMatch(BaseModel):
    """How alike true and learnt position profiles are, over some matched pairs. None where there is no such pair.

    Attributes:
        overlap: mean of 1 - total variation distance of the two profiles, each scaled to sum 1; in [0, 1].
        overlap_chance: its expectation if learnt features were paired with true ones at random.
        iou: mean intersection over union of the two supports (:func:`~scansion.evals.recovery.matching.support`).
        iou_chance: the same under random pairing.
        overlap_recovered, iou_recovered: over the pairs with a cosine above ``RECOVERED_COSINE`` only.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    overlap: float | None
    overlap_chance: float | None
    overlap_recovered: float | None
    iou: float | None
    iou_chance: float | None
    iou_recovered: float | None


class GroupRecovery(BaseModel):
    """Recovery of some of the true features.

    Attributes:
        n_true: how many there are.
        n_matched: how many have a learnt counterpart in the one-to-one matching.
        mmcs: mean over true features of the largest cosine with a live learnt one, in [-1, 1].
        recovered: share of true features for which that cosine is above ``RECOVERED_COSINE``.
        firing: true against learnt firing counts on held-out contexts. The true counts are of the same contexts, so
            that sampling noise is common to both and a perfect SAE scores 1.
        mask: the planted profile against the mask's weights.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    n_true: int
    n_matched: int
    mmcs: float
    recovered: float
    firing: ProfileMatch
    mask: ProfileMatch


class RecoveryResult(EvalResult):
    """Recovery of a planted dictionary. There are no intervals here: they come from several seeds.

    Attributes:
        groups: ``all`` true features, those ``bound`` to positions, those ``unbound``, and each kind by itself; a group
            without features is left out. Empty, as everything below is None, if no learnt feature is alive.
        n_live: learnt features that fired on held-out contexts; only these are compared.
        mmcs_learnt: mean over live features of the largest cosine with a true one.
        mmcs_chance: what ``mmcs`` of ``all`` would be for as many random directions.
        duplicates: share of live features with a cosine above 0.9 to another live one.
        spurious_firing: of the learnt features matched to true ones that fire everywhere alike, the share whose firings
            spread over fewer than half the positions, see
            :func:`~scansion.evals.position.information.effective_positions`; None if no such feature fired twice.
        spurious_mask: the same by the mask's weights.
    """

    eval: str = "recovery"
    groups: dict[str, GroupRecovery]
    n_live: int
    mmcs_learnt: float | None = None
    mmcs_chance: float | None = None
    duplicates: float | None = None
    spurious_firing: float | None = None
    spurious_mask: float | None = None
