"""Moving text: some contexts read again by the LM behind a prefix, their activations before and after."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scansion.corpus import Contexts
from scansion.device import DTYPES
from scansion.errors import EvalError
from scansion.evals.position.firing import Text
from scansion.lm import HookPoint, LanguageModel, activations_at
from scansion.progress import progress


@dataclass(frozen=True, eq=False)
class MovedText:
    """Some contexts' activations before and after they were moved.

    Attributes:
        offset: tokens moved by.
        positions: the T positions before; after, each is ``offset`` further.
        before_in, after_in: their indices among the positions used, before and after.
        there: whether a context has a token that counts at each, before and after.
        groups: document group of each context.
        before, after: activations at all L positions, both in the store's type.
    """

    offset: int
    positions: Int[Tensor, "T"]
    before_in: Int[np.ndarray, "T"]
    after_in: Int[np.ndarray, "T"]
    there: Bool[Tensor, "T n"]
    groups: Int[np.ndarray, "n"]
    before: Float[Tensor, "L n d_in"]
    after: Float[Tensor, "L n d_in"]


def offset_for(n_positions: int, wanted: int | None) -> int:
    """The offset: the one wanted, or a quarter of the context.

    Raises:
        EvalError: so large that less than half of a context would be left.
    """
    offset = wanted or max(1, n_positions // 4)
    if 2 * offset > n_positions:
        raise EvalError(f"an offset of {offset} leaves less than half of a context of {n_positions} tokens; lower it")
    return offset


def move_text(
    text: Text, lm: LanguageModel, n_contexts: int, offset: int, batch: int, generator: np.random.Generator
) -> MovedText | str:
    """Read some contexts again behind a prefix from another document; or say why that cannot be done.

    Args:
        text: held-out contexts.
        lm: the model the store was made with.
        n_contexts: how many to read again, drawn at random.
        offset: tokens of the prefix.
        batch: contexts run through the LM at once.
        generator: of the draw.
    """
    store = text.store
    tokens, valid, doc_ids, doc_positions = (
        side[:, : text.n_contexts].T.numpy() for side in (store.tokens, store.valid, store.doc_ids, store.doc_positions)
    )
    has_bos = doc_positions[:, 0] == -1
    long_enough = np.flatnonzero(valid.sum(axis=1) >= has_bos + offset)
    chosen = generator.permutation(text.n_contexts)[:n_contexts]
    lists: list[list[int]] = []
    kept: list[int] = []
    for context in chosen:
        donors = long_enough[doc_ids[long_enough, 0] != doc_ids[context, 0]]
        if len(donors) == 0:
            continue
        donor = generator.choice(donors)
        bos, own = int(has_bos[context]), tokens[context, valid[context]]
        prefix = tokens[donor, int(has_bos[donor]) :][:offset]
        lists.append(np.concatenate([own[:bos], prefix, own[bos:]])[: store.n_positions].tolist())
        kept.append(int(context))
    first_text = int(has_bos.any())
    # Both ends of the move must be among the positions used.
    ends = torch.isin(text.positions + offset, text.positions)
    positions = text.positions[(text.positions >= first_text) & ends]
    if len(kept) < 2 or len(positions) < 2:
        return f"no {offset} tokens of another document can be put before the contexts"
    moved = Contexts.from_token_lists(lists, store.n_positions, pad_id=0)
    index = torch.tensor(kept)
    before_in = torch.searchsorted(text.positions, positions)
    return MovedText(
        offset,
        positions,
        before_in.numpy(),
        torch.searchsorted(text.positions, positions + offset).numpy(),
        (store.valid[positions] if text.counted is None else text.counted[before_in])[:, index],
        text.groups[kept],
        store.gather(torch.arange(store.n_positions), index.expand(store.n_positions, -1)).x.float(),
        _activations(moved, lm, HookPoint.parse(store.identity.hook_point), batch, store.identity.dtype),
    )


def _activations(
    contexts: Contexts, lm: LanguageModel, hook_point: HookPoint, batch: int, dtype: str
) -> Float[Tensor, "L n d_in"]:
    parts: list[Tensor] = []
    with progress("re-placed text", len(contexts), "contexts") as advance:
        for start in range(0, len(contexts), batch):
            some = contexts[start : start + batch]
            # Rounded as the store's are, so that nothing but the place differs.
            parts.append(activations_at(lm, hook_point, some).cpu().to(DTYPES[dtype]).float())
            advance(len(some))
    return torch.cat(parts).transpose(0, 1)
