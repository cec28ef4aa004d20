"""The peer's side of the comparison; runs in the environment that environment.sh makes: peer.py EXCHANGE [--again].

EXCHANGE is what compare.py wrote; --again probes another SAE, with what the first run left on disk, and times that alone.
SAEBench's own functions are called; around them, this file gives a local model a name that transformer_lens accepts, makes
the tokenizer start texts with BOS, and records what is pooled.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from importlib.metadata import version
from pathlib import Path

os.environ["JAXTYPING_DISABLE"] = "1"  # or the shape checks of its probes fail under beartype 0.18 and later
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import psutil
import sae_bench.evals.core.main as core_main
import sae_bench.evals.scr_and_tpp.dataset_creation as dataset_creation
import sae_bench.evals.scr_and_tpp.main as tpp_main
import sae_bench.evals.sparse_probing.main as probing_main
import sae_bench.sae_bench_utils.activation_collection as collection
import sae_bench.sae_bench_utils.dataset_info as dataset_info
import sae_bench.sae_bench_utils.dataset_utils as dataset_utils
import torch
import transformer_lens.supported_models as supported
from sae_bench.custom_saes.base_sae import BaseSAE
from sae_bench.evals.scr_and_tpp.eval_config import ScrAndTppEvalConfig
from sae_bench.evals.sparse_probing.eval_config import SparseProbingEvalConfig
from safetensors.torch import load_file
from tokenizers.processors import TemplateProcessing
from transformer_lens import HookedTransformer

HUB_NAME = "fancyzhx/ag_news"


class SharedSAE(BaseSAE):
    """The SAE under comparison, without a positional mask."""

    def __init__(self, settings: dict, weights: dict[str, torch.Tensor]) -> None:
        d_in, d_sae = weights["W_enc"].shape
        super().__init__(d_in, d_sae, settings["model"], settings["layer"], torch.device("cpu"), torch.float32)
        for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            getattr(self, name).data = weights[name]
        self.top_k = settings["k"]

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        acts = torch.relu((x - self.b_dec) @ self.W_enc + self.b_enc)
        if self.top_k is None:
            return acts
        top = acts.topk(self.top_k, dim=-1)
        return torch.zeros_like(acts).scatter(-1, top.indices, top.values)

    def decode(self, feature_acts: torch.Tensor) -> torch.Tensor:
        return feature_acts @ self.W_dec + self.b_dec

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decode(self.encode(x))


class StoredTokens:
    """As much of SAELens' activation store as the core evaluation asks for: the same contexts, in order."""

    def __init__(self, tokens: torch.Tensor) -> None:
        self.tokens, self.next = tokens, 0

    def get_batch_tokens(self, batch_size: int) -> torch.Tensor:
        self.next += batch_size
        return self.tokens[self.next - batch_size : self.next]


def main(exchange: Path, again: bool) -> None:
    settings = json.loads((exchange / "settings.json").read_text())
    sae = SharedSAE(settings, load_file(exchange / "sae.safetensors")).eval()
    os.chdir(exchange)
    supported.OFFICIAL_MODEL_NAMES.append(settings["model"])
    model = HookedTransformer.from_pretrained_no_processing(settings["model"], device="cpu", dtype=torch.float32)
    bos_added = start_with_bos(model.tokenizer)
    if again:
        found = {name: probe_again(exchange, name, settings, sae, model) for name in settings["probing_sets"]}
        (exchange / "again.json").write_text(json.dumps(found, indent=1))
        return
    result: dict[str, object] = {
        "versions": {
            name: version(name) for name in ("sae-bench", "sae-lens", "transformer-lens", "torch", "scikit-learn")
        },
        "tokenizer_needed_bos": bos_added,
        "probing": {name: probe(exchange, name, settings, sae, model) for name in settings["probing_sets"]},
    }
    # Written after each part, so that a failure in a later one loses nothing.
    (exchange / "peer.json").write_text(json.dumps(result, indent=1))
    result["core"] = core(exchange, settings, sae, model)
    (exchange / "peer.json").write_text(json.dumps(result, indent=1))
    result["tpp"] = {name: tpp(exchange, name, settings, sae, model) for name in settings["tpp_sets"]}
    (exchange / "peer.json").write_text(json.dumps(result, indent=1))
    result["scr"] = {name: scr(exchange, name, settings, sae, model) for name in settings["scr_sets"]}
    (exchange / "peer.json").write_text(json.dumps(result, indent=1))


