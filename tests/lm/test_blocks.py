"""The decoder's blocks are found among other lists of modules, and what does not fit the configuration is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn
from transformers import BartConfig, BartForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration, GPT2Config

from scansion.errors import ModelError
from scansion.lm import model_facts
from scansion.lm.blocks import decoder_blocks, layer_count
from tests.conftest import FAMILIES, LAYERS, WIDTH, make_lm

_TINY = {"vocab_size": 60, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str) -> None:
    model = make_lm(family).model
    assert len(decoder_blocks(model)) == layer_count(model.config) == LAYERS


def test_a_vision_tower_with_more_blocks_is_not_the_decoder() -> None:
    text: dict[str, Any] = {**_TINY, "num_hidden_layers": 3, "num_key_value_heads": 1, "head_dim": 8}
    vision: dict[str, Any] = {**_TINY, "num_hidden_layers": 5, "image_size": 28, "patch_size": 14}
    model = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=1))
    assert decoder_blocks(model) is model.model.language_model.layers


def test_a_decoder_with_fewer_layers_than_its_encoder(tmp_path: Path) -> None:
    config = BartConfig(
        d_model=16, encoder_layers=2, decoder_layers=3, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, vocab_size=60, max_position_embeddings=64,
    )  # fmt: skip
    model = BartForCausalLM(config)
    assert decoder_blocks(model) is model.model.decoder.layers
    model.save_pretrained(tmp_path)
    assert model_facts(str(tmp_path)).n_layers == 3


def test_draft_heads_and_lists_inside_a_block_are_passed_over() -> None:
    model = make_lm().model
    blocks = model.model.layers
    for block in blocks:
        block.experts = nn.ModuleList(nn.Linear(WIDTH, 99) for _ in range(LAYERS))
    model.model.draft_heads = nn.ModuleList(nn.Linear(WIDTH, 60) for _ in range(9))
    model.model.projections = nn.ModuleList(nn.Linear(2, 2) for _ in range(LAYERS))
    assert decoder_blocks(model) is blocks


def test_blocks_of_several_classes_are_one_list() -> None:
    model = make_lm().model
    model.model.layers[1] = nn.Identity()
    assert decoder_blocks(model) is model.model.layers


def test_one_layer_more_than_the_configuration_says_is_refused_with_what_was_found() -> None:
    model = make_lm().model
    model.model.layers.append(nn.Linear(2, 2))
    with pytest.raises(
        ModelError, match=r"has 3 layers by its configuration.*lists of modules: model\.layers \(4 of LlamaDecoder"
    ):
        decoder_blocks(model)


def test_a_model_without_blocks() -> None:
    with pytest.raises(
        ModelError, match=r"an unknown number of layers.*lists of modules: none\); Scansion cannot hook"
    ):
        decoder_blocks(nn.Linear(2, 2))


def test_a_configuration_without_a_size_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    GPT2Config(n_layer=3).save_pretrained(tmp_path)
    assert model_facts(str(tmp_path)).n_layers == 3
    monkeypatch.setattr("scansion.lm.load.layer_count", lambda config: None)
    with pytest.raises(ModelError, match=r"\(gpt2\) does not say the number of layers"):
        model_facts(str(tmp_path))
