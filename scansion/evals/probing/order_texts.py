"""Pairs of texts that hold the same words in another order: the material of probes that only order can answer.

Every word that is moved stands between spaces and is made of letters alone, or is moved together with the punctuation
around it, and none is ever moved to or from the very beginning of a text. So tokenizers that cut at spaces, as those of
language models do, make the same tokens of both texts of a pair, only in another order.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

MARKER = "lantern"
STRETCH = 40
_LEAD = "Text: "
# Not after a title or an initial, as in "Mr. Speaker" and "Harry S. Truman".
_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!\b[A-Z]\.)(?<!\bM[rs]\.)(?<!\bMrs\.)(?<!\bDr\.)\s+(?=[A-Z])")
_PLAIN = re.compile(r"[A-Z][A-Za-z ,;:'’-]+[.!?]")
_ORDERLY = re.compile(r"[A-Z][^\"“”\[\]()]*[.!?]")
_SUBJECT = re.compile(
    r"(I|we|you|he|she|it|they|this|that|these|those|there|the|our|my|his|their|its|no|every|each|all|some|many|both)\b",
    re.IGNORECASE,
)
_FINITE = re.compile(
    r"\b(am|is|are|was|were|has|have|had|will|would|shall|should|can|could|may|might|must|do|does|did|cannot|need)\b",
    re.IGNORECASE,
)
_JOINT = re.compile(r",? (and|but|or|yet|for|so) ")


@dataclass(frozen=True)
class OrderPair:
    """Two texts of the same words.

    Attributes:
        source: the text they are made of, by which copies are known.
        texts: that with label 0, that with label 1.
    """

    source: str
    texts: tuple[str, str]


PairMaker = Callable[[str, np.random.Generator], Iterator[OrderPair]]


def sentences(document: str) -> Iterator[str]:
    """Sentences of letters and simple punctuation, ended by a full stop, an exclamation or a question mark.

    Those with digits, quotation marks, brackets or a full stop inside are left out.
    """
    for paragraph in document.splitlines():
        for piece in _SENTENCE_END.split(paragraph.strip()):
            if _PLAIN.fullmatch(piece) and "  " not in piece:
                yield piece


def stretches(document: str) -> Iterator[list[str]]:
    """The document's words, 40 at a time; those that hold the marker, or a table of figures, are left out."""
    words = document.split()
    for start in range(0, len(words) - STRETCH + 1, STRETCH):
        stretch = words[start : start + STRETCH]
        text = " ".join(stretch)
        if MARKER not in text.lower() and _few_digits(text):
            yield stretch


def bigram_shift(document: str, generator: np.random.Generator) -> Iterator[OrderPair]:
    """A sentence as it was (0), or with two adjacent words swapped (1): SentEval's BShift (Conneau et al. 2018).

    Neither is the first word nor touches punctuation.
    """
    for sentence in sentences(document):
        words = sentence.split(" ")
        places = [
            i
            for i in range(1, len(words) - 1)
            if words[i].isalpha() and words[i + 1].isalpha() and words[i].lower() != words[i + 1].lower()
        ]
        if 6 <= len(words) <= 40 and places:
            i = int(generator.choice(places))
            yield OrderPair(sentence, (sentence, " ".join([*words[:i], words[i + 1], words[i], *words[i + 2 :]])))


def coordination_inversion(document: str, generator: np.random.Generator) -> Iterator[OrderPair]:
    """Two coordinated clauses in their order (0), or the other way round (1): SentEval's CoordInv.

    SentEval finds the clauses with a parser; here both hold a finite auxiliary and the second begins as a subject does.
    The sentence follows a fixed lead, its first word in lower case, for a capital would tell which clause was first.
    """
    lower = set(re.findall(r"(?<= )[a-z]+", document))
    for sentence in sentences(document):
        word = sentence.split(" ")[0]
        inversions = list(_inversions(sentence)) if word == "I" or word.lower() in lower else []
        if inversions:
            yield OrderPair(sentence, inversions[int(generator.integers(len(inversions)))])


