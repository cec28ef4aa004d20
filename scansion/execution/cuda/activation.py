"""Mask and activation of ReLU and JumpReLU, forward and backward, each in one pass over [tokens, features].

A program works on some features and a group of tokens: those of one position where the mask has a row for each position. It
adds up in float32 over its tokens, and torch adds the groups. So nothing is atomic, and the same inputs give the same bytes.
The functions take the arguments of the same names in :mod:`scansion.execution.activation` and
:mod:`scansion.execution.operations`.
"""

from __future__ import annotations

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Float32, Int
from torch import Tensor

from scansion.execution.activation import Activated, Activation, ActivationGradients
from scansion.execution.cuda.launch import ceil_div, launch

# Features and tokens that a program holds at a time: a warp for each token, 8 features (16 bytes of bfloat16) per thread.
FEATURES = 256
TOKENS = 8
# Tokens of a group, where the mask does not say it.
GROUP = 128
# Entries and positions that a program of sums per position holds at a time.
ENTRIES = 16
POSITIONS = 128


def apply_mask(pre_acts: Float[Tensor, "t w"], activation: Activation) -> None:
    """Multiply or block pre-activations in place."""
    grid, arguments, constants = _shared_by_kernels(pre_acts, activation)
    launch(_mask, grid, pre_acts, *arguments, **constants)


def activate(pre_acts: Float[Tensor, "t w"], activation: Activation) -> Activated:
    """Activations, in place unless the backward pass needs the pre-activations too."""
    grid, arguments, constants = _shared_by_kernels(pre_acts, activation)
    both = activation.straight_through or activation.threshold is not None
    acts = torch.empty_like(pre_acts) if both else pre_acts
    totals = pre_acts.new_empty(grid[1], pre_acts.shape[1], dtype=torch.float32)
    counts = torch.empty_like(totals, dtype=torch.int32)
    changed = both and not activation.straight_through and (activation.multiplies or activation.closed is not None)
    launch(_forward, grid, pre_acts, acts, totals, counts, *arguments, WRITES_MASKED=changed, **constants)
    return Activated(acts, pre_acts, totals.sum(), counts.sum(dim=0))


def activate_backward(
    to_acts: Float[Tensor, "t w"],
    acts: Float[Tensor, "t w"],
    kept: Float[Tensor, "t w"],
    activation: Activation,
    to_count: Float[Tensor, ""],
) -> ActivationGradients:
    """Gradients of what :func:`activate` read; ``acts`` are not."""
    grid, arguments, constants = _shared_by_kernels(to_acts, activation)
    of_bias, of_threshold, of_weights = (
        to_acts.new_empty(grid[1], to_acts.shape[1], dtype=torch.float32) if wanted else to_acts
        for wanted in (True, activation.threshold is not None, activation.weights is not None)
    )
    launch(
        _backward, grid, to_acts, kept, of_bias, of_threshold, of_weights, to_count.float(), *arguments,
        activation.bandwidth, **constants,
    )  # fmt: skip
    to_threshold = None if activation.threshold is None else of_threshold.sum(dim=0)
    return ActivationGradients(
        to_acts, of_bias.sum(dim=0), to_threshold, None if activation.weights is None else of_weights
    )


def _shared_by_kernels(
    x: Tensor, activation: Activation
) -> tuple[tuple[int, int], tuple[Tensor | int, ...], dict[str, Any]]:
    """The programs, the arguments about mask, threshold and sizes, and the constants that all kernels share."""
    n_tokens, width = x.shape
    closed, weights, threshold = activation.closed, activation.weights, activation.threshold
    group = GROUP if closed is None and weights is None else activation.per_position
    grid = ceil_div(width, FEATURES), ceil_div(n_tokens, group)
    arguments = (
        x if closed is None else closed.contiguous().view(torch.uint8),
        x if weights is None else weights.contiguous(),
        x if threshold is None else threshold.contiguous(),
        n_tokens,
        width,
        group,
    )
    constants = {
        "CLOSES": closed is not None,
        "MULTIPLIES": activation.multiplies,
        "STRAIGHT": activation.straight_through,
        "HAS_THRESHOLD": threshold is not None,
        "TOKENS": TOKENS,
        "FEATURES": FEATURES,
        "warps": TOKENS,
    }
    return grid, arguments, constants


