"""Against the other libraries themselves, where ``SCANSION_PEERS`` names a Python that has them (``make test-interop``)."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from scansion.activations import ActivationStore
from scansion.evals import evaluations
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
    load_sae,
)
from scansion.study.record import read_results
from scansion.training import TrainingConfig, TrainingRun, train
from tests.interop.made import metadata, sae_of

DOCS = Path(__file__).parents[2] / "docs" / "interop.md"
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
    "topk, layer_norm": TopKConfig(d_sae=64, k=5, input_norm="layer_norm"),
    "jumprelu, constant norm": JumpReluConfig(d_sae=64, input_norm="constant_norm_rescale"),
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
def exchanged(tmp_path_factory: pytest.TempPathFactory, store: ActivationStore) -> Path:
    """What the other libraries wrote in ``peers``, and of our trained SAE in ``trained``, and of ours in ``ours``."""
    home = tmp_path_factory.mktemp("peers")
    settings = TrainingConfig(tokens=28 * 60, batch_tokens=28, lr=3e-3, device="cpu")
    train([TrainingRun("ours", home / "trained" / "ours", TopKConfig(d_sae=32, k=4), settings)], store)
    sae, _ = load_sae(home / "trained" / "ours" / "sae")
    weights = {name: getattr(sae, name).detach().contiguous() for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    save_file({**weights, "k": torch.tensor(4)}, home / "trained" / "trained.safetensors")
    x = torch.randn(200, 16, generator=torch.Generator().manual_seed(3)) * 7 + 1
    for name, config in OURS.items():
        sae = sae_of(config, d_in=16)
        folder = home / "ours" / name
        write_saelens(sae, metadata(), folder, drop_mask=True)
        with torch.no_grad():
            acts = sae.lifted().encode(x)
            save_file({"x": x, "acts": acts, "decoded": sae.decode(acts, x=x)}, f"{folder}.ours.safetensors")
    beside_them("peer_writes.py", *(str(home / name) for name in ("peers", "ours", "trained")))
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


@dataclass(frozen=True)
class Row:
    """How far an SAE is from the same in the other library: largest differences, and whether the same features are active."""

    name: str
    encode: float
    decode: float
    supports: bool

    @classmethod
    def between(cls, name: str, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> Row:
        acts, decoded = ((ours[key] - theirs[key]).abs().max().item() for key in ("acts", "decoded"))
        return cls(name, acts, decoded, torch.equal(ours["acts"] > 0, theirs["acts"] > 0))

    def check(self) -> None:
        assert self.supports and self.encode <= 1e-4 and self.decode <= 1e-4, self


def read(exchanged: Path) -> list[Row]:
    """Every SAE that they wrote, as we read it."""
    rows: list[Row] = []
    for file in sorted((exchanged / "peers").glob("*.reference.safetensors")):
        folder = file.with_name(file.name.removesuffix(".reference.safetensors"))
        theirs = load_file(file)
        factor = float(folder.name.rpartition("_")[2]) if "input_factor" in folder.name else None
        foreign = read_foreign(folder, factor)
        assert foreign.hook_point is None or "1" in foreign.hook_point
        sae = foreign.build(8)
        with torch.no_grad():
            found = {"acts": sae.encode(theirs["x"]), "decoded": sae.decode(theirs["acts"], x=theirs["x"])}
        rows.append(Row.between(folder.name.replace("layers.1", "sparsify_topk"), found, theirs))
    return rows


def written(exchanged: Path) -> list[Row]:
    """Every SAE that we wrote, as SAELens reads it."""
    rows: list[Row] = []
    for name in OURS:
        ours, theirs = (load_file(exchanged / "ours" / f"{name}.{whose}.safetensors") for whose in ("ours", "theirs"))
        assert 0 < (ours["acts"] > 0).float().mean() < 0.9
        rows.append(Row.between(name, ours, theirs))
    return rows


def test_everything_they_write_is_read_to_the_same_numbers(exchanged: Path) -> None:
    rows = read(exchanged)
    assert len(rows) == 29
    for row in rows:
        row.check()


def test_what_we_write_is_read_there_to_the_same_numbers(exchanged: Path) -> None:
    for row in written(exchanged):
        row.check()


def test_the_table_of_the_docs(exchanged: Path, in_their_model: dict[str, dict[str, float | bool]]) -> None:
    """Written anew by every run of this test; without the other libraries, tests/test_docs.py has no part in it."""
    masked = [
        Row(name, float(found["encode"]), float(found["decode"]), bool(found["supports"]))
        for name, found in in_their_model.items()
    ]
    lines = ["| SAE | encode | decode | active features |", "|---|---:|---:|---|"]
    for what, rows in (("read", read(exchanged)), ("written", written(exchanged)), ("written, `scansion`", masked)):
        for row in rows:
            active = "same" if row.supports else "DIFFER"
            lines.append(
                f"| {what}: {row.name.replace('_', ' ')} | {size(row.encode)} | {size(row.decode)} | {active} |"
            )
    page = DOCS.read_text(encoding="utf-8")
    place = r"(<!-- measured: interop -->\n).*?(<!-- end -->)"
    assert len(re.findall(place, page, re.DOTALL)) == 1
    table = "\n".join(lines)
    DOCS.write_text(re.sub(place, lambda m: f"{m[1]}{table}\n{m[2]}", page, flags=re.DOTALL), encoding="utf-8")


def size(value: float) -> str:
    return f"{value:.0e}" if value else "0"


def test_one_of_each_library_is_compared_with_ours(exchanged: Path, store: ActivationStore, run) -> None:
    """The same trained weights, saved by each library: scores and positions must be those of our SAE."""
    home = exchanged / "trained"
    for name, source in (
        ("SAELens", "SAELens"),
        ("dictionary_learning", "dictionary_learning"),
        ("sparsify", "sparsify/layers.1"),
    ):
        status, _, err = run("import", home / source, "--store", store.folder, "--out", home / "runs" / name)
        assert status == 0, err
    runs = [home / "ours", *(home / "runs" / name for name in ("SAELens", "dictionary_learning", "sparsify"))]
    status, out, err = run(
        "eval", *runs, "--held-out", store.folder, "--evaluations", "core,position", "--device", "cpu",
        "--settings", "core: {loss_contexts: 0}, position: {null_draws: 20, groups: 4, replaced_contexts: 0}",
    )  # fmt: skip
    assert status == 0, err
    said = " ".join((out + err).split())
    assert "not comparable" not in said and "was imported from sparsify" in said
    assert all(run.name in out for run in runs)
    configs = {name: None for name in ("core", "position")}
    ours, *theirs = (read_results(run, evaluations.parse_all(configs)).means() for run in runs)
    for other in theirs:
        assert other.keys() == ours.keys()
        # Left out are figures that need the start of training, which is not known of them.
        known = {name: value for name, value in other.items() if value is not None}
        assert len(known) >= 15 and known["fve"] > 0
        assert known == pytest.approx({name: ours[name] for name in known}, rel=1e-3, abs=1e-5)
