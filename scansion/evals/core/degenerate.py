"""The ways a dictionary can be worthless, each named: untrained, non-finite, dead, constant, or blind."""

from __future__ import annotations

import torch

from scansion.evals.base import LoadedSAE

CHANCE_MARGIN = 0.02


def reasons_before_running(subject: LoadedSAE) -> list[str]:
    """What can be told from the SAE alone: no step taken, weights that are not finite."""
    reasons: list[str] = []
    if subject.metadata.steps == 0:
        reasons.append("no training step was taken")
    broken = [name for name, tensor in subject.sae.state_dict().items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        reasons.append(f"weights are not finite: {', '.join(broken)}")
    return reasons


def reasons_from_activity(n_alive: int, output_variance: float, input_variance: float) -> list[str]:
    """What held-out activations tell: nothing fires, the output is not finite, or it does not depend on the input.

    Args:
        n_alive: features that fired at least once.
        output_variance, input_variance: summed over dimensions, per token.
    """
    reasons: list[str] = []
    if n_alive == 0:
        reasons.append("all features are dead: none fired on held-out text")
    if not torch.isfinite(torch.tensor(output_variance)):
        reasons.append("the output is not finite")
    elif output_variance <= 1e-6 * input_variance:
        reasons.append("the output is constant: it does not depend on the input")
    return reasons


def reasons_from_probes(sae_accuracies: list[float], lm_accuracies: list[float]) -> list[str]:
    """What probing tells: every SAE probe is at chance (0.5, balanced classes) where the LM's own are not."""
    informative = [sae for sae, lm in zip(sae_accuracies, lm_accuracies, strict=True) if lm > 0.5 + 2 * CHANCE_MARGIN]
    if informative and max(informative) <= 0.5 + CHANCE_MARGIN:
        return [f"every probe is at chance (best {max(informative):.3f}) while the language model's are not"]
    return []
