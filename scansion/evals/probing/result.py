"""What sparse probing returns: accuracies per task, per data set and overall, each with its controls."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from scansion.evals.base import EvalResult
from scansion.evals.statistics import Estimate


class TaskResult(BaseModel):
    """Accuracies on one binary task, each in [0, 1], chance 0.5; None where features are not finite.

    Attributes:
        n_train, n_test: texts, half of each label.
        lm_unconverged, sae_unconverged: how many of the probes stopped at 1000 iterations.
        lm_over_bag, qualified: see :class:`DatasetResult`.
        others: see :class:`MeanAccuracies`.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    n_train: int
    n_test: int
    lm_unconverged: int
    sae_unconverged: int
    qualified: bool
    lm_over_bag: Estimate
    bag_test_accuracy: float | None
    lm_test_accuracy: float | None
    lm_top_k: dict[int, float | None]
    sae_test_accuracy: float | None
    sae_top_k: dict[int, float | None]
    random_test_accuracy: float | None
    random_top_k: dict[int, float | None]


class MeanAccuracies(BaseModel):
    """Test accuracies, chance 0.5, with intervals over test texts.

    Attributes:
        lm_over_bag: ``lm_test_accuracy`` less ``bag_test_accuracy``.
        bag_test_accuracy: of a probe on how often each token occurs, which no order of words can change.
        lm_test_accuracy: of a probe on the LM's activations.
        lm_top_k: of a probe on the k dimensions whose class means differ the most in the training texts.
        sae_test_accuracy: of a probe on all features of the SAE; no estimate if they are not finite.
        sae_top_k: of a probe on the k features whose class means differ the most.
        random_test_accuracy, random_top_k: the same for untrained SAEs of the same settings, mean over their draws.
        gain_test_accuracy, gain_top_k: the SAE's accuracy less the untrained one's, paired by test text.
    """

    model_config = ConfigDict(extra="forbid")

    lm_over_bag: Estimate
    bag_test_accuracy: Estimate
    lm_test_accuracy: Estimate
    lm_top_k: dict[int, Estimate]
    sae_test_accuracy: Estimate
    sae_top_k: dict[int, Estimate]
    random_test_accuracy: Estimate
    random_top_k: dict[int, Estimate]
    gain_test_accuracy: Estimate
    gain_top_k: dict[int, Estimate]


class DatasetResult(MeanAccuracies):
    """Means over the tasks of one data set.

    Attributes:
        stand_in: the bundled data set used in place of the one named; None if it is the one named.
        qualified: whether the probe on the LM's activations, which know the order of the words, beats that on the bag of
            words by more than chance: the interval of ``lm_over_bag`` lies above 0. Scores on a set that did not qualify
            say nothing about how the LM uses order or context; they are kept, and marked.
    """

    name: str
    stand_in: str | None
    qualified: bool
    tasks: list[TaskResult]


class SparseProbingResult(MeanAccuracies, EvalResult):
    """Means over data sets.

    Attributes:
        pooling: how a text's tokens became one row of features: ``mean``, ``last`` or ``bands``.
        random_by_draw: ``random_test_accuracy`` of each untrained SAE.
        datasets: the same for each data set.
    """

    schema_version: int = 2  # 1: there was one untrained SAE, the same for every training seed
    eval: str = "sparse_probing"
    pooling: str
    random_by_draw: list[float | None] = []
    datasets: list[DatasetResult]

    @property
    def qualified(self) -> list[str]:
        """Names of the data sets that qualified."""
        return [one.name for one in self.datasets if one.qualified]

    def saebench_headline(self) -> dict[str, float | None]:
        """The overall accuracies that SAEBench reports, under its names."""
        return {
            "llm_test_accuracy": self.lm_test_accuracy.value,
            **{f"llm_top_{k}_test_accuracy": estimate.value for k, estimate in self.lm_top_k.items()},
            "sae_test_accuracy": self.sae_test_accuracy.value,
            **{f"sae_top_{k}_test_accuracy": estimate.value for k, estimate in self.sae_top_k.items()},
        }
