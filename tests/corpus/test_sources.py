"""The same documents come out of every kind of source, and what is wrong with one is said early, on one line."""

from __future__ import annotations

import gzip
import json
import sys
import types
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from scansion.corpus import CorpusConfig, check_source, read_documents
from scansion.errors import AssetError, CorpusError


def read(source: str, **settings) -> list[str]:
    config = CorpusConfig(source=source, **settings)
    check_source(config)
    return list(read_documents(config))


def write_parquet(path: Path, **columns: list) -> None:
    pq.write_table(pa.table(columns), path, row_group_size=7)


def test_every_kind_of_file_gives_the_same_documents(tmp_path, documents, jsonl) -> None:
    for i, text in enumerate(documents):
        (tmp_path / f"{i:02}.txt").write_bytes(text.encode("utf-8"))
    write_parquet(tmp_path / "corpus.parquet", text=documents, other=list(range(len(documents))))
    jsonl(documents)
    with gzip.open(tmp_path / "corpus.json.gz", "wb") as file:
        file.write((tmp_path / "corpus.jsonl").read_bytes())
    for name in ("*.txt", "corpus.jsonl", "corpus.json.gz", "corpus.parquet"):
        assert read(str(tmp_path / name)) == documents, name


def test_files_are_read_in_the_order_of_their_names(tmp_path, jsonl) -> None:
    for name in ("b", "c", "a"):
        jsonl([name], f"{name}.jsonl")
    assert read(str(tmp_path / "*.jsonl")) == ["a", "b", "c"]
    assert read(str(tmp_path / "*.jsonl"), max_documents=2) == ["a", "b"]


def test_blank_and_null_documents_are_left_out(tmp_path, jsonl) -> None:
    assert read(jsonl(["", "one", " \n\t", "two"])) == ["one", "two"]
    write_parquet(tmp_path / "corpus.parquet", text=[None, "one", "", "two"])
    assert read(str(tmp_path / "corpus.parquet")) == ["one", "two"]


def test_a_name_with_brackets_is_a_file_before_it_is_a_pattern(jsonl) -> None:
    assert read(jsonl(["one"], "corpus[1].jsonl")) == ["one"]


def test_a_lone_surrogate_does_not_stop_the_reading(jsonl) -> None:
    assert read(jsonl(["a\ud800b"])) == ["a?b"]


def test_another_text_field(tmp_path) -> None:
    (tmp_path / "corpus.jsonl").write_text('{"body": "one"}\n\n{"body": "two"}')
    assert read(str(tmp_path / "corpus.jsonl"), text_field="body") == ["one", "two"]


def test_reading_is_lazy(tmp_path) -> None:
    (tmp_path / "corpus.jsonl").write_text('{"text": "one"}\nnot JSON\n')
    config = CorpusConfig(source=str(tmp_path / "corpus.jsonl"))
    check_source(config)
    documents = read_documents(config)
    assert next(documents) == "one"
    with pytest.raises(CorpusError, match="line 2 is not JSON"):
        next(documents)


@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("a.jsonl", b'{"body": "x"}', "line 1 has no column 'text' but 'body'; name one with --text-column"),
        ("a.jsonl", b"[1]", "line 1 is a list; expected an object"),
        ("a.jsonl", b'{"text": 3}', "the column 'text' holds a int; expected text"),
        ("a.jsonl", b"{", "line 1 is not JSON"),
        ("a.jsonl", b'{"text": "\xff"}', "line 1 is not JSON"),
        ("a.jsonl", b"\n", "holds no text"),
        ("a.json.gz", b"not gzip", "cannot be read"),
        ("a.parquet", b"not parquet", "cannot be read"),
        ("a.txt", b"", "holds no text"),
        ("a.txt", b"good \xff", r"not UTF-8 text \(byte 5\)"),
        ("a.docx", b"x", "unknown kind; expected a name that ends in one of .txt"),
    ],
)
def test_a_bad_file_is_named_on_one_line(tmp_path, name, contents, message) -> None:
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(CorpusError, match=message) as caught:
        check_source(CorpusConfig(source=str(tmp_path / name)))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bad_second_file_is_found_by_the_check(tmp_path, jsonl) -> None:
    jsonl(["one"], "a.jsonl")
    (tmp_path / "b.jsonl").write_text('{"body": "two"}')
    with pytest.raises(CorpusError, match=r"b\.jsonl line 1 has no column"):
        check_source(CorpusConfig(source=str(tmp_path / "*.jsonl")))


