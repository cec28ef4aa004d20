"""How an LM answers multiple-choice questions, by the likelihood of each choice, with features clamped or without."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scansion.corpus import Contexts, token_ids
from scansion.evals.reading.texts import counted_tokens, start_token
from scansion.evals.unlearning.questions import Question
from scansion.lm import HookPoint, LanguageModel, activations_at, logits
from scansion.lm.forward import Replace
from scansion.progress import Advance
from scansion.sae import SAE

if TYPE_CHECKING:
    import transformers  # takes half a second, which commands without a language model need not wait


def clamp(sae: SAE, features: Int[np.ndarray, " k"], value: float) -> Replace:
    """Set features to ``value`` (0 or below) wherever they fire, from position 1 on; nothing else changes.

    What the SAE does not reconstruct stays, so this adds ``(value - activation) x decoder row`` for each that fires.
    """
    chosen = torch.from_numpy(features).long().to(sae.W_dec.device)

    def replace(x: Float[Tensor, "B L d_in"]) -> Float[Tensor, "B L d_in"]:
        weights = sae.W_dec
        # Prompts are padded on the right, so the second axis is the context.
        positions = torch.arange(x.shape[1], device=weights.device)
        tokens = x.to(weights.device, weights.dtype)
        acts = sae.encode(tokens, positions)[..., chosen]
        change = torch.where(acts > 0, value - acts, torch.zeros_like(acts))
        change[:, 0] = 0.0
        return x + (change @ sae.directions[chosen] * sae.normalised(tokens).scale).to(x.device, x.dtype)

    return replace


@torch.no_grad()
def answer(
    lm: LanguageModel,
    hook_point: HookPoint,
    questions: Sequence[Question],
    batch_size: int,
    replace: Replace | None = None,
    advance: Advance = lambda _: None,
) -> Bool[np.ndarray, " n"]:
    """Which questions the LM gets right: its answer is the choice with the highest mean log-probability per token.

    Args:
        lm, hook_point: the model, and where ``replace`` acts.
        questions: each with at least two choices.
        batch_size: sequences (a prompt with one choice) run at once.
        replace: an intervention; None for none.
        advance: called with the number of sequences after each batch.
    """
    bos = start_token(lm.tokenizer)
    sequences: list[tuple[list[int], int]] = []
    for question in questions:
        prompt = _ids(lm.tokenizer, question.prompt)
        for choice in question.choices:
            sequences.append(([bos, *prompt, *_ids(lm.tokenizer, choice)], 1 + len(prompt)))
    scores = np.zeros(len(sequences))
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i][0]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        contexts = Contexts.from_token_lists(
            [sequences[i][0] for i in rows], len(sequences[rows[0]][0]), bos, has_bos=True
        )
        said = logits(lm, contexts, hook_point, replace)[:, :-1].float().log_softmax(dim=-1)
        told = said.gather(-1, contexts.tokens[:, 1:, None].long().to(said.device)).squeeze(-1).cpu()
        for place, i in enumerate(rows):
            tokens, first = sequences[i]
            scores[i] = float(told[place, first - 1 : len(tokens) - 1].mean())
        advance(len(rows))
    ends = np.cumsum([len(question.choices) for question in questions])
    best = [part.argmax() for part in np.split(scores, ends[:-1])]
    return np.array([int(i) == question.answer for i, question in zip(best, questions, strict=True)])


@torch.no_grad()
def firing_rates(
    texts: Sequence[str],
    lm: LanguageModel,
    hook_point: HookPoint,
    saes: Sequence[SAE],
    context_length: int,
    batch_size: int,
    advance: Advance = lambda _: None,
) -> list[Float[np.ndarray, " d_sae"]]:
    """How often each feature of each SAE fires per counted token, in [0, 1]."""
    bos = start_token(lm.tokenizer)
    lists = [[bos, *_ids(lm.tokenizer, text)][:context_length] for text in texts]
    lists = sorted((ids for ids in lists if len(ids) > 1), key=len, reverse=True)
    counts, total = [torch.zeros(sae.d_sae, dtype=torch.int64) for sae in saes], 0
    for start in range(0, len(lists), batch_size):
        batch = lists[start : start + batch_size]
        contexts = Contexts.from_token_lists(batch, len(batch[0]), bos, has_bos=True)
        counted = counted_tokens(contexts, lm.tokenizer)
        x = activations_at(lm, hook_point, contexts)[counted.to(lm.device)].float()
        for sae, count in zip(saes, counts, strict=True):
            weights = sae.W_enc
            positions = contexts.positions[counted].long().to(weights.device)
            count += (sae.encode(x.to(weights.device, weights.dtype), positions) > 0).sum(dim=0).cpu()
        total += int(counted.sum())
        advance(len(batch))
    return [(count.double() / max(1, total)).numpy() for count in counts]


def fits(lm: LanguageModel, question: Question, context_length: int) -> bool:
    """Whether the prompt and every choice fit in a context, BOS included, and no choice is empty."""
    prompt = len(_ids(lm.tokenizer, question.prompt))
    lengths = [len(_ids(lm.tokenizer, choice)) for choice in question.choices]
    return min(lengths) > 0 and 1 + prompt + max(lengths) <= context_length


def _ids(tokenizer: transformers.PreTrainedTokenizerBase, text: str) -> list[int]:
    return token_ids([text], tokenizer)[0]
