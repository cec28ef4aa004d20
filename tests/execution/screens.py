"""Builds of the C part, and products to screen by, that work on this processor; each is tested, whichever is the fastest."""

from __future__ import annotations

import pytest
import torch

from scansion.execution import backends
from scansion.execution.cpu import native, native_screen

AVAILABLE = native.instructions()
BUILDS = [
    build for build, needed in native.BUILDS.items() if native.built() and (needed is None or needed in AVAILABLE)
]
# The kernel in plain C, and torch's product in bfloat16, work on every processor.
INT16 = [name for name in native_screen.KERNELS if name is None or name in AVAILABLE]
SCREENS = ["bfloat16", *(f"int16, {name or 'plain C'}" for name in INT16)]


def use_screen(name: str, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """Let one of :data:`SCREENS` be the one that is chosen here, and return its type."""
    if name == "bfloat16":
        monkeypatch.setattr(backends, "screening", lambda: ("any processor", torch.bfloat16))
        return torch.bfloat16
    kernel = name.removeprefix("int16, ")
    monkeypatch.setattr(native, "instructions", lambda: frozenset({kernel}))
    monkeypatch.setattr(backends, "screening", lambda: (kernel, torch.int16))
    return torch.int16
