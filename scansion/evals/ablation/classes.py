"""Texts by class, and texts that bear two labels at once: from the sae-probes asset, for perturbation evaluations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import Int

from scansion.errors import ConfigError
from scansion.evals.probing.groups import GROUPS
from scansion.evals.probing.sets import labelled_texts, shuffled, sizes_of_sides

Group = TypeVar("Group", bound=Hashable)
Rows = Int[np.ndarray, " _"]


@dataclass(frozen=True)
class ClassSet:
    """A set of classes, and what it stands in for."""

    members: tuple[str, ...]
    stands_for: str


CLASS_SETS: dict[str, ClassSet] = {
    "occupations": ClassSet(GROUPS["occupations"].members, "LabHC/bias_in_bios_class_set1"),
    "news_topics": ClassSet(GROUPS["ag_news"].members, "canrager/amazon_reviews_mcauley_1and5 (its categories)"),
    "code_languages": ClassSet(GROUPS["code"].members, "no set of SAEBench's TPP"),
}

CROSSED_SETS: dict[str, str] = {
    "occupation_gender": "LabHC/bias_in_bios (actor or journalist, by gender; far fewer texts)",
    "topic_rating": "canrager/amazon_reviews_mcauley_1and5 (category by rating); made up here: four phrases of SST-2's "
    "film reviews, all of one sentiment, and a piece of AG News after them",
}
# Phrases per review. From a single phrase a probe on SmolLM2's pooled activations hardly detects the sentiment, and then
# no bias can cost it any accuracy.
_PHRASES = 4


@dataclass(frozen=True)
class SplitTexts(Generic[Group]):
    """Texts by group (a class, or a pair of labels), as many in each, to train and to test on; no text is in two places."""

    train: dict[Group, list[str]]
    test: dict[Group, list[str]]

    @classmethod
    def of(cls, texts: Mapping[Group, list[str]], train: int, test: int) -> SplitTexts[Group]:
        """Each group's first texts; where the rarest group has too few for both sides, 80% of them are trained on."""
        n_train, n_test = sizes_of_sides(min(map(len, texts.values())), train, test)
        return SplitTexts(
            {group: own[:n_train] for group, own in texts.items()},
            {group: own[n_train : n_train + n_test] for group, own in texts.items()},
        )

    def rows(self) -> tuple[list[str], dict[Group, Rows], dict[Group, Rows]]:
        """All texts in one list, and the rows in it of each group's training texts and test texts."""
        flat: list[str] = []
        sides: list[dict[Group, Rows]] = [{}, {}]
        for side, rows in zip((self.train, self.test), sides, strict=True):
            for group, own in side.items():
                rows[group] = np.arange(len(flat), len(flat) + len(own))
                flat += own
        return flat, sides[0], sides[1]


def load_classes(name: str, train_per_class: int, test_per_class: int, seed: int) -> SplitTexts[str]:
    """Positive texts of each member of a set; those that two members share are left out.

    Raises:
        ConfigError: no such set.
        AssetError: the asset has not been fetched.
    """
    if name not in CLASS_SETS:
        raise ConfigError(f"no set of classes is called {name!r}; there are {', '.join(CLASS_SETS)}")
    generator = np.random.default_rng([seed, *name.encode()])
    members = CLASS_SETS[name].members
    positives = {member: [text for text, label in labelled_texts(member).items() if label] for member in members}
    seen = Counter(text for texts in positives.values() for text in texts)
    kept = {member: shuffled([t for t in texts if seen[t] == 1], generator) for member, texts in positives.items()}
    return SplitTexts.of(kept, train_per_class, test_per_class)


def load_quadrants(
    name: str, train_per_quadrant: int, test_per_quadrant: int, seed: int
) -> SplitTexts[tuple[int, int]]:
    """Texts that bear two labels, each 0 or 1, by the pair of them.

    Raises:
        ConfigError: no such set.
        AssetError: the asset has not been fetched.
    """
    if name not in CROSSED_SETS:
        raise ConfigError(f"no set with two labels is called {name!r}; there are {', '.join(CROSSED_SETS)}")
    generator = np.random.default_rng([seed, *name.encode()])
    found = _topic_rating(generator) if name == "topic_rating" else _occupation_gender()
    texts = {(a, b): shuffled(found[a][b], generator) for a in (0, 1) for b in (0, 1)}
    return SplitTexts.of(texts, train_per_quadrant, test_per_quadrant)


def _occupation_gender() -> list[list[list[str]]]:
    journalist, actor = (
        labelled_texts("59_wikidata_occupation_isjournalist"),
        labelled_texts("61_wikidata_occupation_isactor"),
    )
    found: list[list[list[str]]] = [[[], []], [[], []]]
    for text, gender in labelled_texts("56_wikidatasex_or_gender").items():
        is_actor, is_journalist = actor.get(text) == 1, journalist.get(text) == 1
        if is_actor != is_journalist:
            found[int(is_actor)][gender].append(text)
    return found


def _topic_rating(generator: np.random.Generator) -> list[list[list[str]]]:
    news = [[t for t, label in labelled_texts(name).items() if label] for name in ("161_agnews_0", "162_agnews_1")]
    phrases = labelled_texts("92_glue_sst2")
    reviews = [
        _reviews(shuffled([t for t, label in phrases.items() if label == wanted], generator)) for wanted in (0, 1)
    ]
    half = min(len(part) for part in (*news, *reviews)) // 2
    topics = [shuffled(part, generator) for part in news]
    # Each topic's first half meets one sentiment and its second half the other, and so do the reviews.
    return [
        [
            [
                f"{review} {item}"
                for item, review in zip(
                    topics[a][b * half : (b + 1) * half], reviews[b][a * half : (a + 1) * half], strict=True
                )
            ]
            for b in (0, 1)
        ]
        for a in (0, 1)
    ]


def _reviews(phrases: list[str]) -> list[str]:
    """As many as there are enough phrases for; none is used twice."""
    starts = range(0, len(phrases) - _PHRASES + 1, _PHRASES)
    return [" ".join(phrase.strip() for phrase in phrases[start : start + _PHRASES]) for start in starts]
