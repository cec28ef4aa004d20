"""What the position evaluation returns: figures for each state of the SAE, with their controls."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from scansion.evals.base import EvalResult
from scansion.evals.position.budget import Budget
from scansion.evals.position.by_band import BandRetention
from scansion.evals.position.localised import Localised
from scansion.evals.position.replacement import ReplacedFigures, Replacement
from scansion.evals.statistics import Estimate
from scansion.sae import AnySAEConfig


class StateFigures(BaseModel):
    """Figures of one state, means over features that fired unless something else is said; docs/position.md defines each.

    Attributes:
        l0: mean number of active features per token.
        alive_share: share of all features that fired.
        information: mutual information of firing and position in bits, less the mean of its null.
        information_raw, information_null: the two parts.
        information_share: sum of the corrected information over the sum of the features' firing entropies; at most 1.
        significant_share: share found to depend on the position at the false discovery rate set; None where the null
            was drawn for its mean only.
        voita_share, voita_share_corrected: share with more than 0.05 bits, before and after the correction.
        effective_positions, effective_positions_null: over how many positions a feature fires, in [1, P], see
            :func:`~scansion.evals.position.information.effective_positions`; over features with at least two firings.
        reliability: correlation of the rate profiles of two halves of the documents, over features that fired in both.
        positional_score_median, positional_score_p99: quantiles of the highest mean activation at any position.
        auroc, overlap: bound features' firing against their mask; ``_chance`` is the same firing against
            permuted masks.
        retention: share of activation mass inside the mask beyond chance, weighted by mass, over bound features;
            ``retention_median`` over features, ``retention_chance`` against permuted masks.
        localised: features that fire at few positions; None where p-values were not resolved, and in results of earlier
            versions.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    l0: float | None
    alive_share: float | None
    information: Estimate
    information_raw: float | None
    information_null: float | None
    information_share: float | None
    significant_share: float | None
    voita_share: float | None
    voita_share_corrected: float | None
    effective_positions: float | None
    effective_positions_null: float | None
    reliability: float | None
    positional_score_median: float | None
    positional_score_p99: float | None
    auroc: Estimate
    auroc_chance: float | None
    overlap: Estimate
    overlap_chance: float | None
    retention: Estimate
    retention_median: float | None
    retention_chance: float | None
    localised: Localised | None = None


class SinceStart(BaseModel):
    """What training changed about where features fire, mask lifted before and after.

    Attributes:
        similarity: mean over features of 1 - Jensen-Shannon distance of the profile at the start and at the end, the one
            from one half of the documents and the other from the other.
        ceiling: what no change looks like in as much text, from how far the profiles of each SAE differ between halves.
        chance: the same with each start compared with another feature's end.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    similarity: float | None
    ceiling: float | None
    chance: float | None


class PositionResult(EvalResult):
    """Position figures of one SAE on held-out text; intervals are over groups of documents.

    Attributes:
        sae_config: architecture, size and mask.
        n_tokens, n_contexts, n_documents, n_groups: what was read, and the groups that intervals come from.
        positions: the positions used.
        mask: whether firing is compared with the SAE's ``own`` mask or, as it has none, with a ``reference`` drawn.
        acts_in_forward: whether the mask changes what fires; if not, lifting or permuting it does nothing.
        states: ``in_force``; ``lifted`` and ``permuted`` (mean over draws) if the mask acts in the forward pass; and
            ``start``, the SAE before training with its mask lifted, which is the random SAE to compare with.
        equal_l0: the lifted SAE with only those activations counted that are above a threshold, the same for all features and
            tokens, which leaves as many per token as with the mask in force; None where no mask acts in the forward pass.
        retention_by_band: retention of the features of each band, mask lifted; None where the mask has no bands or does not act
            in the forward pass, and in results of earlier versions.
        excess_specialisation: information in force minus that under permuted masks of the same shape, in bits per feature;
            None where no mask acts in the forward pass.
        since_start, no_start: what training changed, or why that is unknown.
        replacement, no_replacement: what moving the text showed, or why it was not done.
        sink_fve: what one feature for position 0 explains of the variance of all tokens; a fact of the data.
        budget: the four ways in which SAEs may be of equal size.
    """

    # 1: effective_positions was exp of the entropy of the rate profile; 2: p-values came from turned contexts; 3: some had
    # no equal_l0, though a mask acts
    schema_version: int = 4
    eval: str = "position"
    sae_config: AnySAEConfig
    n_tokens: int
    n_contexts: int
    n_documents: int
    n_groups: int
    positions: list[int]
    mask: Literal["own", "reference"]
    acts_in_forward: bool
    states: dict[str, StateFigures]
    equal_l0: StateFigures | None = None
    retention_by_band: list[BandRetention] | None = None
    excess_specialisation: Estimate | None
    since_start: SinceStart | None
    no_start: str | None
    replacement: Replacement | None
    no_replacement: str | None
    sink_fve: float | None
    budget: Budget

    @property
    def in_force(self) -> StateFigures:
        """The SAE as it is used."""
        return self.states["in_force"]

    @property
    def retention_at_positions(self) -> tuple[list[int], list[float | None]]:
        """The positions used, and at each the retention of the features bound to its band; None where no feature is."""
        bands = self.retention_by_band or []
        at = {position: band.retention.value for band in bands for position in range(band.first, band.last + 1)}
        return self.positions, [at.get(position) for position in self.positions]

    @property
    def free(self) -> StateFigures:
        """The SAE with nothing to hold its features back: lifted, or as it is if no mask does."""
        return self.states.get("lifted", self.in_force)

    @property
    def free_at_equal_l0(self) -> StateFigures:
        """The same with as many activations per token as in use."""
        return self.equal_l0 or self.in_force

    @property
    def moved(self) -> ReplacedFigures | None:
        """What moving the text showed of the free SAE; None if it was not done."""
        return self.replacement and self.replacement.states.get("lifted", self.replacement.states["in_force"])
