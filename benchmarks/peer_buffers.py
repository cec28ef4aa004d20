"""The field's ways from text to batches of activations, on a language model that lies in a local folder.

Each makes something that yields batches of [tokens, d_in] for ever. Nothing is asked of the network.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from scansion.corpus import Contexts
from scansion.lm import LanguageModel, ModelFacts

BATCH_TOKENS = 2048
BUFFERED = 32  # contexts; what they keep besides costs memory, not time

Buffer = Callable[[LanguageModel, Contexts, int, int], Iterator[Tensor]]


def dictionary_learning(lm: LanguageModel, contexts: Contexts, layer: int, lm_batch_size: int) -> Iterator[Tensor]:
    """``ActivationBuffer``: text, tokenised as it goes, through nnsight, which stops at the layer.

    The attribute ``refresh`` of what is returned reads the language model.
    """
    from dictionary_learning.buffer import ActivationBuffer
    from nnsight import LanguageModel as Traced

    traced: Any = Traced(lm.model, tokenizer=lm.tokenizer)
    texts = [lm.tokenizer.decode(row) for row in contexts.tokens]
    return ActivationBuffer(
        itertools.cycle(texts),
        traced,
        traced.model.layers[layer],
        d_submodule=lm.facts.d_model,
        n_ctxs=BUFFERED,
        ctx_len=contexts.length,
        refresh_batch_size=lm_batch_size,
        out_batch_size=BATCH_TOKENS,
        device="cpu",
    )


def sae_lens(facts: ModelFacts, contexts: Contexts, layer: int, lm_batch_size: int) -> Iterator[Tensor]:
    """``ActivationsStore``: tokens, through transformer_lens, which stops at the layer."""
    from datasets import Dataset
    from sae_lens.training.activations_store import ActivationsStore

    warnings.filterwarnings("ignore", module="sae_lens")  # few texts, and how it copies them
    return ActivationsStore(
        model=hooked_transformer(facts.location),
        dataset=Dataset.from_dict({"tokens": contexts.tokens.tolist()}),
        streaming=False,
        hook_name=f"blocks.{layer}.hook_resid_post",
        hook_head_index=None,
        context_size=contexts.length,
        d_in=facts.d_model,
        n_batches_in_buffer=BUFFERED,
        total_training_tokens=contexts.n_tokens,
        store_batch_size_prompts=lm_batch_size,
        train_batch_size_tokens=BATCH_TOKENS,
        prepend_bos=False,  # the tokens have it
        normalize_activations="none",
        device=torch.device("cpu"),
        dtype="float32",
    )


def hooked_transformer(folder: str) -> Any:
    """transformer_lens' model of a local folder, its weights left as they are."""
    import transformer_lens.supported_models as supported
    from transformer_lens import HookedTransformer

    if folder not in supported.OFFICIAL_MODEL_NAMES:  # it takes names that it knows
        supported.OFFICIAL_MODEL_NAMES.append(folder)
    return HookedTransformer.from_pretrained_no_processing(folder, device="cpu", dtype=torch.float32)


BUFFERS: dict[str, Buffer] = {
    "dictionary-learning": dictionary_learning,
    "sae-lens": lambda lm, contexts, layer, size: sae_lens(lm.facts, contexts, layer, size),
}
"""Each peer's buffer."""

WITHOUT = {
    "eai-sparsify": "it has no buffer: its trainer runs the whole language model again at each step of training, "
    "without its unembedding",
}
"""Peers that have none, and what they do."""
