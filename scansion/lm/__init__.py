"""Language models: load one, name a hook point in it, and run it up to there or through a replacement."""

from scansion.lm.facts import ModelFacts
from scansion.lm.forward import activations_at, activations_at_each, check_parts, logits
from scansion.lm.gpt2 import GPT2Recipe, train_gpt2
from scansion.lm.hook_points import HookPoint
from scansion.lm.identity import BUNDLED_GPT2, BUNDLED_MODEL, ModelId
from scansion.lm.load import (
    BUNDLED_MODEL_ASSET,
    LanguageModel,
    check_layer_in_header,
    lm_dtype,
    load_language_model,
    load_tokenizer,
    model_facts,
)
from scansion.lm.sites import hook_site
from scansion.lm.unembedding import unembed

__all__ = [
    "BUNDLED_GPT2",
    "BUNDLED_MODEL",
    "BUNDLED_MODEL_ASSET",
    "GPT2Recipe",
    "HookPoint",
    "LanguageModel",
    "ModelFacts",
    "ModelId",
    "activations_at",
    "activations_at_each",
    "check_layer_in_header",
    "check_parts",
    "hook_site",
    "lm_dtype",
    "load_language_model",
    "load_tokenizer",
    "logits",
    "model_facts",
    "train_gpt2",
    "unembed",
]
