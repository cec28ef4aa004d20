"""The field's SAE trainers, each as a function that takes one training step on a batch of [tokens, d_in]."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from scansion.execution.precision import autocast, products_in

Step = Callable[[Tensor], None]
Precision = Literal["float32", "tf32", "bf16"]
N_STEPS = 10_000  # of the schedules; no peer gets far into them


def dictionary_learning(kind: str, d_in: int, d_sae: int, k: int, device: str, precision: Precision) -> Step:
    """``trainer.update``: forward, backward, clipping, Adam, unit decoder norm; in bf16 in autocast, as in ``trainSAE``."""
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.standard import StandardTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    common = {
        "steps": N_STEPS, "activation_dim": d_in, "dict_size": d_sae, "layer": 0, "lm_name": "none", "device": device,
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
        with contextlib.redirect_stdout(io.StringIO()), autocast(precision, x.device):
            made.update(step, x.to(torch.bfloat16) if precision == "bf16" else x)
        step += 1

    return update


def sae_lens(kind: str, d_in: int, d_sae: int, k: int, device: str, precision: Precision) -> Step:
    """``SAETrainer.step``, which scales, trains and counts, with its own ``autocast`` in bf16; no logging."""
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

    sizes = {"d_in": d_in, "d_sae": d_sae, "device": device}
    sae = {
        "relu": lambda: StandardTrainingSAE(StandardTrainingSAEConfig(l1_coefficient=0.04, **sizes)),
        "topk": lambda: TopKTrainingSAE(TopKTrainingSAEConfig(k=k, **sizes)),
        "batch_topk": lambda: BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(k=k, **sizes)),
    }[kind]()
    config = SAETrainerConfig(
        total_training_samples=N_STEPS * 2048,
        train_batch_size_samples=2048,
        lr_end=3e-5,
        device=device,
        autocast=precision == "bf16",
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer = SAETrainer(cfg=config, sae=sae, data_provider=iter(()))

    def update(x: Tensor) -> None:
        trainer.step(x)
        trainer.n_training_steps += 1

    return update


def sparsify(kind: str, d_in: int, d_sae: int, k: int, device: str, precision: Precision) -> Step:
    """What ``Trainer.fit`` does with one SAE and Adam: its loop cannot be had without a language model.

    On a GPU its forward pass is in bf16 whatever ``precision`` says, by an autocast of its own.
    """
    from sparsify import SparseCoder, SparseCoderConfig

    if kind != "topk":
        raise ValueError(f"sparsify has no {kind}")
    sae = SparseCoder(d_in, SparseCoderConfig(num_latents=d_sae, k=k), device=device, dtype=torch.float32)
    optimiser = torch.optim.Adam(sae.parameters(), lr=2e-4 / (d_sae / 2**14) ** 0.5)
    since_fired = torch.zeros(d_sae, dtype=torch.long, device=device)

    def update(x: Tensor) -> None:
        sae.set_decoder_norm_to_unit_norm()
        out = sae(x, dead_mask=since_fired > 10_000_000)
        fired = torch.zeros(d_sae, dtype=torch.bool, device=device)
        fired[out.latent_indices.flatten()] = True
        (out.fvu + out.auxk_loss / 32).backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimiser.step()
        optimiser.zero_grad()
        since_fired.add_(len(x))
        since_fired[fired] = 0

    return update


@dataclass(frozen=True)
class Peer:
    """A library whose training steps are timed.

    Attributes:
        module: that is imported.
        make: makes its step; arguments as for :meth:`step`.
        kinds: architectures that it has.
        gpu_precisions: in which it can train on a GPU.
    """

    module: str
    make: Callable[[str, int, int, int, str, Precision], Step]
    kinds: tuple[str, ...]
    gpu_precisions: tuple[Precision, ...] = ("tf32", "bf16")

    def precisions(self, device: str) -> tuple[Precision, ...]:
        """In which it is timed: float32 on the CPU, all that it has on a GPU."""
        return ("float32",) if device == "cpu" else self.gpu_precisions

    def step(
        self, kind: str, d_in: int, d_sae: int, k: int, device: str = "cpu", precision: Precision = "float32"
    ) -> Step:
        """Its training step. In bf16, products that autocast leaves in float32 may use TF32."""
        step, rest = self.make(kind, d_in, d_sae, k, device, precision), "tf32" if precision == "bf16" else precision

        def in_precision(x: Tensor) -> None:
            with products_in(rest):
                step(x)

        return in_precision

    def absent(self) -> str | None:
        """Why it cannot be imported; None if it can."""
        try:
            importlib.import_module(self.module)
        except Exception as error:  # theirs may fail in any way
            return f"{type(error).__name__}: {error}".splitlines()[0]
        return None


PEERS = {
    "sae-lens": Peer("sae_lens", sae_lens, ("relu", "topk", "batch_topk")),
    "dictionary-learning": Peer("dictionary_learning", dictionary_learning, ("relu", "topk", "batch_topk")),
    "eai-sparsify": Peer("sparsify", sparsify, ("topk",), ("bf16",)),
}
"""The libraries compared, by name."""
