"""Where ``auto`` trains: on Apple's GPUs only if a trial works there, because torch lacks some operations on them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from scansion.activations import PositionedBatch
from scansion.device import resolve_device
from scansion.errors import TrainingError
from scansion.progress import say
from scansion.sae import SAEConfig, build_sae
from scansion.training.config import TrainingConfig
from scansion.training.learner import Learner

_CPU = torch.device("cpu")
_D_IN, _POSITIONS, _TOKENS, _STEPS = 16, 8, 16, 3

_say_once = cache(say)  # a study asks for every run


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


def _try_out(config: SAEConfig, training: TrainingConfig, n_positions: int, device: torch.device) -> None:
    """Do once on a device what a run does, with narrow activations.

    Raises:
        TrainingError: the first step gives other numbers than on the CPU. Any error of torch is passed on.
    """
    expected, got = (_first_metrics(config, training, n_positions, each) for each in (_CPU, device))
    if not torch.allclose(got, expected, rtol=0.05, atol=0.01):
        raise TrainingError("its losses differ from those on the CPU")


def _first_metrics(config: SAEConfig, training: TrainingConfig, n_positions: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    sae = build_sae(config, _D_IN, n_positions, generator).to(device)
    positions = torch.linspace(0, n_positions - 1, min(_POSITIONS, n_positions)).long()
    x = torch.randn(len(positions), _TOKENS, _D_IN, generator=generator) / _D_IN**0.5
    batch = PositionedBatch(x, positions, previous=x[:-1].flip(1)).to(device)
    # Features that do not fire in one step are dead in the next, so that their auxiliary loss and revival are tried too.
    learner = Learner(sae, training.model_copy(update={"dead_after_tokens": 1}), n_steps=4 * _STEPS)
    metrics = torch.stack([learner.advance(batch) for _ in range(_STEPS)])
    learner.restore(*learner.state())
    sae.eval().fold_scale(1.0)
    with torch.no_grad():
        sae.encode(batch)
    return metrics[0].cpu()
