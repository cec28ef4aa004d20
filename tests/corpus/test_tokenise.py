"""From text to contexts: nothing is lost, nothing leaks between the sides, equal text gives equal contexts."""

from __future__ import annotations

import json
import logging
from collections import defaultdict

import pytest
import torch

from scansion.corpus import Contexts, CorpusConfig, CorpusSplits, load_contexts, tokenizer_fingerprint
from scansion.errors import CorpusError
from tests.corpus.conftest import make_tokenizer

LENGTH = 16
LAYOUTS = [("documents", True), ("documents", False), ("packed", True), ("packed", False)]


def load(source: str, tokenizer, **settings) -> CorpusSplits:
    defaults = {"context_length": LENGTH, "held_out_fraction": 0.3, "held_out_tokens": 10**6}
    return load_contexts(CorpusConfig(source=source, **defaults | settings), tokenizer)


def rejoined(contexts: Contexts) -> dict[int, list[int]]:
    """Tokens of each document in the order of their positions in it, without BOS; positions must be gapless."""
    text = contexts.doc_positions >= 0
    pieces = defaultdict(list)
    triples = (contexts.doc_ids[text].tolist(), contexts.doc_positions[text].tolist(), contexts.tokens[text].tolist())
    for doc_id, position, token in zip(*triples, strict=True):
        assert position == len(pieces[doc_id])
        pieces[doc_id].append(token)
    return dict(pieces)


def texts_of(contexts: Contexts, tokenizer) -> set[str]:
    return {tokenizer.decode(ids) for ids in rejoined(contexts).values()}


@pytest.mark.parametrize(("layout", "bos"), LAYOUTS)
def test_every_token_of_every_document_is_there_once(layout, bos, documents, jsonl, tokenizer) -> None:
    splits = load(jsonl(documents), tokenizer, layout=layout, bos=bos)
    found = rejoined(splits.train) | rejoined(splits.held_out)
    expected = tokenizer(documents, add_special_tokens=False, verbose=False)["input_ids"]
    assert [found[i] for i in range(len(documents))] == expected


@pytest.mark.parametrize(("layout", "bos"), LAYOUTS)
def test_the_sides_share_no_document(layout, bos, documents, jsonl, tokenizer) -> None:
    # Every document twice: a copy under another number would be a leak too.
    splits = load(jsonl(documents * 2), tokenizer, layout=layout, bos=bos)
    train, held_out = texts_of(splits.train, tokenizer), texts_of(splits.held_out, tokenizer)
    assert not train & held_out
    assert train | held_out == set(documents)


def test_special_tokens_in_text_are_literal_unless_they_are_wanted(documents, jsonl, tokenizer) -> None:
    names = ("<bos>", "<eos>", "<pad>")
    texts = [f"{text}{names[i % 3]} again" for i, text in enumerate(documents)]
    source = jsonl(texts)
    literal, parsed = (load(source, tokenizer, special_tokens=each) for each in ("literal", "parsed"))
    ids = torch.tensor(tokenizer.convert_tokens_to_ids(list(names)))
    for side in ("train", "held_out"):
        ours, theirs = getattr(literal, side), getattr(parsed, side)
        assert not torch.isin(ours.tokens[ours.doc_positions >= 0], ids).any()
        assert torch.isin(theirs.tokens[theirs.doc_positions >= 0], ids).any()
        # Nothing is lost: the literal tokens spell the text.
        assert texts_of(ours, tokenizer) <= set(texts)
    assert literal.fingerprint != parsed.fingerprint
    # What is named in a config or a store from before this setting stays the same.
    assert "special_tokens" not in CorpusConfig().model_dump(mode="json")


def test_text_without_special_tokens_gives_the_same_contexts_either_way(documents, jsonl, tokenizer) -> None:
    literal, parsed = (load(jsonl(documents), tokenizer, special_tokens=each) for each in ("literal", "parsed"))
    assert literal.fingerprint == parsed.fingerprint
    assert literal.provenance["config"] | {"special_tokens": "parsed"} == parsed.provenance["config"]


def test_the_order_of_documents_does_not_change_their_side(documents, jsonl, tokenizer) -> None:
    forwards = load(jsonl(documents), tokenizer)
    backwards = load(jsonl(documents[::-1]), tokenizer)
    assert texts_of(forwards.held_out, tokenizer) == texts_of(backwards.held_out, tokenizer)


def test_another_seed_is_another_split(documents, jsonl, tokenizer) -> None:
    sides = [texts_of(load(jsonl(documents), tokenizer, seed=seed).held_out, tokenizer) for seed in (0, 1)]
    assert sides[0] != sides[1]


