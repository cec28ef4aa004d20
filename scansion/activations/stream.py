"""The stream: batches with equally many tokens at every position, each a pure function of the seed and the step."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from functools import cached_property, partial

import numpy as np
import psutil
import torch
import xxhash
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scansion.activations.batch import PositionedBatch
from scansion.activations.store import ActivationStore
from scansion.activations.upload import Upload
from scansion.errors import ConfigError, StoreError

PREFETCH = 2
# Of activations: the square of a smaller one, or of the inverse of one, is no normal number in float32.
SMALLEST_NORM = 1e-15
# Steps whose contexts are drawn together: the loop over positions in Python then runs once per so many steps.
STEPS_DRAWN = 16
# Share of the free memory that a store may take. The rest is for the LM, the SAEs and other programs.
MEMORY_SHARE = 0.5
# The same of the free memory of a GPU.
GPU_MEMORY_SHARE = 0.4


class ActivationStream:
    """Draws n contexts for each position independently, without replacement; once all were drawn, it starts again.

    Batch number ``step`` depends only on the store's contents, ``per_position``, the positions used and the seed: not on
    the shard size, on memory, on the device, or on the batches read before. Any step can be replayed.

    Args:
        store: the activations.
        per_position: n, the number of contexts drawn for each position in each batch.
        seed: of the order of contexts.
        use_position_0: whether to include the first position (BOS, the attention sink).
        in_memory: keep the whole store in memory, in its stored type; default: if it takes less than half of the free
            memory. A GPU's own memory is used if the store takes less than 40% of what is free there.
        n_previous: how many of the tokens before each token to return too, see :attr:`PositionedBatch.previous`; the batch
            itself stays the same.
        device: where batches are wanted; default the CPU.
        excluded: tokens that are never drawn, see :meth:`TokenExclusion.excluded`. A position that has no other token is
            not among those used.
        part: which of the positions used to read, for a process that trains on these; its batches are those rows of the
            whole stream's batches.

    Raises:
        ConfigError: tokens before are wanted, and some token has no token before it.
        StoreError: no token is left.

    Example:
        >>> stream = scansion.ActivationStream(store, per_position=4, seed=0)
        >>> batch = next(iter(stream.batches(0, 10)))
    """

    def __init__(
        self,
        store: ActivationStore,
        per_position: int,
        seed: int,
        use_position_0: bool = False,
        in_memory: bool | None = None,
        n_previous: int = 0,
        device: torch.device | None = None,
        excluded: Bool[Tensor, "L C"] | None = None,
        part: slice = slice(None),
    ) -> None:
        self.store = store
        self.per_position = per_position
        self.seed = seed
        self._excluded = excluded
        self.positions = store.used_positions(use_position_0, excluded)[part]
        self.n_previous = n_previous
        valid = store.valid
        followers = self.positions[1:]
        if n_previous and bool((valid[followers] & ~valid[followers - 1]).any()):
            raise ConfigError("some tokens of this store have no token before them (is it padded on the left?)")
        if n_previous > 1 and bool((self.positions.diff() > 1).any()):
            raise ConfigError(
                "windows of tokens need all positions in a row, and at some position every token is left out"
            )
        drawn = valid if excluded is None else valid & ~excluded
        self._valid = {int(p): drawn[p].nonzero().squeeze(1).numpy() for p in self.positions}
        self._orders: dict[int, tuple[int, np.ndarray]] = {}
        self._drawn: tuple[int, np.ndarray] | None = None
        # With its number: `cuda` is not equal to `cuda:0`.
        self.device = torch.empty(0, device=device).device if device else torch.device("cpu")
        # One tensor for all batches, so that the values Python has read from it stay cached (see scansion.readings).
        self._device_positions = self.positions.to(self.device)
        kept = range(int(self.positions[0]), int(self.positions[-1]) + 1)
        home = home_of(store.n_bytes * len(kept) // store.n_positions, self.device, in_memory)
        self._keep(None if home is None else store.resident(home, kept), kept.start)

    def _keep(self, acts: Float[Tensor, "R C d_in"] | None, first: int) -> None:
        """Read batches from ``acts``, whose first row is position ``first``; None: from the store on disk."""
        self._first_kept = first
        self._columns = self.store.n_contexts if acts is None else acts.shape[1]
        self._resident = None if acts is None else acts.flatten(0, 1)
        # On a GPU that cannot hold them: rows are gathered into pinned memory and copied on a stream of their own.
        elsewhere = self.device.type == "cuda" and (acts is None or acts.device != self.device)
        self._copying = torch.cuda.Stream(self.device) if elsewhere else None

    @property
    def in_memory(self) -> bool:
        """Whether the whole store is kept in memory, the CPU's or the device's."""
        return self._resident is not None

    @property
    def tokens_per_batch(self) -> int:
        """Tokens in a batch, P x n."""
        return len(self.positions) * self.per_position

    @cached_property
    def input_scale(self) -> float:
        """The factor that scales the stream's activations to unit mean norm, measured without outlier tokens.

        Raises:
            StoreError: the mean norm is 0, not finite, or such that float32 does not hold the squares of activations.
        """
        outliers = self.store.outliers.mask
        return self._scale(outliers if self._excluded is None else outliers | self._excluded)

    @property
    def input_scale_with_outliers(self) -> float:
        """The same with outlier tokens, as runs of earlier versions were begun with."""
        return self._scale(self._excluded)

    def _scale(self, left_out: Bool[Tensor, "L C"] | None) -> float:
        store = self.store
        if left_out is None or not bool(left_out.any()):
            return self._inverse(float(store.mean_norm[self.positions].mean()))
        sums = store.norm_sum - torch.where(left_out, store.norms, 0.0).sum(dim=1)
        means = (sums / (store.count - left_out.sum(dim=1)))[self.positions]
        return self._inverse(float(means.nanmean()))  # not a number where a position has outliers only

    def _inverse(self, norm: float) -> float:
        if not SMALLEST_NORM <= norm <= 1 / SMALLEST_NORM:
            raise StoreError(
                f"activations of {self.store.place} have a mean norm of {norm:.3g}, which cannot be trained on: it should be "
                f"between {SMALLEST_NORM:g} and {1 / SMALLEST_NORM:g}; check the model and the hook point, and harvest again"
            )
        return 1.0 / norm

    @property
    def mean_by_position(self) -> Float[Tensor, "P d_in"]:
        """The mean activation at each of the stream's positions (float32), of the tokens that are drawn."""
        store, out = self.store, self._excluded
        if out is None:
            return store.mean[self.positions].float()
        count = (store.count - out.sum(dim=1))[:, None]
        return ((store.sums - store.sum_of(out)) / count)[self.positions].float()

    def batch(self, step: int) -> PositionedBatch:
        """Batch number ``step``, from 0, as float32 on the stream's device."""
        return self._receive(self._send(step))

    def _send(self, step: int) -> list[Callable[[], Tensor]]:
        """Begin to read a batch, and the tokens before it that are wanted; each function returned ends the reading."""
        contexts = torch.from_numpy(self._contexts_at(step))
        return [self._begin(contexts[back:], back) for back in range(1 + min(self.n_previous, len(contexts) - 1))]

    def _receive(self, sent: list[Callable[[], Tensor]]) -> PositionedBatch:
        x, *previous = [end().to(self.device).float() for end in sent]
        return PositionedBatch(x, self._device_positions, tuple(previous))

    def _begin(self, contexts: Int[Tensor, "R n"], back: int) -> Callable[[], Tensor]:
        """Begin to read the tokens ``back`` positions before a batch's, for all its positions but the first ``back``."""
        positions, pinned = self.positions[back:] - back, self._copying is not None
        if self._resident is None:
            rows = self.store.gather(positions, contexts).x
            rows = rows.pin_memory() if pinned else rows
        else:
            index = ((positions[:, None] - self._first_kept) * self._columns + contexts).reshape(-1)
            if self._resident.device == self.device:
                return partial(
                    self._select, index.pin_memory() if index.device != self.device else index, contexts.shape
                )
            rows = torch.empty(*contexts.shape, self.store.d_in, dtype=self._resident.dtype, pin_memory=pinned)
            torch.index_select(self._resident, 0, index, out=rows.flatten(0, 1))
        if self._copying is not None:
            return Upload(rows, self.device, self._copying).arrived
        rows = rows.float()  # in the thread, if there is one
        return lambda: rows

    def _select(self, index: Int[Tensor, "m"], shape: torch.Size) -> Float[Tensor, "R n d_in"]:
        assert self._resident is not None
        return self._resident.index_select(0, index.to(self.device, non_blocking=True)).view(*shape, self.store.d_in)

    def prepare(self, start: int) -> None:
        """Do what must be done before batch ``start`` can be read; here nothing."""

    def batches(self, start: int, stop: int, ahead: bool | None = None) -> Iterator[PositionedBatch]:
        """Batches ``start`` to ``stop`` (exclusive).

        Args:
            start, stop: numbers of batches.
            ahead: prepare batches in a thread that ends with the iteration. By default on a GPU, or if the store is on disk:
                on a CPU, training needs the core that the thread would take.
        """
        if ahead is None:
            ahead = self.device.type != "cpu" or not self.in_memory
        return self._ahead(start, stop) if ahead else map(self.batch, range(start, stop))

    def _ahead(self, start: int, stop: int) -> Iterator[PositionedBatch]:
        ready: queue.Queue[list[Callable[[], Tensor]] | BaseException] = queue.Queue(PREFETCH)
        ended = threading.Event()

        def offer(item: list[Callable[[], Tensor]] | BaseException) -> bool:
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
                    if not offer(self._send(step)):
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
                yield self._receive(item)
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


def home_of(n_bytes: int, device: torch.device, in_memory: bool | None) -> torch.device | None:
    """Where so many bytes of activations are kept: on the GPU, else in the CPU's memory; None leaves them on disk."""
    if in_memory is False:
        return None
    if device.type == "cuda" and n_bytes < GPU_MEMORY_SHARE * torch.cuda.mem_get_info(device)[0]:
        return device
    fits = n_bytes < MEMORY_SHARE * psutil.virtual_memory().available
    return torch.device("cpu") if in_memory or fits else None
