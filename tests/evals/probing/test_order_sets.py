"""Laws of the order-sensitive sets: both classes hold the same words, and the label is what it is said to be."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from tokenizers.pre_tokenizers import ByteLevel

from scansion.assets import status
from scansion.corpus import CorpusConfig, held_out_documents
from scansion.errors import ConfigError
from scansion.evals.probing.order_sets import ORDER_SETS, order_split
from scansion.evals.probing.order_texts import MARKER, ORDER_TASKS, OrderPair
from scansion.evals.probing.pooling import bag_of_words
from scansion.lm import BUNDLED_MODEL, BUNDLED_MODEL_ASSET, load_tokenizer, model_facts

NOUNS = ("river", "Congress", "harvest", "treaty", "railway", "army", "coast", "budget", "school", "forest", "winter")
VERBS = ("will cross", "can see", "has left", "must reach", "may need", "had lost")
CUT = ByteLevel(add_prefix_space=False)


def document(seed: int) -> str:
    """Sixty sentences of two clauses in paragraphs of six; its first word is its own."""
    generator = np.random.default_rng(seed)

    def clause() -> str:
        nouns = generator.choice(NOUNS, 2, replace=False)
        return f"the old {nouns[0]} {generator.choice(VERBS)} every {nouns[1]} of number{'abcdefghij'[seed % 10]} lands"

    sentences = [f"We know that {clause()}, {generator.choice(['and', 'but'])} {clause()}." for _ in range(60)]
    return f"Speech{seed}, as we call it. " + "\n".join(
        " ".join(sentences[start : start + 6]) for start in range(0, 60, 6)
    )


DOCUMENTS = [document(seed) for seed in range(10)]


def pairs(task: str) -> list[OrderPair]:
    return [pair for text in DOCUMENTS for pair in ORDER_TASKS[task](text, np.random.default_rng(0))]


@pytest.mark.parametrize("task", ORDER_TASKS)
def test_a_tokenizer_that_cuts_at_spaces_finds_the_same_pieces_in_both_texts(task: str) -> None:
    found = pairs(task)
    assert len(found) > 50
    for pair in found:
        one, other = (Counter(piece for piece, _ in CUT.pre_tokenize_str(text)) for text in pair.texts)
        assert one == other and pair.texts[0] != pair.texts[1]


@pytest.mark.parametrize("name", ORDER_SETS)
def test_sides_are_balanced_share_no_document_and_repeat_no_source(name: str) -> None:
    split = order_split(name, DOCUMENTS, 120, 40, seed=1)
    sides = (split.train, split.test)
    for side in sides:
        assert side.labels.mean() == 0.5 and len(set(side.texts)) == len(side.texts)
    # Each document's sentences name it.
    train, test = ({word for t in side.texts for word in t.split() if word.startswith("number")} for side in sides)
    assert train and test and not train & test
    sources = [tuple(sorted(text.split(": ")[-1].split())) for side in sides for text in side.texts]
    times = 2 if name in ("order/coordination_inversion", "order/sentence_order") else 1
    assert set(Counter(sources).values()) == {times}, "no sentence is in both classes, but where pairs are rare"


def test_a_draw_depends_on_its_seed_alone() -> None:
    first, again, other = (order_split("order/bigram_shift", DOCUMENTS, 60, 20, s).train for s in (3, 3, 4))
    assert first.texts == again.texts != other.texts


def test_a_swap_is_of_two_neighbours_and_never_of_the_first_word() -> None:
    for pair in pairs("bigram_shift"):
        intact, changed = (text.split(" ") for text in pair.texts)
        (i, j) = (k for k, (a, b) in enumerate(zip(intact, changed, strict=True)) if a != b)
        assert j == i + 1 and i > 0
        assert (changed[i], changed[j]) == (intact[j], intact[i])


def test_clauses_change_places_around_their_conjunction() -> None:
    for pair in pairs("coordination_inversion"):
        intact, inverted = (text.removeprefix("Text: ").rstrip(".") for text in pair.texts)
        joint = ", and " if ", and " in intact else ", but "
        assert inverted == joint.join(reversed(intact.split(joint)))


def test_markers_stand_where_the_label_says() -> None:
    for pair in pairs("early_or_late"):
        early, late = (text.split().index(MARKER) for text in pair.texts)
        assert 0 < early < 20 < late < 40
    middles = []
    for pair in pairs("repeat_distance"):
        places = [[i for i, word in enumerate(text.split()) if word == MARKER] for text in pair.texts]
        near, far = (b - a - 1 for a, b in places)
        assert 2 <= near <= 4 and 22 <= far <= 24
        middles.append([sum(both) / 2 for both in places])
    near, far = np.array(middles).mean(axis=0)
    assert near == pytest.approx(far, abs=0.5), "where the two stand says nothing about how far apart"


def test_the_words_named_come_in_the_order_the_label_says() -> None:
    for pair in pairs("which_first"):
        for label, text in enumerate(pair.texts):
            named, sentence = text.split(": ", 1)
            _, a, _, b = named.replace(",", "").split(" ")
            words = sentence.split(" ")
            assert (words.index(a) < words.index(b)) == bool(label)


def test_names_and_texts_that_give_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'order/bigrams'; there are order/bigram_shift"):
        order_split("order/bigrams", DOCUMENTS, 10, 10, 0)
    with pytest.raises(ConfigError, match="the 1 documents yield 0 texts to train on"):
        order_split("order/bigram_shift", DOCUMENTS[:1], 10, 10, 0)


@pytest.fixture(scope="module")
def speeches() -> list[str]:
    return held_out_documents(CorpusConfig())


@pytest.mark.skipif(status(BUNDLED_MODEL_ASSET) != "present", reason="the bundled tokenizer is not fetched")
@pytest.mark.parametrize("name", ORDER_SETS)
def test_the_bag_of_the_models_own_tokens_cannot_tell(name: str, speeches: list[str]) -> None:
    tokenizer = load_tokenizer(model_facts(BUNDLED_MODEL))
    split = order_split(name, speeches, 1500, 1000, seed=42)
    assert len(split.test.texts) >= 180
    texts = split.train.texts + split.test.texts
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert max(map(len, ids)) < 128, "no text is cut, which would change its bag"
    bag = bag_of_words([(np.repeat(np.arange(len(ids)), list(map(len, ids))), np.concatenate(ids))], len(ids))
    n = len(split.train.texts)
    probe = LogisticRegression(max_iter=1000).fit(bag[:n], split.train.labels)
    assert probe.score(bag[n:], split.test.labels) <= 0.55
