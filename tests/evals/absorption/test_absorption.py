"""Absorption has its closed-form value on constructed activations, and a model that cannot spell gets no score."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from scansion.errors import EvalError
from scansion.evals import figures_in
from scansion.evals.absorption.evaluate import AbsorptionConfig, evaluate_absorption, measure
from scansion.evals.absorption.evaluation import AbsorptionOfFirstLetters
from scansion.evals.absorption.first_letters import LETTERS, SpelledWords, SpellingPrompts, Word, vocabulary_words
from scansion.evals.absorption.rates import absorption, f1, main_features, rank_by_sparse_probe
from scansion.lm import HookPoint, LanguageModel
from tests.conftest import VOCAB, WIDTH
from tests.evals.probing.constructed import make_subject

MAIN = np.array([0])


def rates(acts: list[float], cosines: list[float], projection: float) -> tuple[float, bool]:
    found = absorption(np.array([acts], dtype=float), np.array(cosines), np.array([projection]), MAIN)
    return float(found.fraction[0]), bool(found.full[0])


def test_who_carries_the_letter_decides() -> None:
    cosines = [1.0, 0.8, 0.5, 0.05, 0.01]
    assert rates([10, 0, 0, 0, 0], cosines, 10.0) == (0.0, False), "the main feature carries all"
    assert rates([0, 12.5, 0, 0, 0], cosines, 10.0) == (1.0, True), "another feature has taken over"
    assert rates([0, 2, 0, 0, 0], cosines, 10.0) == (0.0, False), "below 0.4 of the projection nobody has"
    assert rates([0, 0, 0, 200, 0], cosines, 10.0) == (0.0, True), "cosine 0.05: enough for full, not for the fraction"
    assert rates([0, 0, 0, 0, 1000], cosines, 10.0) == (0.0, False), "cosine 0.01: for neither"
    assert rates([5, 6.25, 0, 0, 0], cosines, 10.0) == (pytest.approx(0.5), False), "half and half"
    assert rates([0, 12.5, 0, 0, 0], cosines, -1.0) == (0.0, False), "the probe itself sees no letter"


def test_at_most_three_features_absorb() -> None:
    cosines = np.array([1.0, 0.5, 0.5, 0.5, 0.5])
    acts = np.array([[4.0, 2.0, 2.0, 2.0, 2.0]])
    found = absorption(acts, cosines, np.array([7.0]), MAIN)
    assert found.fraction[0] == pytest.approx(3 / 7)


def test_renaming_features_changes_nothing() -> None:
    generator = np.random.default_rng(0)
    acts, cosines = generator.exponential(size=(40, 12)), generator.uniform(-1, 1, 12)
    projections = generator.normal(3, 2, 40)
    order = generator.permutation(12)
    here = absorption(acts, cosines, projections, np.array([2, 5]))
    there = absorption(acts[:, order], cosines[order], projections, np.argsort(order)[[2, 5]])
    np.testing.assert_allclose(here.fraction, there.fraction)
    np.testing.assert_array_equal(here.full, there.full)
    assert 0 < here.fraction.mean() < 1


def test_a_letter_shared_by_two_features_has_two_main_ones() -> None:
    letters = np.repeat([0, 1], 200)
    acts = np.zeros((400, 6))
    acts[:100, 3] = acts[100:200, 4] = acts[200:, 5] = 1.0
    weights = rank_by_sparse_probe(torch.from_numpy(acts).float(), torch.from_numpy(letters))
    ranking = weights[0].argsort(descending=True).numpy()
    assert set(ranking[:2]) == {3, 4}
    chosen, score = main_features(acts, letters == 0, acts, letters == 0, ranking, 5)
    assert (set(chosen), score) == ({3, 4}, 1.0)


def test_f1_is_the_harmonic_mean() -> None:
    truth = np.array([True, True, True, False, False])
    said = np.array([True, False, False, True, False])
    precision, recall = 1 / 2, 1 / 3
    assert f1(said, truth) == pytest.approx(2 * precision * recall / (precision + recall))
    assert f1(np.zeros(5, dtype=bool), truth) == 0.0


def alphabetic_tokenizer() -> PreTrainedTokenizerFast:
    words = ["[UNK]", "<s>", "</s>", "has", "the", "first", "letter:", *LETTERS.upper(), "x1"]
    words += [f"{letter}{end}" for end in ("at", "in") for letter in LETTERS][: VOCAB - len(words)]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


@pytest.fixture
def speller(lm: LanguageModel) -> LanguageModel:
    return LanguageModel(lm.model, alphabetic_tokenizer(), lm.facts)


def test_words_are_letters_only_and_evenly_drawn(speller: LanguageModel) -> None:
    words = vocabulary_words(speller.tokenizer, 2, np.random.default_rng(0))
    assert {word.text for word in words}.isdisjoint({"letter:", "x1", "<s>"})
    assert all(LETTERS[word.letter] == word.text[0].lower() for word in words)
    assert np.bincount([word.letter for word in words]).max() == 2


def test_every_prompt_holds_its_word_at_the_same_position(speller: LanguageModel) -> None:
    prompts = SpellingPrompts(speller.tokenizer, examples=2)
    words = vocabulary_words(speller.tokenizer, 9, np.random.default_rng(0))
    for word in words:
        tokens = prompts.tokens(word, words[:2])
        assert len(tokens) == prompts.length
        assert tokens[prompts.word_position] == word.token
    text = speller.tokenizer.decode(prompts.tokens(words[0], words[1:3]))
    assert text.count("has the first letter:") == 3


def test_a_model_that_cannot_spell_gets_no_score(speller: LanguageModel) -> None:
    config = AbsorptionConfig(words_per_letter=10, examples=2, n_spelled=10, batch_size=16)
    (result,) = evaluate_absorption([make_subject()], speller, HookPoint(1), config)
    assert result.status == "inapplicable" and result.reasons[0].startswith("the language model cannot spell")
    assert result.absorption_fraction is None and result.letters == [] and not figures_in(result)
    layout = AbsorptionOfFirstLetters(config).saebench(result, make_subject())
    assert set(layout["eval_result_metrics"]["mean"].values()) == {None}


def test_a_tokenizer_without_the_answers_is_refused(lm: LanguageModel) -> None:
    backend = Tokenizer(models.WordLevel({"<s>": 0, "a": 1}, unk_token="<s>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="a")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    with pytest.raises(EvalError, match="no single token for an answer"):
        SpellingPrompts(tokenizer, 2)


def test_an_sae_with_one_clean_feature_a_letter_absorbs_nothing() -> None:
    # Letter i is dimension i of the activation, and feature i reads that dimension alone.
    subject = make_subject(d_sae=26)
    sae = subject.sae
    sae.d_in = sae.d_read = 26
    sae.W_enc, sae.W_dec = torch.nn.Parameter(torch.eye(26)), torch.nn.Parameter(torch.eye(26))
    sae.b_dec, sae.b_enc = torch.nn.Parameter(torch.zeros(26)), torch.nn.Parameter(torch.zeros(26))
    words = [Word(i, LETTERS[i % 26], i % 26) for i in range(520)]
    x = torch.eye(26)[[word.letter for word in words]] * 5
    spelled = SpelledWords(words, np.arange(520) >= 416, x, 3, 1.0, 20)
    scores = np.where(np.eye(26)[spelled.letters[416:]].T > 0, 1.0, -1.0)
    result = measure(subject, spelled, np.eye(26), scores, AbsorptionConfig())
    assert (result.status, result.n_letters) == ("ok", 26)
    assert result.sae_f1 == 1.0 and result.mean_main_features == 1.0
    assert result.absorption_fraction is not None and result.absorption_fraction.value == 0.0
    assert [one.features for one in result.letters] == [[i] for i in range(26)]
    silent = make_subject("silent", d_sae=26)
    with torch.no_grad():
        silent.sae.b_enc.fill_(-1e6)
    padded = SpelledWords(words, spelled.is_test, torch.zeros(520, WIDTH), 3, 1.0, 20)
    assert measure(silent, padded, np.ones((26, WIDTH)), scores, AbsorptionConfig()).status == "degenerate"