def _inversions(sentence: str) -> Iterator[tuple[str, str]]:
    """For each place where two clauses are joined, the sentence, and the sentence with the two changed about."""
    start, end = (sentence[0] if sentence.startswith("I ") else sentence[0].lower()), sentence[-1]
    for joint in _JOINT.finditer(sentence):
        clauses = start + sentence[1 : joint.start()], sentence[joint.end() : -1]
        if _SUBJECT.match(clauses[1]) and all(
            _FINITE.search(clause) and 4 <= len(clause.split(" ")) <= 30 for clause in clauses
        ):
            yield f"{_LEAD}{joint.group().join(clauses)}{end}", f"{_LEAD}{joint.group().join(clauses[::-1])}{end}"


def sentence_order(document: str, generator: np.random.Generator) -> Iterator[OrderPair]:
    """Three sentences that follow one another, of at most 80 words, as they were (0) or shuffled (1)."""
    for run in _runs_of_sentences(document):
        order = generator.permutation(len(run))
        while (order == np.arange(len(run))).all():
            order = generator.permutation(len(run))
        intact, shuffled = " ".join(run), " ".join(run[i] for i in order)
        yield OrderPair(intact, (_LEAD + intact, _LEAD + shuffled))


def which_first(document: str, generator: np.random.Generator) -> Iterator[OrderPair]:
    """Two words of a sentence are named before it: the wrong way round (0), or in the order they come in (1)."""
    for sentence in sentences(document):
        words = sentence.split(" ")
        counts = Counter(word.strip(",;:.!?").lower() for word in words)
        places = [
            i for i in range(1, len(words)) if len(words[i]) >= 4 and words[i].isalpha() and counts[words[i]] == 1
        ]
        pairs = [(i, j) for i in places for j in places if j - i >= 3]
        if 8 <= len(words) <= 40 and pairs:
            i, j = pairs[int(generator.integers(len(pairs)))]
            a, b = words[i], words[j]
            yield OrderPair(sentence, (f"First {b}, then {a}: {sentence}", f"First {a}, then {b}: {sentence}"))


def early_or_late(document: str, generator: np.random.Generator) -> Iterator[OrderPair]:
    """The word ``lantern`` among the first twenty (0) or the last twenty (1) of 40 words of running text."""
    half = STRETCH // 2
    for words in stretches(document):
        places = (int(generator.integers(1, half)), int(generator.integers(half + 1, STRETCH)))
        early, late = (" ".join([*words[:place], MARKER, *words[place:]]) for place in places)
        yield OrderPair(" ".join(words), (early, late))


def repeat_distance(document: str, generator: np.random.Generator) -> Iterator[OrderPair]:
    """The word ``lantern`` twice in 40 words of running text, 2 to 4 words apart (0) or 22 to 24 (1).

    The middle between the two is drawn alike for both, so that where they stand says nothing about how far apart.
    """
    for words in stretches(document):
        middle, extra = int(generator.integers(13, 27)), int(generator.integers(2, 5))
        near, far = (
            " ".join([*words[:start], MARKER, *words[start : start + gap], MARKER, *words[start + gap :]])
            for gap in (extra, extra + 20)
            for start in (middle - gap // 2,)
        )
        yield OrderPair(" ".join(words), (near, far))


def _few_digits(text: str) -> bool:
    """Many tokenizers make a token of every digit, and a text that is cut at the context's end loses some of its words."""
    return sum(letter.isdigit() for letter in text) <= 10


def _runs_of_sentences(document: str) -> Iterator[list[str]]:
    """Three sentences that follow one another, of at most 80 words together, none used twice."""
    run: list[str] = []
    for paragraph in document.splitlines():
        for piece in _SENTENCE_END.split(paragraph.strip()):
            if not _ORDERLY.fullmatch(piece) or not _few_digits(piece) or piece in run:
                run = []
                continue
            run.append(piece)
            while sum(len(one.split(" ")) for one in run) > 80:
                run.pop(0)
            if len(run) == 3:
                yield run
                run = []


ORDER_TASKS: dict[str, PairMaker] = {
    make.__name__: make
    for make in (bigram_shift, coordination_inversion, sentence_order, which_first, early_or_late, repeat_distance)
}
"""The tasks by name."""
