"""The search for default rates and batches: SAEs of several lengths on one store, each scored on held-out text.

Every combination of what the lists name is trained once per seed; a run that is in the file already is not repeated, so that
further calls add to the table.
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import torch
from cyclopts import App

from benchmarks.quality import train_and_score
from benchmarks.rounds import Record
from scansion.activations import ActivationStore
from scansion.evals.core.evaluate import CoreConfig
from scansion.flags import SAEFlags, sae_config
from scansion.progress import say
from scansion.records import read_json
from scansion.training import TrainingConfig

app = App(help_format="plaintext")


@app.default
def measure(
    train: Path,
    held_out: Path,
    *,
    out: Path,
    tokens: tuple[int, ...] = (200_000, 1_000_000),
    batches: tuple[int, ...] = (256, 512, 1024, 2048),
    rates: tuple[float, ...] = (5e-4, 1e-3, 2e-3),
    decays: tuple[float, ...] = (0.2,),
    warmups: tuple[int, ...] = (-1,),
    masks: tuple[str, ...] = ("none",),
    seeds: tuple[int, ...] = (0,),
    d_sae: int = 2304,
    held_out_contexts: int | None = None,
    threads: int = 1,
) -> None:
    """Train and score every combination; the file is written after each run. Run again to resume, or to add others.

    Args:
        train, held_out: stores.
        out: the JSON file.
        tokens, batches, rates: training tokens, tokens per step and peak learning rates.
        decays: shares of the run over which the rate falls to zero.
        warmups: steps to the peak rate; -1 for the default.
        masks: as `scansion train --mask` takes them.
        seeds: of weights and data.
        d_sae: features; the SAEs are TopK with the default k.
        held_out_contexts: how many are read; default all.
        threads: of torch.
    """
    torch.set_num_threads(threads)
    stores = ActivationStore(train), ActivationStore(held_out)
    settings = {
        "model": stores[0].identity.model,
        "hook_point": stores[0].identity.hook_point,
        "train": stores[0].manifest.key,
        "train_tokens": stores[0].manifest.n_tokens,
        "held_out": stores[1].manifest.key,
        "held_out_contexts": held_out_contexts or stores[1].n_contexts,
        "d_sae": d_sae,
    }
    record = Record(out, "recipe", settings)
    earlier: dict[str, Any] = read_json(out) if out.exists() else {}
    runs: list[dict[str, Any]] = earlier.get("runs", []) if earlier.get("settings") == settings else []
    core = CoreConfig(loss_contexts=0, n_contexts=held_out_contexts)
    for n, batch, rate, decay, warmup, mask, seed in itertools.product(
        tokens, batches, rates, decays, warmups, masks, seeds
    ):
        chosen: dict[str, Any] = {
            "tokens": n, "batch_tokens": batch, "lr": rate, "decay": decay, "warmup": warmup, "mask": mask, "seed": seed
        }  # fmt: skip
        if any(chosen.items() <= run.items() for run in runs):
            continue
        training = TrainingConfig(
            tokens=n, batch_tokens=batch, lr=rate, lr_decay_fraction=decay, seed=seed, data_seed=seed, device="cpu",
            lr_warmup_steps=None if warmup < 0 else warmup,
        )  # fmt: skip
        config = sae_config(SAEFlags(d_sae=d_sae, mask=mask))
        began = time.process_time()
        learner, result = train_and_score(config, training, *stores, core)
        runs.append(
            {
                **chosen,
                "steps": learner.step,
                "fve_without_outliers": result.fve_without_outliers.value if result.fve_without_outliers else None,
                "fve": result.fve.value,
                "dead_share": result.dead_share,
                "l0": result.l0,
                "cpu_seconds": round(time.process_time() - began, 1),
            }
        )
        say(str(runs[-1]))
        record.put(runs=runs)


if __name__ == "__main__":
    app()
