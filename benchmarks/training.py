"""Training speed: ours, our own dense form and the peers, one step of each in turn, with the machine's own limits.

Each has a process of its own. Ours has the C library keep the memory that it frees, which peers leave as they find it: they
take part as they are, and once more with the same done for them from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import App, Parameter

from benchmarks import training_tables as tables
from benchmarks.apart import KEEPING, Apart
from benchmarks.limits import COPIED, SQUARE, limits, limits_work, step_work
from benchmarks.peers import PEERS, Step
from benchmarks.rounds import Action, Record
from benchmarks.subjects import batch, ours

KINDS = ("relu", "topk", "batch_topk")
BANDS = (8, 32)
N_BATCHES = 4
app = App(help_format="plaintext")


@dataclass(frozen=True)
class LoadedSAE:
    """Something that takes a step, and the least work that it is.

    Attributes:
        kind: relu, topk or batch_topk.
        make: makes its step.
        arguments: of ``make``.
        bands: that it makes use of.
        keeps: whether its process is told to keep the memory that it frees, as ours tells itself.
    """

    kind: str
    make: Callable[..., Step]
    arguments: tuple[Any, ...]
    bands: int = 1
    keeps: bool = False

    def apart(self, batch_tokens: int) -> Apart:
        """Its steps, in a process of its own."""
        d_in = self.arguments[1]
        environment = KEEPING if self.keeps else None
        return Apart(_stepping, self.make, self.arguments, batch_tokens, d_in, environment=environment)


def subjects(kinds: Sequence[str], d_in: int, d_sae: int, k: int, peers: bool, keeping: bool) -> dict[str, LoadedSAE]:
    """Everything that takes a step, by name."""
    found: dict[str, LoadedSAE] = {}
    for kind in kinds:
        sizes = (kind, d_in, d_sae, k)
        found[f"scansion {kind}"] = LoadedSAE(kind, ours, sizes)
        if peers:
            for name, (make, known) in PEERS.items():
                if kind in known:
                    found[f"{name} {kind}"] = LoadedSAE(kind, make, sizes)
                    if keeping:
                        found[f"{name} {kind}{tables.KEEPING}"] = LoadedSAE(kind, make, sizes, keeps=True)
        if kind == "topk":
            found["scansion topk, dense form"] = LoadedSAE(kind, ours, (*sizes, "none", True))
            found["scansion topk, random mask"] = LoadedSAE(kind, ours, (*sizes, "random"))
            found["scansion topk, soft mask"] = LoadedSAE(kind, ours, (*sizes, "soft"))
        for bands in BANDS:
            found[f"scansion {kind}, {bands} bands"] = LoadedSAE(kind, ours, (*sizes, str(bands)), bands)
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
    rounds: int = 12,
    threads: int | None = None,
    peers: Annotated[bool, Parameter(negative="--no-peers")] = True,
    keeping: Annotated[bool, Parameter(negative="--no-keeping")] = True,
    apart: Annotated[bool, Parameter(negative="--together")] = False,
    square: int = SQUARE,
    copied: int = COPIED,
) -> None:
    """Let each take two steps in turn and time the second, ``rounds`` times; the file is written after every round.

    Args:
        out: the JSON file.
        kinds: architectures.
        d_in, d_sae, k: sizes.
        batch_tokens: tokens per step, a multiple of 128.
        rounds: steps of each.
        threads: of torch; with 1, processor time means something on a machine that others use too.
        peers: whether the peers take part.
        keeping: whether they do so once more, with their processes told to keep the memory that they free.
        apart: one architecture after another, each with the limits beside it, where all would not fit in memory.
        square, copied: sizes of the plain product and of the copy.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    settings = {"d_in": d_in, "d_sae": d_sae, "k": k, "batch_tokens": batch_tokens}
    record = Record(out, "training", settings)
    work = limits_work(d_in, d_sae, batch_tokens, square, copied)
    plain = limits(d_in, d_sae, batch_tokens, square, copied)
    for group in [(kind,) for kind in kinds] if apart else [tuple(kinds)]:
        everyone = subjects(group, d_in, d_sae, k, peers, keeping)
        work |= {name: step_work(own.kind, d_in, d_sae, k, batch_tokens, own.bands) for name, own in everyone.items()}
        record.note(work=work)
        turns = {name: own.apart(batch_tokens) for name, own in everyone.items()}
        record.measure(" ".join(group), plain | turns, rounds)
        for turn in turns.values():
            turn.close()


def _stepping(make: Callable[..., Step], arguments: tuple[Any, ...], batch_tokens: int, d_in: int) -> Action:
    step = make(*arguments)
    batches = [batch(batch_tokens, d_in, seed) for seed in range(N_BATCHES)]
    return lambda index: step(batches[index % N_BATCHES])


if __name__ == "__main__":
    app()
