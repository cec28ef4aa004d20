"""Settings of the test suites of others, and their results."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from scansion.evals.base import EvalResult
from scansion.evals.registry import EvaluationConfig


class SuiteConfig(EvaluationConfig):
    """What every suite is told."""

    python: Path | None = Field(
        default=None,
        exclude=True,  # where it is installed is no part of what it measures
        description="Python of the environment that has the suite; default SCANSION_PEERS, or the one that runs Scansion.",
    )
    model: str | None = Field(
        default=None,
        description="The language model as transformer_lens knows it, or a folder; default the name that the SAE has.",
    )
    flat: Literal["error", "lifted"] = Field(
        default="error",
        description="What a masked SAE does with activations that the suite passes without their places in the text: raise an "
        "error, or encode them as if every feature could fire everywhere.",
    )
    datasets: tuple[str, ...] = Field(default=(), description="Names of the suite's data sets; default all it uses.")
    k_values: tuple[int, ...] = Field(default=(1, 2, 5, 16), min_length=1, description="Features per probe.")
    device: str = Field(default="cpu", description="Where the suite runs.")
    seed: int = Field(default=42, ge=0, lt=2**32, description="Of the suite.")


class SAEBenchConfig(SuiteConfig):
    """Settings of :class:`SAEBench`."""

    evaluation: ClassVar[str] = "saebench"
    train_size: int = Field(default=4000, ge=2, description="Training texts per probe.")
    test_size: int = Field(default=1000, ge=2, description="Test texts per probe.")
    context_length: int = Field(default=128, ge=2, description="Tokens of a text that are read.")
    lm_batch_size: int = Field(default=32, ge=1, description="Texts per batch of the LM.")


class SaeProbesConfig(SuiteConfig):
    """Settings of :class:`SaeProbes`."""

    evaluation: ClassVar[str] = "sae_probes"


class SuiteResult(EvalResult):
    """What a suite reports of one SAE.

    Attributes:
        versions: of the suite and what it stands on.
        flat_batches: batches it passed without places in the text.
        lifted: whether the mask was lifted for these.
        raw: everything it reports, in its own layout.
        test_accuracy: of probes on all features, mean over data sets; None where it has none.
        lm_accuracy: of probes on the model's own activations.
        top_k_accuracy, top_k_auc: k -> mean over data sets of probes on k features.
    """

    versions: dict[str, str]
    flat_batches: int
    lifted: bool
    raw: Any
    test_accuracy: float | None = None
    lm_accuracy: float | None = None
    top_k_accuracy: dict[int, float]
    top_k_auc: dict[int, float] = Field(default_factory=dict[int, float])


class SAEBenchResult(SuiteResult):
    """What SAEBench reports."""

    eval: str = "saebench"


class SaeProbesResult(SuiteResult):
    """What sae-probes reports."""

    eval: str = "sae_probes"
