"""The maths of feature absorption: which features stand for a letter, and who steps in where they stay silent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# The thresholds of SAEBench 0.6 (evals/absorption).
F1_JUMP = 0.03
COSINE_FULL = 0.025
COSINE_FRACTION = 0.1
PROJECTION_SHARE = 0.4
MAX_ABSORBERS = 3
SILENT = 1e-8
_L1, _STEPS, _LR, _END_LR = 0.01, 400, 0.01, 1e-5


@dataclass(frozen=True)
class Absorption:
    """Absorption on each word.

    Attributes:
        fraction: share of the letter's direction that other features carry, in [0, 1].
        full: True where one other feature alone has taken over from main features that are all silent.
    """

    fraction: Float[np.ndarray, " n"]
    full: Bool[np.ndarray, " n"]


def absorption(
    acts: Float[np.ndarray, "n d_sae"],
    cosines: Float[np.ndarray, " d_sae"],
    projections: Float[np.ndarray, " n"],
    main: Int[np.ndarray, " k"],
) -> Absorption:
    """Absorption of a letter (Chanin et al. 2024; fraction as in SAEBench, Karvonen et al. 2025).

    A feature's share of the projection is its activation times the cosine of its decoder row with the probe. Where the
    three best other features (cosine at least 0.1) carry at least 0.4 of the whole projection, the fraction is theirs
    over theirs and the main ones'; where the main ones carry all of it, 0.

    Args:
        acts: features at the words' tokens.
        cosines: of each decoder row with the letter's probe.
        projections: of the LM's activation on the unit probe direction.
        main: the features that stand for the letter.
    """
    carried = acts * cosines
    of_main = carried[:, main].sum(axis=1)
    others = np.ones(len(cosines), dtype=bool)
    others[main] = False
    absorbers = np.where(others & (cosines >= COSINE_FRACTION), np.maximum(carried, 0.0), 0.0)
    best = -np.partition(-absorbers, min(MAX_ABSORBERS, absorbers.shape[1]) - 1, axis=1)[:, :MAX_ABSORBERS].sum(axis=1)
    positive = np.where(projections > 0, projections, np.inf)
    taken = np.minimum(best, projections - of_main)
    with np.errstate(invalid="ignore", divide="ignore"):
        shared = np.clip(taken / (taken + of_main), 0.0, 1.0)
    fraction = np.where(of_main <= 0, 1.0, shared)
    fraction[(of_main >= projections) | (best / positive < PROJECTION_SHARE)] = 0.0
    top = carried.argmax(axis=1)
    full = (
        (acts[:, main] < SILENT).all(axis=1)
        & (cosines[top] >= COSINE_FULL)
        & (carried[np.arange(len(acts)), top] / positive >= PROJECTION_SHARE)
    )
    return Absorption(fraction, full)


def rank_by_sparse_probe(acts: Float[Tensor, "n d_sae"], letters: Int[Tensor, " n"]) -> Float[Tensor, "26 d_sae"]:
    """Weights of 26 one-against-rest logistic probes with an L1 penalty of 0.01: what ranks the features of a letter.

    Adam from zero on all rows at once, 400 steps, the learning rate falling from 1e-2 to 1e-5.
    """
    fires = (acts > 0).any(dim=0)
    x = acts[:, fires]
    y = torch.nn.functional.one_hot(letters, 26).to(x.dtype)
    positives = y.sum(dim=0).clamp_min(1)
    weight = torch.zeros(26, x.shape[1], requires_grad=True)
    bias = torch.zeros(26, requires_grad=True)
    loss_of = torch.nn.BCEWithLogitsLoss(pos_weight=(len(y) - positives) / positives)
    optimiser = torch.optim.Adam([weight, bias], lr=_LR, weight_decay=1e-6)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, (_END_LR / _LR) ** (1 / _STEPS))
    for _ in range(_STEPS):
        optimiser.zero_grad()
        loss = loss_of(x @ weight.T + bias, y) + _L1 * weight.abs().sum(dim=1).mean()
        loss.backward()
        optimiser.step()
        schedule.step()
    full = torch.full((26, acts.shape[1]), -torch.inf)
    full[:, fires] = weight.detach()
    return full


def main_features(
    train: Float[np.ndarray, "n d_sae"],
    is_letter: Bool[np.ndarray, " n"],
    test: Float[np.ndarray, "m d_sae"],
    test_is_letter: Bool[np.ndarray, " m"],
    ranking: Int[np.ndarray, " d_sae"],
    max_k: int,
) -> tuple[Int[np.ndarray, " k"], float]:
    """The features that stand for a letter, and the F1 of the probe on them.

    The first k of the ranking, k being raised as long as each step raises the F1 of a logistic probe on the k features
    by more than 0.03 (feature splitting).
    """
    from sklearn.linear_model import LogisticRegression  # takes a second, which every command would wait for

    best, chosen = 0.0, ranking[:1]
    for k in range(1, max_k + 1):
        columns = ranking[:k]
        probe = LogisticRegression(max_iter=500, class_weight="balanced").fit(train[:, columns], is_letter)
        score = f1(probe.predict(test[:, columns]), test_is_letter)
        if k > 1 and score <= best + F1_JUMP:
            break
        best, chosen = score, columns
    return chosen, best


def f1(predicted: Bool[np.ndarray, " n"], truth: Bool[np.ndarray, " n"]) -> float:
    """Harmonic mean of precision and recall; 0 if nothing is right."""
    right = float((predicted & truth).sum())
    total = float(predicted.sum() + truth.sum())
    return 2 * right / total if total else 0.0
