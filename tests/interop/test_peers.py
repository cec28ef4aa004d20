"""Against the other libraries themselves, where ``SCANSION_PEERS`` names a Python that has them (``make test-interop``)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from scansion.interop import read_foreign, write_saelens
from scansion.masks import RandomHardMaskConfig
from scansion.sae import (
    BatchTopKConfig,
    GatedConfig,
    JumpReluConfig,
    MatryoshkaConfig,
    ReluConfig,
    SAEConfig,
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
    script = Path(__file__).with_name("peer_writes.py")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([PEERS, str(script), str(home / "peers"), str(home / "ours")], check=True, env=environment)
    return home


def test_everything_they_write_is_read_to_the_same_numbers(exchanged: Path) -> None:
    found = sorted((exchanged / "peers").glob("*.reference.safetensors"))
    assert len(found) == 18
    for file in found:
        folder = file.with_name(file.name.removesuffix(".reference.safetensors"))
        theirs = load_file(file)
        foreign = read_foreign(folder)
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
