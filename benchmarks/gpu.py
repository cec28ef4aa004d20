"""A GPU: whether every way of a step is right there, and how long whole steps take beside the machine's own limits.

First correctness, then speed. A row that fails is written down and the rest goes on; the file is written after each row.
"""

from __future__ import annotations

import hashlib
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cyclopts import App
from torch import Tensor

from benchmarks.limits import ADAM_BYTES, wait_for
from benchmarks.subjects import POSITIONS, Subject, batch
from scansion.activations import PositionedBatch
from scansion.execution.backends import name_for
from scansion.files import write_json
from scansion.progress import say
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
    ("topk", "soft", False),
    ("topk", "importance", False),
    ("relu", "adaptive", False),
]
ONLY_AT = {"B": {"topk"}, "C": {"topk", "relu"}, "A, 16,384 tokens": {"topk"}}
CHECKED, CHECKED_SMALL = (256, 2048, 16, 2048), (16, 128, 4, 256)


@dataclass
class Rows:
    """What was found, written to a file after each row.

    Attributes:
        path: the JSON file.
        device: where.
        until: time after which nothing more is begun.
    """

    path: Path
    device: torch.device
    until: float
    content: dict[str, Any] = field(default_factory=dict[str, Any])

    def add(self, part: str, name: str, work: Callable[[], dict[str, Any]]) -> None:
        """Do some work and write down what it returns, or why it failed."""
        if time.monotonic() > self.until:
            found: dict[str, Any] = {"skipped": "out of time"}
        else:
            try:
                found = work()
            except Exception as error:  # one way that fails must not cost the others their row
                found = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
        self.content.setdefault(part, {})[name] = found
        write_json(self.path, self.content)
        numbers = (
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in found.items()
        )
        say(f"{part} | {name}: {', '.join(numbers)}")


@app.default
def measure(*, out: Path, device: str = "cuda", seconds: float = 230.0, small: bool = False) -> None:
    """Check that every way gives the dense form's numbers, then time whole steps: clip, AuxK, dead counts and metrics in.

    Args:
        out: the JSON file.
        device: where to run.
        seconds: after which nothing more is begun.
        small: small sizes and few steps, to try the script out without a GPU.
    """
    where = torch.device(device)
    rows = Rows(out, where, time.monotonic() + seconds)
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else platform.processor() or platform.machine()
    rows.content["machine"] = {"device": name, "torch": torch.__version__, "sums": name_for(where)}
    sizes, n_steps = (CHECKED_SMALL, 4) if small else (CHECKED, 200)
    for kind, mask, dense in STEPS:
        if not dense:
            rows.add("correct", f"{kind}, {mask}", partial(_checked, kind, mask, where, sizes, n_steps))
    for size, (d_in, d_sae, k, tokens) in (SMALL if small else SIZES).items():
        for limit, action, work in _limits(d_in, d_sae, tokens, where):
            rows.add(f"limits {size}", limit, partial(_timed, action, where, work))
        batches = [batch(tokens, d_in, seed).to(where) for seed in range(2)]
        for kind, mask, dense in STEPS:
            if kind in ONLY_AT.get(size, {kind}):
                make = Subject(kind, d_in, d_sae, k, mask, dense, device=device).learner
                name = f"{kind}, {mask}{', dense form' if dense else ''}"
                rows.add(f"steps {size}", name, partial(_stepped, make, batches, where))


def _checked(
    kind: str, mask: str, device: torch.device, sizes: tuple[int, int, int, int], n_steps: int
) -> dict[str, Any]:
    """Losses after some steps: the fastest way in full precision beside the dense form, bfloat16, and the same seed twice."""
    d_in, d_sae, k, tokens = sizes
    batches = [batch(tokens, d_in, seed).to(device) for seed in range(8)]

    def run(dense: bool, precision: Any) -> tuple[Learner, float]:
        trained = Subject(kind, d_in, d_sae, k, mask, dense, device=str(device), precision=precision).learner()
        fve = [float(_advance(trained, batches[step % 8])[METRICS.index("fve")]) for step in range(n_steps)]
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


def _advance(trained: Learner, x: Tensor) -> Tensor:
    positions = torch.arange(POSITIONS, device=x.device)
    return trained.advance(PositionedBatch(x.view(POSITIONS, -1, x.shape[1]), positions))


def _stepped(make: Callable[[], Learner], batches: list[Tensor], device: torch.device) -> dict[str, Any]:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    trained = make()
    positions = torch.arange(POSITIONS, device=device)
    handed = [PositionedBatch(x.view(POSITIONS, -1, x.shape[1]), positions) for x in batches]
    turn = 0

    def step() -> None:
        nonlocal turn
        trained.advance(handed[turn % len(handed)])
        turn += 1

    found = _timed(step, device)
    memory = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None
    tokens = len(batches[0])
    return {
        **found,
        "tokens_per_second": round(tokens / found["ms"] * 1000),
        "way": "+".join(sorted(trained.ways)),
        "precision": trained.precision,
        "peak_gb": memory,
    }


def _timed(action: Callable[[], object], device: torch.device, work: dict[str, float] | None = None) -> dict[str, Any]:
    """Milliseconds of an action: the median of five lots, each of as many as take about a tenth of a second."""
    for _ in range(4):
        action()
    lots = [_lot(action, device, 2)]
    n = max(1, min(100, int(0.1 / lots[0])))
    lots = [_lot(action, device, n) for _ in range(5)]
    seconds = statistics.median(lots)
    rates = {name: round(amount / seconds / 1e12, 3) for name, amount in (work or {}).items()}
    return {"ms": 1000 * seconds, "lowest_ms": 1000 * min(lots), **rates}


def _lot(action: Callable[[], object], device: torch.device, n: int) -> float:
    wait_for(device)
    began = time.perf_counter()
    for _ in range(n):
        action()
    wait_for(device)
    return (time.perf_counter() - began) / n


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
