"""SAEs trained by the peers' own loops on batches that are given, and saved in their own formats."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.peer_runs import quiet
from scansion.activations import ActivationStream
from scansion.sae import ReluConfig, TopKConfig
from scansion.training import TrainingConfig


@dataclass(frozen=True)
class Batches:
    """The first ``n_steps`` batches of a stream, [tokens, d_in]: each iteration begins with the first one."""

    stream: ActivationStream
    n_steps: int

    def __iter__(self) -> Iterator[Tensor]:
        """Tokens without their positions, in float32, unscaled."""
        return (batch.x.flatten(0, 1) for batch in self.stream.batches(0, self.n_steps))

    @property
    def batch_tokens(self) -> int:
        """Tokens per step."""
        return self.stream.tokens_per_batch


@dataclass(frozen=True)
class Task:
    """What a peer is to train.

    Attributes:
        sae: architecture, sizes, and k or the L1 coefficient.
        model: name of the language model, for what is saved.
        recipe: ``default``: the library's own rates and schedule; ``ours``: our peak rate, warm-up and decay; ``scaled``:
            ours too, and inputs scaled to one mean norm where the library does not do it by default.
        training: our rates, and the seed of the weights.
    """

    sae: TopKConfig | ReluConfig
    model: str
    recipe: str
    training: TrainingConfig


def dictionary_learning(task: Task, batches: Batches, folder: Path) -> Path:
    """``trainSAE``, with inputs at unit mean square norm and a rate that decays over the last fifth, as in its demonstration.

    Its warm-ups take 1000 and 2000 steps, and its trainers refuse them in runs that are not longer: there they take a
    twentieth and a tenth of the steps, as ours do.
    """
    from dictionary_learning.trainers.standard import StandardTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer
    from dictionary_learning.training import trainSAE

    steps = batches.n_steps
    decay_start = int(0.8 * steps)
    fits = task.recipe == "default" and decay_start > 2000
    config: dict[str, Any] = {
        "steps": steps,
        "activation_dim": batches.stream.store.d_in,
        "dict_size": task.sae.d_sae,
        "layer": 0,
        "lm_name": task.model,
        "device": "cpu",
        "seed": task.training.seed,
        "decay_start": decay_start,
        "warmup_steps": 1000 if fits else steps // 20,
    }
    if task.recipe != "default":
        config["lr"] = task.training.lr
    if isinstance(task.sae, TopKConfig):
        config |= {"trainer": TopKTrainer, "k": task.sae.k}
    else:
        sparsity = {"sparsity_warmup_steps": 2000 if fits else steps // 10}
        config |= {"trainer": StandardTrainer, "l1_penalty": task.sae.l1_coefficient, **sparsity}
    with quiet():
        trainSAE(batches, [config], steps=steps, save_dir=str(folder), normalize_activations=True, device="cpu")
    return folder / "trainer_0"


def sae_lens(task: Task, batches: Batches, folder: Path) -> Path:
    """``SAETrainer.fit``, without logging."""
    from sae_lens import (
        StandardTrainingSAE,
        StandardTrainingSAEConfig,
        TopKTrainingSAE,
        TopKTrainingSAEConfig,
    )
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(task.training.seed)
    steps, ours = batches.n_steps, task.recipe != "default"
    scaling = {"normalize_activations": "expected_average_only_in"} if task.recipe == "scaled" else {}
    sizes = {"d_in": batches.stream.store.d_in, "d_sae": task.sae.d_sae, "device": "cpu", **scaling}
    if isinstance(task.sae, TopKConfig):
        sae: Any = TopKTrainingSAE(TopKTrainingSAEConfig(k=task.sae.k, **sizes))
    else:
        warm_up = {"l1_warm_up_steps": steps // 10} if ours else {}
        sae = StandardTrainingSAE(StandardTrainingSAEConfig(l1_coefficient=task.sae.l1_coefficient, **warm_up, **sizes))
    rates = {"lr": task.training.lr, "lr_warm_up_steps": steps // 20, "lr_decay_steps": steps // 5} if ours else {}
    config = SAETrainerConfig(
        total_training_samples=steps * batches.batch_tokens,
        train_batch_size_samples=batches.batch_tokens,
        lr_end=3e-5,  # of a schedule that is not its default
        logger=LoggingConfig(log_to_wandb=False),
        **rates,
    )
    trainer = SAETrainer(cfg=config, sae=sae, data_provider=iter(batches))
    with quiet():
        if scaling:  # on batches of its own, so that training still begins with the first
            few = min(steps, config.n_batches_for_norm_estimate)
            trainer.activation_scaler.estimate_scaling_factor(sae.cfg.d_in, iter(batches), few)
        trainer.fit().save_inference_model(str(folder))
    return folder


TRAINERS = {"dictionary-learning": dictionary_learning, "sae-lens": sae_lens}
"""Each trains an SAE and returns the folder that ``scansion import`` reads."""
DEFAULT_BATCHES = {"dictionary-learning": 2048, "sae-lens": 4096}
"""Tokens per step: sae-lens' default, and those of dictionary-learning's demonstration."""
MODULES = {"dictionary-learning": "dictionary_learning.training", "sae-lens": "sae_lens.training.sae_trainer"}
"""What takes seconds to import, which do not count as training."""
