"""The C part of screening: products in 16 bits, and in float32 what they could not rule out; see ``screening.py``."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from jaxtyping import BFloat16, Float32, Int16, Int64
from torch import Tensor
from torch.nn.functional import pad

from scansion.execution.cpu import native

# Columns that the C part handles in one vector: per-column arrays are padded to a multiple of this.
LANES = 16


# Instructions for products in int16, slowest first, in the order of c/kernels.c; the first kernel needs none.
KERNELS = (None, "AVX2", "AVX-VNNI", "AVX-512 VNNI")


@dataclass(frozen=True, eq=False)
class Rounded:
    """Rows of a matrix in 16 bits per number, and bounds for what that loses.

    Attributes:
        rows: the rounded numbers; int16 rows of odd length end with a zero more.
        norms: of the rows before rounding.
        errors: norms of their rounding errors.
        scales: for int16, the power of two that each row's whole numbers are multiplied by.
    """

    rows: BFloat16[Tensor, "n d"] | Int16[Tensor, "n even"]
    norms: Float32[Tensor, "n"]
    errors: Float32[Tensor, "n"]
    scales: Float32[Tensor, "n"] | None = None


def round_rows(rows: Float32[Tensor, "n d"], dtype: torch.dtype) -> Rounded:
    """Rows rounded to bfloat16, or to int16 with a scale per row."""
    n, d = rows.shape
    norms, errors, start = rows.new_empty(n), rows.new_empty(n), (native.threads(n), n, d)
    if dtype == torch.bfloat16:
        rounded, scales = torch.empty_like(rows, dtype=dtype), None
        pointers = (each.data_ptr() for each in (rows, rounded, norms, errors))
        native.loaded().scansion_round_rows(*start, *pointers)
    else:
        rounded, scales = rows.new_empty(n, d + d % 2, dtype=dtype), rows.new_empty(n)
        pointers = (each.data_ptr() for each in (rows, rounded, scales, norms, errors))
        native.loaded().scansion_round_to_int16(*start, *pointers)
    return Rounded(rounded, norms, errors, scales)


def multiply(x: Rounded, W: Rounded, piece: slice, products: BFloat16[Tensor, "t w"]) -> None:
    """Write ``x @ W[piece].T``, rounded to bfloat16; int16 products are exact before that."""
    if x.scales is None or W.scales is None:
        torch.mm(x.rows, W.rows[piece].T, out=products)
        return
    (n_rows, width), W_rows, W_scales = products.shape, W.rows[piece], W.scales[piece]
    available = native.instructions()
    kernel = max(i for i, needed in enumerate(KERNELS) if needed is None or needed in available)
    sizes = (n_rows, width, x.rows.shape[1] // 2, products.stride(0), kernel)
    pointers = (each.data_ptr() for each in (x.rows, x.scales, W_rows, W_scales, products))
    native.check_memory(native.loaded().scansion_multiply_int16(native.threads(width), *sizes, *pointers))


class Screen(ctypes.Structure):
    """Arguments of a screened product ``x @ W.T + b``, which is given to within a bound: ``struct screen`` of c/screening.c."""

    _fields_ = [(name, ctypes.c_int64) for name in ("width", "d", "per_position")] + [
        (name, ctypes.c_void_p)
        for name in ("products", "x", "norms", "errors", "W", "b", "W_norms", "W_errors", "weights", "names")
    ]

    def __init__(
        self,
        products: BFloat16[Tensor, "t w"],
        x: Float32[Tensor, "t d"],
        norms: Float32[Tensor, "t"],
        errors: Float32[Tensor, "t"],
        W: Float32[Tensor, "_ d"],
        b: Float32[Tensor, "w"],
        W_norms: Float32[Tensor, "w"],
        W_errors: Float32[Tensor, "w"],
        names: Int64[Tensor, "w"] | None,
        weights: Float32[Tensor, "p w"] | None = None,
    ) -> None:
        """
        Args:
            products: ``x @ W.T`` in bfloat16; minus infinity where the mask closes a column to a row.
            x: the rows.
            norms, errors: of the rows; see :class:`Rounded`.
            W: one row per feature.
            b: one number per column.
            W_norms, W_errors: of the columns. Before it was rounded itself, an entry of ``products`` was off by at most
                error(x) norm(W) + (norm(x) + error(x)) error(W): the bound that makes screening exact.
            names: the features of the columns; None if column i is feature i.
            weights: finite numbers that the entries are multiplied by, a row for every t / p rows; where they are 0, the mask
                closes the column. None for 1.
        """
        filling = ((b, -torch.inf), (W_norms, 0.0), (W_errors, 0.0), (weights, 0.0))
        padded = [
            None if each is None else pad(each, (0, -products.shape[1] % LANES), value=value).contiguous()
            for each, value in filling
        ]
        # Kept alive for as long as this struct points to them.
        self.tensors = (products, x, norms, errors, W, *padded, names)
        per_position = 0 if weights is None else len(x) // len(weights)
        sizes = products.shape[1], x.shape[1], per_position
        super().__init__(*sizes, *(None if t is None else t.data_ptr() for t in self.tensors))
        self.n_rows = len(x)

    @property
    def n_entries(self) -> int:
        """Number of entries of the product."""
        return self.n_rows * self.width


def screened_top_k(
    screen: Screen, k: int
) -> tuple[tuple[Int64[Tensor, "nnz"], Float32[Tensor, "nnz"], Int64[Tensor, "t"]] | None, int]:
    """What :func:`native.top_k` returns, and the number of entries that had to be computed in float32 for it."""
    places = torch.empty(screen.n_rows, k, dtype=torch.int64)
    values, counts = torch.empty(screen.n_rows, k), torch.empty(screen.n_rows, dtype=torch.int64)
    n_full = torch.empty_like(counts)
    pointers = (each.data_ptr() for each in (places, values, counts, n_full))
    status = native.loaded().scansion_screened_top_k(
        native.threads(screen.n_rows), screen.n_rows, k, ctypes.byref(screen), *pointers
    )
    entries = native.kept(status, places, values, counts)
    return entries, 0 if entries is None else int(n_full.sum())


def screened_above(
    screen: Screen, floor: float, at_most: int
) -> tuple[Int64[Tensor, "nnz"], Float32[Tensor, "nnz"], Int64[Tensor, "t"]] | None:
    """What :func:`native.above` returns; None if more than ``at_most`` entries would have to be computed in float32, or if a
    number is NaN or too large for screening.
    """
    counts, offsets = (torch.zeros(screen.n_rows + extra, dtype=torch.int64) for extra in (0, 1))
    start = (native.threads(screen.n_rows), screen.n_rows, ctypes.byref(screen), ctypes.byref(ctypes.c_float(floor)))
    if native.check_memory(native.loaded().scansion_screened_above(*start, None, None, None, counts.data_ptr())) == 1:
        return None
    torch.cumsum(counts, 0, out=offsets[1:])
    total = int(offsets[-1])
    if total > at_most:
        return None
    places, values = counts.new_empty(total), torch.empty(total)
    pointers = (each.data_ptr() for each in (offsets, places, values, counts))
    if native.check_memory(native.loaded().scansion_screened_above(*start, *pointers)) == 1:
        return None
    kept = values > floor
    before = torch.cat([offsets.new_zeros(1), kept.cumsum(0)])
    return places[kept], values[kept], before[offsets].diff()