def start_with_bos(tokenizer: object) -> bool:
    """Make the tokenizer put BOS first if it does not; whether that was needed."""
    if tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id:
        return False
    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    return True


def probing_config(exchange: Path, name: str, settings: dict) -> SparseProbingEvalConfig:
    """SAEBench's settings for one set, whose folder becomes the working directory."""
    sizes = settings["probing_sets"][name]
    dataset_info.chosen_classes_per_dataset[HUB_NAME] = ["0", "1"]
    os.chdir(exchange / "probing" / name)
    return SparseProbingEvalConfig(
        dataset_names=[HUB_NAME],
        probe_train_set_size=sizes["train"],
        probe_test_set_size=sizes["test"],
        context_length=settings["context_length"],
        model_name=settings["model"],
        llm_batch_size=16,
        llm_dtype="float32",
        k_values=settings["k_values"],
        random_seed=42,
    )


def probe(exchange: Path, name: str, settings: dict, sae: SharedSAE, model: HookedTransformer) -> dict[str, float]:
    config = probing_config(exchange, name, settings)
    shutil.rmtree("artifacts", ignore_errors=True)  # of an earlier run, with which nothing would be recorded
    recorded: dict[str, object] = {}
    with recording(recorded):
        scores, _ = probing_main.run_eval_single_sae(config, sae, model, "cpu", "artifacts", save_activations=True)
    np.savez(
        exchange / "probing" / name / "pooled.npz",
        **{f"{kind}_{label}": recorded[kind][label].detach().numpy() for kind in ("lm", "sae") for label in ("0", "1")},
    )
    (exchange / "probing" / name / "texts.json").write_text(json.dumps(recorded["texts"]))
    return {key: value for key, value in scores.items() if isinstance(value, float)}


def probe_again(exchange: Path, name: str, settings: dict, sae: SharedSAE, model: HookedTransformer) -> dict:
    """What a further SAE costs: the LM's activations and its probes' results are on disk."""
    config = probing_config(exchange, name, settings)
    start, cpu = time.monotonic(), cpu_seconds()
    scores, _ = probing_main.run_eval_single_sae(config, sae, model, "cpu", "artifacts", save_activations=True)
    return {
        "seconds": time.monotonic() - start,
        "cpu_seconds": cpu_seconds() - cpu,
        # Its probes are not seeded: the same again is not quite the same.
        "scores": {key: value for key, value in scores.items() if isinstance(value, float)},
    }


def cpu_seconds() -> float:
    """Of this process and those it has started, whether they live or not; as compare.py counts it."""
    me = psutil.Process()
    living = [one.cpu_times() for one in me.children(recursive=True)]
    return sum(me.cpu_times()[:4]) + sum(one.user + one.system for one in living)


class recording:
    """Keep the test texts and their pooled vectors as SAEBench makes them."""

    def __init__(self, into: dict[str, object]) -> None:
        self.into = into
        self.originals = (
            dataset_utils.get_multi_label_train_test_data,
            collection.create_meaned_model_activations,
            collection.get_sae_meaned_activations,
        )

    def __enter__(self) -> None:
        read, average, encode = self.originals

        def kept_read(*args, **kwargs):
            found = read(*args, **kwargs)
            self.into["texts"] = found[1]
            return found

        def kept_average(*args, **kwargs):
            self.into["lm"] = average(*args, **kwargs)  # the test texts come second, and stay
            return self.into["lm"]

        def kept_encode(*args, **kwargs):
            self.into["sae"] = encode(*args, **kwargs)
            return self.into["sae"]

        dataset_utils.get_multi_label_train_test_data = kept_read
        collection.create_meaned_model_activations = kept_average
        collection.get_sae_meaned_activations = kept_encode

    def __exit__(self, *exc_info: object) -> None:
        (
            dataset_utils.get_multi_label_train_test_data,
            collection.create_meaned_model_activations,
            collection.get_sae_meaned_activations,
        ) = self.originals


