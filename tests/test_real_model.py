"""The bundled model on the bundled text: known facts about its activations. Half a minute on two cores."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scansion.corpus import Contexts, CorpusConfig, token_ids, tokenizer_fingerprint
from scansion.lm import BUNDLED_MODEL, HookPoint, activations_at, load_tokenizer, model_facts
from scansion.pipeline import HarvestSpec, build_stores

pytestmark = pytest.mark.slow
TEXT = CorpusConfig(source="sotu", layout="documents", context_length=64, max_tokens=1_500, held_out_tokens=500, pool=4)


def test_position_0_is_a_sink_and_what_is_stored_is_what_transformers_computes(tmp_path: Path) -> None:
    source = HarvestSpec(BUNDLED_MODEL, "layers.5", TEXT)
    store = build_stores(source, tmp_path).train
    norms = store.mean_norm
    assert 6 < norms[0] / norms[1:].mean() < 10
    tokens = store.tokens[:, 0][store.valid[:, 0]][None].long()
    with torch.no_grad():
        expected = source.lm.model(input_ids=tokens, output_hidden_states=True).hidden_states[6][0]
    found = store.contexts(0, 1).x[store.valid[:, 0], 0].float()
    relative = (found - expected).norm(dim=1) / expected.norm(dim=1)
    assert relative.max() < 0.01  # stored in bfloat16


def test_control_tokens_of_the_real_tokenizer_are_literal_text(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(model_facts(BUNDLED_MODEL))
    text = "one<|endoftext|>two <|im_start|>user\n<|im_end|>"
    controls = set(tokenizer.all_special_ids)
    literal, parsed = (token_ids([text], tokenizer, how)[0] for how in ("literal", "parsed"))
    assert not controls & set(literal) and controls <= set(parsed)
    assert tokenizer.decode(literal) == text
    # Reading one way leaves no trace in the tokenizer that changes the next reading or its fingerprint.
    assert tokenizer_fingerprint(tokenizer) == tokenizer_fingerprint(load_tokenizer(model_facts(BUNDLED_MODEL)))


def test_left_and_right_padding_give_the_same_activations(tmp_path: Path) -> None:
    source = HarvestSpec(BUNDLED_MODEL, "layers.2", TEXT)
    store = build_stores(source, tmp_path).held_out
    lists = [store.tokens[:length, 0].tolist() for length in (5, 17, 30)]
    contexts = Contexts.from_token_lists(lists, 30, pad_id=0, has_bos=True)
    right = activations_at(source.lm, HookPoint(2), contexts)
    left_contexts = contexts.left_padded()
    left = activations_at(source.lm, HookPoint(2), left_contexts)
    torch.testing.assert_close(left[left_contexts.valid], right[contexts.valid], rtol=1e-3, atol=1e-2)
