"""Labelled texts for probing: binary classification sets of the sae-probes asset, alone or grouped as SAEBench groups them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
from jaxtyping import Int

from scansion.assets import ASSETS, asset_path
from scansion.errors import ConfigError

ASSET = "sae-probes"
_FOLDER = Path("sae_probes", "data", "cleaned_data")
_SUFFIX = ".csv.zst"
_TRAIN_SHARE = 0.8


@dataclass(frozen=True)
class _Group:
    """Binary sets whose accuracies are averaged.

    Attributes:
        members: names of sets.
        against_each_other: take each set's positives against those of the others, not against its own negatives.
    """

    members: tuple[str, ...]
    against_each_other: bool = False


# sae-probes gives its three AG News sets source code as negatives, which tells news from code and not one kind of news
# from another. SAEBench asks for the latter, so their positives are set against each other. (AG News' fourth class is
# not in the asset.)
_GROUPS: dict[str, _Group] = {
    "ag_news": _Group(("161_agnews_0", "162_agnews_1", "163_agnews_2"), against_each_other=True),
    "code": _Group(("158_code_C", "159_code_Python", "160_code_HTML")),
    "amazon_stars": _Group(("157_amazon_5star",)),
    "occupations": _Group(
        (
            "59_wikidata_occupation_isjournalist",
            "60_wikidata_occupation_isathlete",
            "61_wikidata_occupation_isactor",
            "62_wikidata_occupation_ispolitician",
            "63_wikidata_occupation_issinger",
            "64_wikidata_occupation_isresearcher",
        )
    ),
    # SST-2 of GLUE: phrases of film reviews, negative (0) or positive (1). The asset's 113_movie_sent is another set,
    # Rotten Tomatoes, of whole sentences.
    "sst2": _Group(("92_glue_sst2",)),
}


@dataclass(frozen=True)
class ProbingSet:
    """One binary task.

    Attributes:
        name: the set's name in the asset.
        texts: no text twice.
        labels: 0 or 1; of the asset's two labels, 1 is the later in alphabetical order ("0" < "1", "False" < "True").
    """

    name: str
    texts: list[str]
    labels: Int[np.ndarray, " n"]


@dataclass(frozen=True)
class ProbingSplit:
    """One binary task split for probing: each side has as many texts of one label as of the other, and shares none."""

    train: ProbingSet
    test: ProbingSet

    @property
    def name(self) -> str:
        """The task's name."""
        return self.train.name


def load_probing_set(name: str, train_size: int, test_size: int, seed: int) -> list[ProbingSplit]:
    """The binary tasks of a data set, balanced and split.

    Texts that occur twice count once, and texts that bear both labels are left out. Where ``train_size + test_size``
    balanced texts are not to be had, 80% of those there are may be trained on and the rest may be tested on.

    Args:
        name: ``ag_news``, ``code``, ``amazon_stars``, ``occupations``, ``sst2``, or a binary set of the asset such as
            ``87_glue_cola``, which is a data set of one task.
        train_size, test_size: texts of both labels together, at most; at least 2.
        seed: of the draw.

    Raises:
        ConfigError: no such data set, or it is not binary, or too small to split.
        AssetError: the asset has not been fetched.
    """
    return [_split(task, train_size // 2, test_size // 2, seed) for task in _tasks(name)]


def check_probing_sets(names: Iterable[str]) -> None:
    """Raise what :func:`load_probing_set` would raise for these names, in a second rather than after the LM has run."""
    for name in names:
        members = _members(name)
        if name not in _GROUPS:
            for member in members:
                _read(member)


def known_probing_sets() -> list[str]:
    """The groups, then every set of the asset (some are not binary)."""
    folder = asset_path(ASSET) / _FOLDER
    files = sorted(path.name.removesuffix(_SUFFIX) for path in folder.glob(f"*{_SUFFIX}"))
    return [*_GROUPS, *sorted(files, key=lambda name: (int(name.split("_")[0]), name))]


def probing_source() -> str:
    """The asset and its version, for provenance."""
    return str(ASSETS[ASSET])


def _members(name: str) -> tuple[str, ...]:
    known = known_probing_sets()
    members = _GROUPS[name].members if name in _GROUPS else (name,)
    if all(member in known for member in members):
        return members
    close = get_close_matches(name, known, n=3, cutoff=0.5) or [other for other in known if name in other][:3]
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise ConfigError(f"no probing data set is called {name!r}; {hint}There are {', '.join(known)}")


def _tasks(name: str) -> list[ProbingSet]:
    sets = [_read(member) for member in _members(name)]
    if name not in _GROUPS or not _GROUPS[name].against_each_other:
        return sets
    positives = {one.name: [text for text, label in zip(one.texts, one.labels, strict=True) if label] for one in sets}
    return [
        _without_duplicates(
            task,
            [text for texts in positives.values() for text in texts],
            [int(member == task) for member, texts in positives.items() for _ in texts],
        )
        for task in positives
    ]


def _read(name: str) -> ProbingSet:
    path = asset_path(ASSET) / _FOLDER / f"{name}{_SUFFIX}"
    with pa.input_stream(str(path), compression="zstd") as stream:
        table = pyarrow.csv.read_csv(
            stream,
            # A row must fit in a block, and texts hold line breaks.
            read_options=pyarrow.csv.ReadOptions(block_size=1 << 28),
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=["prompt", "target"], column_types={"prompt": pa.string(), "target": pa.string()}
            ),
        )
    targets = table["target"].to_pylist()
    kinds = sorted(set(targets))
    if len(kinds) != 2:
        raise ConfigError(f"{name} has {len(kinds)} different labels, and only sets of 2 can be probed; choose another")
    return _without_duplicates(name, table["prompt"].to_pylist(), [kinds.index(target) for target in targets])


def _without_duplicates(name: str, texts: list[str], labels: list[int]) -> ProbingSet:
    seen: dict[str, set[int]] = {}
    for text, label in zip(texts, labels, strict=True):
        seen.setdefault(text, set()).add(label)
    kept = {text: found.pop() for text, found in seen.items() if len(found) == 1}
    return ProbingSet(name, list(kept), np.array(list(kept.values()), dtype=np.int64))


def _split(task: ProbingSet, train_per_label: int, test_per_label: int, seed: int) -> ProbingSplit:
    generator = np.random.default_rng(seed)
    by_label = [generator.permutation(np.flatnonzero(task.labels == label)) for label in (0, 1)]
    available = min(len(indices) for indices in by_label)
    if available < train_per_label + test_per_label:
        for_training = int(_TRAIN_SHARE * available)
        train_per_label = min(train_per_label, for_training)
        test_per_label = min(test_per_label, available - for_training)
    if not train_per_label or not test_per_label:
        raise ConfigError(
            f"{task.name} has {available} usable texts of its rarer label, too few to train on {train_per_label} of "
            f"each label and test on {test_per_label}; choose another set or larger sizes"
        )
    stop = train_per_label + test_per_label
    train, test = (
        np.concatenate([indices[part] for indices in by_label])
        for part in (slice(0, train_per_label), slice(train_per_label, stop))
    )
    return ProbingSplit(_subset(task, train), _subset(task, test))


def _subset(task: ProbingSet, indices: Int[np.ndarray, " m"]) -> ProbingSet:
    return ProbingSet(task.name, [task.texts[index] for index in indices], task.labels[indices])
