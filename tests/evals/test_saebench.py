"""The SAEBench layout: the very keys, nothing that JSON cannot say, and no data set passed off as another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from scansion.evals.base import LoadedSAE
from scansion.evals.probing.evaluate import SparseProbingConfig, SparseProbingResult, evaluate_sparse_probing
from scansion.evals.probing.saebench import sparse_probing_json
from scansion.lm import HookPoint, LanguageModel
from tests.evals.probing.constructed import make_subject, telling_texts, use_asset, write_set

# As SAEBench writes them.
TOP_KEYS = [
    "eval_type_id", "eval_config", "eval_id", "datetime_epoch_millis", "eval_result_metrics", "eval_result_details",
    "sae_bench_commit_hash", "sae_lens_id", "sae_lens_release_id", "sae_lens_version", "sae_cfg_dict",
    "eval_result_unstructured",
]  # fmt: skip
CONFIG_KEYS = [
    "random_seed", "dataset_names", "probe_train_set_size", "probe_test_set_size", "context_length", "sae_batch_size",
    "llm_batch_size", "llm_dtype", "model_name", "k_values", "lower_vram_usage",
]  # fmt: skip
LLM_KEYS = ["llm_test_accuracy", *(f"llm_top_{k}_test_accuracy" for k in (1, 2, 5, 10, 20, 50, 100))]
SAE_KEYS = [key.replace("llm", "sae") for key in LLM_KEYS]
SAE_CONFIG_KEYS = [
    "model_name", "d_in", "d_sae", "hook_layer", "hook_name", "context_size", "hook_head_index", "architecture",
    "apply_b_dec_to_input", "finetuning_scaling_factor", "activation_fn_str", "prepend_bos", "normalize_activations",
    "dtype", "device", "dataset_path", "dataset_trust_remote_code", "seqpos_slice", "training_tokens",
    "sae_lens_training_version", "neuronpedia_id",
]  # fmt: skip

CONFIG = SparseProbingConfig(
    datasets=("1_words", "2_words"), train_size=40, test_size=20, context_length=16, k_values=(1, 3, 5), lm_batch_size=8
)


@pytest.fixture
def evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lm: LanguageModel
) -> list[tuple[SparseProbingResult, LoadedSAE]]:
    use_asset(monkeypatch, tmp_path)
    for seed in (1, 2):
        write_set(tmp_path, f"{seed}_words", telling_texts(30, seed=seed))
    sound, broken = make_subject("sound"), make_subject("broken")
    with torch.no_grad():
        broken.sae.b_enc[0] = torch.nan
    subjects = [sound, broken]
    return list(zip(evaluate_sparse_probing(subjects, lm, HookPoint(1), CONFIG), subjects, strict=True))


def test_the_layout_is_saebench_s(evaluated: list[tuple[SparseProbingResult, LoadedSAE]]) -> None:
    for result, subject in evaluated:
        written = sparse_probing_json(result, subject)
        assert list(written) == TOP_KEYS
        assert list(written["eval_config"]) == CONFIG_KEYS
        assert list(written["eval_result_metrics"]) == ["llm", "sae"]
        assert list(written["eval_result_metrics"]["llm"]) == LLM_KEYS
        assert list(written["eval_result_metrics"]["sae"]) == SAE_KEYS
        assert [list(one) for one in written["eval_result_details"]] == [["dataset_name", *LLM_KEYS, *SAE_KEYS]] * 2
        assert list(written["sae_cfg_dict"]) == SAE_CONFIG_KEYS
        assert json.loads(json.dumps(written, allow_nan=False)) == written


def test_figures_are_the_result_s_and_absent_ones_are_null(
    evaluated: list[tuple[SparseProbingResult, LoadedSAE]],
) -> None:
    result, subject = evaluated[0]
    written = sparse_probing_json(result, subject)
    metrics = {**written["eval_result_metrics"]["llm"], **written["eval_result_metrics"]["sae"]}
    assert {key: value for key, value in metrics.items() if value is not None} == {
        key: value for key, value in result.saebench_headline().items() if "_3_" not in key
    }
    names = [one["dataset_name"] for one in written["eval_result_details"]]
    assert names == ["sae_probes/1_words_results", "sae_probes/2_words_results"]
    by_task = written["eval_result_unstructured"][names[0]]
    assert by_task["sae_top_1_test_accuracy"] == {"1_words": result.datasets[0].tasks[0].sae_top_k[1]}
    assert written["sae_cfg_dict"]["hook_name"] == "blocks.1.hook_resid_post"


def test_status_and_reasons_are_kept(evaluated: list[tuple[SparseProbingResult, LoadedSAE]]) -> None:
    result, subject = evaluated[1]
    written = sparse_probing_json(result, subject)
    assert set(written["eval_result_metrics"]["sae"].values()) == {None}
    assert written["eval_result_unstructured"]["scansion"]["status"] == "degenerate"
    assert written["eval_result_unstructured"]["scansion"]["reasons"] == result.reasons


def test_equal_results_have_equal_ids(evaluated: list[tuple[SparseProbingResult, LoadedSAE]]) -> None:
    ids = [sparse_probing_json(*one)["eval_id"] for one in (evaluated[0], evaluated[0], evaluated[1])]
    assert ids[0] == ids[1] != ids[2]
    first, again = (sparse_probing_json(*evaluated[0], epoch_millis=7) for _ in range(2))
    assert first == again
