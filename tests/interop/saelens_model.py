"""Masked SAEs of ours in SAELens: ``python tests/interop/saelens_model.py FOLDER``, in an environment that has both.

For every folder in FOLDER that Scansion wrote: what SAELens makes of it, also after it saved it itself, and what the SAE does
inside a small ``HookedSAETransformer``. The differences are printed as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from sae_lens import SAE, HookedSAETransformer
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformer_lens import HookedTransformerConfig
from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache
from transformers import PreTrainedTokenizerFast

from scansion.errors import ConfigError, ShapeError
from scansion.interop.saelens_masked import at_positions, carry_positions


def main() -> None:
    """Measure everything."""
    torch.manual_seed(0)
    config = HookedTransformerConfig(
        n_layers=3, d_model=24, n_ctx=64, d_head=12, n_heads=2, d_mlp=48, d_vocab=50, act_fn="gelu", seed=0, device="cpu",
        default_prepend_bos=False,
    )  # fmt: skip
    vocab = {"[PAD]": 0, **{f"w{i}": i for i in range(1, 50)}}
    backend = Tokenizer(WordLevel(vocab, unk_token="[PAD]"))
    backend.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", eos_token="w49")
    model = HookedSAETransformer(config, tokenizer=tokenizer).eval()
    folders = sorted(path for path in Path(sys.argv[1]).iterdir() if (path / "cfg.json").is_file())
    with torch.no_grad():
        json.dump({folder.name: measured(folder, model) for folder in folders}, sys.stdout)


def measured(folder: Path, model: HookedSAETransformer) -> dict[str, float | bool]:
    """Largest differences, and whether misuse is refused."""
    sae = SAE.load_from_disk(folder)
    ours = load_file(f"{folder}.ours.safetensors")
    sae.save_model(f"{folder} saved by them")
    again = SAE.load_from_disk(f"{folder} saved by them")
    with at_positions(ours["positions"]):
        acts = sae.encode(ours["x"])
        found = {
            "encode": largest(acts, ours["acts"]),
            "decode": largest(sae.decode(acts), ours["decoded"]),
            "supports": torch.equal(acts > 0, ours["acts"] > 0),
            "saved again": largest(again.encode(ours["x"]), acts),
        }
    try:
        sae.encode(ours["x"])
    except ShapeError as error:
        found["refused without positions"] = "carry_positions" in str(error)
    texts = ["w3 w14 w15 w9 w26 w5", "w27 w18 w28"]
    settings = {
        "max_new_tokens": 12,
        "do_sample": False,
        "verbose": False,
        "stop_at_eos": False,
        "return_type": "tokens",
    }
    model.add_sae(sae)
    with carry_positions(model):
        alone = [model(text)[0] for text in texts]
        both = model(texts, padding_side="left")
        found["left padding"] = max(largest(row[-len(one) :], one) for row, one in zip(both, alone, strict=True))
        tokens = model.to_tokens(texts[0])
        found["one token at a time"] = largest(stepwise(model, tokens)[0], alone[0])
        cached, whole = (model.generate(texts, use_past_kv_cache=cache, **settings) for cache in (True, False))
        found["cached generation is uncached"] = torch.equal(cached, whole)
        new = [model.generate(text, **settings)[0, -12:] for text in texts]
        found["padded generation is unpadded"] = torch.equal(cached[:, -12:], torch.stack(new))
        found["past the mask"] = cached.shape[1] > sae.cfg.scansion["n_positions"]
        _, cache = model.run_with_cache_with_saes(tokens, saes=[sae])
        found["in the cache"] = f"{sae.cfg.metadata.hook_name}.hook_sae_acts_post" in cache
        try:
            model.run_with_hooks(
                tokens, fwd_hooks=[(f"{sae.cfg.metadata.hook_name}.hook_sae_acts_pre", lambda value, hook: value * 2)]
            )
        except ConfigError:
            found["changed pre-activations are refused"] = True
    try:
        model(tokens)
    except ShapeError:
        found["refused outside the block"] = True
    model.reset_saes()
    return found


def stepwise(model: HookedSAETransformer, tokens: torch.Tensor) -> torch.Tensor:
    """Logits with a cache, one token after another."""
    cache = TransformerLensKeyValueCache.init_cache(model.cfg, "cpu", len(tokens))
    one = torch.ones(len(tokens), 1, dtype=torch.int64)
    steps = (tokens[:, i : i + 1] for i in range(tokens.shape[1]))
    return torch.cat([model(step, attention_mask=one, past_kv_cache=cache) for step in steps], dim=1)


def largest(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference."""
    return float((one - other).abs().max())


if __name__ == "__main__":
    main()