def test_a_parquet_column_must_be_there_and_hold_text(tmp_path) -> None:
    write_parquet(tmp_path / "a.parquet", text=[1], body=["x"])
    with pytest.raises(CorpusError, match="holds int64; expected text"):
        check_source(CorpusConfig(source=str(tmp_path / "a.parquet")))
    with pytest.raises(CorpusError, match="no column 'tekst' but 'text', 'body'"):
        check_source(CorpusConfig(source=str(tmp_path / "a.parquet"), text_field="tekst"))


def test_a_source_that_is_nowhere(tmp_path) -> None:
    with pytest.raises(CorpusError, match=r"no file matches 'sotoo'.*sotu"):
        check_source(CorpusConfig(source="sotoo"))
    with pytest.raises(CorpusError, match=r"the folder .* has no file whose name ends in one of \.txt"):
        check_source(CorpusConfig(source=str(tmp_path)))


def test_the_bundled_corpus_must_have_been_fetched(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SCANSION_CACHE", str(tmp_path))
    with pytest.raises(AssetError, match="scansion assets fetch sotu"):
        check_source(CorpusConfig())


def test_the_bundled_corpus_is_its_text_files(tmp_path, monkeypatch) -> None:
    speeches = tmp_path / "sotu" / "data" / "speeches"
    speeches.mkdir(parents=True)
    for year in ("1791", "1790"):
        (speeches / f"{year}.txt").write_text(f"in {year}")
    monkeypatch.setattr("scansion.corpus.folders.asset_path", lambda name: tmp_path)
    assert read("sotu") == ["in 1790", "in 1791"]


@pytest.fixture
def hub(monkeypatch) -> types.SimpleNamespace:
    """Stands for the hub: ``rows`` is what it serves, ``calls`` how it was asked, ``error`` what it raises."""
    state = types.SimpleNamespace(rows=[], calls=[], error=None)

    def load_dataset(*args, **kwargs):
        state.calls.append((args, kwargs))
        if state.error:
            raise state.error
        return iter(state.rows)

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    return state


def test_a_hub_data_set_is_streamed(hub) -> None:
    hub.rows = ({"text": str(i)} for i in range(10**12))
    config = CorpusConfig(source="hub:owner/name", hub_config="en", hub_split="validation", max_documents=3)
    assert list(read_documents(config)) == ["0", "1", "2"]
    assert hub.calls == [(("owner/name", "en"), {"split": "validation", "streaming": True})]


def test_what_is_wrong_with_a_hub_data_set_is_one_line(hub) -> None:
    config = CorpusConfig(source="hub:owner/name", max_documents=3)
    hub.error = ConnectionError("no route\nto host")
    with pytest.raises(CorpusError, match=r"'hub:owner/name' cannot be read \(no route\); check the name.*the network"):
        check_source(config)
    hub.error = None
    with pytest.raises(CorpusError, match="holds no text"):
        check_source(config)
    hub.rows = [{"body": "x"}]
    with pytest.raises(CorpusError, match="row 0 has no column 'text' but 'body'"):
        check_source(config)


def test_a_hub_source_needs_an_end() -> None:
    with pytest.raises(ValidationError, match="needs max_tokens or max_documents"):
        CorpusConfig(source="hub:owner/name")


def test_unknown_settings_are_errors_and_every_setting_is_described() -> None:
    with pytest.raises(ValidationError, match="sauce"):
        CorpusConfig.model_validate({"sauce": "sotu"})
    assert all(field.description for field in CorpusConfig.model_fields.values())
    assert CorpusConfig.model_validate(json.loads(CorpusConfig().model_dump_json())) == CorpusConfig()
