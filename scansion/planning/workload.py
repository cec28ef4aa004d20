"""What is to be done: a language model, hook points, tokens and dictionaries, and the work of one training step."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from scansion.errors import ConfigError, did_you_mean

# A CPU screens the encoder product from these sizes on. They are those of scansion/execution/backends.py, as a test checks.
SCREENED_FROM_TOKENS, SCREENED_FROM_WIDTH, SCREENED_FROM_D_IN = 256, 32, 128

Architecture = Literal["topk", "batch_topk", "relu", "jumprelu"]
Division = Literal["bands", "tokens", "features"]


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of a language model.

    Attributes:
        layers: number of them.
        d_model: width of the residual stream.
        parameters_per_layer: weights that multiply each token in one layer: attention and MLP.
        vocabulary: number of tokens, for the unembedding.
    """

    layers: int
    d_model: int
    parameters_per_layer: int
    vocabulary: int

    def flop_per_token(self, layers: int, context_length: int, unembedding: bool = False) -> float:
        """Operations of the first ``layers`` layers: 2 per weight, and causal attention over half of the context on average."""
        if layers == 0:
            return float(self.d_model)  # embeddings are looked up
        weights = layers * self.parameters_per_layer + (self.d_model * self.vocabulary if unembedding else 0)
        return 2.0 * weights + 2.0 * context_length * self.d_model * layers


# From the configuration files of the models. Per layer: 2 d a + 2 d g + m d f, with a and g the widths of all queries and of
# all keys, f that of the MLP, and m = 3 for gated MLPs, else 2.
MODELS = {
    "smollm2-135m": ModelSizes(30, 576, 2 * 576 * (576 + 192) + 3 * 576 * 1536, 49_152),
    "gpt2": ModelSizes(12, 768, 12 * 768 * 768, 50_257),
    "gemma-2-2b": ModelSizes(26, 2304, 2 * 2304 * (2048 + 1024) + 3 * 2304 * 9216, 256_000),
    "gemma-2-9b": ModelSizes(42, 3584, 2 * 3584 * (4096 + 2048) + 3 * 3584 * 14_336, 256_000),
    "llama-3.1-8b": ModelSizes(32, 4096, 2 * 4096 * (4096 + 1024) + 3 * 4096 * 14_336, 128_256),
}


def model_sizes(name: str) -> ModelSizes:
    """Sizes of a model by its name, with or without its organisation, in any case.

    Raises:
        ConfigError: an unknown name; the message says which are known and what to give instead.
    """
    short = name.lower().rpartition("/")[2]
    if short not in MODELS:
        meant = did_you_mean(short, MODELS) or "."
        raise ConfigError(
            f"the sizes of the model {name!r} are not known{meant} Known: {', '.join(MODELS)}. "
            "Give --layers, --d-model, --parameters-per-layer and --vocabulary instead of a name"
        )
    return MODELS[short]


