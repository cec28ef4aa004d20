"""Training speed: ours, our own dense form and the peers, one step of each in turn, with the machine's own limits.

Each has a process of its own. Ours has the C library keep the memory that it frees, which peers leave as they find it: they
take part as they are, and once more with the same done for them from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import App, Parameter

from benchmarks import training_tables as tables
from benchmarks.apart import KEEPING, Apart
from benchmarks.limits import COPIED, SQUARE, limits, limits_work, step_work, wait_for
from benchmarks.peers import PEERS, Step
from benchmarks.rounds import Action, Record
from benchmarks.subjects import Subject, batch

KINDS = ("relu", "topk", "batch_topk")
BANDS = (8, 32)
N_BATCHES = 4
app = App(help_format="plaintext")


@dataclass(frozen=True)
class Entrant:
    """Something that takes a step, and the least work that it is.

    Attributes:
        kind: relu, topk or batch_topk.
        make: makes its step, in the process that it is called in.
        bands: that it makes use of.
        keeps: whether its process is told to keep the memory that it frees, as ours tells itself.
    """

    kind: str
    make: Callable[[], Step]
    bands: int = 1
    keeps: bool = False

    def apart(self, batch_tokens: int, d_in: int, device: str) -> Apart:
        """Its steps, in a process of its own."""
        return Apart(_stepping, self.make, batch_tokens, d_in, device, environment=KEEPING if self.keeps else None)


def entrants(
    kinds: Sequence[str], sizes: tuple[int, int, int], device: str, peers: bool, keeping: bool
) -> dict[str, Entrant]:
    """Everything that takes a step, by name.

    Args:
        kinds: architectures.
        sizes: d_in, d_sae and k.
        device: on a GPU, each peer takes part in every precision that it has.
        peers: whether peers take part.
        keeping: whether they do so once more, keeping the memory that they free.
    """
    found: dict[str, Entrant] = {}
    for kind in kinds:

        def own(mask: str = "none", dense: bool = False, kind: str = kind) -> Callable[[], Step]:
            return Subject(kind, *sizes, mask, dense, device=device).step

        found[f"scansion {kind}"] = Entrant(kind, own())
        for name, peer in (PEERS if peers else {}).items():
            for precision in peer.precisions(device) if kind in peer.kinds else ():
                make = partial(peer.step, kind, *sizes, device, precision)
                label = f"{name} {kind}" + (f", {precision}" if device != "cpu" else "")
                found[label] = Entrant(kind, make)
                if keeping:
                    found[f"{label}{tables.KEEPING}"] = Entrant(kind, make, keeps=True)
        if kind == "topk":
            found["scansion topk, dense form"] = Entrant(kind, own(dense=True))
            found["scansion topk, random mask"] = Entrant(kind, own("random"))
            found["scansion topk, soft mask"] = Entrant(kind, own("soft"))
        for bands in BANDS:
            found[f"scansion {kind}, {bands} bands"] = Entrant(kind, own(str(bands)), bands)
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
    device: str = "cpu",
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
        device: where everybody trains; on a GPU, ours in the precision that ``auto`` picks, the peers in all of theirs, and
            nobody once more with memory kept, which is the C library's.
        square, copied: sizes of the plain product and of the copy.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    where = torch.device(device)
    settings: dict[str, Any] = {"d_in": d_in, "d_sae": d_sae, "k": k, "batch_tokens": batch_tokens}
    if where.type == "cuda":
        settings["device"] = torch.cuda.get_device_name(where)
    record = Record(out, "training", settings)
    work = limits_work(d_in, d_sae, batch_tokens, square, copied)
    plain = limits(d_in, d_sae, batch_tokens, square, copied, where)
    for group in [(kind,) for kind in kinds] if apart else [tuple(kinds)]:
        everyone = entrants(group, (d_in, d_sae, k), device, peers, keeping and device == "cpu")
        work |= {name: step_work(own.kind, d_in, d_sae, k, batch_tokens, own.bands) for name, own in everyone.items()}
        record.note(work=work)
        turns = {name: own.apart(batch_tokens, d_in, device) for name, own in everyone.items()}
        record.measure(" ".join(group), plain | turns, rounds)
        for turn in turns.values():
            turn.close()


def _stepping(make: Callable[[], Step], batch_tokens: int, d_in: int, device: str) -> Action:
    step, where = make(), torch.device(device)
    batches = [batch(batch_tokens, d_in, seed).to(where) for seed in range(N_BATCHES)]

    def act(index: int) -> None:
        step(batches[index % N_BATCHES])
        wait_for(where)

    return act


if __name__ == "__main__":
    app()
