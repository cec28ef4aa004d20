"""The dense part of a sparse step: the tokens of a batch, the encoder, and which features each token may use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from scansion.execution.blocks import Block


@dataclass(frozen=True, eq=False)
class Encoder:
    """A batch and the encoder of an SAE, without gradients.

    Attributes:
        x: the tokens, less their decoder bias, grouped by position.
        W_enc: of all features, one row per feature.
        b_enc: of all features.
        blocks: the features that each token may use; together all tokens.
    """

    x: Float[Tensor, "P n d_in"]
    W_enc: Float[Tensor, "d_sae d_in"]
    b_enc: Float[Tensor, "d_sae"]
    blocks: Sequence[Block]

    @property
    def per_position(self) -> int:
        """Tokens at each position, n."""
        return self.x.shape[1]

    @property
    def n_tokens(self) -> int:
        """Tokens in all blocks."""
        return sum(block.n_rows for block in self.blocks) * self.per_position

    @property
    def n_entries(self) -> int:
        """Entries of the product: the number of features that a token may use, summed over tokens."""
        return sum(block.n_rows * block.width for block in self.blocks) * self.per_position

    def first_tokens(self) -> Encoder:
        """The first token at each position, with the same features."""
        return replace(self, x=self.x[:, :1])

    def tokens_of(self, block: Block) -> Float[Tensor, "t d_in"]:
        """The block's tokens."""
        return self.x[block.rows].flatten(0, 1)

    def write(self, block: Block, out: Float[Tensor, "t w"]) -> None:
        """Write the pre-activations of the block's tokens; masked features are minus infinity."""
        x = self.tokens_of(block)
        for piece, columns in block.columns():
            torch.addmm(self.b_enc[piece], x, self.W_enc[piece].T, out=out[:, columns])
        self._close(block, out)

    def multiply(
        self,
        block: Block,
        x: Shaped[Tensor, "t d_in"],
        W_enc: Shaped[Tensor, "d_sae d_in"],
        out: Shaped[Tensor, "t w"],
    ) -> None:
        """Write the product of the same tokens and weights in another type; masked features are minus infinity."""
        for piece, columns in block.columns():
            torch.mm(x, W_enc[piece].T, out=out[:, columns])
        self._close(block, out)

    def _close(self, block: Block, out: Tensor) -> None:
        if block.closed is not None:
            out.view(-1, self.per_position, block.width).masked_fill_(block.closed[:, None], -torch.inf)
