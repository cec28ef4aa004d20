"""SAEBench's eight data sets as published on the hub, and the bundled sets that stand in for them when there is no hub."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from scansion.errors import ConfigError
from scansion.progress import progress

# SAEBench follows Gurnee et al. 2023 ("Finding neurons in a haystack") in passing over licence headers.
_CODE_SKIPPED, _CODE_SHORTEST = 150, 534
_ENDINGS = {"c": "C", "h": "C", "py": "Python", "html": "HTML", "java": "Java", "php": "PHP"}
_EUROPARL = {"en": "en-fr", "fr": "fr-it", "de": "de-en", "es": "es-fr", "nl": "nl-pt"}

Row = dict[str, Any]
Labelled = Callable[[Row], tuple[str, str] | None]
"""A row's class and text; None for a row that is left out."""


@dataclass(frozen=True)
class HubSet:
    """One data set of SAEBench.

    Attributes:
        classes: each is one task, against the others.
        sources: path, configuration and data files of the tables to read, as ``datasets.load_dataset`` takes them.
        labelled: see :data:`Labelled`.
        stand_in: the bundled data set nearest to it; None where none is near.
    """

    classes: tuple[str, ...]
    sources: tuple[Row, ...]
    labelled: Labelled
    stand_in: str | None


def _columns(text: str, label: str) -> Labelled:
    return lambda row: (str(row[label]), row[text])


def _code(row: Row) -> tuple[str, str] | None:
    language = _ENDINGS.get(str(row["path"]).rsplit(".", 1)[-1].lower())
    return (language, row["code"][_CODE_SKIPPED:]) if language and len(row["code"]) > _CODE_SHORTEST else None


def _translation(row: Row) -> tuple[str, str] | None:
    # Each pair of languages is read for one of them: the first of its name.
    language = row["language"]
    return language, row["translation"][language]


def _bios(stand_in: str, *classes: int) -> HubSet:
    sources = ({"path": "LabHC/bias_in_bios"},)
    return HubSet(tuple(map(str, classes)), sources, _columns("hard_text", "profession"), stand_in)


_AMAZON = ({"path": "canrager/amazon_reviews_mcauley_1and5"},)
HUB_SETS: dict[str, HubSet] = {
    "LabHC/bias_in_bios_class_set1": _bios("occupations_1", 0, 1, 2, 6, 9),
    "LabHC/bias_in_bios_class_set2": _bios("occupations_2", 11, 13, 14, 18, 19),
    "LabHC/bias_in_bios_class_set3": _bios("occupations_3", 20, 21, 22, 25, 26),
    "canrager/amazon_reviews_mcauley_1and5": HubSet(
        ("1", "2", "3", "5", "6"), _AMAZON, _columns("text", "category"), "art_types"
    ),
    "canrager/amazon_reviews_mcauley_1and5_sentiment": HubSet(
        ("1.0", "5.0"), _AMAZON, _columns("text", "rating"), "amazon_stars"
    ),
    "codeparrot/github-code": HubSet(
        ("C", "Python", "HTML", "Java", "PHP"),
        # The data set's own script is no longer run by `datasets`; its files are.
        ({"path": "parquet", "data_files": "hf://datasets/codeparrot/github-code/data/train-*.parquet"},),
        _code,
        "code",
    ),
    "fancyzhx/ag_news": HubSet(
        ("0", "1", "2", "3"), ({"path": "fancyzhx/ag_news"},), _columns("text", "label"), "ag_news"
    ),
    # Nothing bundled is in any other language than English.
    "Helsinki-NLP/europarl": HubSet(
        tuple(_EUROPARL),
        tuple({"path": "Helsinki-NLP/europarl", "name": pair} for pair in _EUROPARL.values()),
        _translation,
        None,
    ),
}
"""By SAEBench's names. The classes are those of its version 0.6."""


def texts_by_class(name: str, per_class: int, seed: int) -> dict[str, list[str]]:
    """Texts of each class of a hub data set, read from a shuffled stream until every class has enough.

    It differs from SAEBench in what is drawn: rows of the ``train`` split for both sides, professions not balanced by
    gender, categories not by rating.

    Args:
        name: of :data:`HUB_SETS`.
        per_class: texts wanted of each class.
        seed: of the stream's shuffling.

    Raises:
        ConfigError: the hub cannot be reached, or has no such data.
    """
    one = HUB_SETS[name]
    found: dict[str, list[str]] = {label: [] for label in one.classes}
    with progress(f"read {name}", per_class * len(found), "texts") as advance:
        for source in one.sources:
            # One table of many holds one class, one table of all holds all.
            wanted = set(one.classes) if len(one.sources) == 1 else {one.classes[one.sources.index(source)]}
            for row in _stream(name, source, seed):
                if len(one.sources) > 1:
                    row = {**row, "language": next(iter(wanted))}
                label, text = one.labelled(row) or ("", "")
                if label in wanted and len(found[label]) < per_class:
                    found[label].append(text)
                    advance(1)
                if all(len(found[label]) == per_class for label in wanted):
                    break
    return found


def _stream(name: str, source: Row, seed: int) -> Iterator[Row]:
    import datasets  # takes a second or more, which bundled sets need not wait for

    try:
        rows: Iterable[Any] = datasets.load_dataset(**source, split="train", streaming=True)
        yield from rows.shuffle(seed=seed, buffer_size=20_000)  # pyright: ignore[reportAttributeAccessIssue]
    except Exception as error:  # whatever the hub's client, the network or the data set's own reader may raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"{name} cannot be read from the hub ({reason}); check the network, or set hub to false, for the bundled "
            "stand-in"
        ) from error
