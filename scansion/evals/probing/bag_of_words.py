"""The bag of words: how often each token occurs in a text, which is all that is left when order is taken away."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from scipy import sparse


def bag_of_words(
    parts: Sequence[tuple[Int[np.ndarray, " _"], Int[np.ndarray, " _"]]], n_texts: int
) -> sparse.csr_matrix:
    """Token counts, float32 [n_texts, largest id + 1].

    Args:
        parts: for some tokens, the text each is in, and its id.
        n_texts: number of texts; those without a token have a row of zeros.
    """
    texts, tokens = (np.concatenate([part[i] for part in parts]).astype(np.int64) for i in (0, 1))
    width = int(tokens.max(initial=0)) + 1
    return sparse.csr_matrix((np.ones(len(tokens), dtype=np.float32), (texts, tokens)), shape=(n_texts, width))