def test_the_share_held_out_is_the_fraction(jsonl, tokenizer) -> None:
    splits = load(jsonl([f"document {i}" for i in range(3000)]), tokenizer, held_out_fraction=0.2)
    # Five standard deviations of a binomial.
    assert abs(len(rejoined(splits.held_out)) / 3000 - 0.2) < 5 * (0.2 * 0.8 / 3000) ** 0.5


@pytest.mark.parametrize(("layout", "bos"), LAYOUTS)
def test_bos_padding_and_positions(layout, bos, documents, jsonl, tokenizer) -> None:
    splits = load(jsonl(documents), tokenizer, layout=layout, bos=bos)
    for part in (splits.train, splits.held_out):
        assert bool(((part.tokens[:, 0] == tokenizer.bos_token_id) == bos).all())
        assert bool(((part.doc_positions[:, 0] == -1) == bos).all())
        assert bool((part.doc_ids[:, 0] == part.doc_ids[:, 1])[part.valid[:, 1]].all()) or not bos
        columns = torch.arange(LENGTH, dtype=torch.int32).expand_as(part.tokens)
        assert part.positions.equal(columns * part.valid)
        padding = ~part.valid
        assert set(part.tokens[padding].tolist()) <= {tokenizer.pad_token_id}
        assert bool((part.doc_ids[padding] == -1).all() and (part.doc_positions[padding] == -1).all())
        # Padding is on the right only: validity never comes back along a row.
        assert bool((part.valid[:, 1:] <= part.valid[:, :-1]).all())
        assert bool(part.valid[:, : 1 + bos].all())


def test_packed_contexts_are_full_but_for_the_last(documents, jsonl, tokenizer) -> None:
    splits = load(jsonl(documents), tokenizer, layout="packed")
    assert bool(splits.train.valid[:-1].all())
    ids = splits.train.doc_ids
    assert bool(((ids[:-1, 0] >= 0) & (ids[:-1, 1:] >= ids[:-1, :-1]).all(1)).all())


def test_documents_contexts_never_mix_documents(documents, jsonl, tokenizer) -> None:
    part = load(jsonl(documents), tokenizer).train
    assert bool((part.doc_ids.where(part.valid, part.doc_ids[:, :1]) == part.doc_ids[:, :1]).all())


def test_truncating_keeps_the_first_context_of_each_document(documents, jsonl, tokenizer) -> None:
    split = load(jsonl(documents), tokenizer).train
    truncated = load(jsonl(documents), tokenizer, long_documents="truncate").train
    first = (split.doc_positions == 0).any(1)
    assert truncated.fingerprint == split[first].fingerprint
    assert len(truncated) < len(split)


@pytest.mark.parametrize("layout", ["documents", "packed"])
@pytest.mark.parametrize("batch", [1, 300, 10**6])
def test_the_batch_size_changes_nothing(layout, batch, documents, jsonl, tokenizer, monkeypatch) -> None:
    settings = {"layout": layout, "max_tokens": 20 * LENGTH, "held_out_tokens": 3 * LENGTH, "pool": 1.5}
    expected = load(jsonl(documents), tokenizer, **settings)
    monkeypatch.setattr("scansion.corpus.tokenise.BATCH_CHARACTERS", batch)
    assert load(jsonl(documents), tokenizer, **settings).fingerprint == expected.fingerprint


def test_first_come_is_the_start_of_everything(documents, jsonl, tokenizer) -> None:
    everything = load(jsonl(documents), tokenizer)
    some = load(jsonl(documents), tokenizer, max_tokens=5 * LENGTH - 3, held_out_tokens=2 * LENGTH)
    for part, whole, needed in (
        (some.train, everything.train, 5 * LENGTH - 3),
        (some.held_out, everything.held_out, 2 * LENGTH),
    ):
        assert part.fingerprint == whole[: len(part)].fingerprint
        assert part[:-1].n_tokens < needed <= part.n_tokens


@pytest.mark.parametrize("pool", [1, 2.5])
@pytest.mark.parametrize(("layout", "bos"), LAYOUTS)
def test_padding_does_not_count_as_tokens_asked_for(layout, bos, pool, documents, jsonl, tokenizer) -> None:
    settings = {"max_tokens": 20 * LENGTH, "held_out_tokens": 5 * LENGTH, "layout": layout, "bos": bos, "pool": pool}
    splits = load(jsonl(documents), tokenizer, **settings)
    for part, needed in ((splits.train, 20 * LENGTH), (splits.held_out, 5 * LENGTH)):
        assert needed <= part.n_tokens < needed + LENGTH
        assert layout == "documents" or len(part) == needed / LENGTH  # nothing is padded


