"""SAEs go to a stand-in of the hub and come back the same, by the hub's own client; tokens are sent and never shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from scansion.errors import ConfigError
from scansion.interop.hub import push_to_hub
from scansion.interop.saelens import read_own, write_saelens
from scansion.masks import RandomHardMaskConfig
from scansion.sae import (
    BatchTopKConfig,
    GatedConfig,
    JumpReluConfig,
    ReluConfig,
    SAEConfig,
    SwitchConfig,
    TopKConfig,
    load_sae,
)
from tests.conftest import random_contexts
from tests.interop.hub_server import TOKEN, Hub, hub
from tests.interop.made import metadata, sae_of

SAES: dict[str, SAEConfig] = {
    "relu": ReluConfig(d_sae=20),
    "batch_topk": BatchTopKConfig(d_sae=20, k=3),
    "jumprelu": JumpReluConfig(d_sae=20),
    "gated": GatedConfig(d_sae=20),
    "switch": SwitchConfig(d_sae=20, k=3, n_experts=4),
    "masked": TopKConfig(d_sae=20, k=3, mask=RandomHardMaskConfig()),
}


@pytest.fixture
def server() -> Iterator[Hub]:
    with hub() as running:
        yield running


def at_the_hub(server: Hub, home: Path, *arguments: object, token: str = TOKEN) -> tuple[int, str]:
    """A command with the hub's client, which reads its address when it is imported."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")},
        "HF_ENDPOINT": server.address,
        "HF_HOME": str(home),
        "HF_TOKEN": token,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
    }
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("name", SAES)
def test_what_is_written_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    sae = sae_of(SAES[name], d_in=16)
    write_saelens(sae, metadata(), tmp_path / name)
    again = read_own(tmp_path / name)
    x, positions = torch.randn(30, 16, generator=torch.Generator().manual_seed(2)) * 5, torch.arange(30) % 8
    with torch.no_grad():
        torch.testing.assert_close(again.encode(x, positions), sae.encode(x, positions), rtol=1e-5, atol=1e-5)
    assert type(again) is type(sae) and again.provenance == metadata()
    assert again.config.model_copy(update={"mask": None}) == sae.config.model_copy(update={"mask": None})


def test_a_run_goes_to_the_hub_and_comes_back(server: Hub, tmp_path: Path, make_store, run) -> None:
    store = make_store(random_contexts(60))
    trained = tmp_path / "bands"
    settings = ("--mask", "bands, count: 2", "--tokens", 2000, "--batch-tokens", 70, "--d-sae", 32, "--k", 4)
    assert run("train", store.folder, "--out", trained, "--device", "cpu", *settings)[0] == 0
    measured = ("--evaluations", "core", "--settings", "core: {loss_contexts: 0}", "--device", "cpu")
    assert run("eval", trained, "--held-out", store.folder, *measured)[0] == 0
    push = ("-m", "scansion", "push", trained, "me/saes", "--sae-id", "layer_1/bands", "--licence", "apache-2.0")
    status, said = at_the_hub(server, tmp_path / "hf", *push)
    assert status == 0 and f"pushed: {server.address}/me/saes" in said, said
    files = server.repos["me/saes"]
    folder = "layer_1/bands/"
    expected = {folder + name for name in ("cfg.json", "sae_weights.safetensors", "mask.png", "README.md")}
    assert {"README.md", *expected} <= set(files)
    assert json.loads(files[folder + "cfg.json"])["architecture"] == "scansion"
    card = files[folder + "README.md"].decode()
    for text in ("library_name: saelens", "license: apache-2.0", "| FVE", "[", "bands, count: 2", "mask.png", "seed 0"):
        assert text in card, card
    # Another SAE beside it keeps the repository's card.
    status, said = at_the_hub(server, tmp_path / "hf", *push[:-4], "--sae-id", "other")
    assert status == 0 and "license: apache-2.0" in files["README.md"].decode() and "other/cfg.json" in files
    status, said = at_the_hub(
        server, tmp_path / "hf", "-m", "scansion", "import", "hub:me/saes:layer_1/bands", "--store", store.folder,
        "--out", tmp_path / "back",
    )  # fmt: skip
    assert status == 0, said
    back, about = load_sae(tmp_path / "back" / "sae")
    assert about.imported == "SAELens (hub:me/saes:layer_1/bands)"
    x = store.contexts(0, 6)
    with torch.no_grad():
        assert torch.equal(back.encode(x), load_sae(trained / "sae")[0].encode(x))
    own = "from scansion.interop import from_pretrained; print(from_pretrained('me/saes', 'other').provenance.tokens)"
    assert at_the_hub(server, tmp_path / "hf", "-c", own)[1].startswith("2030")
    for source, message in (
        ("hub:me/saes", "there is layer_1/bands, other"),
        ("hub:me/none:x", "cannot be read from the hub"),
    ):
        status, said = at_the_hub(
            server,
            tmp_path / "hf",
            "-m",
            "scansion",
            "import",
            source,
            "--store",
            store.folder,
            "--out",
            tmp_path / "no",
        )
        assert status == 2 and message in " ".join(said.split()), said
    written = b"".join(path.read_bytes() for path in (tmp_path / "hf").rglob("*") if path.is_file()) + b"".join(
        files.values()
    )
    assert f"Bearer {TOKEN}" in server.tokens and TOKEN.encode() not in written


def test_a_token_that_is_refused_is_not_shown(server: Hub, tmp_path: Path, make_store, run) -> None:
    store = make_store(random_contexts(60))
    trained = tmp_path / "plain"
    assert run("train", store.folder, "--out", trained, "--tokens", 0, "--d-sae", 32, "--device", "cpu")[0] == 0
    wrong = TOKEN[::-1]
    status, said = at_the_hub(server, tmp_path / "hf", "-m", "scansion", "push", trained, "me/saes", token=wrong)
    assert status == 2 and "me/saes cannot be written on the hub" in said and wrong not in said, said


@pytest.mark.parametrize(
    ("repo", "sae_id", "message"),
    [("saes", "a", "owner/name"), ("me/saes", "../a", "no name"), ("me/saes", ".", "no name")],
)
def test_names_that_are_none_are_said_before_anything_is_sent(repo: str, sae_id: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        push_to_hub(sae_of(ReluConfig(d_sae=8)), metadata(), repo, sae_id)
