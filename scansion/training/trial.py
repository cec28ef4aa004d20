"""A few steps on made-up activations: whether an SAE can be trained at all, and on which device ``auto`` trains it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from scansion.activations import PositionedBatch
from scansion.device import resolve_device
from scansion.errors import TrainingError
from scansion.masks import build_mask
from scansion.progress import say
from scansion.sae import SAE, SAEConfig, build_sae, n_previous
from scansion.training.config import TrainingConfig
from scansion.training.learner import Learner

_CPU = torch.device("cpu")
_D_IN, _POSITIONS, _TOKENS, _STEPS = 16, 8, 16, 3
_ROWS_AT_ONCE = 64

_say_once = cache(say)  # a study asks for every run


def require_trainable(config: SAEConfig, training: TrainingConfig, n_positions: int) -> None:
    """Raise unless an SAE of these settings survives a few steps on narrow made-up activations; takes milliseconds.

    It finds what a mask or architecture of one's own can get wrong before anything heavy is done: shapes, types, losses that
    are not finite, weights of zero, a mask that lets no feature fire. Whatever the code itself raises is passed on.

    Args:
        config: its mask and its number of features are tried as they are, on activations 16 wide.
        training: rates and schedules.
        n_positions: context length L.

    Raises:
        TrainingError: what is wrong, in a line.
    """
    _require_sound_mask(config, n_positions)
    sae, metrics = _first_steps(config, training, n_positions, _CPU)
    if not bool(torch.isfinite(metrics).all()):
        raise TrainingError("its losses are not finite on the first steps")
    for name in ("W_enc", "W_dec"):
        weights = getattr(sae, name)
        if not bool(torch.isfinite(weights).all()):
            raise TrainingError(f"{name} is not finite after the first steps")
        if not bool(weights.any()):
            raise TrainingError(f"{name} is zero everywhere after the first steps, so nothing can be learnt")


@torch.no_grad()
def _require_sound_mask(config: SAEConfig, n_positions: int) -> None:
    mask, can_fire = build_mask(config.mask, n_positions, config.d_sae), False
    for places in torch.arange(n_positions).split(_ROWS_AT_ONCE):
        for what, table in (("weights", mask(places)), ("can_fire", mask.can_fire(places))):
            if tuple(table.shape) != (len(places), config.d_sae):
                raise TrainingError(
                    f"the mask {config.mask.family} gives {what} of shape {list(table.shape)} for {len(places)} positions; "
                    f"expected [{len(places)}, {config.d_sae} features]"
                )
            if not bool(torch.isfinite(table).all()):
                raise TrainingError(f"the mask {config.mask.family} gives {what} that are not finite")
        can_fire |= bool(table.any())
    if not can_fire:
        raise TrainingError(f"the mask {config.mask.family} lets no feature fire at any position")


def training_device(saes: Sequence[tuple[SAEConfig, TrainingConfig]], n_positions: int) -> torch.device:
    """The device on which SAEs that share a stream are trained.

    It is the one that their settings name. If ``auto`` picks MPS and one of the SAEs does not train there, it is the CPU for
    all of them, and one line on stderr says why.

    Args:
        saes: settings of each; all name the same device.
        n_positions: context length L.

    Raises:
        ConfigError: the device that is named is not usable here.
    """
    name = saes[0][1].device
    device = resolve_device(name)
    if name != "auto" or device.type != "mps":
        return device
    for sae, training in saes:
        try:
            _try_out(sae, training, n_positions, device)
        except Exception as error:  # an operation that is missing there, or that gives other numbers
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            _say_once(f"training on the CPU: {sae.architecture} does not train on {device} here ({reason})")
            return _CPU
    return device


def made_up_batch(
    config: SAEConfig, positions: Tensor, per_position: int, d_in: int, generator: torch.Generator
) -> PositionedBatch:
    """What a step of training reads, of normal numbers: ``per_position`` tokens at each of ``positions`` (P,)."""
    x = torch.randn(len(positions), per_position, d_in, generator=generator) / d_in**0.5
    previous = tuple(x[:-back].flip(1) for back in range(1, 1 + n_previous(config)))
    return PositionedBatch(x, positions, previous=previous)


def _try_out(config: SAEConfig, training: TrainingConfig, n_positions: int, device: torch.device) -> None:
    """Do once on a device what a run does, with narrow activations.

    Raises:
        TrainingError: the first step gives other numbers than on the CPU. Any error of torch is passed on.
    """
    expected, got = (_first_steps(config, training, n_positions, each)[1][0] for each in (_CPU, device))
    if not torch.allclose(got, expected, rtol=0.05, atol=0.01):
        raise TrainingError("its losses differ from those on the CPU")


def _first_steps(
    config: SAEConfig, training: TrainingConfig, n_positions: int, device: torch.device
) -> tuple[SAE, Tensor]:
    """The SAE after three steps, and the metrics of each step, on the CPU."""
    generator = torch.Generator().manual_seed(0)
    sae = build_sae(config, _D_IN, n_positions, generator).to(device)
    positions = torch.linspace(0, n_positions - 1, min(_POSITIONS, n_positions)).long()
    batch = made_up_batch(config, positions, _TOKENS, _D_IN, generator).to(device)
    # Features that do not fire in one step are dead in the next, so that their auxiliary loss and revival are tried too.
    learner = Learner(sae, training.model_copy(update={"dead_after_tokens": 1}), n_steps=4 * _STEPS)
    metrics = torch.stack([learner.advance(batch) for _ in range(_STEPS)])
    learner.restore(*learner.state())
    sae.eval().fold_scale(1.0)
    with torch.no_grad():
        sae.encode(batch)
    return sae, metrics.cpu()
