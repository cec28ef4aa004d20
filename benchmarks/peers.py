"""The field's SAE trainers, each as a function that takes one training step on a batch of [tokens, d_in]."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable

import torch
from torch import Tensor

Step = Callable[[Tensor], None]
N_STEPS = 10_000  # of the schedules; no peer gets far into them


def dictionary_learning(kind: str, d_in: int, d_sae: int, k: int) -> Step:
    """``trainer.update``: forward, backward, clipping, Adam, unit decoder norm."""
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.standard import StandardTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    common = {
        "steps": N_STEPS, "activation_dim": d_in, "dict_size": d_sae, "layer": 0, "lm_name": "none", "device": "cpu",
        "seed": 0,
    }  # fmt: skip
    made = {
        "relu": lambda: StandardTrainer(**common),
        "topk": lambda: TopKTrainer(k=k, **common),
        "batch_topk": lambda: BatchTopKTrainer(k=k, **common),
    }[kind]()
    step = 0

    def update(x: Tensor) -> None:
        nonlocal step
        with contextlib.redirect_stdout(io.StringIO()):
            made.update(step, x)
        step += 1

    return update


def sae_lens(kind: str, d_in: int, d_sae: int, k: int) -> Step:
    """``SAETrainer.step``, which scales, trains and counts; no logging."""
    from sae_lens import (
        BatchTopKTrainingSAE,
        BatchTopKTrainingSAEConfig,
        StandardTrainingSAE,
        StandardTrainingSAEConfig,
        TopKTrainingSAE,
        TopKTrainingSAEConfig,
    )
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    sae = {
        "relu": lambda: StandardTrainingSAE(StandardTrainingSAEConfig(d_in=d_in, d_sae=d_sae, l1_coefficient=0.04)),
        "topk": lambda: TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d_in, d_sae=d_sae, k=k)),
        "batch_topk": lambda: BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=d_in, d_sae=d_sae, k=k)),
    }[kind]()
    config = SAETrainerConfig(
        total_training_samples=N_STEPS * 2048,
        train_batch_size_samples=2048,
        lr_end=3e-5,
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer = SAETrainer(cfg=config, sae=sae, data_provider=iter(()))

    def update(x: Tensor) -> None:
        trainer.step(x)
        trainer.n_training_steps += 1

    return update


def sparsify(kind: str, d_in: int, d_sae: int, k: int) -> Step:
    """What ``Trainer.fit`` does with one SAE and Adam: its loop cannot be had without a language model."""
    from sparsify import SparseCoder, SparseCoderConfig

    if kind != "topk":
        raise ValueError(f"sparsify has no {kind}")
    sae = SparseCoder(d_in, SparseCoderConfig(num_latents=d_sae, k=k), dtype=torch.float32)
    optimiser = torch.optim.Adam(sae.parameters(), lr=2e-4 / (d_sae / 2**14) ** 0.5)
    since_fired = torch.zeros(d_sae, dtype=torch.long)

    def update(x: Tensor) -> None:
        sae.set_decoder_norm_to_unit_norm()
        out = sae(x, dead_mask=since_fired > 10_000_000)
        fired = torch.zeros(d_sae, dtype=torch.bool)
        fired[out.latent_indices.flatten()] = True
        (out.fvu + out.auxk_loss / 32).backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimiser.step()
        optimiser.zero_grad()
        since_fired.add_(len(x))
        since_fired[fired] = 0

    return update


PEERS: dict[str, tuple[Callable[[str, int, int, int], Step], tuple[str, ...]]] = {
    "sae-lens": (sae_lens, ("relu", "topk", "batch_topk")),
    "dictionary-learning": (dictionary_learning, ("relu", "topk", "batch_topk")),
    "eai-sparsify": (sparsify, ("topk",)),
}
"""Each peer with the architectures that it has."""
