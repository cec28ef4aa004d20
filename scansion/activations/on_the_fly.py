"""Activations that are made while SAEs learn from them, for text whose activations fit on no disk: a buffer holds some of them.

The contexts are put in random order and cut into N chunks. Training reads through a window of four successive chunks, the
buffer, which moves on by one chunk at a time. At each position, a chunk's tokens are divided at random among the windows
that hold it, so that every batch mixes all chunks of the buffer, and an epoch, which is N windows, shows every token once.
After the last chunk comes the first again. A batch depends on the seed and the step alone, as it does where all activations
are stored: a run that was killed resumes with the chunks of its window.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import xxhash
from jaxtyping import Bool, Int
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from scansion.activations.batch import PositionedBatch
from scansion.activations.harvest_plan import HarvestConfig, HarvestPlan
from scansion.activations.harvesting import harvest
from scansion.activations.store import MANIFEST, PLAN, ActivationStore, StoreIdentity
from scansion.activations.stream import ActivationStream, home_of
from scansion.corpus import Contexts
from scansion.device import DTYPES
from scansion.errors import ConfigError, DamagedError, StoreError, describe
from scansion.files import expanded, fingerprint, human_bytes, require_free_space, require_writable
from scansion.lm import LanguageModel, load_language_model
from scansion.lm.identity import ModelId
from scansion.locks import only_writer
from scansion.progress import say, silence
from scansion.records import read_json, write_json
from scansion.tensor_file import load_tensors, save_tensors

CHUNKS = 4
"""Chunks in a buffer: a chunk is replaced while the other three quarters stay."""
RECORD = "on_the_fly.json"
_CONTEXTS = "contexts.safetensors"
_CHUNKS = "chunks"

Excluded = Callable[[ActivationStore], Bool[Tensor, "L C"] | None]
"""Which tokens of a store are never drawn."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    identity: StoreIdentity
    config: HarvestConfig
    contexts: str
    """Digest of the file that holds the contexts."""


