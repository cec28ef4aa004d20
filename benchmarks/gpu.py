"""A GPU: whether every way of a step is right there, and how long whole steps take beside the machine's own limits.

First correctness, then speed. A row that fails is written down and the rest goes on; the file is written after each row.
"""

from __future__ import annotations

import hashlib
import itertools
import platform
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import App, Parameter
from torch import Tensor

from benchmarks.gpu_pipeline import end_to_end
from benchmarks.gpu_rows import GRACE, Row, Rows, stopping_after, timed
from benchmarks.gpu_tables import tables
from benchmarks.limits import ADAM_BYTES
from benchmarks.peers import PEERS, Peer, Step
from benchmarks.stand_ins import StandIns
from benchmarks.subjects import Subject, batch, positioned
from scansion.execution.backends import name_for
from scansion.training.learner import METRICS, Learner

app = App(help_format="plaintext")

# d_in, d_sae, k, tokens per step.
SIZES = {
    "A": (2304, 16_384, 64, 4096),
    "B": (2304, 65_536, 64, 8192),
    "C": (576, 4608, 32, 4096),
    "A, 16,384 tokens": (2304, 16_384, 64, 16_384),
}
SMALL = {"A": (48, 256, 8, 256)}
# Architecture, mask, and whether by the dense form.
STEPS = [
    ("topk", "none", False),
    ("topk", "8", False),
    ("topk", "32", False),
    ("topk", "none", True),
    ("batch_topk", "none", False),
    ("relu", "none", False),
    ("relu", "8", False),
    ("jumprelu", "none", False),
    ("jumprelu", "8", False),
    ("jumprelu", "none", True),
    ("topk", "soft", False),
    ("topk", "importance", False),
    ("topk", "adaptive", False),
    ("topk", "soft", True),
    ("relu", "soft", False),
    ("relu", "adaptive", False),
    ("matryoshka", "none", False),
    ("tsae", "none", False),
]
ONLY_AT = {"B": {"topk"}, "C": {"topk", "relu"}, "A, 16,384 tokens": {"topk"}}
SHARES = {"correct": 0.33, "A": 0.24, "end to end": 0.17, "B": 0.12, "C": 0.07, "A, 16,384 tokens": 0.07}
"""Parts in order, each with its share of the time. What a part leaves over goes to those after it."""
CHECKED, CHECKED_SMALL = (256, 2048, 16, 2048), (16, 128, 4, 256)


@app.default
def measure(
    *,
    out: Path,
    device: str = "cuda",
    seconds: float = 215.0,
    small: bool = False,
    peers: Annotated[bool, Parameter(negative="--no-peers")] = True,
) -> None:
    """Check that every way gives the dense form's numbers, then time whole steps: clip, AuxK, dead counts and metrics in.

    Peers take part if they are installed, each in every precision that it has on a GPU. Tables go to standard output.

    Args:
        out: the JSON file.
        device: where to run.
        seconds: after which nothing more is begun.
        small: small sizes and few steps, to try the script out without a GPU.
        peers: whether the peers take part.
    """
    where, began = torch.device(device), time.monotonic()
    rows = Rows(out, where, began + seconds)
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else platform.processor() or platform.machine()
    rows.content["machine"] = {"device": name, "torch": torch.__version__, "sums": name_for(where)}
    sizes = SMALL if small else SIZES
    # Between two rows the end is caught here, so that tables are printed in any case.
    with StandIns(), suppress(TimeoutError), stopping_after(seconds + GRACE):
        present: dict[str, Peer] | None = None  # imported once correctness is checked, as that takes seconds
        for part, share in SHARES.items():
            began += share * seconds
            if part != "correct" and present is None:
                present = _peers(rows) if peers else {}
            with rows.ending_at(began):
                if part == "correct":
                    _check(rows, *((CHECKED_SMALL, 4) if small else (CHECKED, 200)))
                elif part == "end to end":
                    end_to_end(rows, *sizes["A"][1:], small)
                elif part in sizes:
                    _time_steps(rows, part, sizes[part], present or {})
    sys.stdout.write(tables(rows.content) + "\n")


def _peers(rows: Rows) -> dict[str, Peer]:
    """Those that can be imported; a row says why the others cannot."""
    for name, peer in PEERS.items():
        absent = peer.absent()
        rows.add("peers", name, lambda absent=absent: {"skipped": absent} if absent else {"installed": True})
    return {name: peer for name, peer in PEERS.items() if "installed" in rows.content["peers"][name]}


def _check(rows: Rows, sizes: tuple[int, int, int, int], n_steps: int) -> None:
    for kind, mask, dense in STEPS:
        if not dense:
            rows.add("correct", f"{kind}, {mask}", partial(_checked, kind, mask, rows.device, sizes, n_steps))


