"""Activations of your own: an SAE with a mask on the frames of made-up recordings, without text or a language model.

    python examples/own_activations.py out

Replace `recordings` by whatever gives your activations: a list with a tensor [length, width] for each recording, board game,
sequence or series. The command line reads the stores as well:

    scansion train out/stores/train --use-position-0 --out runs/own
    scansion eval runs/own --held-out out/stores/held_out --evaluations core,position --report report
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

import scansion
from scansion.evals.core.evaluate import CoreResult

WIDTH, LONGEST = 32, 12


def recordings(n: int, seed: int) -> list[Tensor]:
    """Frames of 24 sparse sources, half of which are heard in the first half of a recording only."""
    generator = torch.Generator().manual_seed(seed)
    sources = torch.nn.functional.normalize(torch.randn(24, WIDTH, generator=torch.Generator().manual_seed(0)), dim=1)
    lengths = torch.randint(LONGEST // 2, LONGEST + 1, (n,), generator=generator).tolist()
    heard = [(torch.rand(length, 24, generator=generator) - 0.9).relu() for length in lengths]
    for each in heard:
        each[LONGEST // 2 :, :12] = 0
    return [each @ sources for each in heard]


def main(out: Path) -> CoreResult:
    """Store, train, evaluate; returns what was measured."""
    train = scansion.ActivationStore.from_tensors(recordings(400, 1), out / "stores/train", name="recordings")
    held_out = scansion.ActivationStore.from_tensors(
        recordings(100, 2), out / "stores/held_out", name="recordings", split="held_out"
    )
    sae = scansion.TopKConfig(d_sae=48, k=4, mask=scansion.BandMaskConfig(count=2, shared=0.5))
    # Position 0 is left out by default, because language models attend to it; recordings have no such position.
    settings = scansion.TrainingConfig(tokens=200_000, lr=3e-3, use_position_0=True, device="cpu")
    run = scansion.TrainingRun("own", out / "run", sae, settings)
    scansion.train([run], train)
    trained = scansion.LoadedSAE("own", *scansion.load_sae(out / "run/sae"))
    [result] = scansion.evaluate_core([trained], held_out, None, scansion.CoreConfig(loss_contexts=0))
    return result


if __name__ == "__main__":
    print(f"FVE {main(Path(sys.argv[1])).fve.value:.3f}")  # noqa: T201 - an example prints