class DictionaryConfig(BaseModel):
    """SAEs of one kind, trained at every hook point."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: Architecture = "topk"
    d_sae: int = Field(gt=0)
    k: int = Field(default=32, gt=0, description="Features that fire per token, for topk and batch_topk.")
    bands: int = Field(default=1, gt=0, description="Bands of positions of the mask; 1 is no mask.")
    shared: float = Field(default=0.0, ge=0, le=1, description="Share of the features that all bands share.")
    count: int = Field(default=1, gt=0, description="How many of them at each hook point, for example seeds.")

    @model_validator(mode="after")
    def _check(self) -> DictionaryConfig:
        if self.k > self.d_sae:
            raise ValueError(f"k {self.k} is more than d_sae {self.d_sae}")
        if self.bands == 1 and self.shared:
            raise ValueError("shared is the share of features that bands share: give bands as well")
        return self

    @property
    def open_share(self) -> float:
        """Share of the features that one token may use."""
        return self.shared + (1 - self.shared) / self.bands

    def parameters(self, d_in: int) -> int:
        """Weights and biases of one of them."""
        return (2 * d_in + 1) * self.d_sae + d_in

    def division(self, ranks: int) -> Division:
        """What several ranks divide: bands if there is at least one per rank, else tokens, as training does."""
        return "bands" if self.bands >= ranks and self.bands > 1 else "tokens"

    def work(self, d_in: int, tokens: int, ranks: int = 1, division: Division | None = None) -> dict[str, float]:
        """Work of one training step on one rank, by kind. The time is the sum of each times a constant of the machine.

        Returns:
            ``screened`` operations of encoder products that a CPU screens; ``products`` operations of all others;
            ``selected`` entries that are compared to find the largest, and ``batch_selected`` those of them in BatchTopK, which
            compares over the batch; ``dense`` entries that whole activation matrices have, and ``batch`` numbers in the
            batch of such a step; ``active`` numbers read or written for active entries; ``parameters`` that Adam steps;
            ``steps``, 1.
        """
        division = division or self.division(ranks)
        features, here = self.d_sae * self.open_share, float(tokens)
        own = float(self.d_sae)
        if ranks > 1 and division == "features":
            features, own = features / ranks, own / ranks
        elif ranks > 1:
            here = tokens / ranks
            if division == "bands":
                own = self.d_sae * (self.shared + (1 - self.shared) / ranks)
        entries = here * features
        work = dict.fromkeys(WORK, 0.0)
        divides_features = ranks > 1 and division == "features"
        if divides_features or self.architecture in ("relu", "jumprelu"):  # the dense way
            work["products"], work["dense"], work["batch"] = 10 * d_in * entries, entries, here * d_in
        else:
            in_block = here / max(1, self.bands if ranks == 1 or division != "bands" else self.bands / ranks)
            screened = (
                in_block >= SCREENED_FROM_TOKENS
                and features >= SCREENED_FROM_WIDTH * self.k
                and d_in >= SCREENED_FROM_D_IN
            )
            work["screened" if screened else "products"] = 2 * d_in * entries
            work["selected"] = entries
            work["batch_selected"] = entries if self.architecture == "batch_topk" else 0.0
            work["active"] = here * self.k * d_in
        work["parameters"], work["steps"] = 2 * d_in * own, 1.0
        return work

    def bytes_per_step(self, d_in: int, tokens: int, ranks: int, division: Division | None = None) -> float:
        """What one rank gives to the others in one step, in bytes: docs/ranks.md has the formula."""
        if ranks == 1:
            return 0.0
        division = division or self.division(ranks)
        if division == "features":
            return 4.0 * tokens * (self.k + d_in) + 4.0 * (1 + d_in) + 24
        replicated = self.shared * self.d_sae if division == "bands" else float(self.d_sae)
        extra = 1 if self.architecture == "jumprelu" else 0
        return 4 * (1 + replicated * (2 * d_in + 1 + extra) + d_in) + 8 * (9 + d_in + replicated)


WORK: tuple[str, ...] = (
    "screened",
    "products",
    "selected",
    "batch_selected",
    "dense",
    "batch",
    "active",
    "parameters",
    "steps",
)


class Workload(BaseModel):
    """All that is to be done."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    model: ModelSizes
    hook_points: tuple[str, ...] = ("layers.5",)
    tokens: int = Field(gt=0, description="Tokens each dictionary is trained on, per pass over the data.")
    epochs: int = Field(default=1, gt=0, description="How often a dictionary sees them.")
    context_length: int = Field(default=128, gt=0)
    dictionaries: tuple[DictionaryConfig, ...]
    together: int | None = Field(default=None, gt=0, description="Dictionaries trained on one reading of the data.")
    batch_tokens: int = Field(default=4096, gt=0)
    ranks: int = Field(default=1, gt=0, description="Machines that train one dictionary together.")
    division: Division | None = None
    bytes_per_activation: Literal[2, 4] = 2
    evaluation_tokens: int = Field(default=65_536, ge=0)
    loss_tokens: int = Field(default=8_192, ge=0)

    @model_validator(mode="after")
    def _check(self) -> Workload:
        if not self.dictionaries:
            raise ValueError("give at least one dictionary")
        if self.last_layer > self.model.layers:
            raise ValueError(f"the model has {self.model.layers} layers, and a hook point needs {self.last_layer}")
        if (bands := max(one.bands for one in self.dictionaries)) > self.context_length:
            raise ValueError(f"{bands} bands need as many positions, and a context has {self.context_length}")
        if self.batch_tokens > self.tokens:
            raise ValueError(
                f"a step takes batch_tokens {self.batch_tokens:,}, and there are tokens {self.tokens:,} in all"
            )
        return self

    @property
    def last_layer(self) -> int:
        """How many layers have to run for the last hook point."""
        return max(layers_for(hook_point) for hook_point in self.hook_points)

    def passes(self, parts: int) -> list[list[DictionaryConfig]]:
        """The dictionaries of one hook point, in groups that share one reading of the data.

        Args:
            parts: into which they are divided if ``together`` does not say how many share a reading.
        """
        every = [one for one in self.dictionaries for _ in range(one.count)]
        size = self.together or math.ceil(len(every) / max(1, parts))
        return [every[start : start + size] for start in range(0, len(every), size)]

    @property
    def store_bytes(self) -> float:
        """Activations of all hook points."""
        return float(self.tokens * len(self.hook_points) * self.model.d_model * self.bytes_per_activation)

    @property
    def trained_bytes(self) -> float:
        """Weights of all trained SAEs, and one checkpoint of each with Adam's moments."""
        each = sum(one.count * one.parameters(self.model.d_model) for one in self.dictionaries)
        return 4.0 * (1 + 3) * each * len(self.hook_points)


def layers_for(hook_point: str) -> int:
    """How many layers have to run: ``layers.5`` needs 6, ``resid_pre.5`` needs 5, and embeddings need none.

    Raises:
        ConfigError: the hook point has no number.
    """
    if "embed" in hook_point:
        return 0
    numbers = re.findall(r"\d+", hook_point)
    if not numbers:
        raise ConfigError(f"hook point {hook_point!r} has no number of a layer; write it like layers.5 or resid_pre.5")
    return int(numbers[0]) + (0 if "resid_pre" in hook_point else 1)
