"""What sparse probing returns: accuracies for each task, each data set and overall, of the LM and of the SAE."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from scansion.evals.result import Estimate, EvalResult


class TaskResult(BaseModel):
    """Accuracies on one binary task, each in [0, 1], chance 0.5; None where features are not finite.

    Attributes:
        n_train, n_test: texts, half of each label.
        lm_unconverged, sae_unconverged: how many of the probes stopped at 1000 iterations.
        lm_test_accuracy, lm_top_k, sae_test_accuracy, sae_top_k: see :class:`SparseProbingResult`.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    n_train: int
    n_test: int
    lm_unconverged: int
    sae_unconverged: int
    lm_test_accuracy: float | None
    lm_top_k: dict[int, float | None]
    sae_test_accuracy: float | None
    sae_top_k: dict[int, float | None]


class DatasetResult(BaseModel):
    """Means over the tasks of one data set; see :class:`SparseProbingResult`."""

    model_config = ConfigDict(extra="forbid")

    name: str
    lm_test_accuracy: Estimate
    lm_top_k: dict[int, Estimate]
    sae_test_accuracy: Estimate
    sae_top_k: dict[int, Estimate]
    tasks: list[TaskResult]


class SparseProbingResult(EvalResult):
    """Test accuracies, chance 0.5: means over data sets, with intervals over test texts.

    Attributes:
        lm_test_accuracy: of a probe on the LM's activations.
        lm_top_k: of a probe on the k dimensions whose class means differ the most in the training texts.
        sae_test_accuracy: of a probe on all features of the SAE; no estimate if they are not finite.
        sae_top_k: of a probe on the k features whose class means differ the most.
        datasets: the same for each data set.
    """

    eval: str = "sparse_probing"
    lm_test_accuracy: Estimate
    lm_top_k: dict[int, Estimate]
    sae_test_accuracy: Estimate
    sae_top_k: dict[int, Estimate]
    datasets: list[DatasetResult]

    def headline(self) -> dict[str, float | None]:
        """The overall accuracies, under SAEBench's names."""
        return {
            "llm_test_accuracy": self.lm_test_accuracy.value,
            **{f"llm_top_{k}_test_accuracy": estimate.value for k, estimate in self.lm_top_k.items()},
            "sae_test_accuracy": self.sae_test_accuracy.value,
            **{f"sae_top_{k}_test_accuracy": estimate.value for k, estimate in self.sae_top_k.items()},
        }