class TextStore:
    """Text, and the language model that makes its activations while SAEs are trained; only :func:`scansion.train` reads it.

    Args:
        folder: what ``scansion harvest --on-the-fly`` wrote.
        load_lm: gives the model; default: the one that is named in the folder, on a GPU if there is one.

    Raises:
        StoreError: the folder holds no such text.
        DamagedError: a file of it is damaged.

    Example:
        >>> settings = scansion.HarvestConfig(on_the_fly=True, buffer_tokens=1280)
        >>> large = scansion.HarvestSpec(source.model, source.hook_point, source.corpus, settings)
        >>> stores = scansion.build_stores(large, "stores/large")  # scansion.train([run], stores.train) trains on it
        >>> scansion.TextStore("stores/large/train").n_chunks
        5
    """

    def __init__(self, folder: Path | str, load_lm: Callable[[], LanguageModel] | None = None) -> None:
        self.folder = expanded(folder)
        path = self.folder / RECORD
        if not path.exists():
            raise StoreError(f"{self.folder} holds no text for training on the fly: it has no {RECORD}")
        try:
            self._record = _Record.model_validate(read_json(path))
        except ValidationError as error:
            raise DamagedError(f"{path} is damaged: {describe(error, 'record')}") from error
        self._load_lm = load_lm

    @classmethod
    def write(cls, plan: HarvestPlan, load_lm: Callable[[], LanguageModel]) -> TextStore:
        """Keep the text of a harvest instead of carrying it out; nothing is written if it is there already.

        Args:
            plan: what would be harvested.
            load_lm: see :class:`TextStore`.

        Raises:
            StoreError: the folder holds something else.
        """
        folder = plan.folder
        require_writable(folder)
        for name in (MANIFEST, PLAN):
            if (folder / name).exists():
                raise StoreError(f"{folder} holds activations; choose another folder, or leave out --on-the-fly")
        if (folder / RECORD).exists():
            there = cls(folder, load_lm)
            changed = there.identity.differences(plan.identity)
            if changed or there.config != plan.config:
                changed = changed or ["the settings of the buffer or the batches are others"]
                raise StoreError(
                    f"{folder} holds other text ({'; '.join(changed)}); choose another folder or delete it"
                )
            return there
        require_free_space(folder, plan.n_bytes, "the text and the buffer")
        digest = save_tensors(folder / _CONTEXTS, plan.contexts.tensors())
        record = _Record(identity=plan.identity, config=plan.config, contexts=digest)
        write_json(folder / RECORD, record.model_dump(mode="json"))
        return cls(folder, load_lm)

    def __repr__(self) -> str:
        """What it holds and how much."""
        held = self.identity
        size = f"{held.n_contexts:,} contexts x {self.n_positions} positions"
        return f"TextStore({self.folder}: {size}, {held.hook_point} of {held.model})"

    @property
    def identity(self) -> StoreIdentity:
        """What a store of all activations would hold."""
        return self._record.identity

    @property
    def config(self) -> HarvestConfig:
        """How activations are computed and how many are in the buffer."""
        return self._record.config

    @property
    def key(self) -> str:
        """Fingerprint of what training reads: another one than that of stored activations, since batches are others."""
        return fingerprint([self.identity.key, "on the fly", self.config.buffer_tokens])

    @property
    def n_positions(self) -> int:
        """Context length L."""
        return self.identity.context_length

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return self.identity.d_in

    @cached_property
    def contexts(self) -> Contexts:
        """All contexts, in the random order in which they are read."""
        contexts = Contexts(**load_tensors(self.folder / _CONTEXTS, digest=self._record.contexts))
        return contexts[torch.randperm(len(contexts), generator=torch.Generator().manual_seed(0))]

    @cached_property
    def edges(self) -> list[int]:
        """The first context of every chunk, and the number of contexts."""
        wanted = max(1, self.config.buffer_tokens // (CHUNKS * self.n_positions))
        n_chunks = math.ceil(self.identity.n_contexts / wanted)
        return np.linspace(0, self.identity.n_contexts, n_chunks + 1).round().astype(int).tolist()

    @property
    def n_chunks(self) -> int:
        """N."""
        return len(self.edges) - 1

    @cached_property
    def lm(self) -> LanguageModel:
        """The language model, loaded on first use.

        Raises:
            StoreError: it is not the one that was named when the text was kept.
        """
        held = self.identity
        if self._load_lm is not None:
            return self._load_lm()
        say(f"loading {held.model}")
        lm = load_language_model(held.model, held.model_id.commit, dtype=held.model_dtype)
        if not ModelId(held.model, lm.facts.revision).same_as(held.model_id):
            raise StoreError(f"{held.model} has changed since {self.folder} was written; harvest into another folder")
        return lm

    def chunk(self, number: int) -> ActivationStore:
        """The activations of a chunk, made if they are not on disk; the caller holds :meth:`training`."""
        start, stop = self.edges[number : number + 2]
        contexts = self.contexts[start:stop]
        identity = self.identity.model_copy(update={"n_contexts": len(contexts), "contexts": contexts.fingerprint})
        config = self.config.model_copy(update={"on_the_fly": False})
        plan = HarvestPlan(identity, self._folder_of(number), contexts, config)
        return harvest(plan, lambda: self.lm)

    def forget_chunk(self, number: int) -> None:
        """Delete a chunk's activations."""
        shutil.rmtree(self._folder_of(number), ignore_errors=True)

    def _folder_of(self, number: int) -> Path:
        return self.folder / _CHUNKS / f"{number:06d}"

    @contextmanager
    def training(self) -> Generator[ActivationStore, None, None]:
        """Hold the buffer while the block runs. If it ends well the activations are deleted, else kept to resume with.

        Yields:
            The first chunk, from which scales, means and outliers are measured.

        Raises:
            BusyError: another process trains on this text.
        """
        with only_writer(self.folder, "training on the fly"):
            yield self.chunk(0)
            shutil.rmtree(self.folder / _CHUNKS)


def require_no_text(folder: Path) -> None:
    """Raise :class:`StoreError` if the folder holds text for training on the fly, so that no store is harvested into it."""
    if (folder / RECORD).exists():
        raise StoreError(f"{folder} holds text for training on the fly; choose another folder, or give --on-the-fly")


TrainingStore = ActivationStore | TextStore
"""What SAEs are trained on."""


def open_training_store(folder: Path | str) -> TrainingStore:
    """The store in a folder, or the text whose activations are made while training.

    Raises:
        StoreError: the folder holds neither.
    """
    return TextStore(folder) if (expanded(folder) / RECORD).exists() else ActivationStore(folder)


def held_for_training(store: TrainingStore) -> AbstractContextManager[ActivationStore]:
    """Yields what stands for all activations: the store, or the first chunk of a text; see :meth:`TextStore.training`."""
    return store.training() if isinstance(store, TextStore) else nullcontext(store)


def open_stream(
    store: TrainingStore,
    first: ActivationStore,
    per_position: int,
    seed: int,
    use_position_0: bool,
    with_previous: bool,
    device: torch.device,
    excluded: Excluded,
) -> ActivationStream:
    """The batches of a store, or of a text that is held; arguments as for :class:`OnTheFlyStream`."""
    if isinstance(store, TextStore):
        return OnTheFlyStream(store, first, per_position, seed, use_position_0, with_previous, device, excluded)
    return ActivationStream(store, per_position, seed, use_position_0, None, with_previous, device, excluded(store))


class OnTheFlyStream(ActivationStream):
    """Batches of a :class:`TextStore`, with equally many tokens at every position.

    Scale, mean and positions used are those of the first chunk.

    Args:
        store: the text, whose buffer is held (:meth:`TextStore.training`).
        first: its first chunk.
        per_position, seed, use_position_0, with_previous, device: as for :class:`ActivationStream`.
        excluded: gives the tokens of a chunk that are never drawn.

    Raises:
        ConfigError: the buffer is smaller than four batches.
        StoreError: a position has no token in the buffer.
    """

    def __init__(
        self,
        store: TextStore,
        first: ActivationStore,
        per_position: int,
        seed: int,
        use_position_0: bool = False,
        with_previous: bool = False,
        device: torch.device | None = None,
        excluded: Excluded = lambda chunk: None,
    ) -> None:
        super().__init__(first, per_position, seed, use_position_0, False, with_previous, device, excluded(first))
        self._text, self._excluded_of = store, excluded
        n_windows, n_held = store.n_chunks, min(CHUNKS, store.n_chunks)
        n_drawn = int(store.contexts.valid[:, self.positions].sum())
        self.steps_per_window = n_drawn // (n_windows * self.tokens_per_batch)
        if not self.steps_per_window:
            raise ConfigError(
                f"a buffer of {store.config.buffer_tokens:,} tokens is too small for batches of {self.tokens_per_batch:,}: "
                "a quarter of it is replaced at a time; make --buffer-tokens larger, or --batch-tokens smaller"
            )
        self._slot: int = max(np.diff(store.edges).tolist())
        self._held: dict[int, int] = {}
        self._window = -1
        shape = (store.n_positions, n_held * self._slot, store.d_in)
        dtype = DTYPES[store.identity.dtype]
        n_bytes = math.prod(shape) * dtype.itemsize
        home = home_of(n_bytes, self.device, None)
        if home is None:
            raise ConfigError(
                f"a buffer of {human_bytes(n_bytes)} takes more than half of the free memory; make --buffer-tokens smaller"
            )
        self._buffer = torch.empty(shape, dtype=dtype, device=home)
        self._keep(self._buffer, 0)
        self._chunk_valid: dict[int, Bool[np.ndarray, "L n"]] = {}

    def prepare(self, start: int) -> None:
        """Fill the buffer for a step, and say so: it takes as long as its tokens take the language model."""
        self._enter(start // self.steps_per_window)

    def batches(self, start: int, stop: int, ahead: bool | None = None) -> Iterator[PositionedBatch]:
        """Batches ``start`` to ``stop`` (exclusive); a chunk is harvested when training comes to it."""
        while start < stop:
            window = start // self.steps_per_window
            with silence():  # a bar of the training is shown
                self._enter(window)  # here and not in a thread: the batches of the window before have left the buffer
            end = min(stop, (window + 1) * self.steps_per_window)
            yield from super().batches(start, end, ahead)
            start = end

    def _contexts_at(self, step: int) -> Int[np.ndarray, "P n"]:
        window, index = divmod(step, self.steps_per_window)
        self._enter(window)
        return self._drawn_in_window[:, index * self.per_position : (index + 1) * self.per_position]

    def _enter(self, window: int) -> None:
        """Have the window's chunks in the buffer, and draw its batches."""
        if window == self._window:
            return
        text, n_chunks = self._text, self._text.n_chunks
        n_held = min(CHUNKS, n_chunks)
        wanted = [window + later for later in range(n_held)]
        for each in wanted:
            slot, number = each % n_held, each % n_chunks
            if self._held.get(slot) == number:
                continue
            chunk = text.chunk(number) if number else self.store
            begin = slot * self._slot
            acts = chunk.resident(self._buffer.device, range(chunk.n_positions))
            self._buffer[:, begin : begin + chunk.n_contexts] = acts
            out = self._excluded_of(chunk)
            self._chunk_valid[slot] = (chunk.valid if out is None else chunk.valid & ~out).numpy()
            gone, self._held[slot] = self._held.get(slot), number
            if gone and gone not in self._held.values():  # the first chunk, 0, stays: scales come from it
                text.forget_chunk(gone)
        self._drawn_in_window = self._draw(window, wanted)
        self._window = window

    def _draw(self, window: int, chunks: list[int]) -> Int[np.ndarray, "P m"]:
        """For every position the columns of the buffer that the window's batches hold, in order."""
        epoch, n_held, n_chunks = window // self._text.n_chunks, len(chunks), self._text.n_chunks
        needed = self.steps_per_window * self.per_position
        rows: list[Int[np.ndarray, "m"]] = []
        for position in self.positions.tolist():
            shares: list[Int[np.ndarray, "m"]] = []
            for later, each in enumerate(chunks):
                slot = each % n_held
                contexts = self._chunk_valid[slot][position].nonzero()[0]
                order = self._permuted(contexts, f"{self.seed}/{position}/{epoch}/{each % n_chunks}")
                # In this window the share that the other windows of the epoch that hold the chunk leave to it.
                shares.append(order[later::n_held] + slot * self._slot)
            found = np.concatenate(shares)
            if not len(found):
                raise StoreError(
                    f"no token at position {position} is in the buffer; make --buffer-tokens larger, contexts shorter, or use "
                    "--layout packed"
                )
            found = self._permuted(found, f"{self.seed}/{position}/window {window}")
            rows.append(np.resize(found, needed))  # once more from the first where there are too few
        return np.stack(rows)

    @staticmethod
    def _permuted(items: Int[np.ndarray, "m"], seed: str) -> Int[np.ndarray, "m"]:
        generator = torch.Generator().manual_seed(xxhash.xxh64_intdigest(seed.encode()) >> 1)
        return items[torch.randperm(len(items), generator=generator).numpy()]
