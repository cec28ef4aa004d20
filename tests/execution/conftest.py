"""Fixtures for what depends on the processor: every build of the C part and every screen that it can run is tested."""

from __future__ import annotations

import pytest
import torch

from scansion.execution.cpu import native
from tests.execution.screens import BUILDS, SCREENS, use_screen


@pytest.fixture(params=BUILDS)
def build(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The C part in one of its builds."""
    library = native.load(request.param)
    monkeypatch.setattr(native, "_library", lambda: library)
    return request.param


@pytest.fixture(params=SCREENS)
def screens(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """One of the screens, and its type."""
    return use_screen(request.param, monkeypatch)
