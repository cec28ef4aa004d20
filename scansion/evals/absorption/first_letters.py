"""First-letter spelling: words of the tokenizer's vocabulary, the prompts around them, and the LM's activations and answers."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scansion.corpus import Contexts, token_ids
from scansion.errors import EvalError
from scansion.evals.reading.texts import start_token
from scansion.lm import HookPoint, LanguageModel, activations_at, logits
from scansion.progress import progress

if TYPE_CHECKING:
    import transformers  # takes half a second, which commands without a language model need not wait

LETTERS = string.ascii_lowercase
_AFTER_WORD = " has the first letter:"


@dataclass(frozen=True)
class Word:
    """One token that is a word, with or without a space before it."""

    token: int
    text: str
    letter: int


@dataclass(frozen=True)
class SpelledWords:
    """Words in prompts, and the LM's activation at the word itself.

    Attributes:
        words: in the order of the rows; training words come first.
        is_test: True for the words that probes are tested on.
        x: activations at the words' own token.
        position: where in the prompt that token stands; the same in all.
        spelled: of the test words that the whole LM was run on, the share whose letter it ranks first of the 26.
        n_spelled: how many those were.
    """

    words: list[Word]
    is_test: Bool[np.ndarray, " n"]
    x: Float[Tensor, "n d_in"]
    position: int
    spelled: float
    n_spelled: int

    @property
    def letters(self) -> Int[np.ndarray, " n"]:
        """First letter of each word, 0 to 25."""
        return np.array([word.letter for word in self.words])


def vocabulary_words(tokenizer: Any, words_per_letter: int, generator: np.random.Generator) -> list[Word]:
    """Tokens made of the letters a to z alone, at most ``words_per_letter`` per first letter, drawn at random.

    Special tokens do not count.
    """
    by_letter: dict[int, list[Word]] = {}
    special = set(tokenizer.all_special_ids)
    for token, index in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        text = str(tokenizer.convert_tokens_to_string([token]))
        letters = text.removeprefix(" ")
        if index not in special and letters.isascii() and letters.isalpha():
            letter = LETTERS.index(letters[0].lower())
            by_letter.setdefault(letter, []).append(Word(index, text, letter))
    return [
        words[index]
        for _, words in sorted(by_letter.items())
        for index in sorted(generator.permutation(len(words))[:words_per_letter])
    ]


class SpellingPrompts:
    """Prompts ``\\nWORD has the first letter: W`` for a few examples, then the word in question without its answer.

    They are put together from token ids, so that all are of one length and the word stands at one position.

    Args:
        tokenizer: of the LM.
        examples: words spelled before the one in question.

    Raises:
        EvalError: an answer such as ``" A"`` is not a single token, or there is no token to start with.
    """

    def __init__(self, tokenizer: transformers.PreTrainedTokenizerBase, examples: int) -> None:
        def ids(text: str) -> list[int]:
            return token_ids([text], tokenizer)[0]

        answers = [ids(f" {letter.upper()}") for letter in LETTERS]
        if any(len(answer) != 1 for answer in answers):
            raise EvalError("the tokenizer has no single token for an answer such as ' A'; use another model")
        self.bos = start_token(tokenizer)
        self.answers = [answer[0] for answer in answers]
        self.examples = examples
        self._before, self._after = ids("\n"), ids(_AFTER_WORD)
        one = len(self._before) + 1 + len(self._after)
        self.word_position = 1 + examples * (one + 1) + len(self._before)
        self.length = self.word_position + 1 + len(self._after)

    def tokens(self, word: Word, examples: Sequence[Word]) -> list[int]:
        """Token ids of one prompt, [length]."""
        found = [self.bos]
        for example in examples:
            found += [*self._before, example.token, *self._after, self.answers[example.letter]]
        return [*found, *self._before, word.token, *self._after]


def spell_words(
    lm: LanguageModel,
    hook_point: HookPoint,
    prompts: SpellingPrompts,
    words: Sequence[Word],
    n_spelled: int,
    batch_size: int,
    generator: np.random.Generator,
) -> SpelledWords:
    """Split the words 80 : 20, run each in a prompt whose examples are of its own side, and let the LM spell some.

    Args:
        lm, hook_point: source of the activations.
        prompts: builder of the prompts.
        words: at least ``5 * (examples + 1)`` of them.
        n_spelled: test words that the whole LM answers for.
        batch_size: prompts run at once.
        generator: of the split and of the examples.
    """
    order = generator.permutation(len(words))
    n_train = int(0.8 * len(words))
    sides = [[words[i] for i in order[:n_train]], [words[i] for i in order[n_train:]]]
    shuffled = [word for side in sides for word in side]
    lists = [
        prompts.tokens(word, _examples(word, side, prompts.examples, generator)) for side in sides for word in side
    ]
    contexts = Contexts.from_token_lists(lists, prompts.length, pad_id=prompts.bos, has_bos=True)
    parts: list[Tensor] = []
    with progress("spelling prompts", len(lists), "prompts") as advance:
        for start in range(0, len(lists), batch_size):
            batch = contexts[start : start + batch_size]
            parts.append(activations_at(lm, hook_point, batch)[:, prompts.word_position].float().cpu())
            advance(len(batch))
    asked = np.arange(n_train, len(lists))[:n_spelled]
    return SpelledWords(
        words=shuffled,
        is_test=np.arange(len(lists)) >= n_train,
        x=torch.cat(parts),
        position=prompts.word_position,
        spelled=_spelled(lm, hook_point, prompts, contexts, [shuffled[i] for i in asked], asked, batch_size),
        n_spelled=len(asked),
    )


def _examples(word: Word, side: list[Word], count: int, generator: np.random.Generator) -> list[Word]:
    drawn = [side[i] for i in generator.choice(len(side), count + 1, replace=False)]
    return [example for example in drawn if example.token != word.token][:count]


def _spelled(
    lm: LanguageModel,
    hook_point: HookPoint,
    prompts: SpellingPrompts,
    contexts: Contexts,
    words: list[Word],
    rows: Int[np.ndarray, " n"],
    batch_size: int,
) -> float:
    right = 0
    answers = torch.tensor(prompts.answers)
    with progress("let the LM spell", len(words), "words") as advance:
        for start in range(0, len(words), batch_size):
            part = words[start : start + batch_size]
            batch = contexts[torch.from_numpy(rows[start : start + batch_size])]
            best = logits(lm, batch, hook_point)[:, -1].cpu()[:, answers].argmax(dim=1)
            right += sum(int(choice) == word.letter for choice, word in zip(best, part, strict=True))
            advance(len(part))
    return right / max(1, len(words))
