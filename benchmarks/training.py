"""Training speed: ours, our own dense form and the peers, one step of each in turn, beside the machine's own limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from cyclopts import App, Parameter

from benchmarks.limits import COPIED, SQUARE, limits, limits_work, step_work
from benchmarks.peers import PEERS, Step
from benchmarks.rounds import Record
from benchmarks.subjects import batch, ours

KINDS = ("relu", "topk", "batch_topk")
BANDS = (8, 32)
N_BATCHES = 4
app = App(help_format="plaintext")


@dataclass(frozen=True)
class Subject:
    """Something that takes a step, and the least work that it is."""

    kind: str
    step: Step
    bands: int = 1


def subjects(kinds: Sequence[str], d_in: int, d_sae: int, k: int, peers: bool) -> dict[str, Subject]:
    """Everything that takes a step, by name."""
    sizes = (d_in, d_sae, k)
    found: dict[str, Subject] = {}
    for kind in kinds:
        found[f"scansion {kind}"] = Subject(kind, ours(kind, *sizes))
        if peers:
            for name, (make, known) in PEERS.items():
                if kind in known:
                    found[f"{name} {kind}"] = Subject(kind, make(kind, *sizes))
        if kind == "topk":
            found["scansion topk, dense form"] = Subject(kind, ours(kind, *sizes, dense=True))
            found["scansion topk, random mask"] = Subject(kind, ours(kind, *sizes, mask="random"))
            found["scansion topk, soft mask"] = Subject(kind, ours(kind, *sizes, mask="soft"))
        for bands in BANDS:
            found[f"scansion {kind}, {bands} bands"] = Subject(kind, ours(kind, *sizes, mask=str(bands)), bands)
    return found


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
    apart: Annotated[bool, Parameter(negative="--together")] = False,
    square: int = SQUARE,
    copied: int = COPIED,
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
        apart: one architecture after another, each with the limits beside it, where all would not fit in memory.
        square, copied: sizes of the plain product and of the copy.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    settings = {"d_in": d_in, "d_sae": d_sae, "k": k, "batch_tokens": batch_tokens}
    record = Record(out, "training", settings)
    batches = [batch(batch_tokens, d_in, seed) for seed in range(N_BATCHES)]
    work = limits_work(d_in, d_sae, batch_tokens, square, copied)
    plain = limits(d_in, d_sae, batch_tokens, square, copied)
    for group in [(kind,) for kind in kinds] if apart else [tuple(kinds)]:
        everyone = subjects(group, d_in, d_sae, k, peers)
        work |= {name: step_work(own.kind, d_in, d_sae, k, batch_tokens, own.bands) for name, own in everyone.items()}
        record.note(work=work)
        turns = {name: _on(own.step, batches) for name, own in everyone.items()}
        record.measure(" ".join(group), plain | turns, rounds)
        del everyone, turns  # before the next are made


def _on(step: Step, batches: Sequence[torch.Tensor]):
    return lambda index: step(batches[index % len(batches)])


if __name__ == "__main__":
    app()
