"""The position evaluation: its figures, and how it is run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scansion.activations import ActivationStore
from scansion.corpus import CorpusConfig
from scansion.errors import ConfigError
from scansion.evals.base import LoadedSAE
from scansion.evals.position.config import PositionConfig
from scansion.evals.position.evaluate import check_position, evaluate_position
from scansion.evals.position.moving import offset_for
from scansion.evals.position.profiles import Profiles, save_profiles
from scansion.evals.position.result import PositionResult
from scansion.evals.registry import Evaluation, Figure, LoadLM, evaluations


@evaluations.register(PositionConfig)
class Position(Evaluation[PositionConfig, PositionResult]):
    """How firing depends on the position: with the mask in use, lifted, permuted, and with the text moved."""

    result = PositionResult
    needs_lm = False  # only to move the text, and not on planted activations
    decides = True
    figures = (
        Figure(
            "position_information",
            "position information, mbit",
            read="in_force.information",
            headline=True,
            scale=1000,
            digits=2,
        ),
        Figure(
            "position_information_lifted",
            "position information, mask lifted, mbit",
            read="free.information",
            headline=True,
            scale=1000,
            digits=2,
        ),
        Figure(
            "position_share_lifted",
            "position information, % of firing entropy, lifted",
            read="free.information_share",
            headline=True,
            scale=100,
            digits=2,
            before_training="position_share_start",
        ),
        Figure(
            "position_share_equal_l0",
            "position information, % of firing entropy, lifted at equal L0",
            read="free_at_equal_l0.information_share",
            headline=True,
            scale=100,
            digits=2,
        ),
        Figure(
            "position_share_start",
            "position information, % of firing entropy, before training",
            read="states.start.information_share",
            scale=100,
            digits=2,
        ),
        Figure("position_l0_lifted", "L0, mask lifted", read="free.l0", digits=1),
        Figure("excess_specialisation", "excess over permuted, mbit", "up", headline=True, scale=1000, digits=2),
        Figure("positional_fidelity", "fidelity (AUROC of mask)", "up", read="in_force.auroc", headline=True),
        Figure("positional_overlap", "overlap with mask", "up", read="in_force.overlap"),
        Figure(
            "position_retention",
            "retention, mask lifted",
            "up",
            read="free.retention",
            headline=True,
            by_position=lambda result: result.retention_at_positions,
        ),
        Figure("position_retention_equal_l0", "retention, lifted at equal L0", "up", read="free_at_equal_l0.retention"),
        Figure("position_retention_chance", "retention, chance", read="free.retention_chance"),
        Figure("positional_features", "positional features", read="free.significant_share"),
        Figure("localised_features", "localised features, mask lifted", read="free.localised.n", digits=0),
        # No direction: what chance gives differs with the share of positions that a mask leaves open.
        Figure("localised_own", "localised at own positions, mask lifted", read="free.localised.own_share"),
        Figure("localised_own_chance", "localised at own, chance", read="free.localised.own_share_chance"),
        Figure("start_similarity", "likeness to start", read="since_start.similarity"),
        Figure("stay_share", "stay when moved", read="moved.stay_share"),
        Figure("move_share", "move with text", read="moved.move_share"),
        Figure("sink_fve", "FVE of the sink alone"),
    )

    def __init__(self, config: PositionConfig) -> None:
        super().__init__(config)
        self._profiles: dict[str, Profiles] = {}

    def check_plan(self, corpus: CorpusConfig) -> None:
        """Raise unless contexts hold one document each and are long enough to be moved."""
        if corpus.layout == "packed":
            raise ConfigError("position is measured on contexts of one document each: set corpus.layout to 'documents'")
        first = self.config.first_position
        if first is not None and first > corpus.context_length - 2:
            raise ConfigError(
                f"position.first_position is {first}, which leaves less than two positions of contexts of "
                f"{corpus.context_length} tokens; lower it"
            )
        if self.config.replaced_contexts:
            offset_for(corpus.context_length, self.config.offset)

    def check(self, held_out: ActivationStore) -> None:
        """See :func:`check_position`."""
        check_position(held_out, self.config)

    def run(self, saes: Sequence[LoadedSAE], held_out: ActivationStore, load_lm: LoadLM) -> Sequence[PositionResult]:
        """See :func:`evaluate_position`."""
        measured = evaluate_position(saes, held_out, load_lm, self.config)
        self._profiles = {result.sae: profiles for result, profiles in measured}
        return [result for result, _ in measured]

    def save_more(self, sae: LoadedSAE, folder: Path) -> None:
        """Write the firing profiles, which maps are drawn from."""
        save_profiles(self._profiles.pop(sae.name), folder, sae.fingerprint)
