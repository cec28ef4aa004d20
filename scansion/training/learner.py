"""A learner: one SAE with its optimiser, dead features and random state, trained one step at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from scansion.activations import PositionedBatch
from scansion.device import disable_malloc_trim
from scansion.execution.losses import training_losses
from scansion.execution.plan import Way
from scansion.sae import SAE
from scansion.sae.decoder import normalise_decoder, remove_parallel_gradient
from scansion.training.config import TrainingConfig
from scansion.training.dead import DeadFeatures, resample

METRICS = ("loss", "mse", "sparsity", "auxiliary", "l0", "fve", "gradient_norm")


class Learner:
    """Everything about one SAE that training changes. :meth:`restore` brings back exactly what :meth:`state` returned.

    Args:
        sae: already on the device it is trained on; takes *scaled* activations.
        config: rates and schedules.
        n_steps: length of the run.
        way: compute every step this way; None for the fastest.
    """

    def __init__(self, sae: SAE, config: TrainingConfig, n_steps: int, way: Way | None = None) -> None:
        if sae.W_dec.device.type == "cpu":
            disable_malloc_trim()
        self.sae = sae.train()
        self.config = config
        self.n_steps = n_steps
        self.way: Way | None = way
        self.step = 0
        self.tokens = 0
        self.generator = torch.Generator().manual_seed(config.seed)
        self.dead = DeadFeatures(sae, config.dead_after())
        mask = list(sae.mask.parameters())
        self._weights = [p for p in sae.parameters() if all(p is not other for other in mask)]
        self._row_major: dict[Tensor, Tensor] = {p: _to_row_major(p.detach()) for p in sae.parameters()}
        groups = [{"params": [self._row_major[weight] for weight in self._weights], "multiplier": 1.0}]
        if mask:
            groups.append(
                {"params": [self._row_major[weight] for weight in mask], "multiplier": sae.mask.lr_multiplier}
            )
        self.optimiser = torch.optim.Adam(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)
        self._tokens_at_last_revival = 0
        self.ways: set[str] = set()  # ways taken since the last line of metrics, which clears this

    def advance(self, batch: PositionedBatch) -> Tensor:
        """Take one step on a scaled batch; returns this step's :data:`METRICS`, on the device, shape [7]."""
        sae, config, mask = self.sae, self.config, self.sae.mask
        for group in self.optimiser.param_groups:
            group["lr"] = config.lr_at(self.step, self.n_steps) * group["multiplier"]
        mask.begin_step(self.step, self.n_steps)
        losses = training_losses(sae, batch, self.dead.mask, self.way)
        self.ways.add(losses.way)
        sparsity = config.sparsity_weight_at(self.step, self.n_steps) * losses.sparsity
        loss = losses.reconstruction + sparsity + losses.auxiliary + mask.regulariser()
        sae.zero_grad(set_to_none=True)
        loss.backward()
        if not mask.moves_at(self.step):
            mask.zero_grad(set_to_none=True)  # Adam skips a parameter without a gradient
        remove_parallel_gradient(sae)
        # Without the mask's gradients: they have another scale, and would change how much the weights are clipped.
        gradient_norm = torch.nn.utils.get_total_norm([p.grad for p in self._weights if p.grad is not None])
        self._step_clipped(gradient_norm)
        normalise_decoder(sae)

        self.dead.observe(losses.fired, mask.can_fire(batch.positions), batch.x.shape[1])
        if mask.wants_usage_at(self.step):
            with torch.no_grad():
                mask.observe(sae.lifted().encode(batch).mean(dim=1), batch.positions)
        order = mask.end_step(self.step)
        if order is not None:
            self._permute(order)
        self.step += 1
        self.tokens += batch.n_tokens
        if (
            sae.revival == "resample"
            and self.tokens - self._tokens_at_last_revival >= self.dead.after_tokens
            and config.may_revive_at(self.step, self.n_steps)
        ):
            trained = mask.gets_gradient(batch.positions)
            resample(sae, self.moments, self.dead, batch.x, losses, trained, self.generator)
            self._tokens_at_last_revival = self.tokens
        with torch.no_grad():
            l0 = losses.fired.sum() / batch.n_tokens
            mse = losses.mse
            parts = (loss, mse, sparsity, losses.auxiliary, l0, 1 - mse / batch.variance, gradient_norm)
            return torch.stack([part.detach() for part in parts])

    @torch.no_grad()
    def _step_clipped(self, gradient_norm: Tensor) -> None:
        """Let the optimiser step. If the weights' gradient is longer than ``clip_norm``, all gradients are scaled down."""
        excess = (gradient_norm / self.config.clip_norm).clamp_min(1.0)
        # Fused Adam divides every gradient by this as it reads it; clipping before would read and write them once more.
        self.optimiser.grad_scale = excess  # pyright: ignore[reportAttributeAccessIssue] - read by its step()
        for parameter in self.sae.mask.parameters():
            if parameter.grad is not None:
                parameter.grad *= excess
        for parameter, row_major in self._row_major.items():
            row_major.grad = None if parameter.grad is None else _to_row_major(parameter.grad)
        self.optimiser.step()

    def moments(self, parameter: Tensor) -> dict[str, Tensor]:
        """Adam's moments of a parameter, as views in its shape, to be changed in place; empty before its first step."""
        row_major = self._row_major[parameter]
        state = self.optimiser.state[row_major]
        transposed = row_major.shape != parameter.shape or row_major.stride() != parameter.stride()
        return {
            name: state[name].T if transposed else state[name] for name in ("exp_avg", "exp_avg_sq") if name in state
        }

    @torch.no_grad()
    def _permute(self, order: Tensor) -> None:
        """Put features in a new order, with their moments and their counts of tokens since they fired."""
        self.sae.permute_features(order)
        order = order.to(self.dead.tokens_since_fired.device)
        for parameter, axis in self.sae.feature_axes():
            for moment in self.moments(parameter).values():
                moment.copy_(moment.index_select(axis, order))
        self.dead.tokens_since_fired = self.dead.tokens_since_fired[order]

    def state(self) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Everything needed to resume exactly: tensors by name, and counters."""
        tensors = {f"sae.{name}": tensor for name, tensor in self.sae.state_dict().items()}
        for name, parameter in self.sae.named_parameters():
            state = self.optimiser.state[self._row_major[parameter]]
            for moment, tensor in ({"step": state["step"], **self.moments(parameter)} if state else {}).items():
                tensors[f"adam.{moment}.{name}"] = tensor
        tensors["dead.tokens_since_fired"] = self.dead.tokens_since_fired
        tensors["generator"] = self.generator.get_state()
        counters = {
            "step": self.step,
            "tokens": self.tokens,
            "tokens_at_last_revival": self._tokens_at_last_revival,
        }
        return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, counters

    def restore(self, tensors: dict[str, Tensor], counters: dict[str, int]) -> None:
        """Set everything to what :meth:`state` returned."""
        self.sae.load_state_dict(
            {name.removeprefix("sae."): tensor for name, tensor in tensors.items() if name.startswith("sae.")}
        )
        for name, parameter in self.sae.named_parameters():
            if f"adam.step.{name}" not in tensors:  # a mask that has not moved yet has none
                continue
            row_major = self._row_major[parameter]
            step = tensors[f"adam.step.{name}"].to(row_major.device)
            self.optimiser.state[row_major] = {
                "step": step, "exp_avg": torch.empty_like(row_major), "exp_avg_sq": torch.empty_like(row_major)
            }  # fmt: skip
            for moment, tensor in self.moments(parameter).items():
                tensor.copy_(tensors[f"adam.{moment}.{name}"])
        self.dead.tokens_since_fired.copy_(tensors["dead.tokens_since_fired"])
        self.generator.set_state(tensors["generator"])
        self.step, self.tokens = counters["step"], counters["tokens"]
        self._tokens_at_last_revival = counters["tokens_at_last_revival"]


def _to_row_major(tensor: Tensor) -> Tensor:
    """The matrix or its transpose, whichever is contiguous: fused Adam copies a matrix that is not, and W_enc is stored by
    columns."""
    return tensor if tensor.is_contiguous() else tensor.T
