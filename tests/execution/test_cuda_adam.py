"""The Adam kernel steps as torch's Adam does, with the decoder's upkeep: on a GPU, else in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="Triton is built for Linux alone")
from scansion.execution import operations
from scansion.execution.cuda import adam

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BETAS = (0.9, 0.99)


@pytest.mark.parametrize("on_sphere", [False, True])
@pytest.mark.parametrize("d", [1, 5, 64])
def test_ten_steps_are_those_of_torch(d: int, on_sphere: bool) -> None:
    generator = torch.Generator().manual_seed(d)
    start = torch.randn(6, d, generator=generator, dtype=torch.float64)
    start /= start.norm(dim=1, keepdim=True)
    exact, weights = start.clone().requires_grad_(), start.float().to(DEVICE)
    exp_avg, exp_avg_sq, copy = torch.zeros_like(weights), torch.zeros_like(weights), weights.bfloat16()
    optimiser = torch.optim.Adam([exact], betas=BETAS)
    for step in range(1, 11):
        gradient = torch.randn(6, d, generator=generator, dtype=torch.float64)
        divisor = torch.tensor(1.0 + step % 3, device=DEVICE)
        lr = optimiser.param_groups[0]["lr"] = 0.1 / step
        handed = gradient.float().to(DEVICE)
        dots = adam.parallel_parts(weights, handed)[0] if on_sphere else None
        adam.adam_step(
            weights, handed, exp_avg, exp_avg_sq, divisor, step=step, lr=lr, betas=BETAS, parallel=dots, copy=copy
        )
        with torch.no_grad():
            if on_sphere:
                operations.remove_parallel(exact.detach(), gradient)
            exact.grad = gradient / divisor.double().cpu()
            optimiser.step()
            if on_sphere:
                operations.normalise(exact)
    torch.testing.assert_close(weights.double().cpu(), exact.detach(), rtol=1e-5, atol=1e-6)
    # To the nearest number on a GPU; Triton's interpreter cuts digits off.
    torch.testing.assert_close(copy.float(), weights, rtol=torch.finfo(copy.dtype).eps, atol=0)


def test_dots_and_squares_of_rows() -> None:
    weights, gradient = torch.randn(2, 7, 33, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    dots, squares = adam.parallel_parts(weights, gradient)
    torch.testing.assert_close(dots, (weights * gradient).sum(dim=1))
    torch.testing.assert_close(squares, gradient.square().sum(dim=1))


def test_a_row_of_zeros_stays() -> None:
    weights, zeros = torch.zeros(1, 4, device=DEVICE), [torch.zeros(1, 4, device=DEVICE) for _ in range(3)]
    dots = torch.zeros(1, device=DEVICE)
    adam.adam_step(weights, *zeros, torch.ones((), device=DEVICE), step=1, lr=0.1, betas=BETAS, parallel=dots)
    assert torch.equal(weights, torch.zeros_like(weights))
