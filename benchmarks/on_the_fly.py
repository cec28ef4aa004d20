"""Training on the fly against training on stored activations: the same text, SAEs and seeds, scored on the same held-out text.

A run that is in the file already is not repeated.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from cyclopts import App

from benchmarks.rounds import Record
from scansion.activations import HarvestConfig
from scansion.corpus import CorpusConfig
from scansion.evals.base import LoadedSAE
from scansion.evals.core.evaluate import CoreConfig, evaluate_core
from scansion.flags import SAEFlags, sae_config
from scansion.lm import BUNDLED_MODEL
from scansion.pipeline import HarvestSpec, build_stores
from scansion.progress import say
from scansion.records import read_json
from scansion.sae import load_sae
from scansion.training import TrainingConfig, TrainingRun, train

app = App(help_format="plaintext")


@app.default
def measure(
    *,
    out: Path,
    model: str = BUNDLED_MODEL,
    source: str = "sotu",
    hook_point: str = "layers.5",
    lm_dtype: str = "fast",
    context_length: int = 128,
    text_tokens: int = 300_000,
    held_out_tokens: int = 65_536,
    buffers: Sequence[int] = (50_000, 200_000),
    tokens: int = 300_000,
    masks: Sequence[str] = ("none", "bands, preset: groups"),
    d_sae: int = 2304,
    seeds: int = 3,
    threads: int | None = None,
) -> None:
    """Train TopK SAEs on stored activations and through buffers of several sizes; the file is written after each pass.

    Args:
        out: the JSON file.
        model, source, hook_point, lm_dtype, context_length: of the activations.
        text_tokens, held_out_tokens: how much text there is.
        buffers: tokens in the buffer.
        tokens: that each SAE is trained on.
        masks: as `scansion train --mask` takes them; SAEs that differ in their masks are trained in one pass.
        d_sae: of every SAE.
        seeds: how many; each is the seed of the weights and of the order of the data.
        threads: of torch.
    """
    chosen = {name: value for name, value in locals().items() if name not in ("out", "threads", "buffers", "seeds")}
    settings = {**chosen, "masks": list(masks)}
    if threads is not None:
        torch.set_num_threads(threads)
    record = Record(out, "on_the_fly", settings)
    earlier: dict[str, Any] = read_json(out) if out.exists() else {}
    runs: list[dict[str, Any]] = earlier.get("runs", []) if earlier.get("settings") == settings else []
    pool = 8.0 if source == "sotu" else 1.0
    corpus = CorpusConfig(
        source=source, context_length=context_length, max_tokens=text_tokens, held_out_tokens=held_out_tokens, pool=pool
    )
    for buffer in (None, *buffers):
        layout = HarvestConfig() if buffer is None else HarvestConfig(on_the_fly=True, buffer_tokens=buffer)
        wanted = [
            seed for seed in range(seeds) if not any((run["buffer"], run["seed"]) == (buffer, seed) for run in runs)
        ]
        if not wanted:
            continue
        stores = build_stores(HarvestSpec(model, hook_point, corpus, layout, lm_dtype=lm_dtype, device="cpu"))
        for seed in wanted:
            with tempfile.TemporaryDirectory() as folder:
                training = TrainingConfig(tokens=tokens, seed=seed, data_seed=seed, device="cpu")
                passes = [
                    TrainingRun.at(Path(folder) / str(index), sae_config(SAEFlags(d_sae=d_sae, mask=mask)), training)
                    for index, mask in enumerate(masks)
                ]
                train(passes, stores.train)
                saes = [LoadedSAE(mask, *load_sae(run.folder / "sae")) for mask, run in zip(masks, passes, strict=True)]
                scored = evaluate_core(saes, stores.held_out, None, CoreConfig(loss_contexts=0))
            for mask, found in zip(masks, scored, strict=True):
                without = found.fve_without_outliers
                runs.append(
                    {
                        "buffer": buffer,
                        "mask": mask,
                        "seed": seed,
                        "fve_without_outliers": without.value if without else None,
                        "fve": found.fve.value,
                        "dead_share": found.dead_share,
                        "l0": found.l0,
                    }
                )
                say(str(runs[-1]))
            record.put(runs=runs)


if __name__ == "__main__":
    app()
