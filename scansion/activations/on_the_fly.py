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
from collections.abc import Callable, Generator, Iterator, Sequence
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
from scansion.activations.buffer import Buffer, empty_position
from scansion.activations.harvest_plan import HarvestConfig, HarvestPlan
from scansion.activations.harvesting import harvest
from scansion.activations.store import MANIFEST, PLAN, ActivationStore, StoreIdentity
from scansion.activations.stream import ActivationStream
from scansion.corpus import Contexts
from scansion.device import DTYPES, resolve_device
from scansion.errors import ConfigError, DamagedError, StoreError, describe
from scansion.files import expanded, fingerprint, made_folder, require_free_space, require_writable
from scansion.lm import LanguageModel, load_language_model
from scansion.lm.identity import ModelId
from scansion.locks import only_writer
from scansion.progress import say, silence
from scansion.records import read_json, write_json
from scansion.tensor_file import load_tensors, save_tensors

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
        _check_as_far_as_known(plan)
        with made_folder(folder):
            digest = save_tensors(folder / _CONTEXTS, plan.contexts.tensors())
            record = _Record(identity=plan.identity, config=plan.config, contexts=digest)
            write_json(folder / RECORD, record.model_dump(mode="json"))
        return cls(folder, load_lm)

    @property
    def place(self) -> str:
        """Its folder, as messages name it."""
        return str(self.folder)

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
        return contexts[_order(len(contexts))]

    @cached_property
    def buffer(self) -> Buffer:
        """What the buffer holds of the text."""
        return Buffer(self.config.buffer_tokens, self.contexts.valid)

    @property
    def n_chunks(self) -> int:
        """N."""
        return self.buffer.n_chunks

    @property
    def largest_batch(self) -> int:
        """Tokens of the largest batch that the buffer is large enough for, without position 0."""
        return self.buffer.largest_batch(self.buffer.positions(use_position_0=False))

    @property
    def dtype(self) -> torch.dtype:
        """Type of the activations in the buffer."""
        return DTYPES[self.identity.dtype]

    def check_batches(
        self,
        per_position: Callable[[int], int],
        n_steps: Callable[[int], int],
        use_position_0: bool,
        exclude_tokens: Sequence[int],
    ) -> None:
        """Raise unless the buffer is large enough for training; makes no activations.

        Args:
            per_position: gives the tokens of a batch at each position, for a number of positions.
            n_steps: gives the length of training, for the tokens of a batch.
            use_position_0: whether to train on the first position.
            exclude_tokens: ids of tokens that are never drawn.

        Raises:
            ConfigError: it is smaller than four batches.
            StoreError: a position has no token in it at some time.
        """
        out = torch.isin(self.contexts.tokens, torch.tensor([*exclude_tokens], dtype=torch.long))
        positions = self.buffer.positions(use_position_0, out)
        if not len(positions):
            return  # the first chunk's own error says why
        each = per_position(len(positions))
        per_window = self.buffer.steps_per_window(positions, each)
        n_windows = math.ceil(n_steps(each * len(positions)) / per_window)
        self.buffer.check_positions(positions, n_windows, out)

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
        start, stop = self.buffer.edges[number : number + 2]
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


def _order(n_contexts: int) -> Int[Tensor, "C"]:
    """The random order in which contexts are read."""
    return torch.randperm(n_contexts, generator=torch.Generator().manual_seed(0))


def _check_as_far_as_known(plan: HarvestPlan) -> None:
    """Raise if no batch fits the buffer; say so if the buffer does not fit this machine, where training may not be."""
    identity, config = plan.identity, plan.config
    buffer = Buffer(config.buffer_tokens, plan.contexts.valid[_order(len(plan.contexts))])
    positions = buffer.positions(use_position_0=True)
    if not buffer.largest_batch(positions):
        raise ConfigError(
            f"a buffer of {config.buffer_tokens:,} tokens is too small for any batch of this text, most of which is padding; "
            "make --buffer-tokens larger, contexts shorter, or use --layout packed"
        )
    try:
        buffer.home(identity.d_in, DTYPES[identity.dtype], resolve_device("auto"))
    except ConfigError as error:
        say(f"{error}, or train on a machine with more")


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
    n_previous: int,
    device: torch.device,
    excluded: Excluded,
) -> ActivationStream:
    """The batches of a store, or of a text that is held; arguments as for :class:`OnTheFlyStream`."""
    if isinstance(store, TextStore):
        return OnTheFlyStream(store, first, per_position, seed, use_position_0, n_previous, device, excluded)
    return ActivationStream(store, per_position, seed, use_position_0, None, n_previous, device, excluded(store))


class OnTheFlyStream(ActivationStream):
    """Batches of a :class:`TextStore`, with equally many tokens at every position.

    Scale, mean and positions used are those of the first chunk.

    Args:
        store: the text, whose buffer is held (:meth:`TextStore.training`).
        first: its first chunk.
        per_position, seed, use_position_0, n_previous, device: as for :class:`ActivationStream`.
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
        n_previous: int = 0,
        device: torch.device | None = None,
        excluded: Excluded = lambda chunk: None,
    ) -> None:
        super().__init__(first, per_position, seed, use_position_0, False, n_previous, device, excluded(first))
        self._text, self._excluded_of = store, excluded
        buffer = store.buffer
        self.steps_per_window = buffer.steps_per_window(self.positions, per_position)
        self._slot = buffer.slot
        self._held: dict[int, int] = {}
        self._window = -1
        shape = (store.n_positions, buffer.n_held * buffer.slot, store.d_in)
        home = buffer.home(store.d_in, store.dtype, self.device)
        self._buffer = torch.empty(shape, dtype=store.dtype, device=home)
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
        n_held = text.buffer.n_held
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
                raise empty_position(position)
            found = self._permuted(found, f"{self.seed}/{position}/window {window}")
            rows.append(np.resize(found, needed))  # once more from the first where there are too few
        return np.stack(rows)

    @staticmethod
    def _permuted(items: Int[np.ndarray, "m"], seed: str) -> Int[np.ndarray, "m"]:
        generator = torch.Generator().manual_seed(xxhash.xxh64_intdigest(seed.encode()) >> 1)
        return items[torch.randperm(len(items), generator=generator).numpy()]
