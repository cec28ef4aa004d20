"""Corpora as people have them: every form, made by the library that owns it, gives the same documents."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
import subprocess
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from scansion.corpus import CorpusConfig, check_source, load_contexts, read_documents
from scansion.corpus.rows import Chat, TokenIds
from scansion.corpus.sources import read_rows
from scansion.errors import CorpusError
from tests.corpus.conftest import make_tokenizer

TEXTS = ["one, two\nthree", 'a "quoted" word', "tab\there", "naïve 日本", "last"]


def separated(path: Path, delimiter: str) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter=delimiter)
        table.writerows([["id", "text"], *enumerate(TEXTS)])


def lines(path: Path) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")


def stream(path: Path) -> None:
    table = pa.table({"text": TEXTS})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def dataset() -> datasets.Dataset:
    return datasets.Dataset.from_dict({"id": list(range(len(TEXTS))), "text": TEXTS})


FORMS = {
    "a.csv": lambda path: separated(path, ","),
    "a.tsv": lambda path: separated(path, "\t"),
    "hf.csv": lambda path: dataset().to_csv(path),
    "a.jsonl": lines,
    "a.ndjson": lines,
    "lines.json": lines,
    "list.json": lambda path: path.write_text(json.dumps([{"text": text} for text in TEXTS], indent=1)),
    "line.json": lambda path: path.write_text(json.dumps([{"text": text} for text in TEXTS])),
    "under.json": lambda path: path.write_text(json.dumps({"data": [{"text": text} for text in TEXTS]}, indent=1)),
    "hf.json": lambda path: dataset().to_json(path),
    "a.parquet": lambda path: pq.write_table(pa.table({"text": TEXTS}), path),
    "hf.parquet": lambda path: dataset().to_parquet(path),
    "stream.arrow": stream,
    "feather.arrow": lambda path: pa.feather.write_feather(pa.table({"text": TEXTS}), str(path)),
}


def read(source: Path, **settings) -> list[str]:
    config = CorpusConfig(source=str(source), **settings)
    check_source(config)
    return list(read_documents(config))


def zst(path: Path) -> Path:
    packed = path.with_name(f"{path.name}.zst")
    if command := shutil.which("zstd"):
        subprocess.run([command, "-q", str(path), "-o", str(packed)], check=True)
    else:
        with pa.output_stream(str(packed), compression="zstd") as file:
            file.write(path.read_bytes())
    return packed


def gz(path: Path) -> Path:
    packed = path.with_name(f"{path.name}.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    return packed


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_table_plain_and_compressed(name: str, tmp_path: Path) -> None:
    FORMS[name](tmp_path / name)
    for path in (tmp_path / name, gz(tmp_path / name), zst(tmp_path / name)):
        assert read(path) == TEXTS, path.name


@pytest.mark.parametrize("ending", ["txt", "md"])
def test_text_plain_and_compressed(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{ending}"
    path.write_bytes("\ufeff# naïve\r\n日本".encode())
    for each in (path, gz(path), zst(path)):
        assert read(each) == ["# naïve\r\n日本"]


def test_a_folder_is_its_files_but_for_those_about_it(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    lines(tmp_path / "data/b.jsonl")
    separated(tmp_path / "data/a.csv", ",")
    gz(tmp_path / "data/b.jsonl").rename(tmp_path / "data/c.jsonl.gz")
    for name in ("README.md", ".hidden.txt", "LICENSE.txt", "dataset_infos.json", "picture.png"):
        (tmp_path / name).write_text("no document")
    assert read(tmp_path) == TEXTS * 3
    assert read(tmp_path / "data/*.jsonl") == TEXTS


def test_data_sets_saved_to_disk(tmp_path: Path) -> None:
    dataset().save_to_disk(tmp_path / "one", num_shards=2)
    assert read(tmp_path / "one") == TEXTS
    # Rows that were chosen or shuffled are saved in their new order.
    dataset().select([3, 1]).save_to_disk(tmp_path / "chosen")
    assert read(tmp_path / "chosen") == [TEXTS[3], TEXTS[1]]
    splits = datasets.DatasetDict(train=dataset(), test=dataset().select([0]))
    splits.save_to_disk(tmp_path / "splits")
    assert read(tmp_path / "splits") == TEXTS
    assert read(tmp_path / "splits", hub_split="test") == TEXTS[:1]
    with pytest.raises(CorpusError, match="no split 'dev' but test, train; set hub_split"):
        read(tmp_path / "splits", hub_split="dev")
    next((tmp_path / "one").glob("data-00001*")).unlink()
    with pytest.raises(CorpusError, match=r"has no data-00001.*arrow.*save the data set again"):
        read(tmp_path / "one")


def test_columns_have_the_names_that_people_give_them(tmp_path: Path, capsys) -> None:
    for column in ("content", "problem", "document"):
        path = tmp_path / f"{column}.parquet"
        pq.write_table(pa.table({"id": [1], column: ["words"]}), path)
        assert read(path) == ["words"]
        assert f"reading the column '{column}'; --text-column names another" in capsys.readouterr().err
    pq.write_table(pa.table({"text": ["text"], "own": ["own"], "content": ["content"]}), tmp_path / "several.parquet")
    assert read(tmp_path / "several.parquet") == ["text"]
    assert read(tmp_path / "several.parquet", text_column="own") == ["own"]
    # The setting's former name, and the one that identities of stores have.
    assert read(tmp_path / "several.parquet", text_field="own") == ["own"]
    assert CorpusConfig(text_column="own").model_dump()["text_field"] == "own"


@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("a.csv", b"", "holds no text"),
        ("a.csv", b"text\none\n\xff\xfe\n", "is not UTF-8 text"),
        ("a.csv", b"id,text\n1,one\n2\n", "line 3 has 1 fields, and the header has 2; quote fields"),
        ("a.csv", b'text\n"never closed\n', "line 2 cannot be read"),
        ("a.tsv", b"id\tbody\n1\tone\n", "has no column 'text' but 'id', 'body'; name one with --text-column"),
        ("a.json", b'[{"text": "one"}, {"text": 2}]', "row 1: the column 'text' holds a int"),
        ("a.json", b'[{"text": "one"},', "is not JSON"),
        ("a.json", b'["one"]', "row 0 is a str; expected an object"),
        ("a.ndjson", b'{"text": "one"}\n{"text"', "line 2 is not JSON"),
        ("a.jsonl", b'{"messages": [{"content": "hi"}]}', "message 0 has the keys 'content'; expected a 'role'"),
        ("a.jsonl", b'{"tokens": ["a", "b"]}', "holds a list of str; expected text, token ids or chat messages"),
        ("a.arrow", b"", "cannot be read"),
        ("a.arrow", b"ARROW1 but no more", "cannot be read"),
        ("a.md", b"\xff\xfeU\x00", r"not UTF-8 text \(byte 0\)"),
        ("a.md.zst", b"not zstandard", "cannot be read"),
        ("a.txt.gz", gzip.compress(b"words" * 1000, mtime=0)[:-9], "cannot be read"),
        ("a.parquet.gz", gzip.compress(b"not parquet", mtime=0), "cannot be read"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line_that_names_it(name, contents, message, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(CorpusError, match=message) as caught:
        read(tmp_path / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["stream.arrow", "feather.arrow", "a.parquet"])
def test_a_damaged_table_never_ends_the_process(form: str, tmp_path: Path) -> None:
    FORMS[form](tmp_path / form)
    whole = (tmp_path / form).read_bytes()
    for place in range(0, len(whole), 7):
        (tmp_path / form).write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        try:
            list(read_rows(CorpusConfig(source=str(tmp_path / form))))
        except CorpusError as error:
            assert form in str(error) and "\n" not in str(error)


# Token ids.


def ids_of(texts: list[str], tokenizer) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("column", ["input_ids", "tokens"])
def test_tokenised_data_sets_give_the_contexts_of_their_text(
    column, documents, jsonl, tokenizer, tmp_path, capsys
) -> None:
    settings = {"context_length": 16, "held_out_fraction": 0.5, "held_out_tokens": 10**6}
    with_bos = [[tokenizer.bos_token_id, *ids] for ids in ids_of(documents, tokenizer)]
    saved = tmp_path / "saved"
    datasets.Dataset.from_dict({column: with_bos}).save_to_disk(saved)
    kinds = {type(row.document) for row in read_rows(CorpusConfig(source=str(saved)))}
    assert kinds == {TokenIds}
    ours = load_contexts(CorpusConfig(source=str(saved), **settings), tokenizer)
    assert "nothing says whose token ids it holds" in capsys.readouterr().err
    theirs = load_contexts(CorpusConfig(source=jsonl(documents), **settings), tokenizer)

    def contents(splits) -> list[list[int]]:
        rows = [part.tokens[part.valid[:, -1]] for part in (splits.train, splits.held_out)]
        return sorted(row.tolist() for part in rows for row in part)

    # The sides are drawn by other bytes; together they hold the same.
    assert contents(ours) == contents(theirs)


def test_ids_of_another_tokenizer_are_refused(documents, tokenizer, tmp_path) -> None:
    saved = tmp_path / "saved"
    datasets.Dataset.from_dict({"tokens": ids_of(documents, tokenizer)}).save_to_disk(saved)
    config = CorpusConfig(source=str(saved), context_length=16)
    ours = make_tokenizer(bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
    ours.name_or_path = "owner/ours"
    for theirs, right in (("owner/ours", True), ("other/ours", True), ("gpt2", False)):
        (saved / "sae_lens.json").write_text(json.dumps({"sae_lens_version": "6.0.0", "tokenizer_name": theirs}))
        if right:
            load_contexts(config, ours)
            continue
        with pytest.raises(CorpusError, match=r"tokenised with gpt2, as its sae_lens\.json says.*owner/ours"):
            load_contexts(config, ours)
    # Of another name, and yet the same.
    tokenizer.save_pretrained(tmp_path / "same")
    (saved / "sae_lens.json").write_text(json.dumps({"tokenizer_name": str(tmp_path / "same")}))
    load_contexts(config, ours)
    (saved / "sae_lens.json").write_text("{")
    with pytest.raises(CorpusError, match="does not say which tokenizer"):
        load_contexts(config, ours)


def test_ids_that_the_tokenizer_lacks_are_refused_by_row(tokenizer, tmp_path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"tokens": [5, 6]}\n{"tokens": [5, 99999]}\n')
    with pytest.raises(CorpusError, match=r"a\.jsonl line 2 has the token id 99999, and the tokenizer has 3.. tokens"):
        load_contexts(CorpusConfig(source=str(path), context_length=8), tokenizer)


# Chats.

TEMPLATE = "{% for message in messages %}<eos>{{ message['role'] }}\n{{ message['content'] | trim }}<pad>\n{% endfor %}"
CHATS = [
    [
        {"role": "system", "content": f"be strong {i}"},
        {"role": "user", "content": "is the state free" + " so" * i},
        {"role": "assistant", "content": " the people say <eos> so "},
    ]
    for i in range(40)
]
# Documents short enough for one context.
SETTINGS = {"context_length": 256, "held_out_fraction": 0.5, "held_out_tokens": 10**6}


@pytest.fixture
def chat_tokenizer():
    tokenizer = make_tokenizer(bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def test_chats_keep_the_turn_and_the_position_in_it(chat_tokenizer, tmp_path) -> None:
    datasets.Dataset.from_dict({"messages": CHATS}).to_parquet(tmp_path / "a.parquet")
    contexts = load_contexts(CorpusConfig(source=str(tmp_path / "a.parquet"), **SETTINGS), chat_tokenizer).train
    assert contexts.turns is not None and contexts.positions_in_turn is not None
    for row in range(len(contexts)):
        chat = CHATS[int(contexts.doc_ids[row, 0])]
        assert contexts.turns[row, 0] == -1 == contexts.positions_in_turn[row, 0]  # BOS
        for turn, message in enumerate(chat):
            here = contexts.turns[row] == turn
            text = chat_tokenizer.decode(contexts.tokens[row][here])
            assert text == f"<eos>{message['role']}\n{message['content'].strip()}<pad>\n"
            assert contexts.positions_in_turn[row][here].tolist() == list(range(int(here.sum())))
            # The template's own are special tokens, one that a message spells out is text.
            assert contexts.tokens[row][here].eq(chat_tokenizer.eos_token_id).sum() == 1
        assert bool((contexts.turns[row] == -1)[~contexts.valid[row]].all())


def test_a_chat_that_begins_with_bos_has_one(chat_tokenizer, tmp_path) -> None:
    lines = "".join(json.dumps({"conversations": [{"from": "human", "value": f"say {i}"}]}) + "\n" for i in range(20))
    (tmp_path / "a.jsonl").write_text(lines)
    config = CorpusConfig(source=str(tmp_path / "a.jsonl"), **SETTINGS)
    assert {type(row.document) for row in read_rows(config)} == {Chat}
    chat_tokenizer.chat_template = "<bos>" + TEMPLATE
    train = load_contexts(config, chat_tokenizer).train
    assert train.tokens.eq(chat_tokenizer.bos_token_id).sum(dim=1).eq(1).all()
    assert "user\nsay" in chat_tokenizer.decode(train.tokens[0])


def test_chats_that_cannot_be_read_are_refused_by_row(chat_tokenizer, tmp_path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in CHATS))
    config = CorpusConfig(source=str(tmp_path / "a.jsonl"), **SETTINGS)
    chat_tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(CorpusError, match=r"a\.jsonl line 1: .*refuses these messages \(roles must alternate\)"):
        load_contexts(config, chat_tokenizer)
    chat_tokenizer.chat_template = None
    with pytest.raises(
        CorpusError, match=r"a\.jsonl line 1 holds chat messages, and the tokenizer has no chat template"
    ):
        load_contexts(config, chat_tokenizer)


def test_templates_that_want_pairs_of_turns(chat_tokenizer, tmp_path) -> None:
    chat_tokenizer.chat_template = "{% if messages | length < 3 %}{{ raise_exception('pairs') }}{% endif %}" + TEMPLATE
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in CHATS))
    train = load_contexts(CorpusConfig(source=str(tmp_path / "a.jsonl"), **SETTINGS), chat_tokenizer).train
    for turn, message in enumerate(CHATS[int(train.doc_ids[0, 0])]):
        assert message["content"].strip() in chat_tokenizer.decode(train.tokens[0][train.turns[0] == turn])


@pytest.mark.parametrize("layout", ["packed", "documents"])
def test_turns_go_on_in_the_next_context(layout: str, chat_tokenizer, tmp_path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in CHATS))
    settings = SETTINGS | {"context_length": 16, "layout": layout}
    train = load_contexts(CorpusConfig(source=str(tmp_path / "a.jsonl"), **settings), chat_tokenizer).train
    for doc_id in train.doc_ids[train.valid].unique().tolist():
        here = (train.doc_ids == doc_id) & (train.doc_positions >= 0)
        turns, places = train.turns[here].tolist(), train.positions_in_turn[here].tolist()
        assert turns == sorted(turns) and set(turns) == {0, 1, 2}
        for turn in range(3):
            assert [place for each, place in zip(turns, places, strict=True) if each == turn] == list(
                range(turns.count(turn))
            )
    assert bool((train.turns[train.doc_positions < 0] == -1).all())
