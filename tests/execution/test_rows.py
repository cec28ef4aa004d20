"""Who does the sums: Triton where it has been seen to work, torch elsewhere, and a line that says why."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from scansion.execution import backends, operations

# Without a GPU, the CPU is taken for one, and Triton's kernels are interpreted.
DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_known() -> Iterator[None]:
    """What was found out about a device is forgotten, before and after."""
    backends._triton_on.cache_clear()
    yield
    backends._triton_on.cache_clear()


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device at hand is taken for one that Triton is for."""
    monkeypatch.setattr(
        backends,
        "BACKENDS",
        [replace(backends.BACKENDS[1], module_for=lambda *tensors: backends._triton_on(tensors[0].device))],
    )


def sums_by_hand() -> tuple[torch.Tensor, torch.Tensor]:
    """The sums of two segments, and what they must be."""
    table, weights = torch.tensor([[1.0, 2.0], [3.0, 5.0]]), torch.tensor([2.0, 1.0, -3.0])
    arguments = (torch.tensor([0, 1, 1]), table, torch.tensor([0, 1, 3]), weights)
    expected = torch.tensor([[2.0, 4.0], [-6.0, -10.0]])
    return operations.sum_of_rows(*(tensor.to(DEVICE) for tensor in arguments)).cpu(), expected


def test_without_triton_torch_does_it_and_it_is_said_once(here: None, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    for name in [name for name in sys.modules if name.startswith("scansion.execution.cuda.")]:
        monkeypatch.delitem(sys.modules, name)
        monkeypatch.delattr(name, raising=False)
    for _ in range(2):
        torch.testing.assert_close(*sums_by_hand())
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "torch's operations" in said
    assert "triton" in said


def test_kernels_that_are_wrong_or_do_not_run_are_not_used(here: None, monkeypatch, capsys) -> None:
    pytest.importorskip("triton", reason="Triton is built for Linux alone")
    from scansion.execution.cuda import kernels

    def off_by_a_little(names, table, offsets, weights):
        return table.new_full((len(offsets) - 1, table.shape[1]), 1e-3)

    def not_running(*arguments):
        raise RuntimeError("Failed to find C compiler\nand more")

    for broken, reason in ((off_by_a_little, "its results are wrong"), (not_running, "Failed to find C compiler")):
        backends._triton_on.cache_clear()
        monkeypatch.setattr(kernels, "sum_of_rows", broken)
        torch.testing.assert_close(*sums_by_hand())
        said = capsys.readouterr().err
        assert reason in said
        assert said.count("\n") == 1


def test_kernels_that_work_are_used_and_nothing_is_said(here: None, monkeypatch, capsys) -> None:
    pytest.importorskip("triton", reason="Triton is built for Linux alone")
    from scansion.execution.cuda import kernels, rows

    monkeypatch.setattr(rows, "PIECE", 16)
    assert backends._triton_on(DEVICE) is kernels
    torch.testing.assert_close(*sums_by_hand())
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("device", "dtype", "asked"),
    [
        ("cuda:0", torch.float32, True),
        ("cuda:1", torch.bfloat16, True),
        ("cuda:0", torch.float64, False),
        ("cpu", torch.float32, False),
        ("mps", torch.float32, False),
    ],
)
def test_triton_is_for_cuda_and_what_float32_can_add_up(
    device: str, dtype: torch.dtype, asked: bool, monkeypatch
) -> None:
    met: list[torch.device] = []
    with monkeypatch.context() as patch:
        patch.setattr(backends, "_triton_on", met.append)
        backends.kernels_for(torch.device(device), dtype)
    assert met == ([torch.device(device)] if asked else [])


def test_the_library_does_without_triton_until_it_meets_a_gpu() -> None:
    script = "import sys, scansion.training; print([name for name in sys.modules if name == 'triton'])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("counted", [None, torch.tensor([True, False, True, True])], ids=["all", "some"])
def test_a_device_counts_as_the_cpu_does(counted: torch.Tensor | None) -> None:
    places = torch.tensor([3, 0, 3, 1])
    expected = [1, 1, 0, 2, 0] if counted is None else [0, 1, 0, 2, 0]
    assert operations.count(places, 5, counted).tolist() == expected
    assert operations._count_without_waiting(places, 5, counted).tolist() == expected
