"""Labelled texts for probing, by name: sets of the sae-probes asset, alone or grouped, order-sensitive ones, hub ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
from jaxtyping import Int

from scansion.assets import ASSETS, asset_path
from scansion.corpus import CorpusConfig, check_source, corpus_assets, held_out_documents
from scansion.errors import ConfigError
from scansion.evals.probing.groups import GROUPS
from scansion.evals.probing.hub_sets import HUB_SETS, texts_by_class
from scansion.evals.probing.order_sets import ORDER_PREFIX, ORDER_SETS, order_split
from scansion.evals.probing.split import ProbingSet, ProbingSplit

ASSET = "sae-probes"
_FOLDER = Path("sae_probes", "data", "cleaned_data")
_TABLE = Path("sae_probes", "data", "probing_datasets_MASTER.csv.zst")
_SUFFIX = ".csv.zst"
_TRAIN_SHARE = 0.8
_ALL = 10**9
_COLLECTIONS = ("order", "sae_probes", "saebench")


def load_probing_set(
    name: str,
    train_size: int,
    test_size: int,
    seed: int,
    order_corpus: CorpusConfig | None = None,
    hub: bool = False,
) -> list[ProbingSplit]:
    """The binary tasks of a data set, balanced and split.

    Texts that occur twice count once, and texts that bear both labels are left out. Where ``train_size + test_size``
    balanced texts do not exist, up to 80% of the existing ones are trained on and the rest tested on.

    Args:
        name: a group such as ``ag_news``; a binary set of the asset such as ``87_glue_cola``, which is a data set of one
            task; ``order/bigram_shift`` and so on; or one of SAEBench's hub names, see :func:`stand_in_for`.
        train_size, test_size: texts of both labels together, at most; at least 2.
        seed: of the draw.
        order_corpus: the text that order-sensitive sets are made from: its held-out documents. Default the bundled one.
        hub: read hub names from the hub.

    Raises:
        ConfigError: no such data set, or it is not binary, or too small to split.
        AssetError: the asset has not been fetched.
        CorpusError: the text cannot be read.
    """
    if name.startswith(ORDER_PREFIX):
        documents = held_out_documents(order_corpus or CorpusConfig())
        return [order_split(name, documents, train_size, test_size, seed)]
    if name in HUB_SETS and hub:
        by_class = texts_by_class(name, train_size + test_size, seed)
        tasks = [_one_against_the_rest(label, by_class) for label in by_class]
    else:
        tasks = _tasks(stand_in_for(name) or name)
    return [_split(task, train_size // 2, test_size // 2, seed) for task in tasks]


def labelled_texts(name: str) -> dict[str, int]:
    """Every text of a binary set of the asset and its label, thinned to as many of either label; errors as above."""
    (split,) = load_probing_set(name, _ALL, _ALL, 0)
    return {
        text: int(label)
        for side in (split.train, split.test)
        for text, label in zip(side.texts, side.labels, strict=True)
    }


def shuffled(texts: list[str], generator: np.random.Generator) -> list[str]:
    """The texts in random order."""
    return [texts[index] for index in generator.permutation(len(texts))]


def sizes_of_sides(available: int, train: int, test: int) -> tuple[int, int]:
    """How many texts are trained on and tested on: those wanted; where there are too few, up to 80% are trained on."""
    if available >= train + test:
        return train, test
    for_training = int(_TRAIN_SHARE * available)
    return min(train, for_training), min(test, available - for_training)


def check_probing_sets(names: Iterable[str], order_corpus: CorpusConfig | None = None, hub: bool = False) -> None:
    """Raise what :func:`load_probing_set` would raise for these names, in seconds rather than after the LM has run.

    Of hub data sets, only the names are checked.
    """
    named = list(names)
    if any(name == "order" or name in ORDER_SETS for name in named):
        check_source(order_corpus or CorpusConfig())
    for name in named:
        if name in (*_COLLECTIONS, *ORDER_SETS) or (name in HUB_SETS and hub):
            continue
        found = stand_in_for(name) or name
        members = _members(found)
        # The members of groups are known to be binary.
        if found not in GROUPS:
            for member in members:
                _read(member)


def probing_assets(names: Iterable[str], order_corpus: CorpusConfig | None = None, hub: bool = False) -> list[str]:
    """Names of the bundled assets that these data sets are read from."""
    named = list(names)
    ordered = [name for name in named if name == "order" or name in ORDER_SETS]
    bundled = any(name not in ordered and not (hub and (name == "saebench" or name in HUB_SETS)) for name in named)
    return [*(corpus_assets(order_corpus or CorpusConfig()) if ordered else []), *([ASSET] if bundled else [])]


def expand_probing_sets(names: Iterable[str], hub: bool = False) -> tuple[str, ...]:
    """Names of data sets, with each collection replaced by its members and none named twice.

    ``order`` stands for the six order-sensitive sets, ``sae_probes`` for every binary set of the asset, ``saebench`` for
    the eight of SAEBench, those without a stand-in left out unless they are read from the hub.
    """
    found: list[str] = []
    for name in names:
        if name == "order":
            found += ORDER_SETS
        elif name == "sae_probes":
            found += names_of_binary_sets()
        elif name == "saebench":
            found += [one for one, hub_set in HUB_SETS.items() if hub or hub_set.stand_in]
        else:
            found.append(name)
    return tuple(dict.fromkeys(found))


def stand_in_for(name: str) -> str | None:
    """The bundled data set that stands in for a hub one; None for a name that is not of the hub.

    Raises:
        ConfigError: nothing bundled is near enough.
    """
    if name not in HUB_SETS:
        return None
    stand_in = HUB_SETS[name].stand_in
    if stand_in is None:
        raise ConfigError(f"nothing bundled can stand in for {name}; set hub to true, or leave it out")
    return stand_in


def names_of_binary_sets() -> list[str]:
    """The sets that the asset's own table calls binary, in the order of their numbers."""
    with pa.input_stream(str(asset_path(ASSET) / _TABLE), compression="zstd") as stream:
        table = pyarrow.csv.read_csv(stream)
    kinds = dict(zip(table["Dataset save name"].to_pylist(), table["Data type"].to_pylist(), strict=True))
    return [name for name in _files() if kinds.get(f"cleaned_data/{name}.csv") == "Binary Classification"]


