"""Against the other libraries themselves, where ``SCANSION_PEERS`` names a Python that has them (``make test-interop``)."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from scansion.interop import read_foreign, write_saelens
from scansion.masks import AdaptiveMaskConfig, BandMaskConfig, RandomHardMaskConfig, SoftMaskConfig
from scansion.sae import (
    BatchTopKConfig,
    GatedConfig,
    JumpReluConfig,
    MatryoshkaConfig,
    ReluConfig,
    SAEConfig,
    SwitchConfig,
    TopKConfig,
    TSAEConfig,
)
from tests.interop.made import metadata, sae_of

PEERS = os.environ.get("SCANSION_PEERS", "")
pytestmark = pytest.mark.skipif(not PEERS, reason="needs the other libraries: make test-interop")

OURS: dict[str, SAEConfig] = {
    "relu": ReluConfig(d_sae=64),
    "topk": TopKConfig(d_sae=64, k=5),
    "batch_topk": BatchTopKConfig(d_sae=64, k=5),
    "matryoshka": MatryoshkaConfig(d_sae=64, k=5),
    "tsae": TSAEConfig(d_sae=64, k=5),
    "jumprelu": JumpReluConfig(d_sae=64),
    "gated": GatedConfig(d_sae=64),
    "masked, mask dropped": TopKConfig(d_sae=64, k=5, mask=RandomHardMaskConfig()),
}

MASKED: dict[str, SAEConfig] = {
    "random_hard": TopKConfig(d_sae=64, k=5, mask=RandomHardMaskConfig()),
    "soft": JumpReluConfig(d_sae=64, mask=SoftMaskConfig(shared=0.25)),
    "bands with a bias each": ReluConfig(d_sae=64, mask=BandMaskConfig(count=4, own_bias=True)),
    "static slicing": BatchTopKConfig(d_sae=64, k=5, mask=BandMaskConfig(preset="static_slicing")),
    "groups": GatedConfig(d_sae=64, mask=BandMaskConfig(preset="groups", sizes=(20, 22, 22))),
    "adaptive": TopKConfig(d_sae=64, k=5, mask=AdaptiveMaskConfig()),
    "switch, no mask": SwitchConfig(d_sae=64, k=5, n_experts=4),
}


@pytest.fixture(scope="module")
def exchanged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the other libraries wrote in ``peers``, and what they made of ours in ``ours``."""
    home = tmp_path_factory.mktemp("peers")
    x = torch.randn(200, 24, generator=torch.Generator().manual_seed(3)) * 7 + 1
    for name, config in OURS.items():
        sae = sae_of(config)
        folder = home / "ours" / name
        write_saelens(sae, metadata(), folder, drop_mask=True)
        with torch.no_grad():
            acts = sae.lifted().encode(x)
            save_file({"x": x, "acts": acts, "decoded": sae.decode(acts)}, f"{folder}.ours.safetensors")
    beside_them("peer_writes.py", str(home / "peers"), str(home / "ours"))
    return home


def beside_them(script: str, *arguments: str, path: str = "") -> str:
    """What a script prints that runs in the other libraries' environment; ``path`` is added to its modules'."""
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    command = [PEERS, str(Path(__file__).with_name(script)), *arguments]
    return subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True).stdout


@pytest.fixture(scope="module")
def in_their_model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float | bool]]:
    """Name -> how far our masked SAEs are there from what they are here, and inside a model."""
    home = tmp_path_factory.mktemp("masked")
    x = torch.randn(4, 8, 24, generator=torch.Generator().manual_seed(3)) * 7 + 1
    positions = torch.arange(8).expand(4, 8)
    for name, config in MASKED.items():
        sae = sae_of(config)
        assert write_saelens(sae, metadata(), home / name) == "scansion"
        with torch.no_grad():
            acts = sae.encode(x, positions)
            tensors = {"x": x, "positions": positions, "acts": acts, "decoded": sae.decode(acts, positions)}
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, home / f"{name}.ours.safetensors")
    return json.loads(beside_them("saelens_model.py", str(home), path=str(Path(__file__).parents[2])))


@pytest.mark.parametrize("name", MASKED)
def test_a_masked_sae_of_ours_works_in_their_model(
    name: str, in_their_model: dict[str, dict[str, float | bool]]
) -> None:
    found = in_their_model[name]
    assert found["supports"] and found["encode"] <= 1e-4 and found["decode"] <= 1e-4 and found["saved again"] == 0
    assert found["left padding"] <= 1e-3 and found["one token at a time"] <= 1e-3
    assert found["cached generation is uncached"] and found["padded generation is unpadded"] and found["past the mask"]
    assert found["in the cache"]
    assert found["changed pre-activations are refused"]
    if name != "switch, no mask":
        assert found["refused without positions"] and found["refused outside the block"]


def test_everything_they_write_is_read_to_the_same_numbers(exchanged: Path) -> None:
    found = sorted((exchanged / "peers").glob("*.reference.safetensors"))
    assert len(found) == 19
    for file in found:
        folder = file.with_name(file.name.removesuffix(".reference.safetensors"))
        theirs = load_file(file)
        factor = float(folder.name.rpartition("_")[2]) if "input_factor" in folder.name else None
        foreign = read_foreign(folder, factor)
        sae = foreign.build(8)
        with torch.no_grad():
            acts = sae.encode(theirs["x"])
            decoded = sae.decode(theirs["acts"])
        assert torch.equal(acts > 0, theirs["acts"] > 0), folder.name
        torch.testing.assert_close(acts, theirs["acts"], rtol=1e-5, atol=1e-4, msg=folder.name)
        torch.testing.assert_close(decoded, theirs["decoded"], rtol=1e-5, atol=1e-4, msg=folder.name)
        assert foreign.hook_point is None or "1" in foreign.hook_point


@pytest.mark.parametrize("name", OURS)
def test_what_we_write_is_read_there_to_the_same_numbers(name: str, exchanged: Path) -> None:
    ours, theirs = (load_file(exchanged / "ours" / f"{name}.{whose}.safetensors") for whose in ("ours", "theirs"))
    assert 0 < (ours["acts"] > 0).float().mean() < 0.9
    assert torch.equal(ours["acts"] > 0, theirs["acts"] > 0)
    torch.testing.assert_close(ours["acts"], theirs["acts"], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(ours["decoded"], theirs["decoded"], rtol=1e-5, atol=1e-4)
