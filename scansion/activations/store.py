"""The activation store: a folder of position-major shards and a manifest that says exactly what they hold."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from scansion.activations.batch import PositionedBatch
from scansion.activations.outliers import NORMS, SUMS, Outliers, token_norms
from scansion.activations.remote_shard import RemoteFiles, RemoteShard
from scansion.activations.shard import HOW_TO_REPAIR, SIDE_TENSORS, STATS_TENSORS, Shard, ShardFacts, n_contexts_in
from scansion.corpus.contexts import TURN_TENSORS
from scansion.device import DTYPES
from scansion.errors import DamagedError, StoreError, describe
from scansion.files import expanded, fingerprint, flatten
from scansion.lm.identity import ModelId
from scansion.progress import progress
from scansion.records import read_json, require_known_format
from scansion.remote import local_copy, url_of
from scansion.shapes import require_shape

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
PLAN = "plan.json"
SHARD_NAME = "shard-{}.safetensors"
PLANTED = "synthetic"
"""Source of a store whose activations are made from known features, without text or a language model."""
OWN = "tensors"
"""Source of a store of one's own activations, see :meth:`ActivationStore.from_tensors`."""


class StoreIdentity(BaseModel):
    """Everything that determines the activations in a store. Stores with equal identities hold the same activations."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: int = FORMAT_VERSION
    model: str
    model_revision: str
    model_dtype: str
    hook_point: str
    d_in: int
    context_length: int
    n_contexts: int
    contexts: str
    """Fingerprint of the token ids, their validity, positions and documents."""
    corpus: dict[str, Any]
    """Where the contexts came from and how they were cut: the corpus config, tokenizer and counts."""
    split: str
    dtype: str
    turns: bool = Field(default=False, exclude_if=lambda value: not value)
    """Whether the store has the turn of each token, as stores of chats have."""

    @property
    def model_id(self) -> ModelId:
        """The language model that made the activations, compared by revision and not by path."""
        return ModelId(self.model, self.model_revision)

    @property
    def key(self) -> str:
        """Fingerprint of the identity; the path by which the model was named does not change it."""
        model, revision = self.model_id.key
        return fingerprint(self.model_dump(mode="json") | {"model": model, "model_revision": revision})

    def differences(self, other: StoreIdentity) -> list[str]:
        """The settings in which the two differ, one line each; empty if both hold the same activations."""
        here, there = flatten(self.model_dump(mode="json")), flatten(other.model_dump(mode="json"))
        same_model = self.model_id.same_as(other.model_id)
        return [
            f"{name} is {here.get(name)!r} there and {there.get(name)!r} here"
            for name in dict.fromkeys([*here, *there])
            if here.get(name) != there.get(name) and not (same_model and name in ("model", "model_revision"))
        ]

    def shard_facts(self, digest: str, n_contexts: int) -> ShardFacts:
        """What a shard with this digest and so many contexts must be."""
        return ShardFacts(digest, self.context_length, n_contexts, self.d_in, self.dtype, self.turns)

    @property
    def is_planted(self) -> bool:
        """Whether the activations are synthetic, see :data:`PLANTED`."""
        return self.corpus.get("source") == PLANTED

    @property
    def has_lm(self) -> bool:
        """Whether a language model that Scansion can load made the activations, from text."""
        return self.corpus.get("source") not in (PLANTED, OWN)


class StoreManifest(BaseModel):
    """The manifest of a finished store: its identity and its shards."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    identity: StoreIdentity
    key: str
    n_tokens: int
    shards: dict[str, str]
    """File name -> fingerprint of its tensors, in order of context."""


