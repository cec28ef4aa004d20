"""Settings of the test suites of others, and their results."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from scansion.evals.base import EvalResult
from scansion.evals.registry import EvaluationConfig


class SuiteConfig(EvaluationConfig):
    """Settings of every suite."""

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


Part = Literal["sparse_probing", "core", "scr", "tpp", "absorption"]
"""Evaluations of SAEBench."""
_PARTS: tuple[Part, ...] = ("sparse_probing",)
_DATASET, _BATCHES, _N_VALUES, _LETTERS = "Skylion007/openwebtext", 20, (2, 5, 10, 20, 50, 100, 500), 20


class SAEBenchConfig(SuiteConfig):
    """Settings of :class:`SAEBench`."""

    evaluation: ClassVar[str] = "saebench"
    # Settings that came later are not recorded at their defaults, so that results of before are used again.
    evaluations: tuple[Part, ...] = Field(
        default=_PARTS,
        min_length=1,
        exclude_if=lambda parts: parts == _PARTS,
        description="Which of SAEBench's evaluations to run: sparse_probing, core, scr, tpp, absorption.",
    )
    core_dataset: str = Field(
        default=_DATASET,
        exclude_if=lambda name: name == _DATASET,
        description="Text that core reads: a data set of the hub, or a folder that the library datasets loads.",
    )
    core_batches: int = Field(
        default=_BATCHES,
        ge=1,
        exclude_if=lambda n: n == _BATCHES,
        description="Batches of lm_batch_size contexts that core reads.",
    )
    n_values: tuple[int, ...] = Field(
        default=_N_VALUES,
        min_length=1,
        exclude_if=lambda values: values == _N_VALUES,
        description="Numbers of features that scr and tpp ablate.",
    )
    min_letters: int = Field(
        default=_LETTERS,
        ge=2,  # it takes a standard deviation over them
        exclude_if=lambda n: n == _LETTERS,
        description="First letters that the language model must tell apart for absorption to be measured.",
    )
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
    top_k_accuracy: dict[int, float] = Field(default_factory=dict[int, float])
    top_k_auc: dict[int, float] = Field(default_factory=dict[int, float])


class SAEBenchResult(SuiteResult):
    """What SAEBench reports; None, or nothing, of an evaluation that was not run.

    Attributes:
        explained_variance, ce_loss_score, kl_div_score, l0: of core.
        scr, tpp: number of features ablated -> score.
        absorption_fraction, full_absorption: means over letters.
    """

    eval: str = "saebench"
    explained_variance: float | None = None
    ce_loss_score: float | None = None
    kl_div_score: float | None = None
    l0: float | None = None
    scr: dict[int, float] = Field(default_factory=dict[int, float])
    tpp: dict[int, float] = Field(default_factory=dict[int, float])
    absorption_fraction: float | None = None
    full_absorption: float | None = None


class SaeProbesResult(SuiteResult):
    """What sae-probes reports."""

    eval: str = "sae_probes"
