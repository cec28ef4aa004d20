"""Contexts: rows of token ids; for every token its position, its document and whether it is padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import torch
import xxhash
from jaxtyping import Bool, Int
from torch import Tensor

from scansion.errors import CorpusError, ShapeError
from scansion.shapes import require_shape

TURN_TENSORS = ("turns", "positions_in_turn")
"""What contexts of chats have beside the tensors of all contexts."""


@dataclass(frozen=True, eq=False)
class Contexts:
    """C contexts of L tokens each; a language model runs on whole contexts.

    Args:
        tokens: int32 token ids.
        valid: False at padding only.
        positions: int32 position of each token in its context, 0 at its first token; 0 at padding.
        doc_ids: int32 index of the token's document; BOS has that of the token after it; -1 at padding.
        doc_positions: int32 index of the token in its document; -1 at BOS and at padding.
        turns: in a chat, int32 index of the message that the token belongs to, what the template writes around it included;
            -1 at BOS, at padding, and in documents that are no chat. None if no document is one.
        positions_in_turn: int32 index of the token in its turn; -1 where ``turns`` is. None if that is.

    Raises:
        ShapeError: shapes differ or are not [C, L], or a tensor has another type.

    Example:
        >>> scansion.Contexts.from_token_lists([[1, 5, 9], [1, 7]], 3, pad_id=2)
    """

    tokens: Int[Tensor, "C L"]
    valid: Bool[Tensor, "C L"]
    positions: Int[Tensor, "C L"]
    doc_ids: Int[Tensor, "C L"]
    doc_positions: Int[Tensor, "C L"]
    turns: Int[Tensor, "C L"] | None = None
    positions_in_turn: Int[Tensor, "C L"] | None = None

    def __post_init__(self) -> None:
        sizes = require_shape("tokens", self.tokens, "C L")
        for name, tensor in self.tensors().items():
            require_shape(name, tensor, "C L", **sizes)
            expected = torch.bool if name == "valid" else torch.int32
            if tensor.dtype != expected:
                raise ShapeError(f"{name} should be {expected} but is {tensor.dtype}; convert it with .to({expected})")

    def __repr__(self) -> str:
        """Sizes, not numbers."""
        documents = len(np.unique(self.doc_ids[self.doc_ids >= 0].numpy()))
        return f"Contexts({len(self):,} x {self.length} positions, {self.n_tokens:,} tokens of {documents:,} documents)"

    @classmethod
    def from_token_lists(
        cls, lists: Sequence[Sequence[int]], length: int, pad_id: int, *, has_bos: bool = False
    ) -> Contexts:
        """Make one context, padded on the right, from each list; each list is one document.

        Args:
            lists: token ids, from 1 to ``length`` of them in each list.
            length: L.
            pad_id: token id written at padding.
            has_bos: each list starts with a BOS token, which has no position in the document.

        Raises:
            CorpusError: a list is empty or longer than ``length``; cut it first, so that you decide what is dropped.
        """
        for index, ids in enumerate(lists):
            if not 1 <= len(ids) <= length:
                raise CorpusError(f"token list {index} has {len(ids)} tokens; expected 1 to {length}; cut or drop it")
        lengths = torch.tensor([len(ids) for ids in lists], dtype=torch.int64)[:, None]
        columns = torch.arange(length, dtype=torch.int32).expand(len(lists), length)
        valid = columns < lengths
        tokens = torch.full((len(lists), length), pad_id, dtype=torch.int32)
        tokens[valid] = torch.tensor([token for ids in lists for token in ids], dtype=torch.int32)
        rows = torch.arange(len(lists), dtype=torch.int32)[:, None].expand(len(lists), length)
        return cls(
            tokens=tokens,
            valid=valid,
            positions=columns.where(valid, 0),
            doc_ids=rows.where(valid, -1),
            doc_positions=(columns - int(has_bos)).where(valid, -1),
        )

    @property
    def n_contexts(self) -> int:
        """Number of contexts C."""
        return self.tokens.shape[0]

    @property
    def length(self) -> int:
        """Context length L."""
        return self.tokens.shape[1]

    @cached_property
    def n_tokens(self) -> int:
        """Tokens that are not padding; BOS counts."""
        return int(self.valid.sum())

    def __len__(self) -> int:
        return self.n_contexts

    def __getitem__(self, index: slice | Tensor) -> Contexts:
        """Select contexts by a slice, or by a one-dimensional tensor of indices or booleans."""
        if not isinstance(index, slice):
            require_shape("index", index, "n")
        return Contexts(**{name: tensor[index] for name, tensor in self.tensors().items()})

    @cached_property
    def fingerprint(self) -> str:
        """A 32-digit name of the contents; it does not depend on the tensors' memory layout or device."""
        digest = xxhash.xxh3_128()
        for name, tensor in self.tensors().items():
            digest.update(f"{name} {list(tensor.shape)} ".encode())
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def left_padded(self) -> Contexts:
        """The same contexts with the padding on the left; a context's first token keeps position 0."""
        # A stable sort of False before True moves the padding and keeps the order of the tokens.
        order = self.valid.to(torch.int8).argsort(dim=1, stable=True)
        return Contexts(**{name: tensor.gather(1, order) for name, tensor in self.tensors().items()})

    def without_common_padding(self) -> Contexts:
        """The same contexts without the columns, at either end, in which none has a token; the positions stay."""
        used = self.valid.any(dim=0).nonzero().squeeze(1)
        if len(used) == 0:
            return self
        columns = slice(int(used[0]), int(used[-1]) + 1)
        return Contexts(**{name: tensor[:, columns] for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that there is, by its name."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}
