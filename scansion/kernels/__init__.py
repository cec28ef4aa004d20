"""The same maths, fast: execution that makes use of a mask's block structure, and of how few features are active."""

from scansion.kernels.banded import BandRows, banded_decode, banded_encode, rows_of_bands
from scansion.kernels.selection import Encoder, most_active, select_over_batch, select_positive, select_top_k
from scansion.kernels.sparse import Entries, decode_entries, encode_entries

__all__ = [
    "BandRows",
    "Encoder",
    "Entries",
    "banded_decode",
    "banded_encode",
    "decode_entries",
    "encode_entries",
    "most_active",
    "rows_of_bands",
    "select_over_batch",
    "select_positive",
    "select_top_k",
]
