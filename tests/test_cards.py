"""Cards for notebooks name what they show, and show hostile text as text."""

from __future__ import annotations

from pathlib import Path

import torch

from scansion.cards import card
from scansion.masks import BandMaskConfig
from scansion.sae import SAEMetadata, TopKConfig, build_sae, load_sae, save_sae


def test_text_is_escaped_and_empty_facts_are_left_out() -> None:
    hostile = "</td><script>alert(1)</script>"
    shown = card(hostile, {hostile: hostile, "nothing": ""}, [[hostile], [hostile]])
    assert "<script" not in shown and shown.count("&lt;script&gt;") == 5 and "nothing" not in shown


def test_an_sae_shows_its_sizes_its_mask_and_once_loaded_where_it_comes_from(tmp_path: Path) -> None:
    config = TopKConfig(d_sae=24, k=3, mask=BandMaskConfig(count=2, shared=0.25))
    sae = build_sae(config, 16, 8, torch.Generator().manual_seed(0))
    assert "topk SAE" in sae._repr_html_() and "bands" in sae._repr_html_() and "6 features" in sae._repr_html_()
    assert "trained" not in sae._repr_html_()
    metadata = SAEMetadata(
        model="<model>", model_revision="r", hook_point="resid_post.1", store_key="k", contexts="c", context_length=8,
        use_position_0=False, input_scale=1.0, steps=5, tokens=5000, seed=3, training={},
    )  # fmt: skip
    save_sae(sae, tmp_path / "sae", metadata)
    loaded, _ = load_sae(tmp_path / "sae")
    assert "5,000 tokens in 5 steps, seed 3" in loaded._repr_html_() and "&lt;model&gt;" in loaded._repr_html_()
