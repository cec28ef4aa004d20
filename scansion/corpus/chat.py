"""Chat messages to tokens, through the tokenizer's template; every token keeps the turn that it belongs to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from jinja2 import TemplateError

from scansion.corpus.rows import Chat
from scansion.errors import CorpusError

if TYPE_CHECKING:
    import transformers


def chat_tokens(
    chat: Chat,
    tokenizer: transformers.PreTrainedTokenizerBase,
    special_tokens: Literal["literal", "parsed"],
    where: str,
) -> tuple[list[int], np.ndarray]:
    """The tokens of a conversation as the template writes it, and the turn of each: 0 for the first message.

    What the template writes around a message (its role, its end) belongs to the message's turn.

    Args:
        chat: the messages.
        tokenizer: a fast one, with a chat template.
        special_tokens: what a special token that a message spells out becomes; those of the template are always parsed.
        where: for error messages.

    Raises:
        CorpusError: there is no template, or it refuses the messages.
    """
    if not tokenizer.chat_template:
        raise CorpusError(
            f"{where} holds chat messages, and the tokenizer has no chat template; take a model that was trained on chats, "
            "or set text_column to a column of text"
        )
    text = _rendered(tokenizer, chat.messages, where)
    ends = _ends_of_turns(tokenizer, chat.messages, text)
    ids: list[int] = []
    starts: list[int] = []
    for first, last, literal in _pieces(tokenizer, chat.messages, text, ends, special_tokens == "literal", where):
        encoded = tokenizer(
            text[first:last], add_special_tokens=False, split_special_tokens=literal, return_offsets_mapping=True,
            return_attention_mask=False, verbose=False,
        )  # fmt: skip
        ids += cast("list[int]", encoded["input_ids"])
        starts += [first + start for start, _ in cast("list[tuple[int, int]]", encoded["offset_mapping"])]
    turns = np.searchsorted(ends, np.asarray(starts, dtype=np.int64), side="right")
    return ids, np.minimum(turns, len(ends) - 1).astype(np.int32)


def _rendered(tokenizer: transformers.PreTrainedTokenizerBase, messages: Sequence[dict[str, Any]], where: str) -> str:
    try:
        return cast(str, tokenizer.apply_chat_template(list(messages), tokenize=False))
    except (TemplateError, ValueError, TypeError, KeyError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CorpusError(
            f"{where}: the tokenizer's chat template refuses these messages ({reason}); leave the row out"
        ) from error


def _ends_of_turns(
    tokenizer: transformers.PreTrainedTokenizerBase, messages: Sequence[dict[str, Any]], text: str
) -> list[int]:
    """Where each turn ends in the rendered text: as far as that text begins like the first messages rendered alone."""
    ends: list[int] = []
    for n in range(1, len(messages)):
        before = ends[-1] if ends else 0
        try:
            alone = _rendered(tokenizer, messages[:n], "")
            end = _n_equal(text, alone)
        except CorpusError:  # some templates want pairs of turns
            content = messages[n - 1]["content"].strip()
            found = text.find(content, before)
            end = found + len(content) if found >= 0 else before
        ends.append(max(end, before))
    return [*ends, len(text)]


def _pieces(
    tokenizer: transformers.PreTrainedTokenizerBase,
    messages: Sequence[dict[str, Any]],
    text: str,
    ends: Sequence[int],
    literal: bool,
    where: str,
) -> Iterator[tuple[int, int, bool]]:
    """The text in pieces: start, end, and whether special tokens in it are literal. One piece if no message has any."""
    names = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special] if literal else []
    done = 0
    for message, start, end in zip(messages, [0, *ends], ends, strict=False):
        content = message["content"].strip()
        if not any(name in content for name in names):
            continue
        found = text.find(content, start, end)
        if found < 0:
            raise CorpusError(
                f"{where}: a message spells out a special token, and the chat template changes its text; leave the row out, "
                "or set special_tokens to parsed"
            )
        yield done, found, False
        done = found + len(content)
        yield found, done, True
    yield done, len(text), False


def _n_equal(one: str, other: str) -> int:
    """How many characters both begin with."""
    if one.startswith(other):
        return len(other)
    return next(index for index, pair in enumerate(zip_longest(one, other)) if pair[0] != pair[1])