class ActivationStore:
    """A finished store, open for reading. ``acts`` is [L, C, d_in]: axis 0 *is* the context position.

    The context index is the same at every position: ``contexts(i, i + 1)`` is one whole context.

    Args:
        folder: what :func:`scansion.activations.harvest` wrote; or its URL on object storage, from which only the positions
            that are needed are read, into the cache.

    Raises:
        StoreError: the folder holds no finished store.
        DamagedError: the manifest is damaged, or a shard is missing. Shards are checked when they are first read.
        ScansionError: a later version of Scansion wrote it.

    Example:
        >>> store = scansion.ActivationStore("stores/sotu/train")
        >>> store.n_positions, store.n_contexts, store.d_in
        >>> store.contexts(0, 16).x.shape  # [positions, contexts, d_in]
    """

    def __init__(self, folder: Path | str) -> None:
        url = url_of(folder)
        self.url = url
        """Where it is on object storage; None for a store in a folder."""
        self.folder = local_copy(url) if url else expanded(folder)
        self._files = files = RemoteFiles(url, self.folder) if url else _LocalFiles(self.folder)
        if MANIFEST not in files.names():
            raise StoreError(f"no activation store at {files.place}: {_what_is_there(files)}")
        try:
            is_remote = isinstance(files, RemoteFiles)
            manifest = files.remote.json(MANIFEST) if is_remote else read_json(self.folder / MANIFEST)
        except DamagedError as error:
            raise DamagedError(
                f"{files.place}/{MANIFEST} was cut short or changed after it was written; {files.how_to_repair}"
            ) from error
        identity = manifest.get("identity") if isinstance(manifest, dict) else None
        require_known_format(identity, f"{files.place}/{MANIFEST}", FORMAT_VERSION)
        try:
            self.manifest = StoreManifest.model_validate(manifest)
        except ValidationError as error:
            raise DamagedError(
                f"{files.place}/{MANIFEST} is not a manifest of format {FORMAT_VERSION}: {describe(error, 'manifest')}; "
                f"{files.how_to_repair}"
            ) from error
        if isinstance(files, RemoteFiles):
            files.parts = self.folder / f"parts-{self.contents[:12]}"
        self._shards = _shards(files, self.manifest)
        self._starts = np.cumsum([0] + [shard.n_contexts for shard in self._shards])

    @classmethod
    def from_tensors(
        cls,
        acts: Any,
        folder: str | Path,
        *,
        valid: Any = None,
        positions: Any = None,
        tokens: Any = None,
        documents: Any = None,
        name: str = "own activations",
        hook_point: str = "own",
        split: str = "train",
        dtype: str | None = None,
        shard_bytes: int = 64_000_000,
    ) -> ActivationStore:
        """Write activations of your own to a store on disk: of audio, genomes, board games, time series.

        SAEs train on it and are evaluated (``core`` and ``position``) and compared on another such store with the same name
        and hook point. If ``folder`` holds these activations already, they are written again with the same bytes.

        Args:
            acts: a tensor or array [C, L, d_in]; a list with a tensor [L_i, d_in] for each context; or an iterator of tensors
                [c, L, d_in], read once, so that not all of them need fit in memory.
            folder: of the store; must not hold anything else.
            valid: [C, L], False where there is no token; default True everywhere.
            positions: [C, L], the position of each token, unique in its context; default its index. Every token is
                stored, and masked, at its position.
            tokens: [C, L], an id of what each token is, shown beside it; default 0.
            documents: [C] or [C, L], the document that each context or token belongs to, for intervals that do not take tokens
                of one document for independent; default each context its own. Iterators of activations take all of these as
                whole tensors; a list of activations takes lists of unequal lengths too.
            name, hook_point: what the activations are of. SAEs are evaluated only on stores with the same ones.
            split: ``train`` or ``held_out``.
            dtype: ``float32``, ``bfloat16`` or ``float16``; default that of the activations, or float32.
            shard_bytes: approximate size of a file.

        Raises:
            ShapeError: shapes disagree, or values are out of range; says which.
            StoreError: an activation is not finite, or the folder holds something else.

        Example:
            >>> frames = torch.randn(200, 32, 64)  # 200 recordings of 32 frames, 64 wide
            >>> store = ActivationStore.from_tensors(frames, folder / "train", name="recordings")
            >>> store.n_contexts, store.n_positions, store.d_in
            (200, 32, 64)
        """
        from scansion.activations.own import write_own_store  # which imports this module

        return write_own_store(
            Path(folder), acts, valid=valid, positions=positions, tokens=tokens, documents=documents, name=name,
            hook_point=hook_point, split=split, dtype=dtype, shard_bytes=shard_bytes,
        )  # fmt: skip

    def __repr__(self) -> str:
        """What it holds and how much."""
        held = self.identity
        return (
            f"ActivationStore({self.place}: {self.n_contexts:,} contexts x {self.n_positions} positions "
            f"x {self.d_in}, {held.dtype}, {held.hook_point} of {held.model})"
        )

    @property
    def place(self) -> str:
        """Its URL or its folder, as messages name it."""
        return self._files.place

    @property
    def identity(self) -> StoreIdentity:
        """What the store holds."""
        return self.manifest.identity

    @property
    def key(self) -> str:
        """Fingerprint of the identity, as the manifest has it."""
        return self.manifest.key

    @property
    def n_positions(self) -> int:
        """Context length L."""
        return self.identity.context_length

    @property
    def n_contexts(self) -> int:
        """Number of contexts C."""
        return self.identity.n_contexts

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return self.identity.d_in

    @property
    def n_bytes(self) -> int:
        """Size of the activations in memory, in their stored type."""
        return self.n_positions * self.n_contexts * self.d_in * (4 if self.identity.dtype == "float32" else 2)

    @property
    def shards(self) -> tuple[Shard, ...]:
        """The files of the store, in order of their contexts."""
        return tuple(self._shards)

    def check_sizes(self) -> None:
        """Compare the size of every shard on object storage with what it should be; reads no activations.

        Raises:
            DamagedError: one was cut short, or is of another store.
        """
        for shard in self._shards:
            if isinstance(shard, RemoteShard):
                shard.check_size()

    @cached_property
    def _side(self) -> dict[str, Tensor]:
        names = SIDE_TENSORS + (TURN_TENSORS if self.identity.turns else ())
        parts = self._read_all(names)
        return {name: torch.cat([part[name] for part in parts], dim=1) for name in names}

    @property
    def tokens(self) -> Int[Tensor, "L C"]:
        """Token ids; 0 where not valid."""
        return self._side["tokens"]

    @property
    def valid(self) -> Bool[Tensor, "L C"]:
        """False where a context does not reach a position."""
        return self._side["valid"]

    @property
    def doc_ids(self) -> Int[Tensor, "L C"]:
        """Index of the document each token belongs to; -1 where not valid."""
        return self._side["doc_ids"]

    @property
    def doc_positions(self) -> Int[Tensor, "L C"]:
        """Index of each token within its document; -1 at BOS and where not valid."""
        return self._side["doc_positions"]

    @property
    def turns(self) -> Int[Tensor, "L C"] | None:
        """Index of the chat message that each token belongs to; -1 at BOS and where not valid. None if the text was no chat."""
        return self._side.get("turns")

    @property
    def positions_in_turn(self) -> Int[Tensor, "L C"] | None:
        """Index of each token within its turn; -1 where ``turns`` is. None if that is."""
        return self._side.get("positions_in_turn")

    @cached_property
    def _statistics(self) -> dict[str, Tensor]:
        parts = self._read_all(STATS_TENSORS)
        sums = {name: torch.stack([part[name] for part in parts]).sum(dim=0) for name in STATS_TENSORS}
        if int(sums["count"].sum()) != self.manifest.n_tokens:
            raise DamagedError(
                f"{self.place}/{MANIFEST} is damaged: its shards do not hold {self.manifest.n_tokens:,} tokens; "
                f"{self._files.how_to_repair}"
            )
        return sums

    def _read_all(self, names: tuple[str, ...]) -> list[dict[str, Tensor]]:
        """The named tensors of every shard. A shard is read and checked as a whole when it is first used."""
        parts: list[dict[str, Tensor]] = []
        with progress("check activations", self.n_contexts, "contexts") as advance:
            for shard in self._shards:
                parts.append(shard.tensors(names))
                advance(shard.n_contexts)
        return parts

    @cached_property
    def norms(self) -> Float[Tensor, "L C"]:
        """L2 norm of every activation (float64); 0 where not valid. Takes one pass over the store, the first time."""
        return token_norms(self.derived, self.contents, self._shards)

    @property
    def contents(self) -> str:
        """Fingerprint of what is stored, to the last bit."""
        return fingerprint([self.manifest.key, self.manifest.shards])

    @cached_property
    def derived(self) -> Path:
        """The folder for what follows from the activations and is computed once."""
        if isinstance(self._files, RemoteFiles):
            self._files.bring(self._files.parts, NORMS, SUMS)
            return self._files.parts
        return self.folder

    @cached_property
    def outliers(self) -> Outliers:
        """The tokens after position 0 whose norm is far above all others', and how much of the variance they hold."""
        return Outliers.of(self)

    def sum_of(self, tokens: Bool[Tensor, "L C"]) -> Float[Tensor, "L d_in"]:
        """Sum of the activations of some tokens at each position (float64); only these activations are read."""
        total = torch.zeros(self.n_positions, self.d_in, dtype=torch.float64)
        for shard, first in zip(self._shards, self._starts[:-1].tolist(), strict=True):
            positions, contexts = tokens[:, first : first + shard.n_contexts].nonzero(as_tuple=True)
            total.index_add_(0, positions, shard.rows(positions.numpy(), contexts.numpy()).double())
        return total

    @property
    def count(self) -> Int[Tensor, "L"]:
        """Valid tokens at each position."""
        return self._statistics["count"]

    @property
    def norm_sum(self) -> Float[Tensor, "L"]:
        """Sum of the L2 norms of the activations at each position (float64)."""
        return self._statistics["norm_sum"]

    @property
    def sums(self) -> Float[Tensor, "L d_in"]:
        """Sum of the activations at each position (float64)."""
        return self._statistics["act_sum"]

    @property
    def squares(self) -> Float[Tensor, "L"]:
        """Sum of the squared L2 norms of the activations at each position (float64)."""
        return self._statistics["square_sum"]

    @property
    def mean_norm(self) -> Float[Tensor, "L"]:
        """Mean L2 norm of the activations at each position (float64)."""
        return self.norm_sum / self.count

    @property
    def mean(self) -> Float[Tensor, "L d_in"]:
        """Mean activation at each position (float64)."""
        return self.sums / self.count[:, None]

    @property
    def mean_square(self) -> Float[Tensor, "L"]:
        """Mean squared L2 norm of the activations at each position (float64)."""
        return self.squares / self.count

    def used_positions(self, use_position_0: bool, excluded: Bool[Tensor, "L C"] | None = None) -> Int[Tensor, "P"]:
        """The positions that training and evaluation use: those with a valid token, position 0 only if requested.

        Args:
            use_position_0: whether to include the first position.
            excluded: valid tokens that do not count.

        Raises:
            StoreError: there is no such position.
        """
        count = self.count if excluded is None else self.count - excluded.sum(dim=1)
        positions = count.nonzero().squeeze(1)
        if not use_position_0:
            positions = positions[positions > 0]
        if len(positions) == 0:
            if excluded is not None:
                raise StoreError(f"{self.place} has no token that is not left out; change exclude or exclude_tokens")
            raise StoreError(f"{self.place} has no valid token beyond position 0; use longer contexts")
        return positions

    def gather(self, positions: Int[Tensor, "P"], contexts: Int[Tensor, "P n"]) -> PositionedBatch:
        """The activations of n contexts at each of P positions, in the stored type, read through the memory map.

        Args:
            positions: in [0, L).
            contexts: n context indices in [0, C) for each position.
        """
        sizes = require_shape("contexts", contexts, "P n", P=len(positions))
        flat_contexts = contexts.reshape(-1).numpy()
        flat_positions = positions.repeat_interleave(sizes["n"]).numpy()
        shard_of = np.searchsorted(self._starts, flat_contexts, side="right") - 1
        rows = torch.empty(len(flat_contexts), self.d_in, dtype=DTYPES[self.identity.dtype])
        for index in np.unique(shard_of):
            here = np.flatnonzero(shard_of == index)
            part = self._shards[index].rows(flat_positions[here], flat_contexts[here] - self._starts[index])
            rows[torch.from_numpy(here)] = part
        return PositionedBatch(rows.view(len(positions), sizes["n"], self.d_in), positions)

    def contexts(self, start: int, stop: int) -> PositionedBatch:
        """Whole contexts ``start`` to ``stop`` (exclusive), at all L positions, in the stored type."""
        stop = min(stop, self.n_contexts)
        parts: Sequence[Tensor] = [
            shard.contexts(max(start - first, 0), min(stop - first, shard.n_contexts))
            for shard, first in zip(self._shards, self._starts[:-1].tolist(), strict=True)
            if start < first + shard.n_contexts and stop > first
        ]
        if not parts:
            raise StoreError(f"contexts {start} to {stop} are not among the {self.n_contexts} of {self.place}")
        return PositionedBatch(torch.cat(list(parts), dim=1), torch.arange(self.n_positions))

    def resident(self, device: torch.device, positions: range) -> Float[Tensor, "R C d_in"]:
        """All contexts at some positions, read into the device's memory shard by shard, in the stored type."""
        acts = torch.empty(len(positions), self.n_contexts, self.d_in, dtype=DTYPES[self.identity.dtype], device=device)
        rows = slice(positions.start, positions.stop)
        with progress("read activations", self.n_contexts, "contexts") as advance:
            for shard, first in zip(self._shards, self._starts[:-1].tolist(), strict=True):
                acts[:, first : first + shard.n_contexts] = shard.contexts(0, shard.n_contexts, rows)
                advance(shard.n_contexts)
        return acts

    def damaged(self) -> list[tuple[Path, str]]:
        """Read every byte of every shard; the files that are not what was written, and what is wrong with each."""
        found: list[tuple[Path, str]] = []
        with progress("check activations", self.n_contexts, "contexts") as advance:
            for shard in self._shards:
                try:
                    shard.verify()
                except DamagedError as error:
                    found.append((shard.path, str(error)))
                advance(shard.n_contexts)
        return found

    def verify_share(self, share: int, of: int) -> None:
        """Read every byte of one shard in ``of``, and take the others as they are: each is verified by another process.

        Args:
            share: from 0; which of the shards.
            of: how many processes there are.

        Raises:
            DamagedError: a shard is not what was written.
        """
        for index, shard in enumerate(self._shards):
            if index % of == share:
                shard.tensors(())
            else:
                shard.trust()

    def verify(self) -> None:
        """Read every byte.

        Raises:
            DamagedError: a shard is not what was written.
        """
        if damaged := self.damaged():
            raise DamagedError(damaged[0][1] if self.url else f"{damaged[0][1]}; {self._files.how_to_repair}")


