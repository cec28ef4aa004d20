"""The C part of the sparse step on a CPU. pip compiles it when the package is installed, if there is a C compiler.

Functions take the arguments of :mod:`scansion.execution.operations`, on tensors that the C part :func:`supports`. Without the
C part, one line on stderr says so, and numpy and torch do the same work more slowly.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from scansion.progress import say

# Version of c/processor.c. A checkout may have a newer source than the library that was built from it.
VERSION = 4
# What c/processor.c looks for, one bit each.
INSTRUCTIONS = ("AVX2", "AVX-512", "AVX-512 VNNI", "AVX-512 BF16", "AVX-VNNI")
# The C part is built once for each kind of processor: fastest first, with the instructions that each needs.
BUILDS = {"avx512": "AVX-512", "avx2": "AVX2", "any": None}
# Rows per thread: with fewer, starting another thread takes longer than it saves.
ROWS = 64
# Arguments of each function: how many integers, then how many pointers.
_ARGUMENTS = {
    "round_rows": (3, 4),
    "round_to_int16": (3, 5),
    "multiply_int16": (6, 5),
    "top_k": (4, 6),
    "screened_top_k": (3, 5),
    "screened_above": (2, 6),
    "count_above": (3, 3),
    "take_above": (3, 7),
    "group": (2, 5),
    "fired": (2, 3),
    "decode": (3, 6),
    "learn": (3, 13),
    "remove_parallel": (3, 2),
    "normalise": (3, 1),
    "weighted_sum": (3, 3),
}
_ANSWERING = ("multiply_int16", "top_k", "screened_top_k", "screened_above")


def built() -> bool:
    """Whether the C part was built and can be loaded."""
    return _library() is not None


def instructions() -> frozenset[str]:
    """Those of :data:`INSTRUCTIONS` that this processor has; none without the C part."""
    library = _library()
    bits = 0 if library is None else library.scansion_instructions()
    return frozenset(name for i, name in enumerate(INSTRUCTIONS) if bits >> i & 1)


def supports(*tensors: Tensor) -> bool:
    """True if the tensors are float32, contiguous and on the CPU, and the C part was built."""
    fits = all(x.device.type == "cpu" and x.dtype == torch.float32 and x.is_contiguous() for x in tensors)
    return fits and built()


def top_k(
    x: Float32[Tensor, "t w"], k: int, names: Sequence[tuple[int, Int64[Tensor, "w"] | None]]
) -> tuple[Int64[Tensor, "nnz"], Float32[Tensor, "nnz"], Int64[Tensor, "t"]] | None:
    """The k (at most w) largest positive entries of each row, in the order of the columns; None if there is a NaN."""
    n_rows, width = x.shape
    places, values = x.new_empty(n_rows, k, dtype=torch.int64), x.new_empty(n_rows, k)
    counts = x.new_empty(n_rows, dtype=torch.int64)
    pointers = (x.data_ptr(), *_named(names), *(each.data_ptr() for each in (places, values, counts)))
    status = loaded().scansion_top_k(threads(n_rows), n_rows, width, k, *pointers)
    return kept(status, places, values, counts)


def above(
    x: Float32[Tensor, "t w"],
    floor: float,
    names: Sequence[tuple[int, Int64[Tensor, "w"] | None]],
    at_most: int | None = None,
) -> tuple[Int64[Tensor, "nnz"], Float32[Tensor, "nnz"], Int64[Tensor, "t"]] | int:
    """All entries above ``floor``; only their number if they are more than ``at_most``."""
    n_rows, width = x.shape
    counts, offsets = x.new_empty(n_rows, dtype=torch.int64), x.new_zeros(n_rows + 1, dtype=torch.int64)
    start = (threads(n_rows), n_rows, width, x.data_ptr(), ctypes.byref(ctypes.c_float(floor)))
    loaded().scansion_count_above(*start, counts.data_ptr())
    torch.cumsum(counts, 0, out=offsets[1:])
    total = int(offsets[-1])
    if at_most is not None and total > at_most:
        return total
    places, values = counts.new_empty(total), x.new_empty(total)
    pointers = (offsets.data_ptr(), *_named(names), places.data_ptr(), values.data_ptr())
    loaded().scansion_take_above(*start, *pointers)
    return places, values, counts


def group(
    features: Int64[Tensor, "nnz"], offsets: Int64[Tensor, "T_plus_1"], values: Float32[Tensor, "nnz"], d_sae: int
) -> tuple[Int64[Tensor, "nnz"], Int64[Tensor, "nnz"], Int64[Tensor, "d_sae_plus_1"]]:
    # All entries are grouped, whatever their values.
    features, offsets = features.contiguous(), offsets.contiguous()
    order, tokens, starts = torch.empty_like(features), torch.empty_like(features), features.new_empty(d_sae + 1)
    pointers = (each.data_ptr() for each in (features, offsets, starts, order, tokens))
    loaded().scansion_group(len(offsets) - 1, d_sae, *pointers)
    return order, tokens, starts


def decode(
    x: Float32[Tensor, "T d_in"],
    offsets: Int64[Tensor, "T_plus_1"],
    features: Int64[Tensor, "nnz"],
    values: Float32[Tensor, "nnz"],
    W_dec: Float32[Tensor, "d_sae d_in"],
) -> Float32[Tensor, "T d_in"]:
    residual = torch.empty_like(x)
    tensors = [each.contiguous() for each in (offsets, features, values, W_dec, x)]
    pointers = (each.data_ptr() for each in (*tensors, residual))
    loaded().scansion_decode(threads(len(x)), *x.shape, *pointers)
    return residual


@runtime_checkable
class Entries(Protocol):
    """The part of :class:`scansion.execution.sparse_acts.SparseActs`, which this file cannot import, that is read here."""

    @property
    def values(self) -> Float32[Tensor, "nnz"]: ...

    @property
    def by_feature(self) -> tuple[Int64[Tensor, "nnz"], Int64[Tensor, "nnz"], Int64[Tensor, "d_sae_plus_1"]]: ...


def sparse_backward(
    entries: Entries,
    to_acts: Float32[Tensor, "nnz"] | None,
    W_dec: Float32[Tensor, "d_sae d_in"],
    x: Float32[Tensor, "T d_in"],
    to_residual: Float32[Tensor, "T d_in"],
    factors: Float32[Tensor, "nnz"] | None = None,
) -> tuple[
    Float32[Tensor, "d_sae d_in"], Float32[Tensor, "d_sae d_in"], Float32[Tensor, "d_sae"], Float32[Tensor, "nnz"]
]:
    """Gradients of W_dec, of W_enc (a row per feature), of b_enc, and of the values of the active entries.

    Args:
        entries: the activations.
        to_acts: the gradient of their values, apart from what comes through the residual; None for zeros.
        W_dec: the decoder.
        x: the input of the encoder.
        to_residual: the gradient of ``x - acts @ W_dec``.
        factors: what each value was multiplied by after the encoder; None for 1.
    """
    order, tokens, starts = entries.by_feature
    values = entries.values.contiguous()
    to_acts = None if to_acts is None else to_acts.contiguous()
    to_W_dec, to_W_enc = torch.empty_like(W_dec), torch.empty_like(W_dec)
    to_b_enc, to_values = W_dec.new_empty(len(W_dec)), torch.empty_like(values)
    inputs = (starts, order, tokens, values, to_acts, factors, W_dec, x, to_residual)
    outputs = (to_W_dec, to_W_enc, to_b_enc, to_values)
    pointers = (None if each is None else each.data_ptr() for each in (*inputs, *outputs))
    loaded().scansion_learn(threads(len(W_dec)), *W_dec.shape, *pointers)
    return outputs


def fired(features: Int64[Tensor, "nnz"], values: Float32[Tensor, "nnz"], d_sae: int) -> Int64[Tensor, "d_sae"]:
    features, values, counts = features.contiguous(), values.contiguous(), features.new_empty(d_sae)
    pointers = (each.data_ptr() for each in (features, values, counts))
    loaded().scansion_fired(len(features), d_sae, *pointers)
    return counts


def remove_parallel(rows: Float32[Tensor, "n d"], gradient: Float32[Tensor, "n d"]) -> None:
    loaded().scansion_remove_parallel(threads(len(rows)), *rows.shape, rows.data_ptr(), gradient.data_ptr())


def normalise(rows: Float32[Tensor, "n d"]) -> None:
    loaded().scansion_normalise(threads(len(rows)), *rows.shape, rows.data_ptr())


def weighted_sum(weights: Float32[Tensor, "n"], rows: Float32[Tensor, "n d"]) -> Float32[Tensor, "d"]:
    weights, total = weights.contiguous(), rows.new_empty(rows.shape[1])
    pointers = (each.data_ptr() for each in (weights, rows, total))
    loaded().scansion_weighted_sum(threads(len(rows)), *rows.shape, *pointers)
    return total


def check_memory(status: int) -> int:
    """Return the status of a C function: 0, or 1 if there was a NaN. Raise if it ran out of memory."""
    if status > 1:
        raise MemoryError("not enough memory to select active entries; use smaller batches")
    return status


def kept(status: int, places: Tensor, values: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """The first ``counts`` of the k places of each row, as :func:`top_k` returns them; None if there was a NaN."""
    if check_memory(status) == 1:
        return None
    n_rows, k = places.shape
    if int(counts.sum()) == n_rows * k:
        return places.view(-1), values.view(-1), counts
    used = torch.arange(k) < counts[:, None]
    return places[used], values[used], counts


def _named(names: Sequence[tuple[int, Int64[Tensor, "w"] | None]]) -> tuple[ctypes.Array[Any], ctypes.Array[Any]]:
    """Column names as C arrays: the row (exclusive) up to which each holds, and its address."""
    ends = (ctypes.c_int64 * len(names))(*(end for end, _ in names))
    return ends, (ctypes.c_void_p * len(names))(*(None if each is None else each.data_ptr() for _, each in names))


def threads(n_rows: int) -> int:
    """Number of threads: as many as torch uses, but at least ROWS rows for each. No result depends on it."""
    return min(torch.get_num_threads(), max(1, n_rows // ROWS))


def loaded() -> ctypes.CDLL:
    """The C part; only to be called after :func:`supports` or :func:`built` returned True."""
    library = _library()
    assert library is not None, "ask supports() first"
    return library


@cache
def _library() -> ctypes.CDLL | None:
    """The C part. If it cannot be used: None, and a line on stderr that says why."""
    try:
        return load()
    except (OSError, AttributeError) as error:
        say(f"sparse steps on the CPU take longer without Scansion's C part: {error}")
        return None


def load(build: str | None = None) -> ctypes.CDLL:
    """One of the :data:`BUILDS` of the C part, by default the fastest for this processor; OSError if it cannot be used."""
    spec = find_spec("scansion.execution.cpu._native")
    if spec is None or spec.origin is None:
        raise OSError(
            "it was not built, because there was no C compiler; install one (such as gcc), then install Scansion again"
        )
    library = ctypes.CDLL(spec.origin)
    version = library.scansion_version()
    if version != VERSION:
        raise OSError(f"it is version {version} and should be {VERSION}; install Scansion again")
    library.scansion_instructions.restype = ctypes.c_int64
    bits = library.scansion_instructions()
    build = build or next(
        name for name, needed in BUILDS.items() if needed is None or bits >> INSTRUCTIONS.index(needed) & 1
    )
    for name, (numbers, pointers) in _ARGUMENTS.items():
        function = getattr(library, f"scansion_{name}_{build}")
        function.argtypes = [ctypes.c_int64] * numbers + [ctypes.c_void_p] * pointers
        function.restype = ctypes.c_int64 if name in _ANSWERING else None
        setattr(library, f"scansion_{name}", function)
    return library
