"""Features as SAEDashboard has them: every feature once, and values that the SAE gives."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from scansion.errors import ConfigError
from scansion.evals.base import LoadedSAE
from scansion.masks import BandMaskConfig
from scansion.report.features import FeatureConfig
from scansion.report.features.dashboard import FEATURES_PER_FILE, write_dashboard
from scansion.sae import TopKConfig, save_sae
from tests.conftest import WIDTH
from tests.interop.made import metadata, sae_of

PEERS = os.environ.get("SCANSION_PEERS", "")
KEYS = {
    "feature_index", "neg_str", "neg_values", "pos_str", "pos_values", "frac_nonzero",
    "freq_hist_data_bar_values", "freq_hist_data_bar_heights", "logits_hist_data_bar_values",
    "logits_hist_data_bar_heights", "n_prompts_total", "n_tokens_in_prompt", "dataset", "decoder_weights_dist",
    "vector", "neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1",
    "correlated_neurons_indices", "correlated_neurons_l1", "correlated_neurons_pearson",
    "correlated_features_indices", "correlated_features_l1", "correlated_features_pearson", "activations",
}  # fmt: skip
EXAMPLE = {"bin_min", "bin_max", "bin_contains", "tokens", "values", "qualifying_token_index"}


def test_every_feature_is_written_with_the_values_that_the_sae_gives(store, lm, tmp_path: Path) -> None:
    sae = sae_of(TopKConfig(d_sae=160, k=5, mask=BandMaskConfig(count=4, shared=0.25)), WIDTH)
    with torch.no_grad():
        for bias in (sae.b_enc, sae.b_dec):  # which features fire, and how much, is then up to the activations
            bias.zero_()
    files = write_dashboard(
        LoadedSAE("a", sae, metadata()), store, lm, tmp_path / "out", FeatureConfig(lens_tokens=3, examples=2)
    )
    pages = [json.loads(file.read_text()) for file in files]
    assert [len(page["features"]) for page in pages] == [FEATURES_PER_FILE, 160 - FEATURES_PER_FILE]
    assert {key: pages[0][key] for key in ("model_id", "layer", "sae_set")} == {
        "model_id": "llama",
        "layer": 1,
        "sae_set": "scansion",
    }
    features = [feature for page in pages for feature in page["features"]]
    assert [feature["feature_index"] for feature in features] == list(range(160))
    with torch.no_grad():
        acts = sae.encode(store.contexts(0, store.n_contexts))
    acts[0] = 0.0  # position 0 took no part in its training
    acts *= store.valid[..., None]
    for index, feature in enumerate(features):
        assert set(feature) == KEYS and len(feature["pos_str"]) == 3
        assert feature["frac_nonzero"] == pytest.approx(float((acts[..., index] > 0).sum() / store.valid[1:].sum()))
        assert sum(feature["freq_hist_data_bar_heights"]) == int((acts[..., index] > 0).sum())
        for example in feature["activations"]:
            bounds = [example[name] for name in ("bin_min", "bin_max", "bin_contains")]
            is_top = example["bin_min"] == -1
            assert bounds == [-1, feature["activations"][0]["bin_max"], -1] if is_top else 0 <= bounds[0] < bounds[1]
            if not is_top:
                counted = acts[1:, :, index][store.valid[1:]]
                low = counted >= bounds[0] - 1e-6
                share = (low & (counted < bounds[1] - 1e-6)).float().mean()
                assert bounds[2] == pytest.approx(float(share), abs=1 / len(counted) + 1e-6)
            assert set(example) == EXAMPLE and len(example["tokens"]) == len(example["values"])
            assert example["values"][example["qualifying_token_index"]] == max(example["values"])
        if feature["activations"]:
            assert feature["activations"][0]["bin_min"] == -1
            assert max(feature["activations"][0]["values"]) == pytest.approx(float(acts[..., index].max()), abs=1e-5)
    examples = [example for feature in features for example in feature["activations"]]
    assert {example["bin_min"] == -1 for example in examples} == {True, False}


@pytest.mark.skipif(not PEERS, reason="needs SAEDashboard: make test-interop")
def test_saedashboard_itself_reads_it(store, lm, tmp_path: Path) -> None:
    sae = sae_of(TopKConfig(d_sae=32, k=5), WIDTH)
    (file,) = write_dashboard(LoadedSAE("a", sae, metadata()), store, lm, tmp_path / "out", FeatureConfig())
    read = (
        "import json, sys\n"
        "from sae_dashboard.neuronpedia.neuronpedia_dashboard import NeuronpediaDashboardBatch\n"
        "print(json.dumps(NeuronpediaDashboardBatch(**json.load(open(sys.argv[1]))).to_dict()))"
    )
    there = subprocess.run([PEERS, "-c", read, file], check=True, stdout=subprocess.PIPE, text=True).stdout
    assert json.loads(there) == json.loads(file.read_text())


def test_the_command_needs_a_store(run, tmp_path: Path) -> None:
    status, _, err = run("export", tmp_path, "--out", tmp_path / "out", "--format", "saedashboard")
    assert status == 2 and "give --held-out" in err


def test_a_dashboard_without_a_store_is_a_config_error() -> None:
    from scansion.cli.interop import export_run

    with pytest.raises(ConfigError, match="saelens takes none"):
        export_run(Path("a"), out=Path("nowhere/at/all"), held_out=Path("b"))


def test_a_store_of_another_hook_point_is_refused(run, store, tmp_path: Path) -> None:
    other = metadata().model_copy(update={"hook_point": "resid_post.2"})
    save_sae(sae_of(TopKConfig(d_sae=32, k=4), store.d_in), tmp_path / "run/sae", other)
    status, _, err = run(
        "export", tmp_path / "run", "--format", "saedashboard", "--held-out", store.folder, "--out", tmp_path / "out"
    )
    assert status == 2 and "resid_post.2" in err and "resid_post.1" in err and not (tmp_path / "out").exists()
