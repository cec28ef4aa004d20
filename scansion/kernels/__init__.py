"""The same maths, fast: execution that makes use of a mask's block structure, and of how few features are active."""

from scansion.kernels.banded import BandRows, banded_decode, banded_encode, rows_of_bands
from scansion.kernels.encoder import Encoder
from scansion.kernels.relu import ReluBlock, ReluOutput, relu_forward
from scansion.kernels.selection import (
    most_active,
    most_active_relu,
    select_over_batch,
    select_positive,
    select_top_k,
)
from scansion.kernels.sparse import Entries, reconstruct
from scansion.kernels.top_k import largest_positive

__all__ = [
    "BandRows",
    "Encoder",
    "Entries",
    "ReluBlock",
    "ReluOutput",
    "banded_decode",
    "banded_encode",
    "largest_positive",
    "most_active",
    "most_active_relu",
    "reconstruct",
    "relu_forward",
    "rows_of_bands",
    "select_over_batch",
    "select_positive",
    "select_top_k",
]
