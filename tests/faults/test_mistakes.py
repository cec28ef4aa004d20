"""What users get wrong: each mistake is one line that says what to do, in bounded time and memory, and nothing is written."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from scansion.activations import ActivationStore
from scansion.corpus import CorpusConfig
from scansion.corpus.sources import read_documents
from scansion.errors import ConfigError, CorpusError, DamagedError
from scansion.evals.interp.autointerp import AutoInterpConfig
from scansion.evals.reading.cache import ActivationCache
from scansion.locks import only_writer
from scansion.progress import printable
from scansion.records import read_yaml
from scansion.study.failures import read_failure
from scansion.training.run_folder import RunFolder, read_metrics
from tests.faults.workspace import PLAN

Run = Callable[..., tuple[int, str, str]]
pytestmark = pytest.mark.usefixtures("as_users_run_it")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, lm_folder: Path, documents: Path) -> Path:
    """Stores of two hook points and of two texts, and a trained run; tests only read it."""
    home = tmp_path_factory.mktemp("mistakes")
    (home / "texts.jsonl").write_text(documents.read_text().replace("w5 ", "w6 "))
    return home


@pytest.fixture
def harvested(home: Path, run: Run, lm_folder: Path, documents: Path) -> Path:
    def harvest(out: str, *more: object) -> None:
        if not (home / out).exists():
            flags = ("--model", lm_folder, "--context-length", 8, "--held-out-tokens", 160, "--out", home / out, *more)
            assert run("harvest", *flags)[0] == 0

    harvest("stores", "--source", documents, "--hook-point", "layers.1")
    harvest("layer_0", "--source", documents, "--hook-point", "layers.0")
    harvest("other_text", "--source", home / "texts.jsonl", "--hook-point", "layers.1")
    if not (home / "run").exists():
        assert run(*train(home), "--mask", "bands, count: 2", "--out", home / "run")[0] == 0
    return home


def train(home: Path) -> tuple[object, ...]:
    return ("train", home / "stores/train", "--tokens", 640, "--batch-tokens", 64, "--d-sae", 32, "--k", 4)


def evaluate(home: Path, store: str, run: str = "run") -> tuple[object, ...]:
    settings = ("--evaluations", "core", "--settings", "core: {loss_contexts: 0}")
    return ("eval", home / run, "--held-out", home / store, *settings)


YAML: dict[str, bytes] = {
    "not UTF-8": b"\xff\xfe{}",
    "cut": b"train: {lr: [",
    "nested 5,000 deep": b"[" * 5000,
    "a key twice": b"train: {lr: 1, lr: 2}",
    "a list": b"[1]",
    "a number": b"3",
    "odd tags": b"train: {lr: !!int ''}",
    "a tag without its form": b"train: {lr: !!timestamp x}",
    "keys that are no names": b"train: {1: 2}",
    "another command": b"tarin: {lr: 2}",
    "nothing": b"train:",
    "a null character": b'train: {lr: "\\0"}',
    "half a character": b'train: {device: "\\ud800"}',
    "aliases": b"a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    + b"".join(b"%c: &%c [%s]\n" % (c + 1, c + 1, b", ".join([b"*%c" % c] * 10)) for c in range(97, 105)),
    "merges": b"a: &a {k: 1, l: 2}\n"
    + b"".join(b"%c: &%c {<<: [%s]}\n" % (c + 1, c + 1, b", ".join([b"*%c" % c] * 10)) for c in range(97, 105)),
}


@pytest.mark.parametrize("damage", YAML)
@pytest.mark.parametrize("place", ["--config", "plan", "--settings"])
def test_yaml_that_cannot_be_used_is_one_line(damage: str, place: str, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "given.yaml"
    file.write_bytes(YAML[damage])
    commands: dict[str, tuple[object, ...]] = {
        "--config": ("--config", file, "train", tmp_path, "--out", tmp_path / "x"),
        "plan": ("study", "plan", file),
        "--settings": ("eval", tmp_path, "--held-out", tmp_path, "--evaluations", "core", "--settings", file),
    }
    status, _, err = run(*commands[place])
    assert status == 2 and "error: " in err and len(err) < 5000


MASKS = [
    "[a]", "{a: b}", "bands, count: [1]", "bands, count: 1000000000000", "bands, shared: .inf", "bands, 1: 2", "a}", "", "~",
    "!!int ''", "bands, edges: []", "bands, edges: [0, 1e30]", "random_hard, seed: 1180591620717411303424", "[[1]]",
    "soft, temperature: {start: .inf}",
]  # fmt: skip


@pytest.mark.parametrize("mask", MASKS)
def test_masks_that_cannot_be_built(mask: str, run: Run, harvested: Path, tmp_path: Path) -> None:
    status, _, err = run(*train(harvested), "--mask", mask, "--out", tmp_path / "x")
    assert status == 2 and "error: " in err
    assert not (tmp_path / "x").exists()


FLAGS = {
    ("--d-sae", "1.5"): "takes a whole number, not 1.5",
    ("--d-sae", "1000000000000"): "of memory; lower d_sae",
    ("--k", "64"): "more than the 32 features",
    ("--lr", "inf"): "finite",
    ("--seed", str(2**70)): "less than",
    ("--data-seed", str(2**70)): "less than",
    ("--checkpoint-seconds", "nan"): "checkpoint_seconds",
    (
        "--exclude-tokens",
        "1",
        "2",
    ): "if --exclude-tokens takes several values, repeat it: --exclude-tokens 1 --exclude-tokens 2",
    ("--exclude-tokens", "-1"): "greater than or equal to 0",
    ("--exclude-tokens", "1000000"): "1000000 is no token of",
}


@pytest.mark.parametrize("flag", FLAGS)
def test_values_out_of_range(flag: tuple[str, str], run: Run, harvested: Path, tmp_path: Path) -> None:
    others = [word for word in train(harvested)]
    if flag[0] in others:
        others[others.index(flag[0]) + 1] = flag[1]
    else:
        others += flag
    status, _, err = run(*others, "--out", tmp_path / "x")
    assert status == 2 and FLAGS[flag] in err
    assert not (tmp_path / "x" / "config.yaml").exists()


def test_a_fraction_in_the_environment_or_a_file_is_not_rounded(
    run: Run, harvested: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("train: {log-every: 2.5}")
    assert "takes a whole number, not 2.5" in run("--config", file, *train(harvested), "--out", tmp_path / "x")[2]
    monkeypatch.setenv("SCANSION_TRAIN_LOG_EVERY", "3.5")
    assert "takes a whole number, not 3.5" in run(*train(harvested), "--out", tmp_path / "x")[2]


@pytest.mark.parametrize("name", ["layers." + "9" * 5000, "resid_post.\N{ARABIC-INDIC DIGIT THREE}", "", "layers.-1"])
def test_hook_points_that_are_none(name: str, run: Run, lm_folder: Path, documents: Path, tmp_path: Path) -> None:
    status, _, err = run(
        "harvest", "--model", lm_folder, "--hook-point", name, "--source", documents, "--out", tmp_path / "x"
    )
    assert status == 2 and "is not understood" in err


TEXTS = [f"document {number} of words" for number in range(2000)]
LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()


def damaged_gzip(file: Path) -> None:
    data = bytearray(gzip.compress(LINES))
    data[len(data) // 2 : len(data) // 2 + 8] = b"\xff" * 8
    file.write_bytes(data)


def damaged_parquet(file: Path) -> None:
    # Without checksums of its own or compression, a page whose text is not UTF-8 is the hardest to notice.
    pq.write_table(pa.table({"text": TEXTS}), file, compression="none", use_dictionary=False)
    data = file.read_bytes()
    file.write_bytes(data.replace(b"document 77 ", b"doc\xff\xfe\xffnt 77 "))


CORPORA: dict[str, tuple[str, Callable[[Path], object]]] = {
    "gz damaged in the middle": ("a.jsonl.gz", damaged_gzip),
    "gz cut short": ("a.jsonl.gz", lambda file: file.write_bytes(gzip.compress(LINES)[:-100])),
    "nested 200,000 deep": ("a.jsonl", lambda file: file.write_text('{"text": ' + "[" * 200_000)),
    "a number of 20,000 digits": ("a.jsonl", lambda file: file.write_text('{"text": ' + "9" * 20_000 + "}")),
    "not UTF-8": ("a.jsonl", lambda file: file.write_bytes(b'{"text": "\xff"}')),
    "parquet not UTF-8": ("a.parquet", damaged_parquet),
    "parquet cut short": ("a.parquet", lambda file: file.write_bytes(b"PAR1" * 9)),
}


@pytest.mark.parametrize("damage", CORPORA)
def test_damaged_corpora(damage: str, tmp_path: Path) -> None:
    name, write = CORPORA[damage]
    write(tmp_path / name)
    with pytest.raises(CorpusError, match=name):
        list(read_documents(CorpusConfig(source=str(tmp_path / name))))


@pytest.mark.parametrize("given", ["~nouser/x", "x\0y", "a" * 300])
@pytest.mark.parametrize("command", ["--source", "--plugin", "--model", "plan"])
def test_paths_that_cannot_be(command: str, given: str, run: Run, documents: Path, tmp_path: Path) -> None:
    commands: dict[str, tuple[object, ...]] = {
        "--source": ("harvest", "--source", given, "--out", tmp_path / "x"),
        "--plugin": ("--plugin", given, "masks"),
        "--model": ("harvest", "--model", given, "--source", documents, "--out", tmp_path / "x"),
        "plan": ("study", "plan", given),
    }
    status, _, err = run(*commands[command])
    assert status == 2 and "error: " in err


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "..", ".", "a/b", "x" * 300])
def test_a_plan_writes_only_in_its_folder(name: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "below")
    monkeypatch.setenv("SCANSION_CACHE", str(tmp_path / "cache"))
    Path("plan.yaml").write_text(json.dumps({**PLAN, "name": name}))
    for command in ("run", "plan"):
        status, _, err = run("study", command, "plan.yaml")
        assert status == 2 and "is not one of a folder in runs/" in err
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["plan.yaml"]


def test_names_cannot_steer_the_terminal(run: Run, harvested: Path, tmp_path: Path) -> None:
    assert "is not UTF-8 text" in run(*train(harvested), "--out", tmp_path / "\udcff")[2]
    out = tmp_path / "a\x1b[31m\x9bb"
    status, shown, err = run(*train(harvested), "--out", out)
    assert status == 0
    assert "\x1b" not in shown + err and "\x9b" not in shown + err
    shutil.copytree(out, tmp_path / "run")
    status, shown, err = run(*evaluate(tmp_path, "stores/held_out")[:2], *evaluate(harvested, "stores/held_out")[2:])
    assert status == 0
    assert "\x1b" not in shown + err and "\N{REPLACEMENT CHARACTER}" in shown


def test_control_characters_are_replaced() -> None:
    assert (
        printable("a\x1b[31mb\x07\x9b|\n\tc")
        == "a\N{REPLACEMENT CHARACTER}[31mb" + "\N{REPLACEMENT CHARACTER}" * 2 + "|\n\tc"
    )


@pytest.mark.parametrize("url", ["https://user:secret@host/v1", "https://host/v1?api_key=secret"])
def test_a_password_in_the_url_of_the_judge_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    monkeypatch.setenv("OPENAI_MODEL", "judge")
    from scansion.evals import evaluations

    with pytest.raises(ConfigError, match="set OPENAI_API_KEY") as error:
        evaluations.parse_all({"core": None, "autointerp": None})
    assert "secret" not in str(error.value)
    assert AutoInterpConfig(base_url="https://host/v1", model="judge").base_url == "https://host/v1"


def test_held_out_stores_that_are_not(run: Run, harvested: Path) -> None:
    assert "was trained on the very text of" in run(*evaluate(harvested, "stores/train"))[2]
    assert "was trained on other text than" in run(*evaluate(harvested, "other_text/held_out"))[2]
    assert "trained on" not in run(*evaluate(harvested, "stores/held_out"))[2]


def test_another_hook_point_is_named_without_the_hash_of_the_model(run: Run, harvested: Path) -> None:
    status, _, err = run(*evaluate(harvested, "layer_0/held_out"))
    assert status == 2
    assert "trained on resid_post.1, but the store holds resid_post.0;" in err and "xxh3" not in err


def test_the_sae_of_a_run_is_not_the_run(run: Run, harvested: Path) -> None:
    status, _, err = run(*evaluate(harvested, "stores/held_out", "run/sae"))
    assert status == 2 and f"give {harvested / 'run'}" in " ".join(err.split())


@pytest.mark.parametrize("below", ["", "below"])
def test_a_file_where_a_folder_should_be(below: str, run: Run, harvested: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    status, _, err = run(*train(harvested), "--out", tmp_path / "file" / below)
    assert status == 2 and f"{tmp_path / 'file'} is a file; choose another folder" in " ".join(err.split())


def test_compiling_hard_bands(run: Run, harvested: Path, tmp_path: Path) -> None:
    status, _, err = run(
        "compile", harvested / "run", "--held-out", harvested / "stores/held_out", "--out", tmp_path / "x"
    )
    assert status == 2 and "there is nothing to round" in err


def test_padding_is_not_counted(run: Run, lm_folder: Path, documents: Path, tmp_path: Path) -> None:
    flags = ("--context-length", 50, "--held-out-tokens", 100, "--max-tokens", 1000, "--out", tmp_path / "x")
    status, out, _ = run("harvest", "--model", lm_folder, "--hook-point", "layers.1", "--source", documents, *flags)
    store = ActivationStore(tmp_path / "x/train")
    n_tokens = int(store.valid.sum())
    # Documents of 60 words fill contexts of 50 and of 12 tokens: padding is more than a third of the places.
    assert status == 0 and 1000 <= n_tokens < 1050 < store.valid.numel()
    assert store.manifest.n_tokens == store.identity.corpus["train"]["tokens"] == n_tokens
    assert f"{n_tokens:,} tokens" in out


PLUGIN = """
from typing import Literal
from scansion.masks import MaskConfig, NoMask, register_mask

