"""Feature absorption on first-letter spelling (Chanin et al. 2024, arXiv:2409.14507; SAEBench)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, cast

import numpy as np
import torch
from jaxtyping import Float
from joblib import Parallel, delayed
from pydantic import Field
from threadpoolctl import threadpool_limits

from scansion.errors import EvalError
from scansion.evals.absorption.first_letters import (
    LETTERS,
    SpelledWords,
    SpellingPrompts,
    spell_words,
    vocabulary_words,
)
from scansion.evals.absorption.rates import Absorption, absorption, f1, main_features, rank_by_sparse_probe
from scansion.evals.absorption.result import AbsorptionResult, LetterAbsorption
from scansion.evals.base import LoadedSAE, reasons_before_running
from scansion.evals.probing.accuracy import over_tasks
from scansion.evals.reading.training import require_sae_matches_lm
from scansion.evals.registry import EvaluationConfig
from scansion.lm import HookPoint, LanguageModel
from scansion.progress import progress


class AbsorptionConfig(EvaluationConfig):
    """Words, prompts and thresholds."""

    evaluation: ClassVar[str] = "absorption"

    words_per_letter: int = Field(
        default=150, ge=10, description="Words per first letter, at most; taken from the vocabulary."
    )
    examples: int = Field(default=5, ge=1, description="Example words that each prompt spells before the tested word.")
    max_k: int = Field(default=10, ge=1, description="Most features that may represent one letter.")
    min_probe_f1: float = Field(
        default=0.6, ge=0, le=1, description="Letters count only if a probe on the LM's activations reaches this F1."
    )
    min_letters: int = Field(
        default=20, ge=1, le=26, description="Number of letters that must count for the evaluation to apply."
    )
    min_spelled: float = Field(
        default=0.5, ge=0, le=1, description="Share of test words the LM must spell for the evaluation to apply."
    )
    min_feature_f1: float = Field(
        default=0.3, ge=0, le=1, description="Mean F1 that probes on features must reach for the evaluation to apply."
    )
    n_spelled: int = Field(default=100, ge=1, description="Test words the LM must spell.")
    batch_size: int = Field(default=32, ge=1, description="Prompts per batch of the LM.")
    seed: int = Field(
        default=42, ge=0, lt=2**63, description="Seed for drawing words, split and examples, and for the bootstrap."
    )


def evaluate_absorption(
    subjects: Sequence[LoadedSAE], lm: LanguageModel, hook_point: HookPoint, config: AbsorptionConfig
) -> list[AbsorptionResult]:
    """Measure absorption of first letters; the prompts are run through the LM once for all SAEs.

    It differs from SAEBench in five ways. Words are drawn evenly by first letter, not the whole vocabulary. Five words
    are spelled before the one in question, not ten. The LM's probe is scikit-learn's balanced logistic regression on
    standardised activations. Absorption is measured on the very prompts that the probes were tested on, not on new
    ones. And where the LM cannot itself spell, the result says so and holds no score.

    Args:
        subjects: SAEs for this LM and hook point.
        lm, hook_point: source of the activations.
        config: words and thresholds.

    Raises:
        EvalError: an SAE belongs to another model, or the tokenizer has no token for an answer or too few words.
        ShapeError: the prompts are longer than an SAE's mask.
        ModelError: the model has no such layer, or cannot read prompts this long.
    """
    prompts = SpellingPrompts(lm.tokenizer, config.examples)
    require_sae_matches_lm(subjects, lm, hook_point, prompts.length)
    generator = np.random.default_rng(config.seed)
    words = vocabulary_words(lm.tokenizer, config.words_per_letter, generator)
    if len(words) < 5 * (config.examples + 1):
        raise EvalError(
            f"the vocabulary of {lm.facts.name} has {len(words)} words of letters alone, too few to split and to spell "
            f"{config.examples} of them in each prompt; expected at least {5 * (config.examples + 1)}"
        )
    spelled = spell_words(lm, hook_point, prompts, words, config.n_spelled, config.batch_size, generator)
    directions, scores = _letter_probes(spelled)
    return [measure(subject, spelled, directions, scores, config) for subject in subjects]


def _letter_probes(spelled: SpelledWords) -> tuple[Float[np.ndarray, "26 d_in"], Float[np.ndarray, "26 m"]]:
    """Unit directions of the 26 probes on the LM's activations, and their scores on the test words (above 0: yes)."""
    from sklearn.linear_model import LogisticRegression

    x, letters = spelled.x.numpy(), spelled.letters
    mean, scale = x[~spelled.is_test].mean(axis=0), x[~spelled.is_test].std(axis=0)
    scale[scale == 0] = 1.0
    train, test = ((x[side] - mean) / scale for side in (~spelled.is_test, spelled.is_test))

    def fit(letter: int) -> tuple[np.ndarray, np.ndarray]:
        is_letter = letters[~spelled.is_test] == letter
        if not is_letter.any():
            return np.zeros(x.shape[1]), np.full(len(test), -1.0)
        probe = LogisticRegression(max_iter=500, class_weight="balanced").fit(train, is_letter)
        direction = np.asarray(probe.coef_)[0] / scale
        return direction / np.linalg.norm(direction), probe.decision_function(test)

    with threadpool_limits(limits=1):
        fits = Parallel(n_jobs=-1, backend="threading")(delayed(fit)(letter) for letter in range(26))
    found = cast(list[tuple[np.ndarray, np.ndarray]], list(fits))
    return np.stack([one[0] for one in found]), np.stack([one[1] for one in found])


