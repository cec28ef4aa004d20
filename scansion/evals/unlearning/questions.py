"""Multiple-choice questions for unlearning: WMDP and MMLU from the hub, or a stand-in made of the sae-probes asset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from scansion.corpus.config import CorpusConfig
from scansion.corpus.sources import read_documents
from scansion.errors import EvalError
from scansion.evals.probing.sets import labelled_texts, shuffled

SCIENCE, PHYSICAL = "36_sciq_tf", "44_phys_tf"
STAND_IN = (
    f"the questions stand in for WMDP and MMLU: what is to be forgotten are science questions ({SCIENCE} of sae-probes: "
    "the right answer among the right answers to three other questions), what is to be kept are questions of everyday "
    f"physics ({PHYSICAL}: two ways to do a thing). Neither is dangerous, and nothing here says how an SAE would do on WMDP"
)
_LETTERS = "ABCD"


@dataclass(frozen=True)
class Question:
    """A prompt, its possible continuations, and which is right."""

    prompt: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class UnlearningData:
    """What is to be forgotten and kept: questions that test it, texts that features are chosen by (none in both)."""

    forget_questions: list[Question]
    retain_questions: list[Question]
    forget_texts: list[str]
    retain_texts: list[str]
    source: str
    note: str


def bundled_questions(n_questions: int, n_texts: int, seed: int) -> UnlearningData:
    """The stand-in, from the sae-probes asset.

    Raises:
        AssetError: the asset has not been fetched.
    """
    generator = np.random.default_rng(seed)
    true = [text for text, label in labelled_texts(SCIENCE).items() if label and "\nA:" in text]
    pairs = [text.rsplit("\nA:", 1) for text in shuffled(true, generator)]
    forget: list[Question] = []
    for index, (question, answer) in enumerate(pairs[:n_questions]):
        # The answers to the questions after it, none of which is the right one.
        wrong: list[str] = []
        for _, other in [*pairs[index + 1 :], *pairs[:index]]:
            if other != answer and other not in wrong:
                wrong.append(other)
            if len(wrong) == len(_LETTERS) - 1:
                break
        place = int(generator.integers(len(wrong) + 1))
        forget.append(Question(f"{question}\nA:", (*wrong[:place], answer, *wrong[place:]), place))
    retain: list[Question] = []
    texts = shuffled([f"{label}{text}" for text, label in labelled_texts(PHYSICAL).items()], generator)
    parsed = [found for text in texts if (found := _two_ways(text[1:], int(text[0])))]
    retain = parsed[:n_questions]
    return UnlearningData(
        forget,
        retain,
        [f"{question}\nA:{answer}" for question, answer in pairs[n_questions : n_questions + n_texts]],
        [f"{one.prompt} {one.choices[one.answer]}" for one in parsed[n_questions : n_questions + n_texts]],
        "stand-in",
        STAND_IN,
    )


def hub_questions(
    forget: str, retain: tuple[str, ...], n_questions: int, forget_corpus: CorpusConfig, retain_corpus: CorpusConfig
) -> UnlearningData:
    """WMDP (``cais/wmdp``) against subjects of MMLU (``cais/mmlu``), as in SAEBench.

    Args:
        forget: configuration of WMDP, for example ``wmdp-bio``.
        retain: subjects of MMLU.
        n_questions: of each side, at most.
        forget_corpus, retain_corpus: texts that features are chosen by.

    Raises:
        EvalError: a set cannot be opened.
        CorpusError: a corpus cannot be read.
    """
    subject = {"wmdp-bio": "biology", "wmdp-cyber": "cyber security", "wmdp-chem": "chemistry"}.get(forget, forget)
    kept = [question for name in retain for question in _hub_set("cais/mmlu", name, name.replace("_", " "))]
    return UnlearningData(
        _hub_set("cais/wmdp", forget, subject)[:n_questions],
        kept[:n_questions],
        list(read_documents(forget_corpus)),
        list(read_documents(retain_corpus)),
        f"cais/wmdp {forget}; cais/mmlu {', '.join(retain)}",
        "questions are WMDP's and MMLU's own",
    )


def lettered(question: str, choices: list[str], answer: int, subject: str) -> Question:
    """A question in the form of the LM evaluation harness: lettered choices, and the letter as the answer."""
    listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(_LETTERS, choices, strict=False))
    return Question(
        f"The following are multiple choice questions (with answers) about {subject}.\n\n{question.strip()}\n{listed}\n"
        "Answer:",
        tuple(f" {letter}" for letter in _LETTERS[: len(choices)]),
        answer,
    )


def _hub_set(path: str, name: str, subject: str) -> list[Question]:
    import datasets  # takes a second or more, which the stand-in need not wait for

    try:
        rows: Any = datasets.load_dataset(path, name, split="test")
        return [lettered(row["question"], list(row["choices"]), int(row["answer"]), subject) for row in rows]
    except Exception as error:  # whatever the hub's client, the network or the set's own reader may raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise EvalError(
            f"{path} {name} cannot be read ({reason}); check the network and your access, or use the stand-in"
        ) from error


def _two_ways(text: str, label: int) -> Question | None:
    """``goal\\n\\nA.one way\\nB.another`` as a question whose choices are the two ways; the label is the right one."""
    goal, found, ways = text.rpartition("\n\nA.")
    first, both, second = ways.partition("\nB.")
    return Question(f"{goal}\n", (f" {first}", f" {second}"), label) if found and both and first and second else None
