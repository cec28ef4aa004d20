"""What attention and MLP add, as it is read, is what the model adds, in every family; else the site is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, CohereConfig, Exaone4Config, Glm4Config, GraniteConfig, Olmo2Config

from scansion.errors import ModelError
from scansion.lm import HookPoint, LanguageModel, ModelFacts, activations_at, check_parts, sites
from tests.conftest import FAMILIES, LAYERS, WIDTH, make_lm, make_tokenizer, random_contexts

SMALL = {
    "vocab_size": 60, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 2,
    "num_key_value_heads": 1, "intermediate_size": 32, "max_position_embeddings": 64, "head_dim": 8,
    "pad_token_id": 2, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
NORMED_AFTER = {
    "olmo2": Olmo2Config(**SMALL),
    "exaone4": Exaone4Config(**SMALL, sliding_window=8),
    "glm4": Glm4Config(**SMALL),
    "cohere": CohereConfig(**SMALL),
}


def lm_of(config: object) -> LanguageModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    # Random weights are so small that norms decide everything; these are as strong as trained ones.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.rand_like(parameter) + 0.5 if "norm" in name else torch.randn_like(parameter) * 0.3)
    facts = ModelFacts("m", "test", "m", model.config.model_type, LAYERS, WIDTH, 64, model.config)
    return LanguageModel(model, make_tokenizer(), facts)


@pytest.mark.parametrize("family", [*FAMILIES, *NORMED_AFTER])
def test_the_residual_stream_is_the_sum_of_its_parts(family: str) -> None:
    lm = make_lm(family) if family in FAMILIES else lm_of(NORMED_AFTER[family])
    contexts = random_contexts(2)
    before, attention, mlp, after = (
        activations_at(lm, HookPoint(1, site), contexts) for site in ("resid_pre", "attn_out", "mlp_out", "resid_post")
    )
    torch.testing.assert_close(before + attention + mlp, after, rtol=1e-4, atol=1e-5)
    for site in ("resid_pre", "attn_out", "mlp_out", "resid_post"):
        check_parts(lm, HookPoint(1, site))


@pytest.mark.parametrize("site", ["attn_out", "mlp_out"])
def test_a_family_that_adds_something_else_is_refused(site: str) -> None:
    lm = lm_of(GraniteConfig(**SMALL, residual_multiplier=0.2))
    with pytest.raises(ModelError, match=rf"{site}\.1 cannot be read.*unexplained; use resid_post\.1"):
        check_parts(lm, HookPoint(1, site))
    check_parts(lm, HookPoint(1))


def test_a_norm_that_is_overlooked_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = lm_of(NORMED_AFTER["olmo2"])

    def before_the_norm(block: nn.Module) -> nn.Module:
        return block.self_attn

    monkeypatch.setitem(sites._SITES, "attn_out", sites.Site("attn_out", before_the_norm, "output", None))
    with pytest.raises(ModelError, match="unexplained"):
        check_parts(lm, HookPoint(1, "attn_out"))
