"""The report of ``scansion doctor``: versions, device, speed, memory, disk, assets."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time

import psutil
import torch

from scansion.assets import ASSETS, cache_dir, status
from scansion.device import resolve_device
from scansion.errors import ScansionError
from scansion.execution.report import execution_lines
from scansion.files import free_bytes, human_bytes, require_writable

_SIDE = 1024


def report() -> list[str]:
    """The lines of the report; the last says whether everything works, or what to do."""
    problems: list[str] = []
    device = resolve_device()
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers", "datasets"))
    lines = [
        f"scansion {importlib.metadata.version('scansion')}, Python {platform.python_version()}, {versions}",
        f"device: {device}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads, "
        f"{_matmul_gflops(device):,.0f} GFLOP/s in a {_SIDE} x {_SIDE} float32 product",
        f"memory: {human_bytes(psutil.virtual_memory().available)} of "
        f"{human_bytes(psutil.virtual_memory().total)} available",
        *execution_lines(device),
    ]
    try:
        require_writable(cache_dir())
        lines.append(f"cache: {cache_dir()}, {human_bytes(free_bytes(cache_dir()))} free")
    except ScansionError as error:
        problems.append(str(error))
    for name in ASSETS:
        lines.append(f"asset {name}: {status(name)}")
        if status(name) != "present":
            problems.append(f"{name} is {status(name)}; run `scansion assets fetch`")
    lines.append("everything is ready" if not problems else "to fix: " + "; ".join(problems))
    return lines


def _matmul_gflops(device: torch.device) -> float:
    """The fastest of five products: the others may have been slowed down by other programs."""
    a = torch.randn(_SIDE, _SIDE, device=device)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        (a @ a)[0, 0].item()
        best = min(best, time.perf_counter() - start)
    return 2 * _SIDE**3 / best / 1e9
