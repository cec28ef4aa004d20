"""Compile every Triton kernel as it is launched for the sizes of a real step, for a GPU that need not be there.

Run as ``python tests/execution/compile_kernels.py 90``, with TRITON_INTERPRET=0; prints one line of JSON per kernel.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.driver import CudaLauncher as _CudaLauncher  # noqa: F401 - chooses NVIDIA's compiler
from triton.runtime import driver
from triton.runtime.jit import JITFunction

T, D_IN, D_SAE, K = 32, 2304, 16_384, 64


class AbsentGPU:
    """What the compiler asks of a driver, for a GPU of one compute capability."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: Any = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def report(kernel: Any, name: str) -> dict[str, Any]:
    """Registers, spilled bytes and atomic operations of a compiled kernel."""
    dump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        said = subprocess.run([dump, "-res-usage", file.name], capture_output=True, text=True, check=True)
    usage = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", said.stdout + said.stderr)
    assert usage, said
    registers, stack, local = (int(number) for number in usage.groups())
    atomics = len(re.findall(r"\b(?:atom|red)\.", kernel.asm["ptx"]))
    return {"kernel": name, "registers": registers, "spilled": stack + local, "atomics": atomics}


def launch_all() -> None:
    """Call everything that launches a kernel, at real widths and few tokens."""
    from scansion.execution.activation import Activation
    from scansion.execution.cuda import activation, adam, batch_top_k, grouping, rows, top_k

    W = torch.zeros(D_SAE, D_IN)
    entries = torch.arange(T * K)
    features, tokens, values = entries % D_SAE, entries // K, torch.ones(T * K)
    offsets = torch.arange(T + 1) * K
    for dtype in (torch.float32, torch.bfloat16):
        top_k.largest_per_row(torch.zeros(T, D_SAE, dtype=dtype), K)
        for names in ([(T, None)], [(T, torch.arange(D_SAE))]):
            batch_top_k.largest_of_all([(torch.zeros(T, D_SAE, dtype=dtype), names)], T * K, torch.ones(()))
        rows.sum_of_rows(features, W.to(dtype), offsets, values)
        rows.dots_at_entries(torch.zeros(T, D_IN, dtype=dtype), W.to(dtype), offsets, tokens, features)
        closed, weights = torch.zeros(2, D_SAE, dtype=torch.bool), torch.ones(2, D_SAE)
        for mask in ((None, None), (closed, None), (None, weights), (closed, weights)):
            for threshold in (None, weights[0]):
                rule = Activation(T // 2, *mask, threshold)
                pre_acts = torch.zeros(T, D_SAE, dtype=dtype)
                activation.apply_mask(pre_acts, rule)
                activation.activate(pre_acts, rule)
                activation.activate_backward(pre_acts, pre_acts, pre_acts, rule, torch.zeros(()))
    activation.sum_per_position(values, (entries, tokens, torch.zeros(D_SAE + 1, dtype=torch.int64)), 2, T // 2)
    grouping.group(features, tokens, values, T, D_SAE)
    rows.sum_per_feature(values, entries, offsets)
    dots, _ = adam.parallel_parts(W, W)
    for matrix in (W, torch.zeros(8, 8192)):
        for parallel in (None, dots[: len(matrix)]):
            rates = {"step": 2, "lr": 1e-3, "betas": (0.9, 0.999), "copy": matrix.bfloat16()}
            adam.adam_step(matrix, matrix, matrix, matrix, torch.ones(()), parallel=parallel, **rates)


def main(capability: int) -> None:
    driver.set_active(AbsentGPU(capability))  # pyright: ignore[reportAttributeAccessIssue]
    run, seen = JITFunction.run, set()

    def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        if kernel is not None and id(kernel) not in seen:
            seen.add(id(kernel))
            sys.stdout.write(json.dumps(report(kernel, self.__name__)) + "\n")
        return kernel

    JITFunction.run = compile_only  # pyright: ignore[reportAttributeAccessIssue]
    launch_all()


if __name__ == "__main__":
    main(int(sys.argv[1]))