def _time_steps(rows: Rows, size: str, sizes: tuple[int, int, int, int], peers: dict[str, Peer]) -> None:
    """The limits, then one kind after another: ours, then the peers'. So the first kinds are complete if time runs out."""
    d_in, d_sae, k, tokens = sizes
    device = str(rows.device)
    for limit, action, work in _limits(d_in, d_sae, tokens, rows.device):
        rows.add(f"limits {size}", limit, partial(timed, action, rows.device, work))
    batches = [] if rows.are_over else [batch(tokens, d_in, seed).to(rows.device) for seed in range(2)]
    for kind in dict.fromkeys(kind for kind, _, _ in STEPS if kind in ONLY_AT.get(size, {kind})):
        for mask, dense in ((mask, dense) for own, mask, dense in STEPS if own == kind):
            make = Subject(kind, d_in, d_sae, k, mask, dense, device=device).learner
            name = f"{kind}, {mask}{', dense form' if dense else ''}"
            rows.add(f"steps {size}", name, partial(_stepped, rows, make, batches))
        for name, peer in peers.items():
            for precision in peer.precisions(device) if kind in peer.kinds else ():
                step = partial(peer.step, kind, d_in, d_sae, k, device, precision)
                rows.add(f"peers {size}", f"{name} {kind}, {precision}", partial(_peer_stepped, rows, step, batches))


def _checked(
    kind: str, mask: str, device: torch.device, sizes: tuple[int, int, int, int], n_steps: int
) -> dict[str, Any]:
    """Losses after some steps: the fastest way in full precision beside the dense form, bfloat16, and the same seed twice."""
    d_in, d_sae, k, tokens = sizes
    batches = [batch(tokens, d_in, seed).to(device) for seed in range(8)]

    def run(dense: bool, precision: Any) -> tuple[Learner, float]:
        trained = Subject(kind, d_in, d_sae, k, mask, dense, device=str(device), precision=precision).learner()
        inputs = [positioned(x, trained.sae) for x in batches]
        fve = [float(trained.advance(inputs[step % 8])[METRICS.index("fve")]) for step in range(n_steps)]
        return trained, statistics.mean(fve[-20:])

    fast, exact = run(False, "float32")
    _, dense = run(True, "float32")
    once, rounded = run(False, "auto")
    again, _ = run(False, "auto")
    return {
        "way": "+".join(sorted(fast.ways)),
        "fve": exact,
        "fve_dense_less_fast": dense - exact,
        "precision": once.precision,
        "fve_auto_less_float32": rounded - exact,
        "same_bytes_twice": _digest(once) == _digest(again),
    }


def _digest(trained: Learner) -> str:
    tensors, _ = trained.state()
    return hashlib.sha256(b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors))).hexdigest()


def _stepped(rows: Rows, make: Callable[[], Learner], batches: list[Tensor]) -> Row:
    trained = make()
    found = _steps_timed(rows, lambda x: trained.advance(positioned(x, trained.sae)), batches)
    return {**found, "way": "+".join(sorted(trained.ways)), "precision": trained.precision}


def _peer_stepped(rows: Rows, make: Callable[[], Step], batches: list[Tensor]) -> Row:
    return _steps_timed(rows, make(), batches)


def _steps_timed(rows: Rows, step: Callable[[Tensor], object], batches: list[Tensor]) -> Row:
    turns = itertools.cycle(batches)
    found = timed(lambda: step(next(turns)), rows.device)
    return {**found, "tokens_per_second": round(len(batches[0]) / found["ms"] * 1000), "peak_gb": rows.peak_gb()}


def _limits(
    d_in: int, d_sae: int, tokens: int, device: torch.device
) -> list[tuple[str, Callable[[], object], dict[str, float]]]:
    """The encoder product in two types, and what Adam and the gradients of both matrices move at least, as a copy."""
    found: list[tuple[str, Callable[[], object], dict[str, float]]] = []
    flop = 2.0 * tokens * d_in * d_sae
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        x, W = (
            torch.randn(tokens, d_in, device=device, dtype=dtype),
            torch.randn(d_sae, d_in, device=device, dtype=dtype),
        )
        found.append((f"encoder product, {name}", partial(torch.matmul, x, W.T), {"tera_flop_per_second": flop}))
    moved = ADAM_BYTES * 2.0 * d_in * d_sae
    source = torch.zeros(int(moved // 8), device=device)
    target = torch.empty_like(source)
    found.append(("copy of what Adam moves", partial(target.copy_, source), {"tera_bytes_per_second": moved}))
    return found


if __name__ == "__main__":
    app()
