"""The same maths, fast: execution that makes use of a mask's block structure, and of how few features are active."""

from scansion.execution.banded import BandRows, banded_decode, banded_encode, rows_of_bands
from scansion.execution.cpu.top_k import largest_positive
from scansion.execution.encoder import Encoder
from scansion.execution.fused_relu import ReluBlock, ReluOutput, relu_forward
from scansion.execution.selection import (
    most_active,
    most_active_relu,
    select_over_batch,
    select_positive,
    select_top_k,
)
from scansion.execution.sparse_acts import SparseActs, reconstruct

__all__ = [
    "BandRows",
    "Encoder",
    "ReluBlock",
    "ReluOutput",
    "SparseActs",
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
