"""A copy to a GPU that runs while the GPU computes: from pinned memory, on a stream of its own."""

from __future__ import annotations

import torch
from torch import Tensor


class Upload:
    """Starts a copy and returns at once.

    Args:
        pinned: may be dropped at once too: PyTorch reuses pinned memory only when the copies from it are complete.
        device: a GPU.
        stream: where the copy runs.
    """

    def __init__(self, pinned: Tensor, device: torch.device, stream: torch.cuda.Stream) -> None:
        with torch.cuda.stream(stream):
            self._tensor = pinned.to(device, non_blocking=True)
        self._copied = stream.record_event()

    def arrived(self) -> Tensor:
        """The copy, for work that the current stream gets from now on. The GPU waits for it; Python does not."""
        current = torch.cuda.current_stream(self._tensor.device)
        current.wait_event(self._copied)
        # Without this the next copy could get the tensor's memory while the current stream still reads it.
        self._tensor.record_stream(current)
        return self._tensor
