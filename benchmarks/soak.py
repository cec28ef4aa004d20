"""A soak: harvest and train again and again in one process, and see whether its memory stays flat.

``python -m benchmarks.soak --minutes 30``
"""

from __future__ import annotations

import gc
import json
import statistics
import tempfile
import time
from pathlib import Path

import psutil
import torch
from cyclopts import App
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerBase

from scansion.activations import HarvestConfig, HarvestPlan, harvest
from scansion.activations.store import StoreIdentity
from scansion.corpus import Contexts
from scansion.lm import LanguageModel, ModelFacts
from scansion.masks import BandMaskConfig
from scansion.progress import say
from scansion.sae import TopKConfig
from scansion.training import TrainingConfig, TrainingRun, train

WIDTH, LENGTH, VOCABULARY, N_CONTEXTS = 64, 32, 500, 400
WARM_UP = 0.2  # share of the time before memory is compared
app = App(help_format="plaintext")


@app.default
def measure(*, minutes: float = 30.0, out: Path | None = None) -> None:
    """Measure resident memory after each round of a harvest and a training run, with other text and seeds each time.

    Args:
        minutes: how long.
        out: a JSON file of all measurements.
    """
    lm, process, start = _made_up_lm(), psutil.Process(), time.monotonic()
    seconds, bytes_ = list[float](), list[int]()
    while time.monotonic() - start < 60 * minutes:
        with tempfile.TemporaryDirectory() as home:
            _round(lm, Path(home), len(bytes_))
        gc.collect()
        seconds.append(time.monotonic() - start)
        bytes_.append(process.memory_info().rss)
    steady = [size for when, size in zip(seconds, bytes_, strict=True) if when > WARM_UP * seconds[-1]]
    quarter = max(1, len(steady) // 4)
    first, last = statistics.median(steady[:quarter]), statistics.median(steady[-quarter:])
    found = {
        "minutes": seconds[-1] / 60,
        "rounds": len(bytes_),
        "first_mb": first / 1e6,
        "last_mb": last / 1e6,
        "drift": last / first - 1,
        "highest_mb": max(steady) / 1e6,
    }
    say(", ".join(f"{name} {value:.4g}" for name, value in found.items()))
    if out is not None:
        out.write_text(json.dumps({**found, "seconds": seconds, "bytes": bytes_}), encoding="utf-8")


def _made_up_lm() -> LanguageModel:
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=2 * WIDTH, max_position_embeddings=LENGTH, bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    facts = ModelFacts("made up", "none", "made up", config.model_type, 2, WIDTH, LENGTH, config)
    return LanguageModel(model, PreTrainedTokenizerBase(), facts)


def _round(lm: LanguageModel, home: Path, number: int) -> None:
    """A harvest in several shards, and a training run that reads it three times."""
    tokens = torch.randint(3, VOCABULARY, (N_CONTEXTS, LENGTH), generator=torch.Generator().manual_seed(number))
    contexts = Contexts.from_token_lists(tokens.tolist(), LENGTH, pad_id=2)
    identity = StoreIdentity(
        model="made up", model_revision="none", model_dtype="float32", hook_point="resid_post.0", d_in=WIDTH,
        context_length=LENGTH, n_contexts=N_CONTEXTS, contexts=contexts.fingerprint, corpus={"source": "made up"},
        split="train", dtype="bfloat16",
    )  # fmt: skip
    layout = HarvestConfig(dtype="bfloat16", shard_bytes=LENGTH * WIDTH * 2 * N_CONTEXTS // 8)
    store = harvest(HarvestPlan(identity, home / "store", contexts, layout), lambda: lm)
    training = TrainingConfig(
        tokens=3 * N_CONTEXTS * LENGTH, batch_tokens=31 * 16, lr=1e-3, seed=number, device="cpu", checkpoint_seconds=1.0
    )
    sae = TopKConfig(d_sae=8 * WIDTH, k=8, mask=BandMaskConfig(count=4))
    train([TrainingRun("soak", home / "run", sae, training)], store)


if __name__ == "__main__":
    app()