class _LocalFiles:
    """The files of a store in a folder."""

    def __init__(self, folder: Path) -> None:
        self.place = str(folder)
        self.how_to_repair = HOW_TO_REPAIR.format(folder=folder)
        self._folder = folder

    def names(self) -> set[str]:
        """The files that there are, and those of folders in it."""
        return {
            str(path.relative_to(self._folder))
            for pattern in ("*", f"*/{MANIFEST}")
            for path in self._folder.glob(pattern)
        }

    def n_contexts(self, name: str) -> int:
        """How many contexts a shard holds, as its header says."""
        return n_contexts_in(self._folder / name)

    def shard(self, name: str, facts: ShardFacts) -> Shard:
        """A shard; not read yet."""
        return Shard(self._folder / name, facts)


def _what_is_there(files: _LocalFiles | RemoteFiles) -> str:
    names = files.names()
    if not names and not Path(files.place).is_dir():
        return "there is no such folder"
    if stores := sorted(
        name.removesuffix(f"/{MANIFEST}") for name in names if name.count("/") == 1 and name.endswith(MANIFEST)
    ):
        return f"it holds the stores {', '.join(stores)}; give one of them"
    if "on_the_fly.json" in names:
        return "it holds text whose activations are made while training; only `scansion train` takes it, in one process"
    if PLAN in names or any(Path(name).match(SHARD_NAME.format("*")) for name in names):
        return "there is an unfinished store; run the same harvest again to finish it"
    return f"the folder has no {MANIFEST}; give a folder that `scansion harvest` wrote"


