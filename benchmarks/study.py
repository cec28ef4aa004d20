"""A whole study, from text to ten trained SAEs: ours in one pass, beside a run of each peer, each in a process of its own."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import App, Parameter

from benchmarks.apart import once
from benchmarks.harvest import square_product
from benchmarks.limits import SQUARE
from benchmarks.rounds import Record, Times
from benchmarks.subjects import mask_config
from scansion.activations import HarvestConfig
from scansion.corpus import CorpusConfig
from scansion.lm import BUNDLED_MODEL
from scansion.pipeline import HarvestSpec, build_stores
from scansion.pipeline.stores import harvest_plans
from scansion.progress import say
from scansion.sae import TopKConfig
from scansion.training import TrainingConfig, TrainingRun, train

N_RUNS = 10
STUDIES = {"ten seeds, no mask": ("none",), "five hard masks, two seeds": ("none", "random", "2", "8", "32")}
"""Masks of the runs, each with as many seeds as make ten runs."""
app = App(help_format="plaintext")


@app.default
def measure(
    *,
    out: Path,
    model: str = BUNDLED_MODEL,
    source: str = "sotu",
    tokens: int = 49_152,
    layer: int = 5,
    d_sae: int = 4608,
    k: int = 32,
    context_length: int = 128,
    lm_batch_size: int = 16,
    threads: int | None = None,
    peers: Annotated[bool, Parameter(negative="--no-peers")] = True,
    square: int = SQUARE,
) -> None:
    """Time each study of ours and a run of each peer, one after another, a plain product before each.

    Ten runs of a peer are not made: they are ten times the same work, and are said to be ten times one run.

    Args:
        out: the JSON file.
        model: bundled, or a folder.
        source: of the text.
        tokens: that every SAE is trained on, once; a multiple of 2048 for the peers' sake.
        layer: whose output is learnt.
        d_sae, k: of every SAE; TopK.
        context_length: tokens of a context.
        lm_batch_size: contexts the language model reads at once, for all.
        threads: of torch.
        peers: whether the peers take part.
        square: side of the plain matrix product.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    corpus = CorpusConfig(
        source=source,
        layout="packed",
        context_length=context_length,
        max_tokens=tokens,
        held_out_tokens=context_length,
    )
    where = HarvestSpec(model, f"layers.{layer}", corpus, HarvestConfig(lm_batch_size=lm_batch_size), device="cpu")
    settings = {"model": model, "source": source, "tokens": tokens, "layer": layer, "d_sae": d_sae, "k": k}
    settings |= {"context_length": context_length, "lm_batch_size": lm_batch_size, "n_runs": N_RUNS}
    record = Record(out, "study", settings)
    record.note(work={"square product": {"flop": 2 * square**3}}, not_measured={})
    product = square_product(square)
    plain = Times()

    def measured(name: str, run: Callable[[Path], dict[str, Any]]) -> None:
        for _ in range(3):
            plain.add(lambda: product(0))
        with tempfile.TemporaryDirectory() as folder:
            found = run(Path(folder))
        record.put(**{name: found, "square product": plain.summary()})
        say(f"{name}: {out}")

    for name, masks in STUDIES.items():
        measured(f"scansion, {name}", lambda folder, masks=masks: once(ours, where, masks, tokens, d_sae, k, folder))
    if peers:
        from benchmarks.peer_runs import RUNS, Task

        contexts = harvest_plans(where)[0].contexts
        for name, run in RUNS.items():

            def one(folder: Path, run: Any = run) -> dict[str, Any]:
                return once(one_run, run, Task(model, contexts, layer, d_sae, k, lm_batch_size, folder))

            try:
                measured(name, one)
            except Exception as error:  # theirs may fail in any way, and the others are to be measured all the same
                why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                record.put(not_measured=record.content["not_measured"] | {name: why})
                say(f"{name}: not measured, {why}")


def one_run(run: Callable[[Any], Any], task: Any) -> dict[str, Any]:
    """Seconds of a peer's run, and what ten of them would take."""
    spent = run(task)
    seconds = {"load": spent.load, "lm": spent.lm, "train": spent.train, "one_run": spent.run}
    ten_runs, one_pass = N_RUNS * spent.run, spent.load + spent.lm + N_RUNS * spent.train
    return {"seconds": seconds, "computed": {"ten_runs": ten_runs, "ten_in_one_pass": one_pass}}


def ours(where: HarvestSpec, masks: tuple[str, ...], tokens: int, d_sae: int, k: int, folder: Path) -> dict[str, Any]:
    """Seconds from text to ten saved SAEs: one harvest, one pass."""
    begun = time.perf_counter()
    # A source of its own, for one that has loaded its language model keeps it.
    source = HarvestSpec(where.model, where.hook_point, where.corpus, where.harvest, device=where.device)
    store = build_stores(source, folder / "store").train
    harvested = time.perf_counter()
    runs = [
        TrainingRun(
            f"{mask} {seed}",
            folder / f"{mask}-{seed}",
            TopKConfig(d_sae=d_sae, k=k, mask=mask_config(mask)),
            # As the peers do, who do not know what a position is.
            TrainingConfig(tokens=tokens, batch_tokens=2048, seed=seed, device="cpu", use_position_0=True),
        )
        for mask in masks
        for seed in range(N_RUNS // len(masks))
    ]
    train(runs, store)
    trained = time.perf_counter()
    seconds = {"load_and_lm": harvested - begun, "train": trained - harvested, "ten_runs": trained - begun}
    return {"seconds": seconds, "masks": list(masks)}


if __name__ == "__main__":
    app()
