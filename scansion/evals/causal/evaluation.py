"""The causal effect of position-bound features: its figures, and how it is run."""

from __future__ import annotations

from collections.abc import Sequence

from scansion.activations import ActivationStore
from scansion.corpus import CorpusConfig
from scansion.errors import ConfigError
from scansion.evals.base import LoadedSAE
from scansion.evals.causal.evaluate import PositionCausalConfig, check_position_causal, evaluate_position_causal
from scansion.evals.causal.result import PositionCausalResult
from scansion.evals.registry import Evaluation, Figure, LoadLM, evaluations


@evaluations.register(PositionCausalConfig)
class PositionCausal(Evaluation[PositionCausalConfig, PositionCausalResult]):
    """Change of the model's output when position-bound features are ablated or steered, where they fire and elsewhere."""

    result = PositionCausalResult
    figures = (
        Figure("causal_ablation_share", "ablation effect at own positions", read="bound.ablation_share", headline=True),
        Figure("causal_predicted_share", "ablation effect there, by profile", read="bound.predicted_share"),
        Figure("causal_ablation_share_control", "ablation effect there, controls", read="control.ablation_share"),
        Figure("causal_steering_share", "steering effect at own positions", read="bound.steering_share", headline=True),
        Figure("causal_steering_share_control", "steering effect there, controls", read="control.steering_share"),
        Figure("causal_ablation_kl", "KL ablated, mnat", read="bound.ablation_at", scale=1000, digits=2),
        Figure("causal_ablation_kl_after", "KL after ablated, mnat", read="bound.ablation_after", scale=1000, digits=2),
        Figure("causal_steering_kl", "KL steered, mnat", read="bound.steering_at", scale=1000, digits=2),
        Figure("causal_steering_kl_after", "KL after steered, mnat", read="bound.steering_after", scale=1000, digits=2),
        Figure("causal_kl_before", "KL before, mnat", read="before", scale=1000, digits=2),
    )

    def check_plan(self, corpus: CorpusConfig) -> None:
        """Raise unless contexts hold one document each."""
        if corpus.layout == "packed":
            raise ConfigError("position_causal needs contexts of one document each: set corpus.layout to 'documents'")

    def check(self, held_out: ActivationStore) -> None:
        """See :func:`check_position_causal`."""
        check_position_causal(held_out, self.config)

    def run(
        self, saes: Sequence[LoadedSAE], held_out: ActivationStore, load_lm: LoadLM
    ) -> Sequence[PositionCausalResult]:
        """See :func:`evaluate_position_causal`."""
        return evaluate_position_causal(saes, held_out, load_lm(), self.config)
