"""The control that every probe needs: an SAE of the same settings that has learnt nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from scansion.evals.base import LoadedSAE
from scansion.evals.reading.texts import Block
from scansion.sae import SAE, build_sae


def random_controls(subjects: Sequence[LoadedSAE], seed: int) -> tuple[list[SAE], list[int]]:
    """An untrained SAE for each kind of subject, and for each subject the index of its own.

    Subjects of equal settings (architecture, width, k, mask) share one. It starts as training would start it, and its
    decoder bias is to be moved to the data's mean with :func:`centre`. Where activations are chosen by a threshold that
    training sets (batch_topk, jumprelu), every positive one passes.

    Args:
        subjects: trained SAEs.
        seed: of the initial weights.
    """
    kinds = [(s.sae.config.model_dump_json(), s.sae.d_in, s.sae.n_positions, s.sae.W_enc.device) for s in subjects]
    controls: dict[object, SAE] = {}
    for kind, subject in zip(kinds, subjects, strict=True):
        if kind not in controls:
            sae = subject.sae
            fresh = build_sae(sae.config, sae.d_in, sae.n_positions, torch.Generator().manual_seed(seed))
            controls[kind] = fresh.to(sae.W_enc.device, sae.W_enc.dtype).eval()
    order = list(controls)
    return list(controls.values()), [order.index(kind) for kind in kinds]


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