class MyConfig(MaskConfig, frozen=True):
    family: Literal["FAMILY"] = "FAMILY"

@register_mask(MyConfig)
class MyMask(NoMask):
    '''A mask of a plugin.'''
"""


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    from scansion.masks import MASKS

    monkeypatch.setattr(MASKS, "_items", dict(MASKS._items))
    monkeypatch.setenv("SCANSION_PLUGINS", "")


@pytest.mark.usefixtures("plugins")
def test_two_plugins_with_one_name(run: Run, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text(PLUGIN.replace("FAMILY", "faults_same_name"))
    status, _, err = run("--plugin", tmp_path / "one.py", "--plugin", tmp_path / "two.py", "masks")
    assert status == 2 and "two.py failed in line 8" in err and "called 'faults_same_name' already" in err


@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize("code", ["x = 1\ny = x / 0\n", "import sys\nsys.exit(3)\n"])
def test_a_plugin_that_fails_names_its_line(code: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(code)
    status, _, err = run("--plugin", tmp_path / "bad.py", "masks")
    assert status == 2 and "bad.py failed in line 2: " in err


def test_entries_of_the_probing_cache_are_bound_to_their_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = ActivationCache(tmp_path, 10**6)
    cache.keep("one", {"x": torch.zeros(3)})
    cache.keep("two", {"x": torch.ones(3)})
    os.replace(tmp_path / "one.safetensors", tmp_path / "other")
    os.replace(tmp_path / "two.safetensors", tmp_path / "one.safetensors")
    os.replace(tmp_path / "other", tmp_path / "two.safetensors")
    assert cache.load("one") is None and cache.load("two") is None
    assert "computing its activations again" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["[]", "3", "null", "{}", '{"step": "a"}', "[" * 200_000, "\xff"])
def test_lines_of_metrics_that_hold_something_else(line: str, harvested: Path, run: Run, tmp_path: Path) -> None:
    shutil.copytree(harvested / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "sae")
    (tmp_path / "run/metrics.jsonl").write_bytes(line.encode("latin-1") + b"\n")
    status, _, err = run(*train(harvested), "--mask", "bands, count: 2", "--out", tmp_path / "run")
    assert status == 0, err
    assert all(line["step"] for line in read_metrics(tmp_path / "run"))


def test_a_second_trainer_says_who_holds_the_folder(harvested: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with only_writer(tmp_path / "x", "training"):
        status, _, err = run(*train(harvested), "--out", tmp_path / "x")
    assert status == 2 and f"process {os.getpid()} on" in err and "is training there since" in err


def test_a_run_that_another_process_has_just_finished_is_left_as_it_is(
    harvested: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing = RunFolder.writing

    @contextmanager
    def other_finishes_first(folder: RunFolder) -> Iterator[None]:
        with writing(folder):
            shutil.copytree(harvested / "run/sae", folder.sae)
            yield

    monkeypatch.setattr(RunFolder, "writing", other_finishes_first)
    status, _, err = run(*train(harvested), "--mask", "bands, count: 2", "--out", tmp_path / "run")
    assert status == 0 and "already trained" in err


def test_a_checkpoint_that_does_not_fit_is_named(harvested: Path, run: Run, tmp_path: Path) -> None:
    shutil.copytree(harvested / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "sae")
    settings = {name: value for name, value in read_yaml(tmp_path / "run/config.yaml").items() if name != "plugins"}
    step = {"step": 2, "tokens": 128, "tokens_at_last_revival": 0}
    RunFolder(tmp_path / "run", settings).save_checkpoint({"sae.W_enc": torch.zeros(3)}, step)
    status, _, err = run(*train(harvested), "--mask", "bands, count: 2", "--out", tmp_path / "run")
    assert status == 2 and f"{tmp_path / 'run/checkpoints/step-000000002'} does not fit" in " ".join(err.split())


@pytest.mark.parametrize("text", ["[]", "{}", "3", "null", "[" * 200_000])
def test_a_record_of_a_failure_that_holds_something_else(text: str, tmp_path: Path) -> None:
    (tmp_path / "failure.json").write_text(text)
    try:
        assert isinstance(read_failure(tmp_path).error, str)
    except DamagedError as error:
        assert "failure.json" in str(error)
