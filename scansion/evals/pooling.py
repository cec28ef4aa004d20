"""One feature vector a text: LM activations, raw and through each SAE, averaged over the text's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers  # whole, for it loads its parts when they are first named
from jaxtyping import Bool, Float
from torch import Tensor

from scansion.corpus import Contexts
from scansion.errors import EvalError
from scansion.lm import HookPoint, LanguageModel, activations_at
from scansion.progress import progress
from scansion.sae import SAE

_TEXTS_TOKENISED_AT_ONCE = 256


@torch.no_grad()
def pool_texts(
    texts: Sequence[str],
    lm: LanguageModel,
    hook_point: HookPoint,
    saes: Sequence[SAE],
    context_length: int,
    batch_size: int,
    what: str = "pool texts",
) -> list[Float[np.ndarray, "n _"]]:
    """Run each text through the LM once and average over its tokens what the LM and every SAE make of them.

    BOS, padding and EOS do not count. SAEs read each token with its position, before the averaging. A text without any
    token yields zeros.

    Args:
        texts: n texts; cut to their first ``context_length - 1`` tokens, which follow BOS.
        lm, hook_point: source of the activations.
        saes: on any device.
        context_length: tokens, BOS included; at least 2.
        batch_size: texts run through the LM at once.
        what: a few words for the progress bar.

    Returns:
        float32 [n, d_in] for the LM, then [n, d_sae] for each SAE, in the order of ``texts``.

    Raises:
        EvalError: the tokenizer has no token to start with, or the LM's activations are not finite.
    """
    bos_id, pad_id = _bos_and_padding(lm.tokenizer)
    lists = _token_lists(texts, lm.tokenizer, bos_id, context_length, what)
    widths = [lm.facts.d_model, *(sae.d_sae for sae in saes)]
    pooled = [np.zeros((len(texts), width), dtype=np.float32) for width in widths]
    # Texts of like length together waste the least padding; the longest first, so that memory runs out early if at all.
    order = sorted(range(len(lists)), key=lambda index: -len(lists[index]))
    with progress(what, len(texts), "texts") as advance:
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            length = len(lists[rows[0]])
            contexts = Contexts.from_token_lists([lists[row] for row in rows], length, pad_id, has_bos=True)
            counted = _counted(contexts, lm.tokenizer)
            if counted.any():
                x = activations_at(lm, hook_point, contexts)[counted.to(lm.device)].float()
                if not bool(torch.isfinite(x).all()):
                    raise EvalError(
                        f"the activations of {lm.facts.name} at {hook_point} are not finite; load it in float32"
                    )
                averaging = _averaging(counted)
                pooled[0][rows] = _average(x, averaging)
                for sae, target in zip(saes, pooled[1:], strict=True):
                    weights = sae.W_enc
                    positions = contexts.positions[counted].long().to(weights.device)
                    target[rows] = _average(sae.encode(x.to(weights.device, weights.dtype), positions), averaging)
            advance(len(rows))
    return pooled


def _counted(contexts: Contexts, tokenizer: transformers.PreTrainedTokenizerBase) -> Bool[Tensor, "B L"]:
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    is_special = torch.isin(contexts.tokens, torch.tensor([token for token in special if token is not None]))
    # Position 0 is BOS even where EOS stands in for it.
    return contexts.valid & (contexts.positions > 0) & ~is_special


def _averaging(counted: Bool[Tensor, "B L"]) -> Float[Tensor, "B T"]:
    """The matrix that averages each row's T counted tokens, laid out one row after another."""
    row = counted.nonzero()[:, 0]
    matrix = torch.zeros(len(counted), len(row))
    matrix[row, torch.arange(len(row))] = 1 / counted.sum(dim=1)[row].float()
    return matrix


def _average(values: Float[Tensor, "T d"], averaging: Float[Tensor, "B T"]) -> Float[np.ndarray, "B d"]:
    return (averaging.to(values.device) @ values.float()).cpu().numpy()


def _token_lists(
    texts: Sequence[str], tokenizer: transformers.PreTrainedTokenizerBase, bos_id: int, context_length: int, what: str
) -> list[list[int]]:
    lists: list[list[int]] = []
    with progress(f"{what}: tokenise", len(texts), "texts") as advance:
        for start in range(0, len(texts), _TEXTS_TOKENISED_AT_ONCE):
            part = list(texts[start : start + _TEXTS_TOKENISED_AT_ONCE])
            # The tokenizer's own truncation keeps the end of the text in some families.
            ids = tokenizer(
                part, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
            )["input_ids"]
            lists += [[bos_id, *one[: context_length - 1]] for one in ids]
            advance(len(part))
    return lists


def _bos_and_padding(tokenizer: Any) -> tuple[int, int]:
    bos, eos, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    start = bos if bos is not None else eos
    if start is None:
        raise EvalError("the tokenizer has neither a BOS nor an EOS token to start a text with; use another model")
    return start, start if pad is None else pad
