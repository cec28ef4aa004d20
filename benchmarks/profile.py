"""Where the time of a step goes: its operations in torch's profile, in groups, and what is left between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from cyclopts import App
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.limits import step_work
from benchmarks.peers import Step
from benchmarks.rounds import Record
from benchmarks.subjects import Subject, batch
from scansion.execution.cpu import native, native_screen

GROUPS: dict[str, tuple[str, ...]] = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm", "_addmm", "dot", "mv", "addmv"),
    "selection": ("topk", "kthvalue", "sort", "argsort", "ge", "gt", "lt", "nonzero", "searchsorted"),
    "weighted sums of rows": (
        "_embedding_bag", "_embedding_bag_forward_only", "embedding_bag", "index_add", "index_reduce", "scatter_add",
    ),
    "products at active entries": ("sparse_sampled_addmm",),
    "adam": ("_fused_adam",),
    "norms and sums": ("linalg_vector_norm", "norm", "sum", "mean", "bincount", "cumsum", "_foreach_norm", "any"),
    "copies and gathers": (
        "copy", "clone", "cat", "stack", "index", "index_select", "gather", "fill", "zero", "masked_fill", "index_put",
        "scatter", "where", "_index_put_impl", "take", "repeat_interleave", "embedding",
    ),
    "arithmetic by element": (
        "add", "sub", "mul", "div", "addcmul", "addcdiv", "pow", "sqrt", "clamp", "clamp_min", "relu", "neg",
        "threshold_backward", "maximum", "minimum", "rsub", "reciprocal", "square", "exp", "sigmoid",
    ),
}  # fmt: skip
"""Names of torch's operations, without ``aten::`` and the underscore of those that work in place, by group."""
NATIVE = {
    "selection": ("top_k", "above", "screened_top_k", "screened_above", "round_rows"),
    "sums over active entries, in C": ("group", "fired", "decode", "sparse_backward", "weighted_sum"),
    "passes over decoder rows, in C": ("remove_parallel", "normalise"),
}
"""Functions of :mod:`scansion.execution.cpu.native` and :mod:`scansion.execution.cpu.native_screen`, by group."""
OWN = "own kernels"
OTHER = "other operations"
BETWEEN = "Python, and kernels torch does not see"
STEP = "step"
PREFIX = "scansion::"
app = App(help_format="plaintext")


def group_of(operation: str) -> str:
    """The group of an operation as the profiler names it; operations that torch does not bring are our own kernels."""
    if operation.startswith(PREFIX):
        return next((group for group, names in NATIVE.items() if operation.removeprefix(PREFIX) in names), OWN)
    if not operation.startswith("aten::"):
        return OWN if "::" in operation and not operation.startswith(("autograd::", "torch::")) else BETWEEN
    name = operation.removeprefix("aten::").rstrip("_")
    return next((group for group, names in GROUPS.items() if name in names), OTHER)


@app.default
def measure(
    *,
    out: Path,
    masks: tuple[str, ...] = ("none", "8"),
    kind: str = "topk",
    d_in: int = 576,
    d_sae: int = 4608,
    k: int = 32,
    batch_tokens: int = 2048,
    steps: int = 20,
    threads: int | None = None,
) -> None:
    """Profile steps of training, one mask after another.

    Args:
        out: the JSON file.
        masks: ``none``, ``random``, ``soft`` or numbers of bands.
        kind: the architecture.
        d_in, d_sae, k, batch_tokens: sizes.
        steps: how many are profiled, after three to warm up.
        threads: of torch.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    settings = {"kind": kind, "d_in": d_in, "d_sae": d_sae, "k": k, "batch_tokens": batch_tokens, "steps": steps}
    record = Record(out, "profile", settings)
    batches = [batch(batch_tokens, d_in, seed) for seed in range(4)]
    for mask in masks:
        step = Subject(kind, d_in, d_sae, k, mask).step()
        for index in range(3):
            step(batches[index])
        bands = int(mask) if mask.isdigit() else 1
        work = step_work(kind, d_in, d_sae, k, batch_tokens, bands)
        with native_shown():
            found = profiled(step, batches, steps)
        record.put(**{mask: found | {"work": work}})


def profiled(step: Step, batches: Sequence[torch.Tensor], steps: int) -> dict[str, Any]:
    """Seconds per step of each group and of the largest operations, on the thread that calls them.

    What an operation does on other threads happens while it is waited for, and is its own time all the same.
    """
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for index in range(steps):
            with record_function(STEP):
                step(batches[index % len(batches)])
    groups: dict[str, float] = {}
    operations: dict[str, float] = {}
    total = 0.0
    for event in found.key_averages():
        own = event.self_cpu_time_total / 1e6 / steps
        if event.key == STEP:
            total = event.cpu_time_total / 1e6 / steps
        # Under the step itself, and under autograd's nodes, is the time of Python and of whatever torch does not see.
        group = BETWEEN if event.key == STEP else group_of(event.key)
        groups[group] = groups.get(group, 0.0) + own
        operations[event.key] = own
    largest = sorted(operations, key=lambda name: -operations[name])[:15]
    return {
        "seconds": total,
        "groups": dict(sorted(groups.items(), key=lambda item: -item[1])),
        "operations": {name: operations[name] for name in largest if name != STEP},
    }


@contextmanager
def native_shown() -> Iterator[None]:
    """Let torch's profiler see the C part meanwhile."""
    names = [name for group in NATIVE.values() for name in group]
    before = [(module, name, getattr(module, name, None)) for module in (native, native_screen) for name in names]
    found = [(module, name, work) for module, name, work in before if work is not None]
    try:
        for module, name, work in found:
            setattr(module, name, _shown(name, work))
        yield
    finally:
        for module, name, work in found:
            setattr(module, name, work)


def _shown(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
    def recorded(*arguments: Any) -> Any:
        with record_function(f"{PREFIX}{name}"):
            return work(*arguments)

    return recorded


if __name__ == "__main__":
    app()
