"""A rank's learner: its part of an SAE, trained on its part of each batch, with what all ranks share summed over them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from scansion.activations import PositionedBatch
from scansion.distributed.features import TopKShare
from scansion.distributed.ranks import Ranks
from scansion.execution.losses import losses_of
from scansion.sae import SAE, Losses
from scansion.sae.decoder import normalise_decoder, remove_parallel_gradient
from scansion.training.config import TrainingConfig
from scansion.training.dead import chances, point_at
from scansion.training.learner import Learner
from scansion.training.optimiser import Optimiser

# What a step sums besides the input and the firing of replicated features, see RankLearner._objective.
N_SCALARS = 9


@dataclass(frozen=True)
class Share:
    """A rank's part of a run.

    Attributes:
        replicated: the first so many features of its SAE are also on every other rank.
        positions: that all ranks train on.
        rows: which of them are this rank's.
        owns_biases: whether decoder biases belong to bands, and so to their ranks.
    """

    replicated: int
    positions: Int[Tensor, "P"]
    rows: slice
    owns_biases: bool


class RankOptimiser(Optimiser):
    """Sums the gradients of replicated parameters over ranks, and clips by the norm of the whole gradient."""

    def __init__(self, sae: SAE, config: TrainingConfig, n_steps: int, ranks: Ranks, share: Share) -> None:
        super().__init__(sae, config, n_steps)
        self._ranks, self._share = ranks, share
        self._axis_of = {parameter: axis for parameter, axis in sae.feature_axes()}
        for parameter in sae.parameters():  # now, so that every rank saves and loads the same names
            self._state_of(self._row_major[parameter])

    @torch.no_grad()
    def step(self, number: int, lr: float) -> Tensor:
        remove_parallel_gradient(self.sae)  # linear: it may be done before the sum
        replicated, owned = self._divided()
        owned_squares = sum((gradient.square().sum() for gradient in owned), self.sae.b_dec.new_zeros(()))
        flat = self._ranks.add(torch.cat([owned_squares[None], *(gradient.reshape(-1) for _, gradient in replicated)]))
        squares, start = flat[0], 1
        weights = {id(weight) for weight in self._weights}
        for parameter, gradient in replicated:
            gradient.copy_(flat[start : start + gradient.numel()].view(gradient.shape))
            start += gradient.numel()
            if id(parameter) in weights:  # the mask's have another scale
                squares = squares + gradient.square().sum()
        norm = squares.sqrt()
        self._step_divided(self._excess(norm), lr)
        normalise_decoder(self.sae)
        return norm

    def _divided(self) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor]]:
        """Views of the gradients that every rank has, each with its parameter, and of those that only this one has."""
        replicated: list[tuple[Tensor, Tensor]] = []
        owned: list[Tensor] = []
        for parameter in self.sae.parameters():
            gradient = parameter.grad
            if gradient is None:
                continue
            axis = self._axis_of.get(parameter)
            if axis is not None:
                n_replicated = self._share.replicated
                replicated.append((parameter, gradient.narrow(axis, 0, n_replicated)))
                owned.append(gradient.narrow(axis, n_replicated, gradient.shape[axis] - n_replicated))
            elif parameter is self.sae.b_dec and self._share.owns_biases:
                owned.append(gradient)
            else:
                replicated.append((parameter, gradient))
        return replicated, owned

    def _pieces(self, parameter: Tensor, gradient: Tensor) -> list[tuple[Tensor, Tensor, dict[str, Tensor]]]:
        # Replicated rows apart from the rank's own: Adam's vectorised loops round differently at the end of a tensor, and
        # the ends of the ranks' tensors are not in the same place. So replicas stay equal to the last bit.
        ((rows, of_rows, state),) = super()._pieces(parameter, gradient)
        cut = self._share.replicated
        if parameter not in self._axis_of or cut in (0, len(rows)):
            return [(rows, of_rows, state)]
        moments = {name: state[name] for name in ("exp_avg", "exp_avg_sq")}
        return [
            (rows[:cut], of_rows[:cut], {"step": state["step"].clone()} | {n: m[:cut] for n, m in moments.items()}),
            (rows[cut:], of_rows[cut:], {"step": state["step"]} | {n: m[cut:] for n, m in moments.items()}),
        ]


class RankLearner(Learner):
    """Trains a rank's part of an SAE.

    Two sums over ranks per step: of what the metrics are made of, before the backward pass, because an auxiliary loss may be
    relative to the squared error of all tokens; and of the gradients of replicated parameters, after it.

    Args:
        sae: this rank's part, on its device.
        config: rates and schedules.
        n_steps: length of the run.
        ranks: this rank and the others.
        share: this rank's part.
    """

    optimiser: RankOptimiser

    def __init__(self, sae: SAE, config: TrainingConfig, n_steps: int, ranks: Ranks, share: Share) -> None:
        super().__init__(sae, config, n_steps)
        self.ranks, self.share = ranks, share
        self.optimiser = RankOptimiser(sae, config, n_steps, ranks, share)
        self.checkpoint_due = False
        """Set on rank 0 before a step; the same on every rank after it."""
        self._all_positions = share.positions.to(sae.W_dec.device)
        self._per_error = sae.auxiliary_per == "error"
        self._coefficient = float(getattr(sae.config, "auxiliary_coefficient", 0))

    def _objective(self, batch: PositionedBatch, losses: Losses, sparsity: Tensor) -> Tensor:
        n, here = batch.x.shape[1], batch.n_tokens
        total = n * len(self._all_positions)
        regulariser = self.sae.mask.regulariser()
        with torch.no_grad():
            x = batch.x.flatten(0, 1)
            error = losses.mse.double() * here
            weight = error if self._per_error else error.new_tensor(here)
            auxiliary = losses.auxiliary.detach().double() * weight
            any_dead = self.dead.mask.any()
            scalars = (
                losses.reconstruction.detach().double() * here, sparsity.detach().double() * here, auxiliary, error,
                losses.fired.sum().double(), torch.linalg.vector_norm(x, dtype=torch.float64).square(),
                torch.where(any_dead, 0.0, error), any_dead.double(),
                error.new_tensor(float(self.checkpoint_due and self.ranks.leads)),
            )  # fmt: skip
            fired = losses.fired[: self.share.replicated].double()
            sums = self.ranks.add(torch.cat([torch.stack(scalars), x.sum(dim=0, dtype=torch.float64), fired]))
            reconstruction, sparse, auxiliary, error, n_fired, squares, idle, any_dead, due = sums[:N_SCALARS]
            means = sums[N_SCALARS : N_SCALARS + self.sae.d_in] / total
            self._replicated_fired = sums[N_SCALARS + self.sae.d_in :].long()
            self.checkpoint_due = bool(due)
            of_all = error if self._per_error else error.new_tensor(total)
            if self._per_error:  # where a token has no dead feature, nothing of its error is explained
                auxiliary += torch.where(any_dead > 0, idle, 0.0) * self._coefficient
            auxiliary = torch.where(of_all > 0, auxiliary / of_all, 0.0)
            loss = (reconstruction + sparse) / total + auxiliary + regulariser.detach().double()
            variance = squares / total - means.square().sum()
            self._summed = (
                loss, error / total, sparse / total, auxiliary, n_fired / total, 1 - error / total / variance
            )  # fmt: skip
            share = torch.where(of_all > 0, weight / of_all, 0.0).float()
        own = (losses.reconstruction + sparsity) * (here / total)
        return own + losses.auxiliary * share + regulariser / self.ranks.size

    def _positions(self, batch: PositionedBatch) -> Int[Tensor, "P"]:
        return self._all_positions

    def _fired(self, losses: Losses) -> Int[Tensor, "d_sae"]:
        return torch.cat([self._replicated_fired, losses.fired[self.share.replicated :]])

    def _metrics(
        self, batch: PositionedBatch, losses: Losses, loss: Tensor, sparsity: Tensor, gradient_norm: Tensor
    ) -> tuple[Tensor, ...]:
        return (*(each.float() for each in self._summed), gradient_norm)

    def n_dead(self) -> int:
        """Dead features of the whole SAE."""
        dead, cut = self.dead.mask, self.share.replicated
        return int(dead[:cut].sum() + self.ranks.add(dead[cut:].sum()))

    @torch.no_grad()
    def _revive(self, batch: PositionedBatch, losses: Losses, trained: Bool[Tensor, "P d_sae"]) -> None:
        # As `resample`, with the draws of one process: all ranks draw for all dead features, in their order.
        sae, ranks, cut, device = self.sae, self.ranks, self.share.replicated, batch.x.device
        n, rows = batch.x.shape[1], self.share.rows
        residual = losses.residual.detach().flatten(0, 1)
        error = residual.new_zeros(len(self._all_positions), n)
        error[rows] = residual.square().sum(dim=1).view(batch.x.shape[:2])
        ranks.add(error)
        dead, weights = chances(error, trained, self.dead.mask.nonzero().squeeze(1))
        n_shared = int((dead < cut).sum())
        alive = ~self.dead.mask
        norms = sae.W_enc.norm(dim=0)
        bound_alive = alive[cut:].sum()
        bound = (error.new_tensor(len(dead) - n_shared), bound_alive)
        counts = torch.zeros(2, ranks.size, dtype=torch.float64, device=device)  # of bound features: to revive, alive
        counts[:, ranks.rank] = torch.stack(bound)
        bound_norms = norms[cut:][alive[cut:]].sum(dtype=torch.float64)
        sums = ranks.add(torch.cat([counts.flatten(), bound_norms[None]]))
        to_revive, n_alive = sums[:-1].view(2, ranks.size).long()
        alive_everywhere = int(n_alive.sum() + alive[:cut].sum())
        n_drawn = n_shared + int(to_revive.sum())
        if not alive_everywhere or not n_drawn:
            return
        # One number per feature and token, whatever the chances: other ranks' features take theirs from the generator too.
        all_weights = torch.ones(n_drawn, weights.shape[1])
        first = n_shared + int(to_revive[: ranks.rank].sum())
        chosen = [*range(n_shared), *range(first, first + len(dead) - n_shared)]
        all_weights[chosen] = weights.cpu()
        tokens = torch.multinomial(all_weights, 1, generator=self.generator).squeeze(1)[chosen].to(device)
        local = tokens - rows.start * n
        here = (local >= 0) & (local < len(residual))
        residuals = torch.where(here[:, None], residual[local.clamp(0, len(residual) - 1)], 0.0)
        residuals[:n_shared] = ranks.add(residuals[:n_shared].contiguous())
        alive_norm = ((sums[-1] + norms[:cut][alive[:cut]].sum(dtype=torch.float64)) / alive_everywhere).float()
        point_at(sae, self.optimiser.moments, self.dead, dead, residuals, alive_norm)


class FeatureLearner(RankLearner):
    """Trains a rank's features of an SAE on all tokens; see :mod:`.features`.

    Losses are equal on all ranks, and the gradient of the decoder bias, the only thing that all have, is summed as in
    :class:`RankLearner`.
    """

    sae: TopKShare

    def _losses(self, batch: PositionedBatch) -> Losses:
        return losses_of(self.sae, self.sae.training_forward(batch), batch, self.dead.mask, "dense")

    def _objective(self, batch: PositionedBatch, losses: Losses, sparsity: Tensor) -> Tensor:
        loss = losses.reconstruction + losses.auxiliary
        with torch.no_grad():
            n_fired = losses.fired.sum().double()
            due = n_fired.new_tensor(float(self.checkpoint_due and self.ranks.leads))
            n_fired, due = self.ranks.add(torch.stack([n_fired, due]))
            self.checkpoint_due = bool(due)
            self._replicated_fired = losses.fired[:0]
            fve = 1 - losses.mse / batch.variance
            self._summed = (
                loss.detach(),
                losses.mse,
                sparsity.detach(),
                losses.auxiliary.detach(),
                n_fired / batch.n_tokens,
                fve,
            )
        return loss
