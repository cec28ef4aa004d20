"""Activations of labelled texts, token by token, in blocks: run through the LM, or read from where they were kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
import xxhash
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scansion.corpus import Contexts, start_and_padding, token_ids, tokenizer_fingerprint
from scansion.device import dtype_name, resolve_dtype
from scansion.errors import EvalError
from scansion.evals.reading.cache import ActivationCache
from scansion.files import fingerprint
from scansion.lm import HookPoint, LanguageModel, activations_at
from scansion.progress import progress

if TYPE_CHECKING:
    import transformers  # takes half a second, which commands without a language model need not wait

FORMAT_VERSION = 1
BLOCK_BYTES = 1 << 27
_TEXTS_TOKENISED_AT_ONCE = 256


@dataclass(frozen=True)
class Block:
    """The counted tokens of b texts, one text after another.

    Attributes:
        rows: index of each text.
        lengths: counted tokens of each text; may be 0.
        x: activation of each of the T tokens.
        positions: position of each token in its context.
        tokens: id of each token.
    """

    rows: Int[np.ndarray, " b"]
    lengths: Int[Tensor, "b"]
    x: Float[Tensor, "T d_in"]
    positions: Int[Tensor, "T"]
    tokens: Int[Tensor, "T"]


@dataclass(frozen=True)
class TextReader:
    """How texts become activations.

    Attributes:
        lm, hook_point: source of the activations.
        context_length: tokens of a text that are read, BOS included; at least 2.
        batch_size: texts run through the LM at once.
        dtype: type that activations are rounded to: ``bfloat16`` or ``float32``.
        cache: where they are kept.
    """

    lm: LanguageModel
    hook_point: HookPoint
    context_length: int
    batch_size: int
    dtype: str = "bfloat16"
    cache: ActivationCache = field(default_factory=ActivationCache.of_gigabytes)

    def blocks(self, texts: Sequence[str], what: str) -> Iterator[Block]:
        """Every text's tokens, in blocks of some 130 MB that each hold texts drawn at random.

        BOS, padding and EOS do not count. Texts are cut to their first ``context_length - 1`` tokens, which follow BOS.

        Args:
            texts: no text twice.
            what: a few words for the progress bar.

        Raises:
            CorpusError: the tokenizer is not a fast one.
            EvalError: the tokenizer has no token to start with, or the LM's activations are not finite.
        """
        bos_id, pad_id = start_token(self.lm.tokenizer), start_and_padding(self.lm.tokenizer)[1]
        lists = self._token_lists(texts, bos_id, what)
        per_token = self.d_in * resolve_dtype(self.dtype).itemsize
        self.cache.announce(what, sum(map(len, lists)) * per_token)
        with progress(what, len(texts), "texts") as advance:
            for rows in _in_blocks(list(map(len, lists)), BLOCK_BYTES // per_token):
                mine = [lists[row] for row in rows]
                key = self._key(mine)
                tensors = self.cache.load(key)
                if tensors is None:
                    tensors = self._run(mine, pad_id)
                    self.cache.keep(key, tensors)
                yield Block(rows, **tensors)
                advance(len(rows))

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return self.hook_point.width(self.lm.facts)

    @property
    def source(self) -> list[str | int]:
        """All that activations depend on, but for the texts and how many tokens of them are read."""
        facts = self.lm.facts
        lm_dtype = dtype_name(self.lm.model.dtype)
        return [FORMAT_VERSION, *facts.id.key, lm_dtype, str(self.hook_point), self.dtype]

    def _token_lists(self, texts: Sequence[str], bos_id: int, what: str) -> list[list[int]]:
        """The token ids of each text, which are kept too: long texts take longer to cut up than to look up."""
        names = xxhash.xxh3_128()
        for text in texts:
            encoded = text.encode("utf-8", "surrogatepass")
            names.update(len(encoded).to_bytes(8, "little"))
            names.update(encoded)
        key = fingerprint(
            [FORMAT_VERSION, "literal ids", self._tokenizer, bos_id, self.context_length, names.hexdigest()]
        )
        kept = self.cache.load(key)
        if kept is None:
            lists = _tokenised(texts, self.lm.tokenizer, bos_id, self.context_length, what)
            ids = torch.tensor([one for each in lists for one in each], dtype=torch.int32)
            self.cache.keep(key, {"ids": ids, "lengths": torch.tensor(list(map(len, lists)))})
            return lists
        return [each.tolist() for each in kept["ids"].split(kept["lengths"].tolist())]

    @cached_property
    def _tokenizer(self) -> str:
        """Names the tokenizer; made once, for all of its vocabulary is read."""
        return tokenizer_fingerprint(self.lm.tokenizer)

    def _key(self, lists: Sequence[Sequence[int]]) -> str:
        """Names all that the activations depend on; token ids stand for texts, tokenizer and context length."""
        tokens = xxhash.xxh3_128()
        for ids in lists:
            tokens.update(np.array([len(ids), *ids], dtype=np.int64).tobytes())
        return fingerprint([*self.source, tokens.hexdigest()])

    @torch.no_grad()
    def _run(self, lists: Sequence[list[int]], pad_id: int) -> dict[str, Tensor]:
        dtype = resolve_dtype(self.dtype)
        parts: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        # Texts of similar length need the least padding; the longest come first, so that a lack of memory shows early.
        order = sorted(range(len(lists)), key=lambda index: -len(lists[index]))
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            length = len(lists[chosen[0]])
            contexts = Contexts.from_token_lists([lists[index] for index in chosen], length, pad_id, has_bos=True)
            counted = counted_tokens(contexts, self.lm.tokenizer)
            x = activations_at(self.lm, self.hook_point, contexts).cpu() if counted.any() else None
            for place, index in enumerate(chosen):
                at = counted[place]
                row = torch.zeros(0, self.d_in) if x is None else x[place, at]
                parts[index] = row.to(dtype), contexts.positions[place, at], contexts.tokens[place, at]
        x, positions, tokens = (torch.cat([parts[index][i] for index in range(len(lists))]) for i in range(3))
        if not bool(torch.isfinite(x).all()):
            raise EvalError(
                f"the activations of {self.lm.facts.name} at {self.hook_point} are not finite; load it in float32"
            )
        lengths = torch.tensor([len(parts[index][1]) for index in range(len(lists))])
        return {"x": x, "positions": positions, "tokens": tokens, "lengths": lengths}


def _in_blocks(lengths: Sequence[int], tokens: int) -> Iterator[Int[np.ndarray, " b"]]:
    """Indices of texts in random order, cut where the texts before have as many tokens as a block may hold."""
    # Random, so that each block represents all texts; always the same order, so that cached blocks are found again.
    order = np.random.default_rng(0).permutation(len(lengths))
    block_of = np.cumsum([0, *(lengths[index] for index in order)])[:-1] // tokens
    for block in np.unique(block_of):
        yield order[block_of == block]


def start_token(tokenizer: transformers.PreTrainedTokenizerBase) -> int:
    """The token that every text of an evaluation starts with: BOS, or EOS if there is no BOS.

    Raises:
        EvalError: the tokenizer has neither.
    """
    start, _ = start_and_padding(tokenizer)
    if start is None:
        raise EvalError("the tokenizer has neither a BOS nor an EOS token to start a text with; use another model")
    return start


def counted_tokens(contexts: Contexts, tokenizer: transformers.PreTrainedTokenizerBase) -> Bool[Tensor, "B L"]:
    """Which tokens count in an evaluation of texts: all but the first (BOS, or EOS in its place), EOS and padding."""
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    is_special = torch.isin(contexts.tokens, torch.tensor([token for token in special if token is not None]))
    return contexts.valid & (contexts.positions > 0) & ~is_special


def _tokenised(
    texts: Sequence[str], tokenizer: transformers.PreTrainedTokenizerBase, bos_id: int, context_length: int, what: str
) -> list[list[int]]:
    lists: list[list[int]] = []
    with progress(f"{what}: tokenise", len(texts), "texts") as advance:
        for start in range(0, len(texts), _TEXTS_TOKENISED_AT_ONCE):
            part = list(texts[start : start + _TEXTS_TOKENISED_AT_ONCE])
            # Cut here: the tokenizer's own truncation keeps the end of the text in some families.
            lists += [[bos_id, *ids[: context_length - 1]] for ids in token_ids(part, tokenizer)]
            advance(len(part))
    return lists