def known_probing_sets() -> list[str]:
    """Collections, groups, order-sensitive sets, hub names, then every set of the asset (some are not binary)."""
    return [*_COLLECTIONS, *GROUPS, *ORDER_SETS, *HUB_SETS, *_files()]


def _files() -> list[str]:
    folder = asset_path(ASSET) / _FOLDER
    files = sorted(path.name.removesuffix(_SUFFIX) for path in folder.glob(f"*{_SUFFIX}"))
    return sorted(files, key=lambda name: (int(name.split("_")[0]), name))


def probing_source() -> str:
    """The asset and its version, for provenance."""
    return str(ASSETS[ASSET])


def _members(name: str) -> tuple[str, ...]:
    known = known_probing_sets()
    members = GROUPS[name].members if name in GROUPS else (name,)
    if all(member in known for member in members):
        return members
    close = get_close_matches(name, known, n=3, cutoff=0.5) or [other for other in known if name in other][:3]
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise ConfigError(f"no probing data set is called {name!r}; {hint}There are {', '.join(known)}")


def _tasks(name: str) -> list[ProbingSet]:
    sets = [_read(member) for member in _members(name)]
    if name not in GROUPS or not GROUPS[name].against_each_other:
        return sets
    positives = {one.name: [text for text, label in zip(one.texts, one.labels, strict=True) if label] for one in sets}
    return [_one_against_the_rest(task, positives) for task in positives]


def _one_against_the_rest(label: str, by_class: Mapping[str, Sequence[str]]) -> ProbingSet:
    """The class's own texts against those of the other classes."""
    texts = [text for texts in by_class.values() for text in texts]
    return _without_duplicates(label, texts, [int(one == label) for one, texts in by_class.items() for _ in texts])


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
    train_per_label, test_per_label = sizes_of_sides(available, train_per_label, test_per_label)
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
