"""The stream: batches with equally many tokens at every position, each a pure function of the seed and the step."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import numpy as np
import psutil
import torch
import xxhash
from jaxtyping import Float, Int
from torch import Tensor

from scansion.activations.batch import PositionedBatch
from scansion.activations.store import ActivationStore
from scansion.errors import ConfigError

PREFETCH = 2
# Steps whose contexts are drawn together: the loop over positions in Python then runs once per so many steps.
STEPS_DRAWN = 16
# Share of the free memory that a store may take. The rest is for the LM, the SAEs and other programs.
MEMORY_SHARE = 0.5


class ActivationStream:
    """Draws n contexts for each position independently, without replacement; once all were drawn, it starts again.

    Batch number ``step`` depends only on the store's contents, ``per_position``, the positions used and the seed: not on
    the shard size, on memory, or on the batches read before. Any step can be replayed.

    Args:
        store: the activations.
        per_position: n, the number of contexts drawn for each position in each batch.
        seed: of the order of contexts.
        use_position_0: whether to include the first position (BOS, the attention sink).
        in_memory: keep the whole store in memory; default: if it takes less than half of the free memory.
        with_previous: also return the token before each token of the batch; the batch itself stays the same.

    Raises:
        ConfigError: ``with_previous`` is set and some token has no token before it.
    """

    def __init__(
        self,
        store: ActivationStore,
        per_position: int,
        seed: int,
        use_position_0: bool = False,
        in_memory: bool | None = None,
        with_previous: bool = False,
    ) -> None:
        self.store = store
        self.per_position = per_position
        self.seed = seed
        self.positions = store.used_positions(use_position_0)
        self.with_previous = with_previous
        valid = store.valid
        followers = self.positions[1:]
        if with_previous and bool((valid[followers] & ~valid[followers - 1]).any()):
            raise ConfigError("some tokens of this store have no token before them (is it padded on the left?)")
        self._valid = {int(p): valid[p].nonzero().squeeze(1).numpy() for p in self.positions}
        self._orders: dict[int, tuple[int, np.ndarray]] = {}
        self._drawn: tuple[int, np.ndarray] | None = None
        if in_memory is None:
            in_memory = store.n_bytes < MEMORY_SHARE * psutil.virtual_memory().available
        self._resident = store.resident() if in_memory else None

    @property
    def in_memory(self) -> bool:
        """Whether the whole store is kept in memory."""
        return self._resident is not None

    @property
    def tokens_per_batch(self) -> int:
        """Tokens in a batch, P x n."""
        return len(self.positions) * self.per_position

    @property
    def input_scale(self) -> float:
        """The factor that scales the stream's activations to unit mean norm."""
        return 1.0 / float(self.store.mean_norm[self.positions].mean())

    @property
    def mean_by_position(self) -> Float[Tensor, "P d_in"]:
        """The mean activation at each of the stream's positions (float32)."""
        return self.store.mean[self.positions].float()

    def batch(self, step: int) -> PositionedBatch:
        """Batch number ``step``, from 0, as float32 on the CPU."""
        contexts = torch.from_numpy(self._contexts_at(step))
        previous = self._read(self.positions[1:] - 1, contexts[1:]) if self.with_previous else None
        return PositionedBatch(self._read(self.positions, contexts), self.positions, previous)

    def _read(self, positions: Tensor, contexts: Tensor) -> Tensor:
        if self._resident is None:
            return self.store.gather(positions, contexts).x.float()
        rows = (positions[:, None] * self.store.n_contexts + contexts).reshape(-1)
        return self._resident.view(-1, self.store.d_in)[rows].view(*contexts.shape, self.store.d_in).float()

    def batches(self, start: int, stop: int, ahead: bool = True) -> Iterator[PositionedBatch]:
        """Batches ``start`` to ``stop`` (exclusive).

        Args:
            start, stop: numbers of batches.
            ahead: prepare batches in a thread that ends with the iteration. Pass False if the store is in memory and training
                needs the core that the thread would take.
        """
        return self._ahead(start, stop) if ahead else map(self.batch, range(start, stop))

    def _ahead(self, start: int, stop: int) -> Iterator[PositionedBatch]:
        ready: queue.Queue[PositionedBatch | BaseException] = queue.Queue(PREFETCH)
        ended = threading.Event()

        def offer(item: PositionedBatch | BaseException) -> bool:
            while not ended.is_set():
                try:
                    ready.put(item, timeout=0.1)
                except queue.Full:
                    continue
                return True
            return False

        def prepare() -> None:
            try:
                for step in range(start, stop):
                    if not offer(self.batch(step)):
                        return
            except BaseException as error:  # passed to the consumer, which raises it
                offer(error)

        thread = threading.Thread(target=prepare, name="activation-stream", daemon=True)
        thread.start()
        try:
            for _ in range(start, stop):
                item = ready.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            ended.set()
            thread.join()

    def _contexts_at(self, step: int) -> Int[np.ndarray, "P n"]:
        """The contexts of a batch, drawn together with those of neighbouring steps."""
        block, index = divmod(step, STEPS_DRAWN)
        drawn = self._drawn
        if drawn is None or drawn[0] != block:
            size = STEPS_DRAWN * self.per_position
            drawn = block, np.stack([self._items(int(p), block * size, size) for p in self.positions])
            self._drawn = drawn
        return drawn[1][:, index * self.per_position : (index + 1) * self.per_position]

    def _items(self, position: int, start: int, needed: int) -> np.ndarray:
        """``needed`` items from item ``start`` of the position's endless sequence of reshuffled epochs."""
        n_valid, parts = len(self._valid[position]), []
        while needed:
            epoch, offset = divmod(start, n_valid)
            part = self._order(position, epoch)[offset : offset + needed]
            parts.append(part)
            start += len(part)
            needed -= len(part)
        return np.concatenate(parts)

    def _order(self, position: int, epoch: int) -> np.ndarray:
        known = self._orders.get(position)
        if known is None or known[0] != epoch:
            seed = xxhash.xxh64_intdigest(f"{self.seed}/{position}/{epoch}".encode()) >> 1
            order = torch.randperm(len(self._valid[position]), generator=torch.Generator().manual_seed(seed))
            known = (epoch, self._valid[position][order.numpy()])
            self._orders[position] = known
        return known[1]
