"""Models load from folders and are refused, in one line, where they are not there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, MambaConfig, MptConfig, PreTrainedConfig
from transformers import modeling_gguf_pytorch_utils as gguf_reader
from transformers.utils import logging as transformers_logging

from scansion.errors import ConfigError, ModelError
from scansion.lm import HookPoint, activations_at, lm_dtype, load, load_language_model, model_facts
from scansion.lm.loading_bars import our_progress
from tests.conftest import LAYERS, MAX_POSITIONS, WIDTH, make_lm, random_contexts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lm = make_lm()
    lm.model.save_pretrained(tmp_path / "model")
    lm.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_local_folder(folder: Path) -> None:
    facts = model_facts(str(folder))
    assert (facts.n_layers, facts.d_model, facts.max_positions) == (LAYERS, WIDTH, MAX_POSITIONS)
    loaded = load_language_model(str(folder), device="cpu")
    contexts = random_contexts(2)
    expected = activations_at(make_lm(), HookPoint(1), contexts)
    assert torch.equal(activations_at(loaded, HookPoint(1), contexts), expected)
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_the_revision_follows_the_weights(folder: Path) -> None:
    before = model_facts(str(folder)).revision
    assert model_facts(str(folder)).revision == before
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    assert model_facts(str(folder)).revision != before


def test_the_type_the_model_runs_in(folder: Path) -> None:
    assert load_language_model(str(folder), device="cpu", dtype="bfloat16").model.dtype == torch.bfloat16
    with pytest.raises(ConfigError, match="dtype 'float8' is not known"):
        load_language_model(str(folder), device="cpu", dtype="float8")


def test_loading_shows_no_bar_but_ours(folder: Path, capfd) -> None:
    load_language_model(str(folder), device="cpu")
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_transformers_loops_show_our_progress_and_get_their_own_bars_back(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []

    @contextmanager
    def progress(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        shown.append((what, total))
        yield lambda n: shown.append(n)

    monkeypatch.setattr("scansion.lm.loading_bars.progress", progress)
    before = (gguf_reader.tqdm, transformers_logging._tqdm_hook, transformers_logging.get_verbosity())
    with pytest.raises(RuntimeError), our_progress():
        assert list(gguf_reader.tqdm([3, 4], desc="Converting and de-quantizing GGUF tensors...")) == [3, 4]
        assert list(transformers_logging.tqdm({"a": 1}.items(), desc="Loading weights")) == [("a", 1)]
        assert list(transformers_logging.tqdm([5], desc="Writing model shards")) == [5]
        raise RuntimeError
    assert shown == [("de-quantise", 2), 1, 1, ("load weights", 1), 1]
    assert (gguf_reader.tqdm, transformers_logging._tqdm_hook, transformers_logging.get_verbosity()) == before


def test_no_such_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"no language model 'no-such/model'.*check the spelling"):
        model_facts("no-such/model")


def test_an_empty_folder_is_not_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no language model"):
        model_facts(str(tmp_path))


def edited(folder: Path, **settings: object) -> str:
    config = json.loads((folder / "config.json").read_text()) | settings
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"num_hidden_layers": LAYERS + 1}, "are missing"),
        ({"num_hidden_layers": LAYERS - 1}, "have no place in it, for example model.layers.2"),
        ({"intermediate_size": 48}, "cannot be loaded|another size"),
    ],
)
def test_weights_that_do_not_fit_the_configuration_are_refused(folder: Path, settings: dict, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        load_language_model(edited(folder, **settings), device="cpu")


def test_a_damaged_weight_file_is_refused_in_one_line(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ModelError, match="exists but cannot be loaded") as caught:
        load_language_model(str(folder), device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        BloomConfig(vocab_size=60, hidden_size=16, n_layer=2, n_head=2),
        MptConfig(vocab_size=60, d_model=16, n_layers=2, n_heads=2),
        MambaConfig(vocab_size=60, hidden_size=16, num_hidden_layers=2, state_size=4),
    ],
    ids=lambda config: config.model_type,
)
def test_models_without_position_embeddings_are_read_at_any_length(config: PreTrainedConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "m")
    make_lm().tokenizer.save_pretrained(tmp_path / "m")
    lm = load_language_model(str(tmp_path / "m"), device="cpu")
    contexts = random_contexts(2, length=100)
    acts = activations_at(lm, HookPoint(1), contexts)
    assert acts.shape == (2, 100, 16) and bool(torch.isfinite(acts).all())


@pytest.mark.parametrize("multiplies", [True, False])
def test_fast_is_bfloat16_where_the_device_multiplies_in_it(multiplies: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "multiplies_bfloat16", lambda: multiplies)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert lm_dtype("fast", cpu) == (torch.bfloat16 if multiplies else torch.float32)
    assert lm_dtype("fast", cuda) == lm_dtype("auto", cuda) == torch.bfloat16
    assert lm_dtype("auto", cpu) == torch.float32