def core(exchange: Path, settings: dict, sae: SharedSAE, model: HookedTransformer) -> dict:
    tokens = torch.from_numpy(np.load(exchange / "tokens.npy")).long()
    metrics, _ = core_main.get_sparsity_and_variance_metrics(
        sae,
        model,
        StoredTokens(tokens),
        n_batches=len(tokens) // 8,
        compute_l2_norms=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
        compute_featurewise_density_statistics=True,
        eval_batch_size_prompts=8,
        model_kwargs={},
        ignore_tokens={model.tokenizer.bos_token_id, model.tokenizer.eos_token_id, model.tokenizer.pad_token_id},
    )
    return {"metrics": metrics}


def tpp(exchange: Path, name: str, settings: dict, sae: SharedSAE, model: HookedTransformer) -> dict[str, float]:
    sizes = settings["tpp_sets"][name]
    dataset_info.chosen_classes_per_dataset[HUB_NAME] = [str(i) for i in range(sizes["classes"])]
    tpp_main.COLUMN2_VALS_LOOKUP[HUB_NAME] = None
    os.chdir(exchange / "tpp" / name)
    config = ScrAndTppEvalConfig(
        perform_scr=False,
        dataset_names=[HUB_NAME],
        # Its sizes are of both labels of a task; a class has half.
        train_set_size=2 * sizes["train"],
        test_set_size=2 * sizes["test"],
        context_length=settings["context_length"],
        llm_batch_size=16,
        llm_dtype="float32",
        model_name=settings["model"],
        n_values=settings["n_values"],
        random_seed=42,
    )
    scores, _ = tpp_main.run_eval_single_sae(config, sae, model, "cpu", "artifacts", save_activations=False)
    return {key: value for key, value in scores.items() if isinstance(value, float)}


def scr(exchange: Path, name: str, settings: dict, sae: SharedSAE, model: HookedTransformer) -> dict:
    """The texts are handed over in place of those that SAEBench reads from the hub; all else is its own.

    Its names stand for ours: professor or nurse for the first label (1 or 0), male or female for the second.
    """
    texts = json.loads((exchange / "scr" / f"{name}.json").read_text())

    def handed_over(*_: object) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        return tuple(
            {
                "male / female": one["11"] + one["01"],
                "female_data_only": one["10"] + one["00"],
                "professor / nurse": one["11"] + one["10"],
                "nurse_data_only": one["01"] + one["00"],
                "male_professor / female_nurse": one["11"],
                "female_nurse_data_only": one["00"],
            }
            for one in (texts["train"], texts["test"])
        )

    original, dataset_creation.get_train_test_data = dataset_creation.get_train_test_data, handed_over
    tpp_main.COLUMN2_VALS_LOOKUP[HUB_NAME] = None
    folder = exchange / "scr" / f"{name}-artifacts"
    config = ScrAndTppEvalConfig(
        perform_scr=True,
        dataset_names=[HUB_NAME],
        context_length=settings["context_length"],
        llm_batch_size=16,
        llm_dtype="float32",
        model_name=settings["model"],
        n_values=settings["n_values"],
        random_seed=42,
    )
    config.column1_vals_lookup = {HUB_NAME: [("1", "0")]}
    try:
        scores, _ = tpp_main.run_eval_single_sae(config, sae, model, "cpu", str(folder), save_activations=False)
    finally:
        dataset_creation.get_train_test_data = original
    return {key: value for key, value in scores.items() if isinstance(value, float | int)}


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), "--again" in sys.argv[2:])
