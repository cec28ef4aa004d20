"""Operations of :mod:`scansion.execution.operations` done by Triton kernels, under the same names and signatures.

Nothing here waits for the device, and the same inputs give the same bytes.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scansion.execution.activation import Activation
from scansion.execution.cuda import grouping, rows
from scansion.execution.cuda.activation import activate, activate_backward, apply_mask, sum_per_position
from scansion.execution.cuda.adam import adam_step, parallel_parts
from scansion.execution.cuda.batch_top_k import largest_of_all
from scansion.execution.cuda.rows import dots_at_entries, sum_of_rows, sum_per_feature
from scansion.execution.cuda.top_k import largest_per_row, supports
from scansion.execution.entries import Names, RowEntries, tokens_of

__all__ = [
    "activate",
    "activate_backward",
    "adam_step",
    "apply_mask",
    "dots_at_entries",
    "group",
    "largest_of_all",
    "parallel_parts",
    "sum_of_rows",
    "sum_per_feature",
    "sum_per_position",
    "top_k",
    "try_out",
]


def top_k(x: Float[Tensor, "t w"], k: int, names: Names) -> RowEntries | None:
    """As :func:`scansion.execution.operations.top_k`; None if the rows are too narrow for so many."""
    if not supports(x.shape[1], k):
        return None
    columns, values = largest_per_row(x if x.stride(1) == 1 else x.contiguous(), k)
    counts = torch.full((len(x),), k, dtype=torch.int64, device=x.device)
    start, named = 0, []
    for end, features in names:
        named.append(columns[start:end] if features is None else features[columns[start:end]])
        start = end
    return torch.cat(named).flatten(), values.flatten().float(), counts


def group(
    features: Int[Tensor, "nnz"], offsets: Int[Tensor, "T_plus_1"], values: Float[Tensor, "nnz"], d_sae: int
) -> tuple[Int[Tensor, "nnz"], Int[Tensor, "nnz"], Int[Tensor, "d_sae_plus_1"]]:
    """As :func:`scansion.execution.operations.group`, without the entries of value 0."""
    tokens = tokens_of(offsets, len(features))
    return grouping.group(features, tokens, values, len(offsets) - 1, d_sae)


def try_out(device: torch.device) -> None:
    """Raise unless the kernels run on this device and are right about whole numbers, whose sums have one value."""
    nnz = 2 * rows.PIECE + 3
    entry = torch.arange(nnz, device=device)
    names, segments, weights = entry % 3, (entry >= 3).long(), (entry % 5).float()
    table, offsets = torch.arange(6.0, device=device).view(3, 2), torch.tensor([0, 3, nnz], device=device)
    expected = torch.zeros(2, 2, device=device).index_add_(0, segments, table[names] * weights[:, None])
    sums = sum_of_rows(
        names, table, offsets, weights
    )  # of a short segment, and of one that is put together from pieces
    dots = dots_at_entries(table, sums, offsets, names, segments)
    right = [torch.equal(sums, expected), torch.equal(dots, (table[names] * expected[segments]).sum(dim=1))]
    order, tokens, places = group(entry % 7, torch.arange(nnz + 1, device=device), weights + 1, 7)
    right.append(torch.equal(order, (entry % 7).sort(stable=True).indices))
    totals = torch.zeros(7, device=device).index_add_(0, entry % 7, weights)
    right.append(torch.equal(sum_per_feature(weights, order, places), totals))
    for dtype in (torch.float32, torch.bfloat16):
        shuffled = (torch.arange(128, device=device) * 7 % 128).to(dtype).view(2, 64)
        columns, values, _ = top_k(shuffled, 4, [(2, None)]) or (entry, entry, entry)
        right.append(torch.equal(values.view(2, 4).sort().values, shuffled.topk(4).values.sort().values.float()))
        right.append(torch.equal(shuffled.gather(1, columns.view(2, 4)).float(), values.view(2, 4)))
        found = largest_of_all([(shuffled, [(2, None)])], 9, shuffled.new_zeros((), dtype=torch.float32))
        largest = shuffled.flatten().topk(9).values.sort().values.float()
        right.append(torch.equal(found[1][:9].sort().values, largest))
    right += _activates_right(device)
    positions = sum_per_position(weights, (order, tokens, places), 4, nnz // 4 + 1)
    right.append(torch.equal(positions.sum(dim=0), totals))
    if not all(right):
        raise ArithmeticError("its results are wrong on this device")


def _activates_right(device: torch.device) -> list[bool]:
    """Whether mask, activation and their gradients are exact for whole numbers: with weights, and with thresholds."""
    pre_acts, ones = torch.arange(-4.0, 8.0, device=device).view(4, 3), torch.ones(4, 3, device=device)
    weights = torch.tensor([[0.0, 1, 2], [2, 1, 1]], device=device)
    of_tokens = weights.repeat_interleave(2, dim=0)
    gate = Activation(2, weights=weights)
    out = activate(pre_acts.clone(), gate)
    active = pre_acts * of_tokens > 0
    found = activate_backward(ones.clone(), out.acts, out.kept, gate, ones[0, 0])
    right = [torch.equal(out.acts, (pre_acts * of_tokens).relu()), torch.equal(out.fired, active.sum(dim=0))]
    right.append(torch.equal(found.to_pre_acts, active * of_tokens))
    right.append(found.to_weights is not None and torch.equal(found.to_weights, _halves(pre_acts * active)))
    above = Activation(2, threshold=2 * ones[0], bandwidth=4.0)
    out = activate(pre_acts.clone(), above)
    found = activate_backward(ones.clone(), out.acts, out.kept, above, ones[0, 0])
    near = (pre_acts - 2).abs() < 2
    right += [
        torch.equal(out.acts, pre_acts * (pre_acts > 2)),
        torch.equal(found.sums, (pre_acts > 2).sum(dim=0).float()),
    ]
    right.append(found.to_threshold is not None and torch.equal(found.to_threshold, near.sum(dim=0) * 3 / -4))
    return right


def _halves(x: Tensor) -> Tensor:
    """The sum of the first half of the rows, and that of the second."""
    return x.unflatten(0, (2, -1)).sum(dim=1)
