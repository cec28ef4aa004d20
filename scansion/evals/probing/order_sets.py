"""Order-sensitive probing sets, made from held-out documents: both classes hold the same words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scansion.errors import ConfigError
from scansion.evals.probing.order_texts import ORDER_TASKS, OrderPair
from scansion.evals.probing.split import ProbingSet, ProbingSplit

ORDER_PREFIX = "order/"
_BOTH_TEXTS = ("order/coordination_inversion", "order/sentence_order")
ORDER_SETS = tuple(f"{ORDER_PREFIX}{task}" for task in ORDER_TASKS)
"""The names of these sets."""


def order_split(name: str, documents: Sequence[str], train_size: int, test_size: int, seed: int) -> ProbingSplit:
    """The task's texts, balanced and split by document.

    Of each pair of texts of the same words only one is used, and which of them is drawn, so that no sentence is in both
    classes; where such pairs are rare (``coordination_inversion``, ``sentence_order``) both are, on the same side. Whole
    documents are drawn for the test side until it has its share, ``test_size`` of ``train_size + test_size``, of the
    pairs there are; sides are then cut to the requested sizes, if there is enough text.

    Args:
        name: ``order/bigram_shift`` and so on, see :data:`ORDER_SETS`.
        documents: texts that the SAEs under test were not trained on.
        train_size, test_size: texts of both labels together, at most.
        seed: of every draw.

    Raises:
        ConfigError: no such task, or the documents yield too few texts.
    """
    task = name.removeprefix(ORDER_PREFIX)
    if task not in ORDER_TASKS:
        raise ConfigError(f"no order-sensitive set is called {name!r}; there are {', '.join(ORDER_SETS)}")
    generator = np.random.default_rng([seed, *name.encode()])
    by_document = _pairs(task, documents, generator)
    wanted = test_size / (train_size + test_size) * sum(map(len, by_document))
    test: list[OrderPair] = []
    while by_document and len(test) < wanted:
        test += by_document.pop()
    train = [pair for pairs in by_document for pair in pairs]
    sides = [_side(name, pairs, size, generator) for pairs, size in ((train, train_size), (test, test_size))]
    if min(len(side.texts) for side in sides) < 2:
        raise ConfigError(
            f"{name}: the {len(documents)} documents yield {len(train)} texts to train on and {len(test)} to test on; "
            "expected at least 2 on each side, from different documents; set order_corpus to more or longer ones"
        )
    return ProbingSplit(train=sides[0], test=sides[1])


def _pairs(task: str, documents: Sequence[str], generator: np.random.Generator) -> list[list[OrderPair]]:
    """The pairs of each document that has any, documents in random order; what occurs again later is left out."""
    seen: set[str] = set()
    by_document: list[list[OrderPair]] = []
    for index in generator.permutation(len(documents)):
        fresh: list[OrderPair] = []
        for pair in ORDER_TASKS[task](documents[int(index)], generator):
            if not seen & {pair.source, *pair.texts}:
                seen |= {pair.source, *pair.texts}
                fresh.append(pair)
        if fresh:
            by_document.append(fresh)
    return by_document


def _side(name: str, pairs: Sequence[OrderPair], size: int, generator: np.random.Generator) -> ProbingSet:
    both = name in _BOTH_TEXTS
    per_label = min(size // 2, len(pairs) if both else len(pairs) // 2)
    order = generator.permutation(len(pairs))
    of_label = (order[:per_label], order[:per_label] if both else order[per_label : 2 * per_label])
    drawn = [pairs[index] for indices in of_label for index in indices]
    labels = np.repeat([0, 1], per_label)
    return ProbingSet(name, [pair.texts[label] for pair, label in zip(drawn, labels, strict=True)], labels)
