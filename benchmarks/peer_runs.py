"""One whole run of each peer, from a language model in a folder and contexts to one trained TopK SAE."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peer_buffers import BATCH_TOKENS, dictionary_learning, sae_lens
from scansion.corpus import Contexts
from scansion.lm import LanguageModel, load_language_model, model_facts


@dataclass(frozen=True)
class Task:
    """What is to be trained on what.

    Attributes:
        model: name or folder of the language model.
        contexts: the tokens.
        layer: whose output is learnt.
        d_sae, k: of the SAE.
        lm_batch_size: contexts the language model reads at once.
        folder: for what is saved.
    """

    model: str
    contexts: Contexts
    layer: int
    d_sae: int
    k: int
    lm_batch_size: int
    folder: Path

    @property
    def steps(self) -> int:
        """Of :data:`BATCH_TOKENS` each."""
        return self.contexts.n_tokens // BATCH_TOKENS

    def lm(self) -> LanguageModel:
        """Loaded again."""
        return load_language_model(self.model, None, "cpu", "float32")


@dataclass(frozen=True)
class Spent:
    """Seconds of a run: ``load`` for the model, ``lm`` for its activations, ``train`` for the SAE, saving included."""

    load: float
    lm: float
    train: float

    @property
    def run(self) -> float:
        """All of it."""
        return self.load + self.lm + self.train


class Stopwatch:
    """Adds up the time that is spent between ``start`` and ``stop``."""

    def __init__(self) -> None:
        self.seconds = self._begun = 0.0

    def start(self, *_: Any) -> None:
        """Begin."""
        self._begun = time.perf_counter()

    def stop(self, *_: Any) -> None:
        """End, and add."""
        self.seconds += time.perf_counter() - self._begun

    def around(self, function: Callable[[], Any]) -> Callable[[], Any]:
        """``function`` with its time added."""

        def timed() -> Any:
            self.start()
            try:
                return function()
            finally:
                self.stop()

        return timed


def run_dictionary_learning(task: Task) -> Spent:
    """``trainSAE`` on an ``ActivationBuffer``."""
    from dictionary_learning.trainers.top_k import TopKTrainer
    from dictionary_learning.training import trainSAE

    begun = time.perf_counter()
    lm = task.lm()
    buffer: Any = dictionary_learning(lm, task.contexts, task.layer, task.lm_batch_size)
    loaded = time.perf_counter()
    reading = Stopwatch()
    buffer.refresh = reading.around(buffer.refresh)
    config = {
        "trainer": TopKTrainer, "steps": task.steps, "activation_dim": lm.facts.d_model, "dict_size": task.d_sae,
        "k": task.k, "layer": task.layer, "lm_name": task.model, "device": "cpu", "seed": 0, "warmup_steps": 1,
    }  # fmt: skip
    with quiet():
        trainSAE(buffer, [config], steps=task.steps, save_dir=str(task.folder), device="cpu")
    return Spent(loaded - begun, reading.seconds, time.perf_counter() - loaded - reading.seconds)


def run_sae_lens(task: Task) -> Spent:
    """``SAETrainer.fit`` on an ``ActivationsStore``, as its runner does it, without logging."""
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    begun = time.perf_counter()
    facts = model_facts(task.model, None)
    store: Any = sae_lens(facts, task.contexts, task.layer, task.lm_batch_size)
    loaded = time.perf_counter()
    reading = Stopwatch()
    config = SAETrainerConfig(
        total_training_samples=task.steps * BATCH_TOKENS,
        train_batch_size_samples=BATCH_TOKENS,
        lr_end=3e-5,
        logger=LoggingConfig(log_to_wandb=False),
    )
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=facts.d_model, d_sae=task.d_sae, k=task.k))
    batches = iter(reading.around(store.__next__), None)
    with quiet():
        SAETrainer(cfg=config, sae=sae, data_provider=batches).fit().save_inference_model(str(task.folder))
    return Spent(loaded - begun, reading.seconds, time.perf_counter() - loaded - reading.seconds)


def run_sparsify(task: Task) -> Spent:
    """``Trainer.fit``, with Adam; its own command line asks for CUDA."""
    from datasets import Dataset
    from sparsify import SaeConfig, TrainConfig
    from sparsify import Trainer as SparsifyTrainer

    begun = time.perf_counter()
    lm = task.lm()
    model: Any = lm.model.base_model
    loaded = time.perf_counter()
    data = Dataset.from_dict({"input_ids": task.contexts.tokens.tolist()}).with_format("torch")
    config = TrainConfig(
        SaeConfig(num_latents=task.d_sae, k=task.k),
        batch_size=BATCH_TOKENS // task.contexts.length,
        layers=[task.layer],
        optimizer="adam",
        lr_warmup_steps=1,
        log_to_wandb=False,
        save_dir=str(task.folder),
    )
    whole, training = Stopwatch(), Stopwatch()
    with quiet():
        trainer = SparsifyTrainer(config, data, model)
        # It trains inside a hook at the end of the layer. Its hook is set again for every batch, after this one.
        handles = [
            model.register_forward_pre_hook(whole.start),
            model.register_forward_hook(whole.stop),
            model.layers[task.layer].register_forward_hook(training.start),
            model.layers[task.layer + 1].register_forward_pre_hook(training.stop),
        ]
        trainer.fit()
    for handle in handles:
        handle.remove()
    reading = whole.seconds - training.seconds
    return Spent(loaded - begun, reading, time.perf_counter() - loaded - reading)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without their progress bars and messages."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


RUNS: dict[str, Callable[[Task], Spent]] = {
    "dictionary-learning": run_dictionary_learning,
    "sae-lens": run_sae_lens,
    "eai-sparsify": run_sparsify,
}
"""A run of each peer."""
