"""The settings of sparse probing."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from scansion.corpus import CorpusConfig
from scansion.evals.probing.pooling import Pooling
from scansion.evals.reading.training import ReadsTexts

DEFAULT_DATASETS = ("ag_news", "code", "amazon_stars", "occupations", "sst2")


class SparseProbingConfig(ReadsTexts):
    """Which data sets, how much of them, and which probes. The defaults are SAEBench's, but for data sets and k.

    Example:
        >>> scansion.SparseProbingConfig(k_values=[1, 5], train_size=400)
    """

    evaluation: ClassVar[str] = "sparse_probing"

    datasets: tuple[str, ...] = Field(
        default=DEFAULT_DATASETS,
        min_length=1,
        description="Groups (ag_news, code, amazon_stars, occupations, sst2, art_types); binary sets of the sae-probes "
        "asset, such as 87_glue_cola; order-sensitive sets, such as order/bigram_shift; SAEBench's hub names; or a "
        "collection: order, sae_probes, saebench.",
    )
    train_size: int = Field(
        default=4000, ge=2, description="Texts to train each probe on, at most; half of each label."
    )
    test_size: int = Field(default=1000, ge=2, description="Texts to test each probe on, at most; half of each label.")
    k_values: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(1, 2, 5, 10, 20, 50), description="Numbers of features k: a sparse probe is trained for each."
    )
    pooling: Pooling = Field(
        default="mean",
        description="How a text's tokens become one row of features: their mean; the last of them; or bands: the mean in "
        "each of several bands of positions, concatenated, so that where a feature fires matters.",
    )
    untrained_draws: int = Field(
        default=5,
        ge=1,
        exclude_if=lambda draws: draws == 5,  # so that plans from before this setting keep their digest
        description="Untrained SAEs that each SAE is compared with, new ones for every training seed; their mean accuracy "
        "is the control.",
    )
    bands: int = Field(default=8, ge=2, description="Number of equal bands of positions, if pooling is bands.")
    order_corpus: CorpusConfig = Field(
        default=CorpusConfig(),
        description="Corpus whose held-out documents order-sensitive sets are made from. Use the SAEs' own corpus.",
    )
    hub: bool = Field(default=False, description="Read hub names from the hub instead of their bundled stand-ins.")
    activations_dtype: Literal["bfloat16", "float32"] = Field(
        default="bfloat16", description="Type that the LM's activations are rounded to, as in an activation store."
    )
    cache_gb: float = Field(
        default=8.0, ge=0, description="Disk space (GB) for caching activations of probing texts; 0 caches nothing."
    )
    lm_batch_size: int = Field(default=16, ge=1, description="Texts per batch of the LM.")
    seed: int = Field(default=42, ge=0, lt=2**63, description="Seed for drawing texts and for the bootstrap.")
