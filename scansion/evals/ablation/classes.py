"""Texts by class, and texts that bear two labels at once: from the sae-probes asset, for perturbation evaluations."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from scansion.errors import ConfigError
from scansion.evals.probing.groups import GROUPS
from scansion.evals.probing.sets import load_probing_set

_ALL = 10**9


@dataclass(frozen=True)
class ClassSet:
    """A set of classes, and what it stands in for."""

    members: tuple[str, ...]
    stands_for: str


CLASS_SETS: dict[str, ClassSet] = {
    "occupations": ClassSet(
        GROUPS["occupations"].members,
        "LabHC/bias_in_bios_class_set1",
    ),
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
class ClassTexts:
    """Texts of each class, split; no text is in two places."""

    train: dict[str, list[str]]
    test: dict[str, list[str]]


@dataclass(frozen=True)
class Quadrants:
    """Texts by two labels, ``[first][second]`` with 0 and 1, as many in each; no text is in two places."""

    train: list[list[list[str]]]
    test: list[list[list[str]]]


def load_classes(name: str, train_per_class: int, test_per_class: int, seed: int) -> ClassTexts:
    """Positive texts of each member of a set; those that two members share are left out.

    Where there are too few, 80% of the rarest class's are trained on, and every class has as many.

    Raises:
        ConfigError: no such set.
        AssetError: the asset has not been fetched.
    """
    if name not in CLASS_SETS:
        raise ConfigError(f"no set of classes is called {name!r}; there are {', '.join(CLASS_SETS)}")
    generator = np.random.default_rng([seed, *name.encode()])
    members = CLASS_SETS[name].members
    positives = {member: [text for text, label in _labels(member).items() if label] for member in members}
    seen = Counter(text for texts in positives.values() for text in texts)
    kept = {member: _shuffled([t for t in texts if seen[t] == 1], generator) for member, texts in positives.items()}
    n_train, n_test = _sizes(min(map(len, kept.values())), train_per_class, test_per_class)
    return ClassTexts(
        {member: texts[:n_train] for member, texts in kept.items()},
        {member: texts[n_train : n_train + n_test] for member, texts in kept.items()},
    )


def load_quadrants(name: str, train_per_quadrant: int, test_per_quadrant: int, seed: int) -> Quadrants:
    """Texts that bear two labels, as many of each combination.

    Raises:
        ConfigError: no such set.
        AssetError: the asset has not been fetched.
    """
    if name not in CROSSED_SETS:
        raise ConfigError(f"no set with two labels is called {name!r}; there are {', '.join(CROSSED_SETS)}")
    generator = np.random.default_rng([seed, *name.encode()])
    found = _topic_rating(generator) if name == "topic_rating" else _occupation_gender()
    texts = [[_shuffled(found[a][b], generator) for b in (0, 1)] for a in (0, 1)]
    n_train, n_test = _sizes(min(len(t) for row in texts for t in row), train_per_quadrant, test_per_quadrant)
    return Quadrants(
        [[t[:n_train] for t in row] for row in texts], [[t[n_train : n_train + n_test] for t in row] for row in texts]
    )


def _occupation_gender() -> list[list[list[str]]]:
    journalist, actor = _labels("59_wikidata_occupation_isjournalist"), _labels("61_wikidata_occupation_isactor")
    found: list[list[list[str]]] = [[[], []], [[], []]]
    for text, gender in _labels("56_wikidatasex_or_gender").items():
        is_actor, is_journalist = actor.get(text) == 1, journalist.get(text) == 1
        if is_actor != is_journalist:
            found[int(is_actor)][gender].append(text)
    return found


def _topic_rating(generator: np.random.Generator) -> list[list[list[str]]]:
    news = [[t for t, label in _labels(name).items() if label] for name in ("161_agnews_0", "162_agnews_1")]
    phrases = _labels("92_glue_sst2")
    reviews = [
        _reviews(_shuffled([t for t, label in phrases.items() if label == wanted], generator)) for wanted in (0, 1)
    ]
    half = min(len(part) for part in (*news, *reviews)) // 2
    shuffled = [_shuffled(part, generator) for part in news]
    # Each topic's first half meets one sentiment and its second half the other, and so do the reviews.
    return [
        [
            [
                f"{review} {item}"
                for item, review in zip(
                    shuffled[a][b * half : (b + 1) * half], reviews[b][a * half : (a + 1) * half], strict=True
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


def _labels(name: str) -> dict[str, int]:
    """Every text of a binary set, and its label; the commoner label is thinned to the number of the rarer."""
    (split,) = load_probing_set(name, _ALL, _ALL, 0)
    return {
        text: int(label)
        for side in (split.train, split.test)
        for text, label in zip(side.texts, side.labels, strict=True)
    }


def _shuffled(texts: list[str], generator: np.random.Generator) -> list[str]:
    return [texts[index] for index in generator.permutation(len(texts))]


def _sizes(available: int, train: int, test: int) -> tuple[int, int]:
    if available >= train + test:
        return train, test
    for_training = int(0.8 * available)
    return min(train, for_training), min(test, available - for_training)
