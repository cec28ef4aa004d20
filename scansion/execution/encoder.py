"""The dense part of a sparse step: the tokens of a batch, the encoder, and which features each token may use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from scansion.execution import backends
from scansion.execution.activation import Activation, apply_mask
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

    def runs(self, blocks: Sequence[Block]) -> Iterator[list[Block]]:
        """Equally wide blocks, in order, in lists of which :meth:`write` takes one at a time.

        On a GPU, bands of equally many tokens are one batched product, since a band's own is too small to keep it busy.
        """
        if not backends.batches_bands(self.x.device):
            yield from ([block] for block in blocks)
            return
        waiting: list[Block] = []
        for block in blocks:
            if waiting and not _may_follow(waiting[-1], block):
                yield waiting
                waiting = []
            waiting.append(block)
        if waiting:
            yield waiting

    def write(self, blocks: Sequence[Block], out: Float[Tensor, "t w"]) -> None:
        """Write the pre-activations of the tokens of one of the :meth:`runs`; masked features are minus infinity."""
        first, last, n = blocks[0], blocks[-1], len(blocks)
        x = self.x[first.rows.start : last.rows.stop].flatten(0, 1)
        *shared, (own, own_columns) = first.columns()
        for piece, columns in shared:
            torch.addmm(self.b_enc[piece], x, self.W_enc[piece].T, out=out[:, columns])
        if n == 1:
            torch.addmm(self.b_enc[own], x, self.W_enc[own].T, out=out[:, own_columns])
        else:
            all_own = slice(own.start, last.pieces[-1].stop)
            weights = self.W_enc[all_own].unflatten(0, (n, -1)).transpose(1, 2)
            biases = self.b_enc[all_own].view(n, 1, -1)
            torch.baddbmm(biases, x.unflatten(0, (n, -1)), weights, out=out.unflatten(0, (n, -1))[..., own_columns])
        self._close(first, out)

    def fill(self, block: Block, product: Callable[[slice, Tensor], None], out: Shaped[Tensor, "t w"]) -> None:
        """Let ``product`` write the products with each piece of the features; masked features are minus infinity."""
        for piece, columns in block.columns():
            product(piece, out[:, columns])
        self._close(block, out)

    def _close(self, block: Block, out: Tensor) -> None:
        apply_mask(out, Activation(self.per_position, block.closed, block.weights))


def _may_follow(block: Block, other: Block) -> bool:
    """True if two bands, one after the other, have equally many tokens, the same shared features, and as many of their own."""
    sizes = [band.pieces[-1].stop - band.pieces[-1].start for band in (block, other)]
    return (
        block.closed is None
        and other.closed is None
        and block.weights is None
        and other.weights is None
        and block.n_rows == other.n_rows
        and block.rows.stop == other.rows.start
        and block.pieces[:-1] == other.pieces[:-1]
        and block.pieces[-1].stop == other.pieces[-1].start
        and sizes[0] == sizes[1]
    )
