"""On a GPU, from a language model to evaluated SAEs: harvest beside the bare forward pass, training end to end, evaluation."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from transformers import AutoModelForCausalLM, Gemma2Config, PreTrainedTokenizerFast

from benchmarks.gpu_rows import Row, Rows, timed
from benchmarks.limits import wait_for
from benchmarks.subjects import POSITIONS, Subject
from scansion.activations import ActivationStore, HarvestConfig, HarvestPlan, harvest
from scansion.activations.store import StoreIdentity
from scansion.corpus import Contexts
from scansion.device import dtype_name
from scansion.evals.base import LoadedSAE
from scansion.evals.core.evaluate import CoreConfig, evaluate_core
from scansion.lm import LanguageModel, ModelFacts
from scansion.records import read_json_lines
from scansion.sae import load_sae
from scansion.training import TrainingConfig, TrainingRun, train

PART = "end to end"
MODEL = "gemma-2-2b's shape"
LAYERS = 6
VOCAB = 32_768
GEMMA: dict[str, Any] = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
}
SMALL_GEMMA: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}
TRAINED = ("topk, none", "topk, 8", "relu, none")


def end_to_end(rows: Rows, d_sae: int, k: int, batch_tokens: int, small: bool) -> None:
    """Add a row for the forward pass, the harvest, training of three SAEs from the store, and core evaluation.

    Args:
        rows: where to write.
        d_sae, k, batch_tokens: of the SAEs.
        small: a small language model and few tokens.
    """
    sizes, n_contexts = (SMALL_GEMMA, 32) if small else (GEMMA, 2048)
    tokens = torch.randint(3, VOCAB, (n_contexts, POSITIONS), generator=torch.Generator().manual_seed(0))
    contexts = Contexts.from_token_lists(tokens.tolist(), POSITIONS, pad_id=0)
    with tempfile.TemporaryDirectory() as folder:
        made: dict[str, Any] = {}
        rows.add(PART, "language model, forward pass", partial(_forward, rows, sizes, contexts, made))
        if "lm" not in made:  # the row says why
            return
        rows.add(PART, "harvest", partial(_harvest, rows, Path(folder) / "store", contexts, made))
        if "store" not in made:
            return
        del made["lm"]
        for name in TRAINED:
            kind, mask = name.split(", ")
            subject = Subject(kind, sizes["hidden_size"], d_sae, k, mask, device=str(rows.device))
            run = TrainingRun(
                name,
                Path(folder) / name,
                subject.config(),
                TrainingConfig(
                    tokens=4096 if small else 1_000_000,
                    batch_tokens=batch_tokens,
                    log_every=2 if small else 25,
                    device=str(rows.device),
                ),
            )
            rows.add(PART, f"train {name}", partial(_train, rows, run, made["store"]))
            rows.add(PART, f"core evaluation, {name}", partial(_evaluate, rows, run, made["store"]))


def _forward(rows: Rows, sizes: dict[str, Any], contexts: Contexts, made: dict[str, Any]) -> Row:
    """The language model by itself, in batches as large as the harvest's; puts it into ``made``."""
    made["lm"] = lm = _language_model(sizes, rows.device)
    size = HarvestConfig().lm_batch_size
    batch = contexts.tokens[:size].long().to(rows.device)

    @torch.no_grad()
    def forward() -> None:
        lm.model.base_model(batch, use_cache=False)

    found = timed(forward, rows.device)
    return {**found, "tokens_per_second": round(batch.numel() / found["ms"] * 1000), "peak_gb": rows.peak_gb()}


def _language_model(sizes: dict[str, Any], device: torch.device) -> LanguageModel:
    """Random weights: rates do not depend on them. Its tokenizer knows no word, as its text is token ids."""
    config = Gemma2Config(
        vocab_size=VOCAB,
        num_hidden_layers=LAYERS,
        max_position_embeddings=1024,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=1,
        **sizes,
    )
    with device:
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32
        )
    cast(nn.Module, model).requires_grad_(False).to(device).eval()
    facts = ModelFacts(MODEL, "random weights", MODEL, "gemma2", LAYERS, config.hidden_size, 1024, config)
    words = Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    return LanguageModel(model, PreTrainedTokenizerFast(tokenizer_object=words), facts)


def _harvest(rows: Rows, folder: Path, contexts: Contexts, made: dict[str, Any]) -> Row:
    """To the end of the last layer, from token ids to a store on disk; puts the store into ``made``."""
    lm: LanguageModel = made["lm"]
    identity = StoreIdentity(
        model=lm.facts.name,
        model_revision=lm.facts.revision,
        model_dtype=dtype_name(lm.model.dtype),
        hook_point=f"resid_post.{LAYERS - 1}",
        d_in=lm.facts.d_model,
        context_length=contexts.length,
        n_contexts=len(contexts),
        contexts=contexts.fingerprint,
        corpus={"source": "random tokens"},
        split="train",
        dtype="bfloat16",
    )
    seconds = _spent(
        lambda: made.update(store=harvest(HarvestPlan(identity, folder, contexts, HarvestConfig()), lambda: lm))
    )
    return {
        "seconds": seconds,
        "tokens_per_second": round(contexts.n_tokens / seconds),
        "peak_gb": rows.peak_gb(),
    }


def _train(rows: Rows, run: TrainingRun, store: ActivationStore) -> Row:
    """One SAE, saved at the end. The rate leaves out the first metrics, which wait for kernels to be compiled."""
    seconds = _spent(lambda: train([run], store))
    first, *later = read_json_lines(run.folder / "metrics.jsonl")
    return {
        "seconds": seconds,
        "tokens_per_second": round(
            (later[-1]["tokens"] - first["tokens"]) / max(1e-9, sum(line["seconds"] for line in later))
        ),
        "way": later[-1]["way"],
        "precision": later[-1]["precision"],
        "peak_gb": rows.peak_gb(),
    }


def _evaluate(rows: Rows, run: TrainingRun, store: ActivationStore) -> Row:
    """All of the store, after a few contexts to warm up; without the language model."""
    sae, metadata = load_sae(run.folder / "sae", rows.device)
    subject = LoadedSAE(run.name, sae.eval(), metadata)

    def evaluate(n_contexts: int | None) -> None:
        evaluate_core([subject], store, None, CoreConfig(n_contexts=n_contexts, loss_contexts=0))

    evaluate(16)
    wait_for(rows.device)
    seconds = _spent(lambda: evaluate(None))
    n_tokens = store.n_contexts * len(store.used_positions(metadata.use_position_0))
    return {"seconds": seconds, "tokens_per_second": round(n_tokens / seconds), "peak_gb": rows.peak_gb()}


def _spent(work: Callable[[], object]) -> float:
    """Seconds that it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
