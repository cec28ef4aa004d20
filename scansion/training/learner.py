"""A learner: one SAE with its optimiser, dead features and random state, moved one step at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from scansion.activations import PositionedBatch
from scansion.sae import SAE
from scansion.training.config import TrainingConfig
from scansion.training.dead import DeadFeatures, resample

METRICS = ("loss", "mse", "sparsity", "auxiliary", "l0", "fve", "gradient_norm")
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class Learner:
    """Everything about one SAE that training changes; :meth:`state` and :meth:`restore` are exact inverses.

    Args:
        sae: on the device it is trained on; takes *scaled* activations.
        config: rates and schedules.
        n_steps: length of the run.
    """

    def __init__(self, sae: SAE, config: TrainingConfig, n_steps: int) -> None:
        self.sae = sae.train()
        self.config = config
        self.n_steps = n_steps
        self.step = 0
        self.tokens = 0
        self.generator = torch.Generator().manual_seed(config.seed)
        self.dead = DeadFeatures(sae, config.dead_after())
        self.optimiser = torch.optim.Adam(
            sae.parameters(), lr=config.lr, betas=(config.beta1, config.beta2), fused=True
        )
        self._tokens_at_last_revival = 0

    def advance(self, batch: PositionedBatch) -> Tensor:
        """Take one step on a scaled batch; returns this step's :data:`METRICS`, on the device, shape [7]."""
        sae, config = self.sae, self.config
        for group in self.optimiser.param_groups:
            group["lr"] = config.lr_at(self.step, self.n_steps)
        losses = sae.losses(batch.x, batch.positions[:, None], self.dead.mask)
        sparsity = config.sparsity_weight_at(self.step, self.n_steps) * losses.sparsity
        loss = losses.mse + sparsity + losses.auxiliary
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        sae.remove_parallel_gradient()
        gradient_norm = torch.nn.utils.clip_grad_norm_(sae.parameters(), config.clip_norm)
        self.optimiser.step()
        sae.normalise_decoder()

        allowed = sae.mask.allowed(batch.positions)
        self.dead.observe(losses.acts, allowed)
        self.step += 1
        self.tokens += batch.n_tokens
        if (
            sae.revival == "resample"
            and self.tokens - self._tokens_at_last_revival >= self.dead.after_tokens
            and config.may_revive_at(self.step, self.n_steps)
        ):
            resample(sae, self.optimiser, self.dead, batch.x, losses, allowed, self.generator)
            self._tokens_at_last_revival = self.tokens
        with torch.no_grad():
            flat = batch.x.flatten(0, 1)
            variance = (flat - flat.mean(dim=0)).square().sum(dim=1).mean()
            l0 = (losses.acts > 0).sum(dim=-1, dtype=torch.float32).mean()
            parts = (loss, losses.mse, sparsity, losses.auxiliary, l0, 1 - losses.mse / variance, gradient_norm)
            return torch.stack([part.detach() for part in parts])

    def state(self) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Everything needed to go on exactly: tensors by name, and counters."""
        tensors = {f"sae.{name}": tensor for name, tensor in self.sae.state_dict().items()}
        for name, parameter in self.sae.named_parameters():
            for moment, tensor in self.optimiser.state[parameter].items():
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
        """Go back to a :meth:`state`."""
        self.sae.load_state_dict(
            {name.removeprefix("sae."): tensor for name, tensor in tensors.items() if name.startswith("sae.")}
        )
        for name, parameter in self.sae.named_parameters():
            for moment in _MOMENTS:
                self.optimiser.state[parameter][moment] = tensors[f"adam.{moment}.{name}"].to(parameter.device)
        self.dead.tokens_since_fired.copy_(tensors["dead.tokens_since_fired"])
        self.generator.set_state(tensors["generator"])
        self.step, self.tokens = counters["step"], counters["tokens"]
        self._tokens_at_last_revival = counters["tokens_at_last_revival"]
