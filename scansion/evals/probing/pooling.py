"""One feature vector a text: LM activations, raw and through each SAE, pooled over the text's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import sparse  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor
from torch.nn.functional import embedding_bag

from scansion.evals.probing.untrained import centre
from scansion.evals.reading.texts import Block, TextReader
from scansion.execution.sparse import encode_sparse
from scansion.execution.sparse_acts import SparseActs
from scansion.sae import SAE

Pooling = Literal["mean", "last", "bands"]
# 16 MB: larger blocks of memory go back to the system each time and are mapped again, page by page, which is slow.
_ACTS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class PooledTexts:
    """What the features of n texts are, whichever way they are looked at.

    Attributes:
        lm: of the LM.
        saes, controls: of each SAE and each untrained one.
        bag: how often each token id occurs in each text; [n, largest id + 1].
    """

    lm: Float[np.ndarray, "n _"]
    saes: list[Float[np.ndarray, "n _"]]
    controls: list[Float[np.ndarray, "n _"]]
    bag: sparse.csr_matrix


@torch.no_grad()
def pool_texts(
    texts: Sequence[str],
    reader: TextReader,
    saes: Sequence[SAE],
    controls: Sequence[SAE] = (),
    pooling: Pooling = "mean",
    n_bands: int = 8,
    what: str = "pool texts",
    in_units_of_input: bool = False,
) -> PooledTexts:
    """Read each text once and pool over its tokens what the LM and every SAE make of them.

    SAEs read each token with its position, before the pooling. A text without any token, and a band of positions that a
    text does not reach, yield zeros.

    Args:
        texts: n different texts.
        reader: of their activations.
        saes: on any device.
        controls: untrained SAEs, whose decoder biases are moved to the mean of the first block of tokens.
        pooling: ``mean`` over the text's tokens; ``last`` of them alone; ``bands``: the mean within each of ``n_bands``
            equal bands of the context's positions, [n, n_bands x features], band after band.
        n_bands: see above.
        what: a few words for the progress bar.
        in_units_of_input: multiply features by what their decoder rows are multiplied by at the token, which differs from
            token to token if an SAE has an ``input_norm``.

    Raises:
        EvalError: the tokenizer has no token to start with, or the LM's activations are not finite.
    """
    width = n_bands if pooling == "bands" else 1
    every = [*saes, *controls]
    sizes = [reader.d_in, *(sae.d_sae for sae in every)]
    tables = [np.zeros((len(texts), width * size), dtype=np.float32) for size in sizes]
    tokens: list[tuple[np.ndarray, np.ndarray]] = []
    for index, block in enumerate(reader.blocks(texts, what)):
        if index == 0:
            for control in controls:
                centre(control, block)
        tokens.append((np.repeat(block.rows, block.lengths.numpy()), block.tokens.numpy()))
        for part in _parts(_last_tokens(block) if pooling == "last" else block, max(sizes)):
            counts = _tokens_in_groups(part, reader.context_length, width)
            tables[0][part.rows] = _mean_by_group(part.x, counts, len(part.rows))
            for sae, table in zip(every, tables[1:], strict=True):
                weights = sae.W_enc
                positions = part.positions.long().to(weights.device)
                x = part.x.to(weights.device, weights.dtype)
                scaled = in_units_of_input and sae.config.input_norm != "none"
                entries = None if scaled else encode_sparse(sae, x, positions)
                if entries is None:
                    acts = sae.encode(x, positions)
                    acts = acts * sae.normalised(x).scale if scaled else acts
                    table[part.rows] = _mean_by_group(acts, counts, len(part.rows))
                else:
                    table[part.rows] = _mean_of_entries(entries, counts, len(part.rows))
    return PooledTexts(tables[0], tables[1 : 1 + len(saes)], tables[1 + len(saes) :], bag_of_words(tokens, len(texts)))


def bag_of_words(
    parts: Sequence[tuple[Int[np.ndarray, " _"], Int[np.ndarray, " _"]]], n_texts: int
) -> sparse.csr_matrix:
    """How often each token occurs in each text, which no order of words can change; float32 [n_texts, largest id + 1].

    Args:
        parts: for some tokens, the text each is in, and its id.
        n_texts: number of texts; those without a token have a row of zeros.
    """
    texts, tokens = (np.concatenate([part[i] for part in parts]).astype(np.int64) for i in (0, 1))
    width = int(tokens.max(initial=0)) + 1
    return sparse.csr_matrix((np.ones(len(tokens), dtype=np.float32), (texts, tokens)), shape=(n_texts, width))


def _last_tokens(block: Block) -> Block:
    """The block with only the last token of each text; none where a text has none."""
    last = (block.lengths.cumsum(0) - 1)[block.lengths > 0]
    return Block(block.rows, block.lengths.clamp(max=1), block.x[last], block.positions[last], block.tokens[last])


def _parts(block: Block, d_sae: int) -> list[Block]:
    """The block cut between texts so that the activations of a part fit in memory, and better in the processor's caches."""
    ends = block.lengths.cumsum(0)
    part_of = ((ends - 1).clamp(min=0) // max(1, _ACTS_AT_ONCE // d_sae)).numpy()
    parts: list[Block] = []
    for part in np.unique(part_of):
        here = np.flatnonzero(part_of == part)
        span = slice(int(ends[here[0]] - block.lengths[here[0]]), int(ends[here[-1]]))
        parts.append(
            Block(block.rows[here], block.lengths[here], block.x[span], block.positions[span], block.tokens[span])
        )
    return parts


def _tokens_in_groups(block: Block, context_length: int, n_bands: int) -> Int[Tensor, "_"]:
    """How many of the block's tokens, which come in this order, are in each band of each text."""
    text = torch.repeat_interleave(torch.arange(len(block.lengths)), block.lengths)
    band = block.positions.long() * n_bands // context_length
    return torch.bincount(text * n_bands + band, minlength=len(block.lengths) * n_bands)


def _mean_by_group(
    values: Float[Tensor, "T d"], counts: Int[Tensor, "_"], n_texts: int
) -> Float[np.ndarray, "n_texts _"]:
    if values.device.type == "mps":  # not every version of torch can do the mean there
        values = values.cpu()
    starts = (counts.cumsum(0) - counts).to(values.device)
    rows = torch.arange(len(values), device=values.device)
    # A mean of rows of a table, of as many as come until the next one starts; 0 where there are none.
    means = embedding_bag(rows, values.float(), starts, mode="mean")
    return means.view(n_texts, -1).cpu().numpy()


def _mean_of_entries(entries: SparseActs, counts: Int[Tensor, "_"], n_texts: int) -> Float[np.ndarray, "n_texts _"]:
    """The same, of activations of which the active entries are known."""
    counts = counts.to(entries.values.device)
    group_of = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    cells = group_of[entries.tokens] * entries.d_sae + entries.features
    sums = torch.zeros(len(counts) * entries.d_sae, device=cells.device).index_add_(0, cells, entries.values.float())
    return (sums.view(len(counts), -1) / counts.clamp(min=1)[:, None]).view(n_texts, -1).cpu().numpy()
