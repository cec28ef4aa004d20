"""One Adam step of a weight matrix in one pass over it: clipping, Adam, decoder norms and the bfloat16 copy.

Written with torch, the same is seven passes over matrices of d_sae rows, and these are most of what a step moves.
"""

from __future__ import annotations

import math
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import BFloat16, Float32
from torch import Tensor

from scansion.execution.cuda.launch import launch, power_of_two, warps_per_row

EPSILON = 1e-8


def parallel_parts(
    weights: Float32[Tensor, "n d"], gradient: Float32[Tensor, "n d"]
) -> tuple[Float32[Tensor, "n"], Float32[Tensor, "n"]]:
    """For each row the dot product of gradient and weights, and the squared norm of the gradient."""
    n, d = weights.shape
    dots, squares = torch.empty(2, n, device=weights.device)
    launch(_dots_of_rows, (n,), weights, gradient, dots, squares, d, BLOCK=power_of_two(d), warps=warps_per_row(d))
    return dots, squares


def adam_step(
    weights: Float32[Tensor, "n d"],
    gradient: Float32[Tensor, "n d"],
    exp_avg: Float32[Tensor, "n d"],
    exp_avg_sq: Float32[Tensor, "n d"],
    divisor: Float32[Tensor, ""],
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    parallel: Float32[Tensor, "n"] | None = None,
    copy: BFloat16[Tensor, "n d"] | None = None,
) -> None:
    """Change weights and moments in place, as torch's Adam does; all tensors are contiguous.

    Args:
        weights: the matrix; its rows have unit norm, and are given it again, if ``parallel`` is not None.
        gradient: of the weights; read only.
        exp_avg, exp_avg_sq: Adam's moments.
        divisor: of the gradient, so that it is clipped.
        step: number of this step, from 1.
        lr: learning rate.
        betas: of the moments.
        parallel: dot product of each row's gradient and weights; that part of the gradient is left out.
        copy: also given the new weights, rounded.
    """
    n, d = weights.shape
    beta1, beta2 = betas
    launch(
        _adam,
        (n,),
        weights,
        gradient,
        exp_avg,
        exp_avg_sq,
        weights if parallel is None else parallel,
        weights if copy is None else copy,
        divisor,
        d,
        lr / (1 - beta1**step),
        1 / math.sqrt(1 - beta2**step),
        beta1,
        beta2,
        EPSILON,
        ON_SPHERE=parallel is not None,
        COPIES=copy is not None,
        BLOCK=power_of_two(d),
        warps=warps_per_row(d),
    )


# Triton compiles the kernels; Python never runs them. Neither type checker understands them.
@triton.jit
@no_type_check
def _dots_of_rows(weights, gradient, dots, squares, d, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < d
    w = tl.load(weights + row * d + column, mask=inside, other=0.0)
    g = tl.load(gradient + row * d + column, mask=inside, other=0.0)
    tl.store(dots + row, tl.sum(w * g, axis=0))
    tl.store(squares + row, tl.sum(g * g, axis=0))


@triton.jit(do_not_specialize=["lr", "scale", "beta1", "beta2", "epsilon"])
@no_type_check
def _adam(
    weights,
    gradient,
    exp_avg,
    exp_avg_sq,
    parallel,
    copy,
    divisor,
    d,
    lr,
    scale,
    beta1,
    beta2,
    epsilon,
    ON_SPHERE: tl.constexpr,
    COPIES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program for each row. lr and scale hold Adam's corrections for the first steps."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < d
    cell = row * d + column
    w = tl.load(weights + cell, mask=inside, other=0.0)
    g = tl.load(gradient + cell, mask=inside, other=0.0)
    if ON_SPHERE:
        g -= tl.load(parallel + row) * w
    g /= tl.load(divisor)
    m = tl.load(exp_avg + cell, mask=inside, other=0.0)
    v = tl.load(exp_avg_sq + cell, mask=inside, other=0.0)
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    w -= lr * m / (tl.sqrt(v) * scale + epsilon)
    if ON_SPHERE:
        norm = tl.sqrt(tl.sum(tl.where(inside, w * w, 0.0), axis=0))
        w /= tl.where(norm > 0, norm, 1.0)
    tl.store(weights + cell, w, mask=inside)
    tl.store(exp_avg + cell, m, mask=inside)
    tl.store(exp_avg_sq + cell, v, mask=inside)
    if COPIES:
        tl.store(copy + cell, w.to(copy.dtype.element_ty), mask=inside)
