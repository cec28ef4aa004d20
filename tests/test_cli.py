"""The command line works from text to a table, and every mistake is one clear line before heavy work."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from scansion.corpus import CorpusConfig
from scansion.errors import ConfigError
from scansion.pipeline import HarvestSpec, build_stores, build_stores_at, stores
from scansion.training.run_folder import read_metrics


@pytest.fixture
def harvest(lm_folder: Path, documents: Path, tmp_path: Path) -> list[object]:
    """Arguments of a harvest that works."""
    return [
        "harvest", "--model", lm_folder, "--hook-point", "layers.1", "--source", documents, "--context-length", 16,
        "--held-out-tokens", 320, "--held-out-fraction", 0.25, "--device", "cpu", "--out", tmp_path / "stores",
    ]  # fmt: skip


def test_from_text_to_a_table(run, harvest, tmp_path: Path) -> None:
    status, out, err = run(*harvest)
    assert status == 0, err
    assert "mean norm" in out
    status, _, err = run(*harvest)
    assert status == 0 and "reusing" in err
    train = ["train", tmp_path / "stores/train", "--d-sae", 32, "--k", 4, "--batch-tokens", 150, "--lr", 1e-3,
             "--device", "cpu"]  # fmt: skip
    for name, mask, tokens in (("plain", "none", 3000), ("masked", "random_hard", 3000), ("untrained", "none", 0)):
        status, out, err = run(*train, "--out", tmp_path / name, "--mask", mask, "--tokens", tokens)
        assert status == 0, err
        assert f"next: scansion eval {tmp_path / name} --held-out {tmp_path / 'stores/held_out'} --report" in out
        if tokens:
            last = read_metrics(tmp_path / name)[-1]
            assert (
                f"FVE {last['fve']:.3f}, {last['l0']:.1f} features per token (L0), {last['dead'] / 32:.1%} of 32 features dead"
                in out
            )
    runs = [tmp_path / name for name in ("plain", "masked", "untrained")]
    evaluate = ["eval", *runs, "--held-out", tmp_path / "stores/held_out", "--report", tmp_path / "report",
                "--evaluations", "core,position",
                "--settings", "core: {loss_contexts: 4}, position: {null_draws: 20, groups: 4}"]  # fmt: skip
    status, out, err = run(*evaluate)
    assert status == 0, err
    assert "untrained: degenerate: no training step was taken" in out
    rows = [line for line in out.splitlines() if "topk 32" in line]
    assert len(rows) == 2 and "random_hard" in rows[1]
    page = (tmp_path / "report/index.html").read_text()
    assert page.count('id="chunk-block-') == 2, "feature pages of the two that learnt something"
    assert "excess over permuted" in out and "in use (drawn mask)" in out
    assert (tmp_path / "masked/evals/position_profile.safetensors").stat().st_size > 0
    assert (tmp_path / "report/figures/overview.png").stat().st_size > 10_000
    status, out, err = run(*evaluate)
    assert status == 0 and "core: 3 of 3 already evaluated" in err


def test_looking_at_a_text_and_steering_it(run, harvest, tmp_path: Path) -> None:
    assert run(*harvest)[0] == 0
    trained = tmp_path / "plain"
    flags = ["--d-sae", 32, "--k", 4, "--batch-tokens", 150, "--lr", 1e-2, "--device", "cpu", "--tokens", 3000]
    assert run("train", tmp_path / "stores/train", *flags, "--out", trained)[0] == 0
    status, out, err = run("look", trained, "w5 w9 w20 w21", "--device", "cpu", "--features", 2)
    assert status == 0, err
    assert "position 0 took no part in training" in out and "resid_post.1 of" in out
    rows = [line for line in out.splitlines() if "w20" in line]
    assert len(rows) == 1 and rows[0].count(":") == 2, "two features with their activations"
    feature = rows[0].split("w20")[1].split(":")[0].strip(" │┃")
    status, out, err = run(
        "steer", trained, "w5 w9 w20", "--feature", feature, "--tokens", 8, "--device", "cpu", "--value", 0
    )
    assert status == 0, err
    assert out.startswith("plain:   w5 w9 w20") and f"feature {feature} at 0, everywhere" in out
    for arguments, message in (
        (("--feature", 99), "there is no feature 99; this SAE has 32"),
        (("--feature", 1, "--positions", "x-3"), "--positions 'x-3' is not understood"),
        (("--feature", 1, "--positions", "5-2"), "--positions '5-2' is not understood"),
        (("--feature", 1, "--positions", "1-99999999999"), "is not understood"),
        (("--feature", 1, "--positions", ","), "names no position"),
        (("--feature", 1, "--tokens", 0), "at least 1 token"),
        (("--feature", 1, "--value", "nan"), "not a finite number"),
    ):
        status, _, err = run("steer", trained, "w5 w9", *arguments, "--device", "cpu")
        assert status == 2 and message in " ".join(err.split())


def test_several_hook_points_are_harvested_in_one_pass(run, harvest, tmp_path: Path, monkeypatch) -> None:
    points = ("mlp_out.1", "resid_post.1", "attn_out.0")
    at, out_at = harvest.index("--hook-point"), harvest.index("--out") + 1
    for point in points:
        alone = [*harvest]
        alone[at + 1], alone[out_at] = point, tmp_path / "alone" / point
        status, out, err = run(*alone)
        assert status == 0, err
    read = []
    plain = stores.load_contexts
    monkeypatch.setattr(stores, "load_contexts", lambda *settings: (read.append(settings), plain(*settings))[1])
    flags = [
        part for point in ("layers.1.mlp", "layers.1", "blocks.0.hook_attn_out") for part in ("--hook-point", point)
    ]
    several = [*harvest[:at], *flags, *harvest[at + 2 :]]
    status, out, err = run(*several)
    assert status == 0 and not read, err  # nor is the text tokenised again
    folders = [tmp_path / "stores" / point / split for point in points for split in ("train", "held_out")]
    assert [line.partition(": ")[0] for line in out.splitlines()] == list(map(str, folders))
    for folder in folders:
        alone = tmp_path / "alone" / folder.relative_to(tmp_path / "stores")
        names = sorted(path.name for path in alone.iterdir())
        assert "manifest.json" in names and names == sorted(path.name for path in folder.iterdir())
        assert [name for name in names if (alone / name).read_bytes() != (folder / name).read_bytes()] == []
    status, _, err = run(*several)
    assert status == 0 and err.count("reusing") == 6
    status, _, err = run(*several, "--hook-point", "model.layers.1.mlp")
    assert status == 2 and "none of them twice" in err and err.count("\n") == 1
    status, _, err = run(*several, "--hook-point", "layers.3")
    assert status == 2 and "has 3 layers, numbered 0 to 2" in err
    (tmp_path / "c.yaml").write_text("harvest: {hook_point: layers.2.mlp}\n")
    status, out, err = run(
        "--config", tmp_path / "c.yaml", *harvest[:at], *harvest[at + 2 : -1], tmp_path / "configured"
    )
    assert status == 0 and '"mlp_out.2"' in (tmp_path / "configured/train/manifest.json").read_text(), err


def test_several_hook_points_from_python(lm_folder: Path, documents: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SCANSION_CACHE", str(tmp_path / "cache"))
    corpus = CorpusConfig(source=str(documents), context_length=16, held_out_tokens=320, held_out_fraction=0.25)
    source = HarvestSpec(str(lm_folder), "layers.2", corpus, device="cpu")
    first = build_stores(replace(source, hook_point="layers.1"))
    both = build_stores_at(source, ["layers.0.mlp", "layers.1"])
    assert list(both) == ["layers.0.mlp", "layers.1"] and both["layers.1"].train.folder == first.train.folder
    assert both["layers.0.mlp"].held_out.identity.hook_point == "mlp_out.0"
    with pytest.raises(ConfigError, match="at least one"):
        build_stores_at(source, [])


MISTAKES = {
    "wrong model": ("--model", "no-such/model", "no language model 'no-such/model'"),
    "wrong layer": ("--hook-point", "layers.3", "has 3 layers, numbered 0 to 2"),
    "wrong hook point": ("--hook-point", "attention", "hook point 'attention' is not understood"),
    "unwritable folder": ("--out", "{here}/file/stores", "cannot write in"),
    "empty corpus": ("--source", "{here}/empty.txt", "holds no text"),
    "no such text": ("--source", "{here}/nothing-*.txt", "no file matches"),
    "context too long": ("--context-length", "65", "65 tokens is longer than"),
    "wrong device": ("--device", "tpu", "device 'tpu' is not usable here"),
    "wrong type": ("--dtype", "int4", "dtype 'int4' is not known"),
    "wrong flag": ("--contxt-length", "8", "Unknown option"),
    "out of range": ("--held-out-fraction", "2", "error: held_out_fraction: Input should be less than 1\n"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_within_seconds(
    run, harvest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "empty.txt").write_text("  \n")
    (tmp_path / "file").write_text("")
    flag, value, message = MISTAKES[mistake]
    kept = [part for pair in zip(harvest[1::2], harvest[2::2], strict=True) if pair[0] != flag for part in pair]
    start = time.monotonic()
    status, _, err = run("harvest", *kept, flag, value.format(here=tmp_path))
    assert status == 2
    assert len(err.strip().splitlines()) == 1 and err.startswith("error: "), err
    assert message in err
    assert time.monotonic() - start < 10


def test_flags_of_another_architecture_are_refused(run, harvest, tmp_path: Path) -> None:
    run(*harvest)
    status, _, err = run(
        "train", tmp_path / "stores/train", "--architecture", "relu", "--k", 3, "--out", tmp_path / "x"
    )
    assert status == 2 and "k is not a setting of relu, but of topk, batch_topk, matryoshka" in " ".join(err.split())


def test_settings_come_from_file_environment_and_command_line(
    run, harvest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(*harvest)
    (tmp_path / "c.yaml").write_text("train: {d-sae: 16, k: 4, lr: 0.1, tokens: 0}\n")
    monkeypatch.setenv("SCANSION_TRAIN_LR", "0.2")
    status, _, err = run("--config", tmp_path / "c.yaml", "train", tmp_path / "stores/train", "--out", tmp_path / "x")
    assert status == 0, err
    written = (tmp_path / "x/config.yaml").read_text()
    assert "d_sae: 16" in written and "lr: 0.2" in written
    run("--config", tmp_path / "c.yaml", "train", tmp_path / "stores/train", "--out", tmp_path / "y", "--lr", 0.3)
    assert "lr: 0.3" in (tmp_path / "y/config.yaml").read_text()


def test_help_shows_defaults_and_an_example(run) -> None:
    for command in ("harvest", "train", "eval", "demo", "doctor", "study run", "study plan", "compare"):
        status, out, _ = run(*command.split(), "--help")
        assert status == 0 and "Example: scansion" in out, command
        if command in ("harvest", "train", "eval", "demo"):
            assert "[default:" in out


def test_masks_are_listed_with_their_settings(run) -> None:
    status, out, _ = run("masks")
    assert status == 0 and {line.split(":")[0] for line in out.splitlines()} >= {"none", "bands", "adaptive", "soft"}
    status, out, _ = run("masks", "soft")
    assert "start.low = 0.3" in out and "entropy_coefficient = 0.0" in out
    status, _, err = run("masks", "stripes")
    assert status == 2 and "no mask family is called 'stripes'; there are adaptive, bands, importance, none" in err


def test_a_mask_is_one_flag(run, harvest, tmp_path: Path) -> None:
    run(*harvest)
    train = ["train", tmp_path / "stores/train", "--d-sae", 32, "--k", 4, "--tokens", 0, "--mask"]
    status, _, err = run(*train, "bands, count: 4, shared: 0.25", "--out", tmp_path / "x")
    assert status == 0, err
    written = (tmp_path / "x/config.yaml").read_text()
    assert "count: 4" in written and "shared: 0.25" in written
    for wrong, message in [
        ("bands, count: [", "cannot be read; write a family"),
        ("stripes", "no mask family is called 'stripes'; there are adaptive, bands, importance, none"),
        ("bands, cuont: 3", "cuont: there is no such setting; did you mean count?"),
        ("bands, count: 5", "32 bound features do not divide evenly among 5 bands"),
        ("soft, start: {kind: from_usage, sae: nowhere}", "nowhere holds no SAE"),
    ]:
        status, _, err = run(*train, wrong, "--out", tmp_path / "y")
        assert status == 2 and message in err and len(err.strip().splitlines()) == 1, err


def test_a_trained_mask_is_compiled_to_bands(run, harvest, tmp_path: Path) -> None:
    run(*harvest)
    train = ["train", tmp_path / "stores/train", "--d-sae", 32, "--k", 4, "--tokens", 3000, "--batch-tokens", 150,
             "--lr", 1e-3, "--device", "cpu", "--mask", "adaptive, positions_per_feature: 2", "--out"]  # fmt: skip
    status, _, err = run(*train, tmp_path / "soft")
    assert status == 0, err
    compiling = ["compile", tmp_path / "soft", "--bands", 4, "--held-out", tmp_path / "stores/held_out", "--out"]
    status, out, err = run(*compiling, tmp_path / "hard")
    assert status == 0, err
    assert "FVE before" in out and "of the mask's weight was cut off" in out
    status, out, err = run("eval", tmp_path / "hard", "--held-out", tmp_path / "stores/held_out",
                           "--evaluations", "core", "--settings", "core: {loss_contexts: 0}")  # fmt: skip
    assert status == 0 and "bands" in out, err
    status, _, err = run(*compiling, tmp_path / "soft")
    assert status == 2 and "cannot replace its origin" in err


def test_help_begins_with_where_to_start(run) -> None:
    _, out, _ = run("--help")
    titles = [
        "Start here",
        "Steps, from text to scores",
        "Studies: many runs",
        "What there is",
        "Options of every command",
    ]
    places = [out.index(title) for title in titles]
    assert places == sorted(places) and out.index("--version") > places[-1] and out.index("--plugin") > places[-1]
    _, out, _ = run("harvest", "--help")
    assert out.index("--hook-point") < out.index("Options of every command") < out.index("--config")
