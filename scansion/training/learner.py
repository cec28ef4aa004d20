"""A learner: one SAE with its optimiser, dead features and random state, trained one step at a time."""

from __future__ import annotations

import psutil
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from scansion.activations import PositionedBatch
from scansion.device import disable_malloc_trim
from scansion.errors import ConfigError
from scansion.execution.losses import training_losses
from scansion.execution.plan import Way
from scansion.execution.precision import Precision, autocast, products_in, resolve_precision
from scansion.files import human_bytes
from scansion.sae import SAE, Losses, SAEConfig, window_of
from scansion.training.config import TrainingConfig
from scansion.training.dead import DeadFeatures, resample
from scansion.training.optimiser import Optimiser

METRICS = ("loss", "mse", "sparsity", "auxiliary", "l0", "fve", "gradient_norm")


def require_memory(config: SAEConfig, d_in: int, n_positions: int) -> None:
    """Raise unless this machine could hold a training run: both matrices, gradients, Adam's two moments, and the mask.

    Raises:
        ConfigError: it could not.
    """
    needed = 4 * config.d_sae * (4 * 2 * window_of(config) * d_in + n_positions)
    memory = psutil.virtual_memory()
    if needed > memory.total:
        raise ConfigError(
            f"training {config.d_sae:,} features takes {human_bytes(needed)}; this machine has "
            f"{human_bytes(memory.total)} ({human_bytes(memory.available)} free) of memory; lower d_sae"
        )


class Learner:
    """Everything about one SAE that training changes. :meth:`restore` brings back exactly what :meth:`state` returned.

    Args:
        sae: already on the device it is trained on; takes *scaled* activations.
        config: rates and schedules.
        n_steps: length of the run.
        way: compute every step this way; None for the fastest.
    """

    def __init__(self, sae: SAE, config: TrainingConfig, n_steps: int, way: Way | None = None) -> None:
        self.on_cpu = sae.W_dec.device.type == "cpu"
        if self.on_cpu:
            disable_malloc_trim()
        self.sae = sae.train()
        self.config = config
        self.n_steps = n_steps
        self.way: Way | None = way
        self.precision: Precision = resolve_precision(config.precision, sae.W_dec.device)
        self.step = 0
        self.tokens = 0
        self.generator = torch.Generator().manual_seed(config.seed)
        self.dead = DeadFeatures(sae, config.dead_after())
        self.optimiser = Optimiser(sae, config, n_steps)
        self._tokens_at_last_revival = 0
        self.ways: set[str] = set()  # ways taken since the last line of metrics, which clears this

    def advance(self, batch: PositionedBatch) -> Tensor:
        """Take one step on a scaled batch; returns this step's :data:`METRICS`, on the device, shape [7]."""
        sae, config, mask = self.sae, self.config, self.sae.mask
        batch = sae.read_batch(batch)
        mask.begin_step(self.step, self.n_steps)
        with products_in(self.precision):
            with autocast(self.precision, batch.x.device):
                losses = self._losses(batch)
            self.ways.add(losses.way)
            sparsity = config.sparsity_weight_at(self.step, self.n_steps) * losses.sparsity
            loss = self._objective(batch, losses, sparsity)
            sae.zero_grad(set_to_none=True)
            loss.backward()
        if not mask.moves_at(self.step):
            mask.zero_grad(set_to_none=True)  # Adam skips a parameter without a gradient
        gradient_norm = self.optimiser.step(self.step + 1, config.lr_at(self.step, self.n_steps))

        positions = self._positions(batch)
        self.dead.observe(self._fired(losses), mask.can_fire(positions), batch.x.shape[1])
        if mask.wants_usage_at(self.step):
            with torch.no_grad():
                mask.observe(sae.lifted().encode(batch).mean(dim=1), batch.positions)
        order = mask.end_step(self.step)
        if order is not None:
            self._permute(order)
        self.step += 1
        self.tokens += len(positions) * batch.x.shape[1]
        if (
            sae.revival == "resample"
            and self.tokens - self._tokens_at_last_revival >= self.dead.after_tokens
            and config.may_revive_at(self.step, self.n_steps)
        ):
            self._revive(batch, losses, mask.gets_gradient(positions))
            self._tokens_at_last_revival = self.tokens
        with torch.no_grad():
            return torch.stack([part.detach() for part in self._metrics(batch, losses, loss, sparsity, gradient_norm)])

    # What follows is where a rank that trains a part of an SAE differs (scansion.distributed).

    def _losses(self, batch: PositionedBatch) -> Losses:
        """The losses of a forward pass."""
        return training_losses(self.sae, batch, self.dead.mask, self.way)

    def _objective(self, batch: PositionedBatch, losses: Losses, sparsity: Tensor) -> Tensor:
        """The loss whose gradient is taken."""
        return losses.reconstruction + sparsity + losses.auxiliary + self.sae.mask.regulariser()

    def _positions(self, batch: PositionedBatch) -> Int[Tensor, "P"]:
        """The positions of this step's tokens."""
        return batch.positions

    def _fired(self, losses: Losses) -> Int[Tensor, "d_sae"]:
        """Tokens of this step on which each feature fired."""
        return losses.fired

    def _revive(self, batch: PositionedBatch, losses: Losses, trained: Bool[Tensor, "P d_sae"]) -> None:
        """Point dead features at badly reconstructed tokens; ``trained`` is True where the mask lets a feature train."""
        resample(self.sae, self.optimiser.moments, self.dead, batch.x, losses, trained, self.generator)

    def _metrics(
        self, batch: PositionedBatch, losses: Losses, loss: Tensor, sparsity: Tensor, gradient_norm: Tensor
    ) -> tuple[Tensor, ...]:
        """This step's :data:`METRICS`."""
        l0 = losses.fired.sum() / batch.n_tokens
        mse = losses.mse
        return (loss, mse, sparsity, losses.auxiliary, l0, 1 - mse / batch.variance, gradient_norm)

    @torch.no_grad()
    def _permute(self, order: Tensor) -> None:
        """Put features in a new order, with their moments and their counts of tokens since they fired."""
        self.sae.permute_features(order)
        order = order.to(self.dead.tokens_since_fired.device)
        for parameter, axis in self.sae.feature_axes():
            for moment in self.optimiser.moments(parameter).values():
                moment.copy_(moment.index_select(axis, order))
        self.dead.tokens_since_fired = self.dead.tokens_since_fired[order]

    def state(self) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Everything needed to resume exactly: tensors by name, and counters."""
        tensors = {f"sae.{name}": tensor for name, tensor in self.sae.state_dict().items()}
        tensors |= self.optimiser.state()
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
        self.optimiser.restore(tensors)
        self.dead.tokens_since_fired.copy_(tensors["dead.tokens_since_fired"])
        self.generator.set_state(tensors["generator"])
        self.step, self.tokens = counters["step"], counters["tokens"]
        self._tokens_at_last_revival = counters["tokens_at_last_revival"]