def test_a_held_out_set_from_few_documents_is_said(documents, jsonl, tokenizer, capsys) -> None:
    splits = load(jsonl(documents), tokenizer, held_out_tokens=LENGTH)
    n_documents = len(rejoined(splits.held_out))
    assert n_documents < 5 and f"held-out tokens come from {n_documents} document" in capsys.readouterr().err
    load(jsonl(documents), tokenizer)
    assert "held-out tokens come from" not in capsys.readouterr().err


def test_a_pool_is_drawn_from_at_random_in_order(documents, jsonl, tokenizer) -> None:
    def drawn(seed: int) -> Contexts:
        settings = {"max_tokens": 10 * LENGTH, "pool": 4, "layout": "packed"}
        return load(jsonl(documents), tokenizer, seed=seed, **settings).train

    assert len(drawn(0)) == 10
    assert drawn(0).fingerprint == drawn(0).fingerprint
    ids = drawn(0).doc_ids[:, 0]
    assert bool((ids[1:] >= ids[:-1]).all())
    pool = load(jsonl(documents), tokenizer, max_tokens=40 * LENGTH, layout="packed").train
    rows = {row.tobytes() for row in pool.tokens.numpy()}
    assert {row.tobytes() for row in drawn(0).tokens.numpy()} <= rows
    assert drawn(0).fingerprint != pool[:10].fingerprint


def test_reading_ends_when_both_sides_have_enough(documents, jsonl, tokenizer, monkeypatch) -> None:
    monkeypatch.setattr("scansion.corpus.tokenise.BATCH_CHARACTERS", 1)
    splits = load(jsonl(documents), tokenizer, max_tokens=LENGTH, held_out_tokens=LENGTH)
    assert splits.provenance["documents_read"] < 20


def test_fewer_tokens_than_asked_are_used_and_said(documents, jsonl, tokenizer, capsys) -> None:
    splits = load(jsonl(documents), tokenizer, max_tokens=10**6)
    record = json.loads(json.dumps(splits.provenance))["train"]
    assert record["contexts"] == len(splits.train) < record["contexts_asked"] == 62_500
    assert record["tokens"] == splits.train.n_tokens
    assert "train tokens, fewer than the 1,000,000 requested" in capsys.readouterr().err


def test_the_fingerprint_names_contents_not_their_source(documents, jsonl, tokenizer) -> None:
    one = load(jsonl(documents), tokenizer)
    assert load(jsonl(documents, "other.json"), tokenizer).fingerprint == one.fingerprint
    assert load(jsonl(documents[:-1]), tokenizer).fingerprint != one.fingerprint
    assert load(jsonl(documents), tokenizer, layout="packed").fingerprint != one.fingerprint


def test_one_document_cannot_be_split(jsonl, tokenizer) -> None:
    with pytest.raises(CorpusError, match="the corpus has 1 document; a held-out split by document needs at least 2"):
        load(jsonl(["only one"]), tokenizer)


def test_a_side_left_empty_by_chance_says_what_to_change(documents, jsonl, tokenizer) -> None:
    for fraction, side in ((1e-9, "held-out"), (1 - 1e-9, "train")):
        with pytest.raises(CorpusError, match=f"none of the 60 documents is on the {side} side.*change the fraction"):
            load(jsonl(documents), tokenizer, held_out_fraction=fraction)


def test_long_documents_raise_no_warning(documents, jsonl, caplog) -> None:
    # A tokenizer warns once in its life, so this one must be new.
    with caplog.at_level(logging.WARNING):
        load(jsonl(documents), make_tokenizer(bos_token="<bos>"))
    assert not caplog.records


def test_eos_stands_in_for_a_missing_bos(documents, jsonl) -> None:
    qwen_like = make_tokenizer(eos_token="<eos>")
    assert load(jsonl(documents), qwen_like).train.tokens[:, 0].unique().tolist() == [qwen_like.eos_token_id]


def test_no_bos_at_all_is_an_error_unless_none_is_wanted(documents, jsonl) -> None:
    bare = make_tokenizer()
    with pytest.raises(CorpusError, match=r"neither a BOS nor an EOS.*set bos to false"):
        load(jsonl(documents), bare)
    assert load(jsonl(documents), bare, bos=False).train.n_tokens > 0


def test_the_tokenizer_fingerprint_ignores_how_it_was_called(tokenizer) -> None:
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["a", "longer text"], padding=True, truncation=True, max_length=4)
    assert tokenizer_fingerprint(tokenizer) == before
    assert tokenizer_fingerprint(make_tokenizer(bos_token="<eos>", eos_token="<bos>")) != before