def sum_per_position(
    values: Float[Tensor, "nnz"],
    entries: tuple[Int[Tensor, "nnz"], Int[Tensor, "nnz"], Int[Tensor, "d_sae_plus_1"]],
    per_position: int,
    n_positions: int,
) -> Float32[Tensor, "P d_sae"]:
    """The sum of the values of each feature at each position."""
    order, tokens, offsets = entries
    sums = values.new_empty(len(offsets) - 1, n_positions, dtype=torch.float32)
    programs = len(sums), ceil_div(n_positions, POSITIONS)
    sizes = {"ENTRIES": ENTRIES, "POSITIONS": POSITIONS}
    launch(_sum_positions, programs, values, order, tokens, offsets, sums, per_position, n_positions, **sizes)
    return sums.T


# Triton compiles the kernels; Python never runs them. Neither type checker understands them.
@triton.jit
@no_type_check
def _mask(
    pre_acts,
    closed,
    weights,
    threshold,
    n_tokens,
    width,
    group,
    CLOSES: tl.constexpr,
    MULTIPLIES: tl.constexpr,
    STRAIGHT: tl.constexpr,
    HAS_THRESHOLD: tl.constexpr,
    TOKENS: tl.constexpr,
    FEATURES: tl.constexpr,
):
    column, exists, blocked, weight, _ = _of_features(
        closed, weights, threshold, width, CLOSES, MULTIPLIES, False, FEATURES
    )
    for first in range(0, group, TOKENS):
        cell, inside = _cells(first, group, n_tokens, width, column, exists, TOKENS)
        pre = tl.load(pre_acts + cell, mask=inside, other=0.0).to(tl.float32)
        masked = tl.where(blocked[None, :], float("-inf"), pre * weight[None, :])
        tl.store(pre_acts + cell, masked.to(pre_acts.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def _forward(
    pre_acts,
    acts,
    totals,
    counts,
    closed,
    weights,
    threshold,
    n_tokens,
    width,
    group,
    WRITES_MASKED: tl.constexpr,
    CLOSES: tl.constexpr,
    MULTIPLIES: tl.constexpr,
    STRAIGHT: tl.constexpr,
    HAS_THRESHOLD: tl.constexpr,
    TOKENS: tl.constexpr,
    FEATURES: tl.constexpr,
):
    """Activations, and for each group of tokens the sum of each feature's and the number above 0."""
    column, exists, blocked, weight, least = _of_features(
        closed, weights, threshold, width, CLOSES, MULTIPLIES, HAS_THRESHOLD, FEATURES
    )
    total = tl.zeros([TOKENS, FEATURES], tl.float32)
    count = tl.zeros([TOKENS, FEATURES], tl.int32)
    for first in range(0, group, TOKENS):
        cell, inside = _cells(first, group, n_tokens, width, column, exists, TOKENS)
        pre = tl.load(pre_acts + cell, mask=inside, other=0.0)
        # Rounded, so that what is compared here is what the backward pass will read.
        masked = (pre.to(tl.float32) * weight[None, :]).to(pre_acts.dtype.element_ty).to(tl.float32)
        masked = tl.where(blocked[None, :], float("-inf"), masked)
        # A NaN is not below the threshold: it reaches the loss, and is seen.
        act = tl.where(masked <= least[None, :], 0.0, masked)
        if WRITES_MASKED:
            tl.store(pre_acts + cell, masked.to(pre_acts.dtype.element_ty), mask=inside)
        tl.store(acts + cell, act.to(acts.dtype.element_ty), mask=inside)
        total += act
        count += (act > 0.0).to(tl.int32)
    place = tl.program_id(1).to(tl.int64) * width + column
    tl.store(totals + place, tl.sum(total, axis=0), mask=exists)
    tl.store(counts + place, tl.sum(count, axis=0), mask=exists)


@triton.jit
@no_type_check
def _backward(
    to_acts,
    kept,
    of_bias,
    of_threshold,
    of_weights,
    to_count,
    closed,
    weights,
    threshold,
    n_tokens,
    width,
    group,
    bandwidth,
    CLOSES: tl.constexpr,
    MULTIPLIES: tl.constexpr,
    STRAIGHT: tl.constexpr,
    HAS_THRESHOLD: tl.constexpr,
    TOKENS: tl.constexpr,
    FEATURES: tl.constexpr,
):
    """The gradient of pre-activations in place of that of activations, and for each group of tokens each feature's sums."""
    column, exists, blocked, weight, least = _of_features(
        closed, weights, threshold, width, CLOSES, MULTIPLIES, HAS_THRESHOLD, FEATURES
    )
    counted = tl.load(to_count)
    bias = tl.zeros([TOKENS, FEATURES], tl.float32)
    level = tl.zeros([TOKENS, FEATURES], tl.float32)
    share = tl.zeros([TOKENS, FEATURES], tl.float32)
    for first in range(0, group, TOKENS):
        cell, inside = _cells(first, group, n_tokens, width, column, exists, TOKENS)
        pre = tl.load(kept + cell, mask=inside, other=0.0).to(tl.float32)
        to_act = tl.load(to_acts + cell, mask=inside, other=0.0).to(tl.float32)
        if STRAIGHT:
            share += tl.where(pre <= least[None, :], 0.0, pre) * to_act
            pre = tl.where(blocked[None, :], float("-inf"), pre)
        if HAS_THRESHOLD:
            near = inside & (tl.abs(pre - least[None, :]) < bandwidth / 2)
            level += tl.where(near, least[None, :] * to_act + counted, 0.0)
        to_pre = tl.where(pre <= least[None, :], 0.0, to_act)
        if MULTIPLIES:
            share += tl.where(pre <= least[None, :], 0.0, pre) * to_act
            to_pre *= weight[None, :]
        tl.store(to_acts + cell, to_pre.to(to_acts.dtype.element_ty), mask=inside)
        bias += to_pre
    place = tl.program_id(1).to(tl.int64) * width + column
    tl.store(of_bias + place, tl.sum(bias, axis=0), mask=exists)
    if HAS_THRESHOLD:
        tl.store(of_threshold + place, tl.sum(level, axis=0) / -bandwidth, mask=exists)
    if STRAIGHT:
        tl.store(of_weights + place, tl.sum(share, axis=0), mask=exists)
    if MULTIPLIES:
        # Of what is active, the pre-activation before the mask is that after it over its weight, which is not 0.
        divisor = tl.where(blocked, 1.0, weight)
        tl.store(of_weights + place, tl.sum(share, axis=0) / divisor, mask=exists)


@triton.jit
@no_type_check
def _of_features(
    closed,
    weights,
    threshold,
    width,
    CLOSES: tl.constexpr,
    MULTIPLIES: tl.constexpr,
    HAS_THRESHOLD: tl.constexpr,
    FEATURES: tl.constexpr,
):
    """A program's features, which of them exist, and for each: is it blocked, its weight, its threshold."""
    column = tl.program_id(0) * FEATURES + tl.arange(0, FEATURES)
    exists = column < width
    row = tl.program_id(1).to(tl.int64) * width
    blocked = column < 0
    weight = tl.full([FEATURES], 1.0, tl.float32)
    least = tl.zeros([FEATURES], tl.float32)
    if CLOSES:
        blocked = tl.load(closed + row + column, mask=exists, other=0) != 0
    if MULTIPLIES:
        weight = tl.load(weights + row + column, mask=exists, other=1.0).to(tl.float32)
        blocked = weight == 0.0
    if HAS_THRESHOLD:
        least = tl.load(threshold + column, mask=exists, other=0.0).to(tl.float32)
    return column, exists, blocked, weight, least


@triton.jit
@no_type_check
def _cells(first, group, n_tokens, width, column, exists, TOKENS: tl.constexpr):
    """Where some tokens of a program's group have their entries, and which of these exist."""
    of_group = first + tl.arange(0, TOKENS)
    token = tl.program_id(1).to(tl.int64) * group + of_group
    inside = ((of_group < group) & (token < n_tokens))[:, None] & exists[None, :]
    return token[:, None] * width + column[None, :], inside


@triton.jit
@no_type_check
def _sum_positions(
    values,
    order,
    tokens,
    offsets,
    sums,
    per_position,
    n_positions,
    ENTRIES: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    """A program for each feature and some positions."""
    feature = tl.program_id(0).to(tl.int64)
    position = tl.program_id(1) * POSITIONS + tl.arange(0, POSITIONS)
    start, stop = tl.load(offsets + feature), tl.load(offsets + feature + 1)
    total = tl.zeros([ENTRIES, POSITIONS], tl.float32)
    for first in range(start, stop, ENTRIES):
        place = first + tl.arange(0, ENTRIES)
        there = place < stop
        own = tl.load(tokens + place, mask=there, other=0) // per_position
        value = tl.load(values + tl.load(order + place, mask=there, other=0), mask=there, other=0.0).to(tl.float32)
        total += tl.where(own[:, None] == position[None, :], value[:, None], 0.0)
    tl.store(sums + feature * n_positions + position, tl.sum(total, axis=0), mask=position < n_positions)
