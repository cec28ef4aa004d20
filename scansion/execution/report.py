"""Execution in the report of ``scansion doctor``: the implementations on this machine, and each architecture's way."""

from __future__ import annotations

import torch
from pydantic import ValidationError

from scansion.activations.batch import PositionedBatch
from scansion.execution.backends import name_for, screening
from scansion.execution.cpu import native
from scansion.execution.plan import plan_execution
from scansion.masks import BandMaskConfig, NoMaskConfig, SoftMaskConfig
from scansion.sae import ARCHITECTURES, build_sae

# Sizes of the reference experiment, but narrow activations: the way depends on the number of features, not on the width.
D_SAE, D_IN, POSITIONS, PER_POSITION = 2304, 8, 128, 16
MASKS = {"no mask": NoMaskConfig(), "8 bands": BandMaskConfig(count=8), "soft": SoftMaskConfig()}


def execution_lines(device: torch.device) -> list[str]:
    """One line about this machine, and one per architecture with the way it takes under three masks."""
    built = "built" if native.built() else "not built: sparse steps on the CPU take longer"
    chosen = screening()
    screens = (
        "no screening" if chosen is None else f"screening in {str(chosen[1]).removeprefix('torch.')} ({chosen[0]})"
    )
    sums = name_for(device)
    lines = [f"execution: C part {built}, {screens}; sums on {device} by {sums}"]
    for name in ARCHITECTURES.names():
        ways = [f"{way_of(name, mask)} ({mask})" for mask in MASKS]
        lines.append(f"way of {name}: {', '.join(ways)}")
    return lines


def way_of(architecture: str, mask: str) -> str:
    """The way that a training step takes at default settings; two ways if it depends on the batch."""
    try:
        config = ARCHITECTURES.config_called(architecture).model_validate(
            {"architecture": architecture, "d_sae": D_SAE, "mask": MASKS[mask]}
        )
    except ValidationError:  # a plugin's settings without defaults
        return "unknown"
    sae = build_sae(config, D_IN, POSITIONS, torch.Generator().manual_seed(0)).train()
    batch = PositionedBatch(torch.zeros(POSITIONS, PER_POSITION, D_IN), torch.arange(POSITIONS))
    plan = plan_execution(sae, batch)
    return plan.way if plan.otherwise is None else f"{plan.way} or {plan.otherwise}"
