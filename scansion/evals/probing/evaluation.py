"""Sparse probing: its figures, and how it is run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from scansion.activations import ActivationStore
from scansion.corpus import CorpusConfig
from scansion.evals.base import LoadedSAE
from scansion.evals.probing.config import SparseProbingConfig
from scansion.evals.probing.evaluate import evaluate_sparse_probing
from scansion.evals.probing.result import SparseProbingResult
from scansion.evals.probing.saebench import sparse_probing_json
from scansion.evals.probing.sets import check_probing_sets, probing_assets, probing_source
from scansion.evals.registry import Evaluation, Figure, LoadLM, evaluations
from scansion.lm import HookPoint


def _ks(config: SparseProbingConfig) -> Iterable[int]:
    return config.k_values


@evaluations.register(SparseProbingConfig)
class SparseProbing(Evaluation[SparseProbingConfig, SparseProbingResult]):
    """How well a few features, or all of them, tell labelled texts apart, next to a bag of words and untrained SAEs."""

    result = SparseProbingResult
    reads_store = False
    decides = True
    figures = (
        Figure("llm_test_accuracy", "LM probe", read="lm_test_accuracy"),
        Figure("llm_top_{n}_test_accuracy", "LM probe, k={n}", read="lm_top_k", numbers=_ks),
        # The headline: what training adds, and not what the mask alone makes readable.
        Figure(
            "sae_test_accuracy_gain", "probe gain over untrained, all features", "up",
            read="gain_test_accuracy", headline=True, gain_of="sae_test_accuracy",
        ),
        Figure(
            "sae_top_{n}_test_accuracy_gain", "probe gain over untrained, k={n}", "up",
            read="gain_top_k", headline=(1, 5), numbers=_ks, gain_of="sae_top_{n}_test_accuracy",
        ),
        Figure("sae_test_accuracy", "probe, all features", "up"),
        Figure("sae_top_{n}_test_accuracy", "probe, k={n}", "up", read="sae_top_k", numbers=_ks),
        Figure("bag_of_words_test_accuracy", "bag of words", read="bag_test_accuracy"),
        Figure("random_sae_test_accuracy", "untrained SAEs, all features", read="random_test_accuracy"),
    )  # fmt: skip

    @property
    def file(self) -> str:
        """Ends in the pooling unless that is the mean, so that the same SAE may be probed with several."""
        return self.name if self.config.pooling == "mean" else f"{self.name}_{self.config.pooling}"

    def assets(self) -> list[str]:
        """Of the data sets."""
        return probing_assets(self.config.datasets, self.config.order_corpus, self.config.hub)

    def check_plan(self, corpus: CorpusConfig) -> None:
        """Raise for unknown data sets, and for data sets that have not been fetched."""
        check_probing_sets(self.config.datasets, self.config.order_corpus, self.config.hub)

    def data(self, held_out: ActivationStore) -> dict[str, object]:
        """Settings, version of the labelled texts, and type of the LM."""
        return {**super().data(held_out), "source": probing_source(), "lm_dtype": held_out.identity.model_dtype}

    @property
    def encodes_single_tokens(self) -> bool:
        """With ``last`` it does."""
        return self.config.pooling == "last"

    def run(
        self, saes: Sequence[LoadedSAE], held_out: ActivationStore, load_lm: LoadLM
    ) -> Sequence[SparseProbingResult]:
        """See :func:`evaluate_sparse_probing`."""
        return evaluate_sparse_probing(saes, load_lm(), HookPoint.parse(held_out.identity.hook_point), self.config)

    def saebench(self, result: SparseProbingResult, sae: LoadedSAE) -> dict[str, Any]:
        """SAEBench's ``sparse_probing``."""
        return sparse_probing_json(result, sae)