def measure(
    subject: LoadedSAE,
    spelled: SpelledWords,
    directions: Float[np.ndarray, "26 d_in"],
    scores: Float[np.ndarray, "26 m"],
    config: AbsorptionConfig,
) -> AbsorptionResult:
    """Absorption of one SAE, given the LM's activations and its probes."""
    letters, is_test = spelled.letters, spelled.is_test
    probe_f1 = [f1(scores[i] > 0, letters[is_test] == i) for i in range(26)]
    counting = [i for i in range(26) if probe_f1[i] > config.min_probe_f1]
    reasons = reasons_before_running(subject)
    inapplicable: list[str] = []
    if spelled.spelled < config.min_spelled:
        inapplicable.append(
            f"the language model cannot spell first letters: it named {spelled.spelled:.0%} of {spelled.n_spelled} "
            f"words' letters, below {config.min_spelled:.0%}"
        )
    elif len(counting) < config.min_letters:
        inapplicable.append(
            f"a probe on the language model's activations recognises {len(counting)} letters (F1 above "
            f"{config.min_probe_f1}), fewer than {config.min_letters}"
        )
    found = [] if reasons or inapplicable else _by_letter(subject, spelled, directions, scores, counting, config)
    sae_f1 = float(np.mean([one.sae_f1 for one, _ in found])) if found else None
    if sae_f1 == 0:
        reasons.append("no feature detects any first letter: every probe on features has an F1 of 0")
    elif sae_f1 is not None and sae_f1 < config.min_feature_f1:
        inapplicable.append(
            f"features hardly detect first letters (mean F1 {sae_f1:.2f}, of the language model's probe "
            f"{np.mean(probe_f1):.2f}), so nothing could be absorbed: a rate near 0 does not speak for the SAE"
        )
    rows = [np.stack([rates.fraction, rates.full]) for _, rates in found]
    ids = np.cumsum([0, *(row.shape[1] for row in rows)])
    texts = [np.arange(start, start + row.shape[1]) for start, row in zip(ids, rows, strict=False)]
    fraction, full = over_tasks(rows, texts, [config.seed]).estimates() if rows else (None, None)
    return AbsorptionResult.of(
        subject,
        {"config": config.model_dump(mode="json"), "n_words": len(spelled.words)},
        config.seed,
        reasons,
        inapplicable,
        notes=[
            f"words are the tokens of the model's own vocabulary that are made of letters alone; each stands at "
            f"position {spelled.position} of its prompt"
        ],
        spelling_accuracy=spelled.spelled,
        probe_f1=float(np.mean(probe_f1)),
        n_letters=len(counting),
        absorption_fraction=fraction,
        full_absorption_rate=full,
        mean_main_features=float(np.mean([len(one.features) for one, _ in found])) if found else None,
        sae_f1=sae_f1,
        position=spelled.position,
        letters=[one for one, _ in found],
    )


def _by_letter(
    subject: LoadedSAE,
    spelled: SpelledWords,
    directions: Float[np.ndarray, "26 d_in"],
    scores: Float[np.ndarray, "26 m"],
    counting: list[int],
    config: AbsorptionConfig,
) -> list[tuple[LetterAbsorption, Absorption]]:
    sae, letters, is_test = subject.sae, spelled.letters, spelled.is_test
    weights = sae.directions.detach()
    with torch.no_grad():
        x = spelled.x.to(weights.device, weights.dtype)
        acts = sae.encode(x, torch.full((len(x),), spelled.position, device=x.device)).float()
        acts = (acts * sae.normalised(x).scale).cpu()  # in the units of x, of which features are compared as shares
    train = acts[torch.from_numpy(~is_test)]
    ranking = rank_by_sparse_probe(train, torch.from_numpy(letters[~is_test])).argsort(dim=1, descending=True).numpy()
    rows = torch.nn.functional.normalize(weights.float().cpu(), dim=1).numpy()
    train, test, x_test = train.numpy(), acts[torch.from_numpy(is_test)].numpy(), spelled.x.numpy()[is_test]
    found: list[tuple[LetterAbsorption, Absorption]] = []
    with progress(f"absorption {subject.name}", len(counting), "letters") as advance:
        for letter in counting:
            is_letter = letters[is_test] == letter
            main, score = main_features(
                train, letters[~is_test] == letter, test, is_letter, ranking[letter], config.max_k
            )
            words = is_letter & (scores[letter] > 0)
            rates = absorption(
                test[words], rows @ directions[letter], x_test[words] @ directions[letter], main.astype(np.int64)
            )
            one = LetterAbsorption(
                letter=LETTERS[letter],
                probe_f1=f1(scores[letter] > 0, is_letter),
                sae_f1=score,
                features=main.tolist(),
                n_words=int(words.sum()),
                absorption_fraction=float(rates.fraction.mean()),
                full_absorption_rate=float(rates.full.mean()),
            )
            found.append((one, rates))
            advance(1)
    return found
