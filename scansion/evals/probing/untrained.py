"""The control that every probe needs: an SAE of the same settings that has learnt nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from scansion.evals.base import LoadedSAE
from scansion.evals.reading.texts import Block
from scansion.sae import SAE, build_sae


def random_controls(subjects: Sequence[LoadedSAE], seed: int, draws: int = 1) -> tuple[list[list[SAE]], list[int]]:
    """Untrained SAEs for each kind of subject, ``draws`` of each, and for each subject the index of its kind.

    Subjects of equal settings (architecture, width, k, mask) and equal training seed share theirs. They start as training
    would start them, and their decoder biases are to be moved to the data's mean with :func:`centre`. Where activations are
    chosen by a threshold that training sets (batch_topk, jumprelu), every positive one passes. Every training seed has draws
    of its own, so that an interval over seeds covers what the draws add.

    Args:
        subjects: trained SAEs.
        seed: of the initial weights, with the training seed.
        draws: initial weights drawn for each kind.
    """
    kinds = [
        (s.sae.config.model_dump_json(), s.metadata.seed or 0, s.sae.d_in, s.sae.n_positions, s.sae.W_enc.device)
        for s in subjects
    ]
    controls: dict[object, list[SAE]] = {}
    for kind, subject in zip(kinds, subjects, strict=True):
        if kind not in controls:
            own = (subject.metadata.seed or 0) % 2**64  # numpy takes no negative entropy
            seeds = np.random.SeedSequence([seed, own]).generate_state(draws, np.uint64)
            controls[kind] = [_untrained(subject.sae, int(one)) for one in seeds]
    order = list(controls)
    return list(controls.values()), [order.index(kind) for kind in kinds]


def _untrained(sae: SAE, seed: int) -> SAE:
    fresh = build_sae(sae.config, sae.d_in, sae.n_positions, torch.Generator().manual_seed(seed))
    return fresh.to(sae.W_enc.device, sae.W_enc.dtype).eval()


def centre(sae: SAE, block: Block) -> None:
    """Move the decoder bias to the mean of a block of tokens, in place (of each band, where bands have their own)."""
    if not len(block.x):
        return
    x, positions = sae.normalised(block.x.float()).x, block.positions.long()
    counts = torch.bincount(positions)
    sums = torch.zeros(len(counts), x.shape[1]).index_add_(0, positions, x)
    seen = counts.nonzero().squeeze(1)
    device = sae.b_dec.device
    sae.start_at((sums[seen] / counts[seen, None]).to(device, sae.b_dec.dtype), seen.to(device))