def _shards(files: _LocalFiles | RemoteFiles, manifest: StoreManifest) -> list[Shard]:
    """The manifest's shards, none of them read yet.

    Raises:
        DamagedError: the manifest contradicts itself or the files.
    """
    identity, names = manifest.identity, list(manifest.shards)

    def damaged(why: str) -> DamagedError:
        return DamagedError(f"{files.place}/{MANIFEST} is damaged: {why}; {files.how_to_repair}")

    # Earlier versions had the model's name as it was typed in the key.
    if manifest.key not in (identity.key, fingerprint(identity.model_dump(mode="json"))):
        raise damaged("its key is not that of what it describes")
    if names != [SHARD_NAME.format(f"{index:05d}") for index in range(len(names))] or not names:
        raise damaged("it does not list its shards in order")
    there = files.names()
    if missing := [name for name in names if name not in there]:
        raise DamagedError(f"{files.place} has no {', '.join(missing)}; {files.how_to_repair}")
    sizes = _sizes(files, names, identity.n_contexts)
    if sizes is None:
        raise damaged(f"its {len(names)} shards do not hold {identity.n_contexts} contexts")
    return [
        files.shard(name, identity.shard_facts(digest, size))
        for (name, digest), size in zip(manifest.shards.items(), sizes, strict=True)
    ]


def _sizes(files: _LocalFiles | RemoteFiles, names: list[str], n_contexts: int) -> list[int] | None:
    """How many contexts each shard has; None if no shard agrees with their number. All have equally many but the last."""
    if len(names) == 1:
        return [n_contexts]
    for name in names[:-1]:
        try:
            each = files.n_contexts(name)
        except DamagedError:  # said when it is read
            continue
        if len(sizes := [min(each, n_contexts - start) for start in range(0, n_contexts, each)]) == len(names):
            return sizes
    return None
