"""What the probing tests share: a made-up asset of labelled texts, and SAEs as subjects."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from scansion.evals.base import LoadedSAE
from scansion.evals.probing import sets as probing_sets
from scansion.masks import AnyMaskConfig, NoMaskConfig
from scansion.sae import SAE, ReluConfig, SAEMetadata, build_sae
from tests.conftest import MAX_POSITIONS, WIDTH


def write_set(asset: Path, name: str, rows: Iterable[tuple[str, object]]) -> None:
    """Write one set as the asset has it: a compressed CSV with a column that nobody reads."""
    folder = asset / "sae_probes" / "data" / "cleaned_data"
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["prompt", "prompt_len", "target"])
    writer.writerows((prompt, len(prompt), target) for prompt, target in rows)
    with pa.output_stream(str(folder / f"{name}.csv.zst"), compression="zstd") as stream:
        stream.write(text.getvalue().encode())


def use_asset(monkeypatch: pytest.MonkeyPatch, asset: Path) -> None:
    """Make ``asset`` the folder that probing sets are read from, and nothing else to be fetched."""
    monkeypatch.setattr(probing_sets, "asset_path", lambda name: asset)
    monkeypatch.setattr("scansion.study.checks.fetch", lambda names: {})


def telling_texts(n_per_label: int, seed: int = 0, shortest: int = 3, longest: int = 12) -> list[tuple[str, int]]:
    """Different texts of random words; the word w3 is in the odd ones and w4 in the even ones, as often as not."""
    generator = np.random.default_rng(seed)
    rows: dict[str, int] = {}
    while len(rows) < 2 * n_per_label:
        label = len(rows) % 2
        words = [f"w{word}" for word in generator.integers(5, 40, generator.integers(shortest, longest + 1))]
        marked = [f"w{4 - label}" if generator.random() < 0.5 else word for word in words]
        marked[0] = f"w{4 - label}"
        rows.setdefault(" ".join(generator.permutation(marked)), label)
    return list(rows.items())


def make_subject(
    name: str = "sae",
    d_sae: int = 24,
    mask: AnyMaskConfig | None = None,
    n_positions: int = MAX_POSITIONS,
    steps: int = 5,
) -> LoadedSAE:
    """An SAE for layer 1 of the tests' language model."""
    config = ReluConfig(d_sae=d_sae, mask=mask or NoMaskConfig())
    sae: SAE = build_sae(config, WIDTH, n_positions, torch.Generator().manual_seed(1)).eval()
    metadata = SAEMetadata(
        model="llama", model_revision="test", hook_point="resid_post.1", store_key="key", contexts="contexts",
        context_length=n_positions, use_position_0=False, input_scale=1.0, steps=steps, tokens=640, seed=0, training={},
    )  # fmt: skip
    return LoadedSAE(name, sae, metadata)
