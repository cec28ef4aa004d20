"""Training on the fly: every token once in an epoch, a buffer of activations on disk, the same bytes after a resume."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from scansion.activations import ActivationStore, HarvestConfig, OnTheFlyStream, TextStore
from scansion.activations.buffer import CHUNKS, Buffer
from scansion.activations.on_the_fly import open_training_store
from scansion.corpus import Contexts, CorpusConfig
from scansion.errors import BusyError, ConfigError, StoreError
from scansion.lm import LanguageModel
from scansion.pipeline import HarvestSpec, build_stores
from scansion.sae import TopKConfig, load_sae
from scansion.training import TrainingConfig, TrainingRun, check_runs, train
from tests.conftest import make_lm, make_plan, random_contexts

LENGTH, N_CONTEXTS = 8, 96


def text_store(
    folder: Path, lm, n_contexts: int = N_CONTEXTS, buffer: int = 256, shortest: int | None = None
) -> TextStore:
    plan = make_plan(
        folder, random_contexts(n_contexts, LENGTH, shortest=shortest), on_the_fly=True, buffer_tokens=buffer
    )
    return TextStore.write(plan, lm if lm is never else lambda: lm)


def stream_of(text: TextStore, first: ActivationStore, per_position: int = 2, **how) -> OnTheFlyStream:
    return OnTheFlyStream(text, first, per_position, seed=0, **how)


def rows(acts: torch.Tensor) -> Counter:
    return Counter(tuple(row) for row in acts.tolist())


@pytest.fixture
def text(tmp_path: Path, lm) -> TextStore:
    return text_store(tmp_path / "text", lm)


def test_an_epoch_shows_every_token_once_at_its_position(text: TextStore, make_store) -> None:
    assert text.n_chunks == 12
    stored = make_store(random_contexts(N_CONTEXTS, LENGTH))
    with text.training() as first:
        stream = stream_of(text, first)
        n_steps = stream.steps_per_window * text.n_chunks
        epochs = [[stream.batch(step) for step in range(e * n_steps, (e + 1) * n_steps)] for e in range(2)]
        acts = torch.cat([text.chunk(number).contexts(0, N_CONTEXTS).x for number in range(text.n_chunks)], dim=1)
    for epoch in epochs:
        seen = torch.cat([batch.x for batch in epoch], dim=1)
        for row, position in zip(seen, epoch[0].positions, strict=True):
            assert rows(row) == rows(acts[position]) and len(row) == N_CONTEXTS
    # Batches of the LM are others than in a store, so that its activations may differ in the last bits.
    whole = stored.contexts(0, N_CONTEXTS).x
    assert all(torch.cdist(here, there).min(dim=1).values.max() < 1e-4 for here, there in zip(acts, whole, strict=True))
    assert not torch.equal(epochs[0][0].x, epochs[1][0].x)


def test_a_batch_mixes_all_chunks_of_the_buffer_and_no_others(text: TextStore, tmp_path: Path, lm) -> None:
    with text.training() as first:
        stream = stream_of(text, first)
        window = torch.cat([batch.x for batch in stream.batches(0, stream.steps_per_window)], dim=1)
        chunks = [text.chunk(number).contexts(0, 1000).x for number in range(CHUNKS + 1)]
    at = [rows(chunk[-1]) for chunk in chunks]
    found = [sum((rows(window[-1]) & chunk).values()) for chunk in at]
    assert found == [2, 2, 2, 2, 0]


def test_batches_do_not_depend_on_where_training_started(text: TextStore) -> None:
    with text.training() as first:
        stream = stream_of(text, first)
        reference = [batch.x for batch in stream.batches(0, 60)]
        for ahead in (True, False):
            again = stream_of(text, first).batches(23, 60, ahead)
            assert all(torch.equal(batch.x, x) for batch, x in zip(again, reference[23:], strict=True))


def test_no_more_than_a_buffer_and_the_first_chunk_is_on_disk(text: TextStore) -> None:
    chunks = text.folder / "chunks"
    with text.training() as first:
        stream = stream_of(text, first)
        for step in range(3 * text.n_chunks):
            stream.batch(step)
            assert len(list(chunks.iterdir())) <= CHUNKS + 1
    assert not chunks.exists()


def test_short_contexts_give_every_position_its_share(tmp_path: Path, lm) -> None:
    text = text_store(tmp_path / "short", lm, shortest=4)
    with text.training() as first:
        stream = stream_of(text, first)
        for batch in stream.batches(0, 40):
            assert batch.x.shape == (LENGTH - 1, 2, text.d_in) and bool(batch.x.norm(dim=2).gt(0).all())


def test_fewer_contexts_than_chunks_in_a_buffer(tmp_path: Path, lm) -> None:
    text = text_store(tmp_path / "few", lm, n_contexts=10, buffer=10_000)
    assert text.n_chunks == 1
    with text.training() as first:
        stream = stream_of(text, first, per_position=5)
        seen = torch.cat([stream.batch(step).x for step in range(2)], dim=1)
        assert len(rows(seen[-1])) == 10  # early in a context, contexts are alike


def test_the_token_before_is_that_of_the_same_context(text: TextStore) -> None:
    with text.training() as first:
        batch = stream_of(text, first, n_previous=1).batch(30)
        assert batch.previous
        known = {}
        for number in range(text.n_chunks):
            acts = text.chunk(number).contexts(0, 1000).x
            known |= {
                (p, tuple(acts[p, c].tolist())): acts[p - 1, c] for p in range(1, LENGTH) for c in range(acts.shape[1])
            }
        for row, before, position in zip(batch.x[1:], batch.previous[0], batch.positions[1:].tolist(), strict=True):
            for token, previous in zip(row, before, strict=True):
                assert torch.equal(known[position, tuple(token.tolist())], previous)


def training_run(folder: Path, **settings) -> TrainingRun:
    how = {"tokens": 700, "batch_tokens": 14, "log_every": 10} | settings
    return TrainingRun.at(folder, TopKConfig(d_sae=32, k=4), TrainingConfig.model_validate(how))


class Stopped(Exception):
    pass


def test_a_stopped_run_resumes_to_the_same_bytes(tmp_path: Path, lm) -> None:
    whole, cut = (text_store(tmp_path / name, lm) for name in ("whole", "cut"))
    train([training_run(tmp_path / "a/sae_run")], whole)

    def stop(run, line) -> None:
        if line["step"] == 30:
            raise Stopped

    run = training_run(tmp_path / "b/sae_run", checkpoint_seconds=0)
    with pytest.raises(Stopped):
        train([run], cut, stop)
    assert (cut.folder / "chunks").exists()
    train([run], TextStore(cut.folder, lambda: lm))
    files = [tmp_path / side / "sae_run/sae/sae_weights.safetensors" for side in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not (cut.folder / "chunks").exists()


def test_a_run_on_the_fly_is_not_one_on_stored_activations(text: TextStore, make_store, tmp_path: Path) -> None:
    run = training_run(tmp_path / "run")
    train([run], text)
    assert load_sae(run.folder / "sae")[1].store_key == text.key
    assert text.key != text.identity.key


def test_what_cannot_be(text: TextStore, tmp_path: Path, lm) -> None:
    with pytest.raises(StoreError, match="made while training"):
        ActivationStore(text.folder)
    with pytest.raises(StoreError, match="other text"):
        text_store(text.folder, lm, buffer=512)
    assert (
        TextStore.write(
            make_plan(text.folder, random_contexts(N_CONTEXTS, LENGTH), on_the_fly=True, buffer_tokens=256), lambda: lm
        ).key
        == text.key
    )
    assert isinstance(open_training_store(text.folder), TextStore)
    with text.training() as first:
        with pytest.raises(ConfigError, match="too small for batches of 140"):
            stream_of(text, first, per_position=20)
        with pytest.raises(BusyError, match="training on the fly"), TextStore(text.folder, lambda: lm).training():
            pass


def test_a_folder_holds_text_or_a_store(lm_folder: Path, documents: Path, tmp_path: Path) -> None:
    def build(at: str, **layout: bool) -> None:
        corpus = CorpusConfig(
            source=str(documents), context_length=16, max_tokens=320, held_out_tokens=160, held_out_fraction=0.25
        )
        source = HarvestSpec(str(lm_folder), "layers.1", corpus, HarvestConfig(**layout), device="cpu")
        build_stores(source, tmp_path / at)

    build("text", on_the_fly=True)
    with pytest.raises(StoreError, match="holds text for training on the fly; choose another folder"):
        build("text")
    build("store")
    with pytest.raises(StoreError, match="holds activations; choose another folder"):
        build("store", on_the_fly=True)


def test_another_model_under_the_same_name_is_refused(text: TextStore, monkeypatch: pytest.MonkeyPatch) -> None:
    other = make_lm()
    monkeypatch.setattr("scansion.activations.on_the_fly.load_language_model", lambda *_, **__: other)
    object.__setattr__(other.facts, "revision", "another")
    with pytest.raises(StoreError, match="has changed since"), TextStore(text.folder).training():
        pass


def never() -> LanguageModel:
    raise AssertionError("the language model was loaded")


def test_a_buffer_that_is_too_small_is_refused_before_the_first_chunk(tmp_path: Path) -> None:
    text = text_store(tmp_path / "text", never)
    assert text.largest_batch == 8 * (LENGTH - 1)
    too_large = training_run(tmp_path / "large", batch_tokens=9 * (LENGTH - 1))
    for refused in (lambda: check_runs([too_large], text), lambda: train([too_large], text)):
        with pytest.raises(ConfigError, match=r"too small for batches of 63: .* give --batch-tokens 56 or less"):
            refused()
    assert not too_large.folder.exists() and not (text.folder / "chunks").exists()
    check_runs([training_run(tmp_path / "fits", batch_tokens=text.largest_batch)], text)


def test_a_buffer_that_does_not_fit_in_memory_is_refused_before_the_first_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("scansion.activations.buffer.home_of", lambda *_: None)
    text = text_store(tmp_path / "text", never)  # another machine may train on it
    assert "takes more than half of the free memory" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="takes more than half of the free memory"):
        train([training_run(tmp_path / "run")], text)
    assert not (text.folder / "chunks").exists()


def short_from(first: int) -> Contexts:
    """Contexts of which those read before number ``first`` are full, and the others have two tokens."""
    contexts = random_contexts(N_CONTEXTS, LENGTH)
    valid = torch.ones_like(contexts.valid)
    valid[torch.randperm(N_CONTEXTS, generator=torch.Generator().manual_seed(0))[first:], 2:] = False
    return replace(contexts, valid=valid)


def test_text_that_is_mostly_padding_is_refused_at_harvest(tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "text", short_from(1), on_the_fly=True, buffer_tokens=1)
    with pytest.raises(ConfigError, match="too small for any batch of this text"):
        TextStore.write(plan, never)
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("seed", range(12))
def test_the_check_refuses_exactly_what_training_cannot_draw(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, LENGTH + 1, (30,), generator=generator)
    buffer = Buffer(LENGTH * CHUNKS * (1 + seed % 3), torch.arange(LENGTH) < lengths[:, None])
    positions = buffer.positions(use_position_0=False)
    chunks = [buffer.valid[start:stop] for start, stop in zip(buffer.edges, buffer.edges[1:], strict=False)]

    def drawn(window: int, position: int) -> int:
        held = [chunks[(window + later) % buffer.n_chunks][:, position] for later in range(buffer.n_held)]
        return sum(len(valid.nonzero()[later :: buffer.n_held]) for later, valid in enumerate(held))

    fits = [all(drawn(window, int(position)) for position in positions) for window in range(buffer.n_chunks)]
    for n_windows in range(1, buffer.n_chunks + 3):
        if all(fits[:n_windows]):
            buffer.check_positions(positions, n_windows)
        else:
            with pytest.raises(StoreError, match="no token at position"):
                buffer.check_positions(positions, n_windows)


def test_a_position_that_will_have_no_token_is_named_before_the_first_chunk(tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "text", short_from(N_CONTEXTS // 2), on_the_fly=True, buffer_tokens=64)
    text = TextStore.write(plan, never)
    with pytest.raises(StoreError, match="no token at position 2 is in the buffer"):
        train([training_run(tmp_path / "run", tokens=700, batch_tokens=7)], text)
    assert not (text.folder / "chunks").exists()
    check_runs([training_run(tmp_path / "shorter", tokens=70, batch_tokens=7)], text)  # ends before it gets there
