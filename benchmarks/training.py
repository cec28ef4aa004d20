"""Training speed: ours, our own dense form and the peers, one step of each in turn, beside a plain matrix product."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import App, Parameter

from benchmarks.peers import PEERS, Step
from benchmarks.subjects import batch, ours
from scansion.progress import say

MATRIX = 1536
KINDS = ("relu", "topk", "batch_topk")
app = App(help_format="plaintext")


def subjects(kinds: Sequence[str], d_in: int, d_sae: int, k: int, peers: bool) -> dict[str, Step]:
    """Everything that takes a step, by name."""
    found: dict[str, Step] = {}
    for kind in kinds:
        found[f"scansion {kind}"] = ours(kind, d_in, d_sae, k)
        if peers:
            for name, (make, known) in PEERS.items():
                if kind in known:
                    found[f"{name} {kind}"] = make(kind, d_in, d_sae, k)
    found["scansion topk, dense form"] = ours("topk", d_in, d_sae, k, dense=True)
    found["scansion topk, random mask"] = ours("topk", d_in, d_sae, k, mask="random")
    for bands in ("8", "32"):
        for kind in kinds:
            found[f"scansion {kind}, {bands} bands"] = ours(kind, d_in, d_sae, k, mask=bands)
    return found


def timed(action: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock, and of the processor."""
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - wall, time.process_time() - cpu


def machine() -> dict[str, Any]:
    """What the figures were measured on, and with."""
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    names = ["torch", "sae-lens", "dictionary-learning", "eai-sparsify", "scansion"]
    return {
        "processor": model[0].split(":")[1].strip() if model else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg(),
        "versions": {name: version(name) for name in names},
        "command": " ".join(["python -m benchmarks.training", *sys.argv[1:]]),
    }


@app.default
def measure(
    *,
    out: Path,
    kinds: tuple[str, ...] = KINDS,
    d_in: int = 576,
    d_sae: int = 4608,
    k: int = 32,
    batch_tokens: int = 2048,
    rounds: int = 20,
    threads: int | None = None,
    peers: Annotated[bool, Parameter(negative="--no-peers")] = True,
) -> None:
    """Let each take a step in turn, ``rounds`` times after one to warm up; the file is written after every round.

    Args:
        out: the JSON file.
        kinds: architectures.
        d_in, d_sae, k: sizes.
        batch_tokens: tokens a step, a multiple of 128.
        rounds: steps of each.
        threads: of torch; with 1, processor time means something on a machine that others use too.
        peers: whether the peers take part.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    everyone = subjects(kinds, d_in, d_sae, k, peers)
    batches = [batch(batch_tokens, d_in, seed) for seed in range(4)]
    a, b = torch.randn(MATRIX, MATRIX), torch.randn(MATRIX, MATRIX)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ("matmul", *everyone)}
    started = machine()
    out.parent.mkdir(parents=True, exist_ok=True)
    for index in range(rounds + 1):
        x = batches[index % len(batches)]
        times["matmul"].append(timed(lambda: a @ b))
        for name, step in everyone.items():
            times[name].append(timed(lambda step=step, x=x: step(x)))
        if index == 0:
            times = {name: [] for name in times}  # the first step allocates
            continue
        settings = {"d_in": d_in, "d_sae": d_sae, "k": k, "batch_tokens": batch_tokens, "rounds": index}
        medians = {
            name: {
                clock: statistics.median(pair[place] for pair in pairs)
                for place, clock in enumerate(("wall_seconds", "cpu_seconds"))
            }
            for name, pairs in times.items()
        }
        finished = {**started, "load_average_at_end": os.getloadavg()}
        out.write_text(
            json.dumps(
                {"machine": finished, "settings": settings, "matmul_flop": 2 * MATRIX**3, "median_step": medians},
                indent=1,
            )
        )
        say(f"round {index} of {rounds}: {out}")


if __name__ == "__main__":
    app()
