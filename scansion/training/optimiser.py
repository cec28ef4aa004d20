"""Adam with clipping and the decoder's upkeep; on a GPU with Triton, one pass over each weight matrix does all of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

from scansion.execution import backends
from scansion.execution.precision import copy_of, keep_copy
from scansion.sae import SAE
from scansion.sae.decoder import normalise_decoder, remove_parallel_gradient
from scansion.training.config import TrainingConfig

# Of a logarithm: a step of Adam then changes the parameter itself by at most a tenth, so that it does not overshoot.
LARGEST_RATE = 0.1


class Optimiser:
    """Steps an SAE's parameters, its mask's among them. Keeps decoder rows on the unit sphere.

    Adam's state is torch's, whoever computes the step, so that a run may resume on another device.

    Args:
        sae: already on the device it is trained on.
        config: Adam's rates, and the clipping.
        n_steps: length of the run, on which the rates of :meth:`~scansion.sae.SAE.travels` depend.
    """

    def __init__(self, sae: SAE, config: TrainingConfig, n_steps: int) -> None:
        self.sae = sae
        self.config = config
        mask = list(sae.mask.parameters())
        self._weights = [p for p in sae.parameters() if all(p is not other for other in mask)]
        self._row_major: dict[Tensor, Tensor] = {p: _to_row_major(p.detach()) for p in sae.parameters()}
        multipliers: dict[Tensor, float] = dict.fromkeys(self._weights, 1.0)
        multipliers |= dict.fromkeys(mask, sae.mask.lr_multiplier if mask else 1.0)
        for parameter, travel in sae.travels():
            # Adam moves a parameter by at most its rate per step.
            multipliers[parameter] = max(1.0, min(LARGEST_RATE, travel / max(1, n_steps)) / config.lr)
        self._groups = [
            ([parameter for parameter in multipliers if multipliers[parameter] == multiplier], multiplier)
            for multiplier in dict.fromkeys(multipliers.values())
        ]
        self._state: dict[Tensor, dict[str, Tensor]] = {}

    @torch.no_grad()
    def step(self, number: int, lr: float) -> Tensor:
        """Take one step along the parameters' gradients.

        Args:
            number: of this step, from 1; the SAE's own matrices have a gradient at each.
            lr: learning rate of the SAE's own parameters.

        Returns:
            The norm of their gradient before clipping, without the part along the decoder's rows.
        """
        kernels = backends.kernels_for(self.sae.W_dec.device, self.sae.W_dec.dtype)
        gradients = self.sae.W_enc.grad, self.sae.W_dec.grad
        if kernels is None or gradients[0] is None or gradients[1] is None:
            return self._step_by_torch(lr)
        to_W_enc, to_W_dec = (_to_row_major(gradient).contiguous() for gradient in (gradients[0], gradients[1]))
        return self._step_by_kernels(kernels, to_W_enc, to_W_dec, number, lr)

    def _step_by_torch(self, lr: float) -> Tensor:
        remove_parallel_gradient(self.sae)
        # Without the mask's gradients: they have another scale, and would change how much the weights are clipped.
        norm = torch.nn.utils.get_total_norm([p.grad for p in self._weights if p.grad is not None])
        self._step_divided(self._excess(norm), lr)
        normalise_decoder(self.sae)
        return norm

    def _step_by_kernels(self, kernels: Any, to_W_enc: Tensor, to_W_dec: Tensor, number: int, lr: float) -> Tensor:
        W_enc, W_dec = self.sae.W_enc, self.sae.W_dec
        dots, squares = kernels.parallel_parts(W_dec.detach(), to_W_dec)
        others = [p.grad for p in self._weights if p.grad is not None and p is not W_dec]
        # Rows have unit norm, so what is left of one without its part along the weights is its square less that of the part.
        norm = ((squares - dots.square()).sum().clamp_min(0) + torch.nn.utils.get_total_norm(others).square()).sqrt()
        excess = self._excess(norm)
        for weight, gradient, parallel in ((W_enc, to_W_enc, None), (W_dec, to_W_dec, dots)):
            rows, copy = self._row_major[weight], copy_of(weight)
            state = self._state_of(rows)
            state["step"] += 1
            kernels.adam_step(
                rows, gradient, state["exp_avg"], state["exp_avg_sq"], excess, step=number, lr=lr,
                betas=(self.config.beta1, self.config.beta2), parallel=parallel,
                copy=None if copy is None else _to_row_major(copy),
            )  # fmt: skip
            if copy is not None:
                keep_copy(weight, copy)
            weight.grad = None
        self._step_divided(excess, lr)
        return norm

    def _excess(self, norm: Tensor) -> Tensor:
        """How many times longer than ``clip_norm`` the gradient is, or 1."""
        return (norm / self.config.clip_norm).clamp_min(1.0)

    def _step_divided(self, excess: Tensor, lr: float) -> None:
        """Let torch step the parameters that have a gradient, divided by ``excess``."""
        for parameter in self.sae.mask.parameters():
            if parameter.grad is not None:
                parameter.grad *= excess
        for parameters, multiplier in self._groups:
            moved = [piece for each in parameters if each.grad is not None for piece in self._pieces(each, each.grad)]
            if not moved:
                continue
            states = [state for _, _, state in moved]
            # The function, because the class imports torch's compiler, which takes a second. Fused, it divides gradients by
            # grad_scale as it reads them; clipping before would read and write them once more.
            adam(
                [row_major for row_major, _, _ in moved], [gradient for _, gradient, _ in moved],
                [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states], [],
                [state["step"] for state in states], fused=True, grad_scale=excess, amsgrad=False,
                beta1=self.config.beta1, beta2=self.config.beta2, lr=lr * multiplier, weight_decay=0.0, eps=1e-8,
                maximize=False,
            )  # fmt: skip

    def _pieces(self, parameter: Tensor, gradient: Tensor) -> list[tuple[Tensor, Tensor, dict[str, Tensor]]]:
        """What Adam steps for a parameter, by rows, with its gradient and its state: here the whole of it."""
        row_major = self._row_major[parameter]
        return [(row_major, _to_row_major(gradient), self._state_of(row_major))]

    def _state_of(self, row_major: Tensor) -> dict[str, Tensor]:
        """Adam's state of a parameter; zeros before its first step."""
        if row_major not in self._state:
            self._state[row_major] = {
                "step": torch.zeros((), device=row_major.device),
                "exp_avg": torch.zeros_like(row_major),
                "exp_avg_sq": torch.zeros_like(row_major),
            }
        return self._state[row_major]

    def moments(self, parameter: Tensor) -> dict[str, Tensor]:
        """Adam's moments of a parameter, as views in its shape, to be changed in place; empty before its first step."""
        row_major = self._row_major[parameter]
        state = self._state.get(row_major, {})
        transposed = row_major.shape != parameter.shape or row_major.stride() != parameter.stride()
        return {
            name: state[name].T if transposed else state[name] for name in ("exp_avg", "exp_avg_sq") if name in state
        }

    def state(self) -> dict[str, Tensor]:
        """Adam's tensors by name; a parameter that has never had a gradient has none."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.sae.named_parameters():
            state = self._state.get(self._row_major[parameter])
            for moment, tensor in ({"step": state["step"], **self.moments(parameter)} if state else {}).items():
                tensors[f"adam.{moment}.{name}"] = tensor
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Set everything to what :meth:`state` returned; other names are ignored."""
        for name, parameter in self.sae.named_parameters():
            if f"adam.step.{name}" not in tensors:
                continue
            row_major = self._row_major[parameter]
            step = tensors[f"adam.step.{name}"].to(row_major.device)
            self._state[row_major] = {
                "step": step, "exp_avg": torch.empty_like(row_major), "exp_avg_sq": torch.empty_like(row_major)
            }  # fmt: skip
            for moment, tensor in self.moments(parameter).items():
                tensor.copy_(tensors[f"adam.{moment}.{name}"])


def _to_row_major(tensor: Tensor) -> Tensor:
    """The matrix or its transpose, whichever is contiguous: fused Adam copies a matrix that is not, and W_enc is stored by
    columns."""
    return tensor if tensor.is_contiguous() else tensor.T
