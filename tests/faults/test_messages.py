"""Messages for mistakes of the first hour: each says what was seen and what to do, before anything slow."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from scansion.activations import ActivationStore
from scansion.corpus import CorpusConfig
from scansion.corpus.sources import read_documents
from scansion.errors import CorpusError
from tests.conftest import random_contexts
from tests.interop.hub_server import hub
from tests.interop.test_hub import at_the_hub

Run = Callable[..., tuple[int, str, str]]


def read(path: Path, text_column: str = "text") -> list[str]:
    return list(read_documents(CorpusConfig(source=str(path), text_column=text_column)))


@pytest.mark.parametrize(
    ("name", "separator"), [("a.csv", ";"), ("b.csv", "\t"), ("c.csv", "|"), ("d.tsv", ","), ("e.tsv", ";")]
)
def test_a_table_with_another_separator_is_read(
    name: str, separator: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [("id", "text"), ("1", "one"), ("2", f'"two{separator} or more"')]
    (tmp_path / name).write_text("\n".join(separator.join(row) for row in rows))
    assert read(tmp_path / name) == ["one", f"two{separator} or more"]
    assert f"the columns are separated by {separator!r}" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(CorpusError, match="no column 'body' but 'id', 'text'; name one with --text-column"):
        read(tmp_path / name, text_column="body")


@pytest.mark.parametrize("header", ["text", "text;body", '"text;body"'])
def test_a_table_of_one_column_is_not_taken_apart(header: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"{header}\none; two\n")
    assert read(tmp_path / "a.csv", text_column=header.strip('"')) == ["one; two"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_the_column_that_was_read_is_the_one_named(name: str, tmp_path: Path) -> None:
    row = {"input_ids": [1.5]}
    (tmp_path / name).write_text(json.dumps(row if name == "a.jsonl" else [row]))
    with pytest.raises(CorpusError, match="the column 'input_ids' holds a list of float"):
        read(tmp_path / name)


@pytest.mark.parametrize(
    ("kinds", "said"), [(1, "has 300 documents, all equal;"), (2, "documents, 2 of them different,")]
)
def test_copies_of_one_document_are_no_corpus(kinds: int, said: str, run: Run, lm_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "same.jsonl"
    source.write_text("".join(json.dumps({"text": f"w{3 + i % kinds} w4 w5"}) + "\n" for i in range(300)))
    settings = ("--hook-point", "layers.1", "--context-length", 8, "--held-out-fraction", 1e-9)
    status, _, err = run("harvest", "--model", lm_folder, "--source", source, *settings, "--out", tmp_path / "x")
    assert status == 2 and said in " ".join(err.split())


def test_a_misspelt_plan_is_guessed(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("")
    for command in ("run", "plan"):
        for given, meant in (("positional_maskin", "positional_masking"), ("mien.yaml", "mine.yaml")):
            status, _, err = run("study", command, given)
            assert status == 2 and f"did you mean {meant}?" in err


@pytest.fixture
def trained(run: Run, make_store: Callable[..., ActivationStore], tmp_path: Path) -> tuple[object, ...]:
    """``scansion train`` on a store, up to what differs; an SAE of 24 features is in ``first``."""
    command = (
        "train",
        make_store(random_contexts(60)).folder,
        "--tokens",
        640,
        "--batch-tokens",
        64,
        "--device",
        "cpu",
    )
    assert run(*command, "--d-sae", 24, "--k", 4, "--out", tmp_path / "first")[0] == 0
    return command


def test_training_on_from_an_sae_names_only_what_differs(run: Run, trained: tuple[object, ...], tmp_path: Path) -> None:
    for flag, said in (
        (("--architecture", "relu"), "its architecture is topk, not relu; leave out"),
        (("--d-sae", 48), "its d_sae is 24, not 48; leave out"),
    ):
        status, _, err = run(*trained, "--from", tmp_path / "first", *flag, "--out", tmp_path / "second")
        assert status == 2 and f"cannot be started from: {said}" in " ".join(err.split())
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize("start", ["first", "first/sae", "first/../first"])
def test_training_on_in_the_same_folder_is_refused(
    start: str, run: Run, trained: tuple[object, ...], tmp_path: Path
) -> None:
    status, _, err = run(*trained, "--from", tmp_path / start, "--out", tmp_path / "first")
    assert status == 2 and "holds the SAE that training starts from" in err and "--out" in err


def test_a_page_that_is_no_report_is_found_before_the_model_is_loaded(
    run: Run, trained: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scansion.exploring.load_language_model", lambda *_: pytest.fail("loaded"))
    (tmp_path / "page.html").write_text("a page of something else")
    for page in ("page.html", "nowhere.html", "first"):
        status, _, err = run("look", tmp_path / "first", "w3 w4", "--page", tmp_path / page)
        assert status == 2 and "scansion report STUDY" in " ".join(err.split())


def test_the_hub_without_network_or_token(run: Run, trained: tuple[object, ...], tmp_path: Path) -> None:
    push = ("-m", "scansion", "push", tmp_path / "first", "me/saes")
    fetch = ("-m", "scansion", "import", "hub:me/saes:a", "--store", trained[1], "--out", tmp_path / "x")
    with hub() as server:
        status, said = at_the_hub(server, tmp_path / "hf", *push, token="")
        assert status == 2 and "log in with `hf auth login`, or set HF_TOKEN" in " ".join(said.split())
    for command in (push, fetch):
        status, said = at_the_hub(server, tmp_path / "hf", *command)
        assert status == 2 and f"no connection to {server.address}" in " ".join(said.split())


def test_a_file_in_place_of_a_folder_is_found_before_anything_is_measured(
    run: Run, trained: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scansion.cli.evaluating.evaluate", lambda *_: pytest.fail("evaluated"))
    (tmp_path / "file").write_text("")
    status, _, err = run("eval", tmp_path / "first", "--held-out", trained[1], "--report", tmp_path / "file")
    assert status == 2 and f"{tmp_path / 'file'} is a file; choose another folder" in " ".join(err.split())
