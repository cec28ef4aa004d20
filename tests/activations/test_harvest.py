"""A harvest keeps every activation at its position, survives being killed, and refuses what does not fit."""

from __future__ import annotations

import multiprocessing
import os
import time
from dataclasses import replace
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest
import torch

from scansion.activations import ActivationStore, harvest, harvesting, parts
from scansion.activations.parts import Parts
from scansion.activations.shard import ShardBuffer
from scansion.errors import DamagedError, ScansionError, StoreError
from scansion.lm import HookPoint, activations_at
from tests.conftest import make_lm, make_plan, random_contexts
from tests.killing import kill_after


@pytest.mark.parametrize("padding", ["right", "left"])
def test_the_store_holds_what_the_lm_computes_at_each_position(make_store, lm, padding: str) -> None:
    contexts = random_contexts(20, shortest=4)
    store = make_store(contexts if padding == "right" else contexts.left_padded(), shard_bytes=2_000, lm_batch_size=3)
    for index in range(20):
        one = contexts[index : index + 1]
        expected = activations_at(lm, HookPoint(1), one)[0]
        found = store.contexts(index, index + 1).x[:, 0]
        valid = one.valid[0]
        torch.testing.assert_close(found[valid], expected[valid], rtol=1e-4, atol=1e-5)
        assert torch.equal(store.valid[:, index], valid)
        assert torch.equal(store.tokens[valid, index], one.tokens[0, valid])
        assert torch.equal(store.doc_positions[valid, index], one.doc_positions[0, valid])


def test_statistics_are_those_of_the_stored_activations(make_store) -> None:
    store = make_store(random_contexts(30, shortest=4), shard_bytes=2_000, dtype="bfloat16")
    acts = store.contexts(0, 30).x.double()
    for position in range(store.n_positions):
        here = acts[position, store.valid[position]]
        assert store.count[position] == len(here)
        torch.testing.assert_close(store.mean_norm[position], here.norm(dim=1).mean())
        torch.testing.assert_close(store.mean[position], here.mean(dim=0))


def test_a_second_harvest_reuses_the_store_without_loading_the_lm(tmp_path: Path, lm, capsys) -> None:
    plan = make_plan(tmp_path / "s", random_contexts(10))
    harvest(plan, lambda: lm)

    def never() -> None:
        raise AssertionError("the LM was loaded")

    store = harvest(plan, never)
    assert store.n_contexts == 10
    assert "reusing 80 activations" in capsys.readouterr().err


def test_another_harvest_in_the_same_folder_is_refused_and_says_what_differs(tmp_path: Path, lm) -> None:
    harvest(make_plan(tmp_path / "s", random_contexts(10)), lambda: lm)
    with pytest.raises(StoreError, match="n_contexts is 10 there and 11 here"):
        harvest(make_plan(tmp_path / "s", random_contexts(11)), lambda: lm)


def test_only_the_settings_that_differ_are_said(tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "s", random_contexts(10)).identity
    one, other = (plan.model_copy(update={"corpus": {"config": {"seed": seed, "bos": True}}}) for seed in (0, 5))
    assert one.differences(other) == ["corpus.config.seed is 0 there and 5 here"]


def _harvest_after_a_while(started: Event, folder: Path) -> None:
    def load():
        started.set()
        time.sleep(3)
        return make_lm()

    harvest(make_plan(folder, random_contexts(10)), load)


def test_of_two_harvests_at_once_the_second_waits_and_takes_what_the_first_made(tmp_path: Path, capsys) -> None:
    context = multiprocessing.get_context("forkserver")
    started = context.Event()
    first = context.Process(target=_harvest_after_a_while, args=(started, tmp_path / "s"))
    first.start()
    assert started.wait(60)

    def never():
        raise AssertionError("harvested twice")

    assert harvest(make_plan(tmp_path / "s", random_contexts(10)), never).n_contexts == 10
    assert f"process {first.pid} on " in capsys.readouterr().err
    first.join()
    assert first.exitcode == 0


def test_a_full_disk_and_a_forbidden_folder_are_found_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(tmp_path / "s", random_contexts(10))
    monkeypatch.setattr("shutil.disk_usage", lambda _: os.statvfs_result((0,) * 10) and type("U", (), {"free": 100})())
    with pytest.raises(ScansionError, match=r"activation store needs .* where 100 B are free"):
        plan.check()
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ScansionError, match="cannot write in"):
        make_plan(blocked / "s", random_contexts(10)).check()


def test_an_unfinished_and_a_missing_store_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no such folder"):
        ActivationStore(tmp_path / "nowhere")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "plan.json").write_text("{}")
    with pytest.raises(StoreError, match="unfinished store; run the same harvest again"):
        ActivationStore(tmp_path / "begun")


def test_damage_is_found(make_store) -> None:
    store = make_store(random_contexts(10))
    store.verify()
    shard = next(store.folder.glob("shard-*"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DamagedError, match="damaged"):
        ActivationStore(store.folder).verify()


@pytest.mark.parametrize("kept", [0, 4, 200, -1])
def test_a_shard_that_was_cut_short_is_named(make_store, kept: int) -> None:
    store = make_store(random_contexts(10))
    shard = next(store.folder.glob("shard-*"))
    shard.write_bytes(shard.read_bytes()[:kept])
    with pytest.raises(DamagedError, match=r"shard-00000\.safetensors is damaged.*doctor"):
        _ = ActivationStore(store.folder).count


def test_activations_that_overflow_the_stored_type_are_refused(make_store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "scansion.activations.harvesting.activations_at_each",
        lambda lm, hooks, batch: [torch.full((len(batch), 8, 16), 1e6)],
    )
    with pytest.raises(StoreError, match="not all finite in float16"):
        make_store(random_contexts(4), dtype="float16")


@pytest.mark.parametrize("padding", ["none", "right", "left"])
def test_batches_by_length_change_activations_by_rounding_alone(lm, padding: str) -> None:
    """The way of a GPU, carried out on the CPU."""
    contexts = random_contexts(20, shortest=None if padding == "none" else 3)
    contexts = contexts.left_padded() if padding == "left" else contexts
    plain, sorted_ = (ShardBuffer.empty(contexts.length, 20, 16, "float32") for _ in range(2))
    for buffer, by_length in ((plain, False), (sorted_, True)):
        harvesting._fill_shards({HookPoint(1): buffer}, contexts, lm, 3, by_length, lambda _: None)
    torch.testing.assert_close(sorted_.acts, plain.acts, rtol=1e-4, atol=1e-5)
    for name in ("tokens", "valid", "doc_ids", "doc_positions"):
        assert torch.equal(getattr(sorted_, name), getattr(plain, name))


def test_shards_written_in_threads_are_the_same(tmp_path: Path, lm, monkeypatch: pytest.MonkeyPatch) -> None:
    contexts = random_contexts(80, shortest=4)
    plain = harvest(make_plan(tmp_path / "plain", contexts, shard_bytes=4_000), lambda: lm)
    writer = harvesting._Writer
    monkeypatch.setattr(harvesting, "_Writer", lambda in_threads: writer(in_threads=True))
    threaded = harvest(make_plan(tmp_path / "threaded", contexts, shard_bytes=4_000), lambda: lm)
    assert len(plain.manifest.shards) > 3 and plain.manifest == threaded.manifest
    assert all(
        (plain.folder / name).read_bytes() == (threaded.folder / name).read_bytes() for name in plain.manifest.shards
    )
    monkeypatch.setattr(
        harvesting,
        "activations_at_each",
        lambda lm, hooks, batch: [torch.full((len(batch), batch.tokens.shape[1], 16), 1e6)],
    )
    with pytest.raises(StoreError, match="not all finite in float16"):
        harvest(make_plan(tmp_path / "inf", contexts, dtype="float16", shard_bytes=4_000), lambda: lm)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("shortest", [None, 3])
def test_a_gpu_harvests_the_same_to_rounding(tmp_path: Path, shortest: int | None) -> None:
    contexts = random_contexts(200, shortest=shortest)
    cpu = harvest(make_plan(tmp_path / "cpu", contexts, shard_bytes=4_000), make_lm)
    lm = make_lm()
    lm.model.to("cuda")
    plan = make_plan(tmp_path / "gpu", contexts, shard_bytes=4_000)
    gpu = harvest(plan, lambda: lm)
    gpu.verify()
    torch.testing.assert_close(gpu.contexts(0, 200).x, cpu.contexts(0, 200).x, rtol=1e-3, atol=1e-4)
    assert torch.equal(gpu.valid, cpu.valid) and torch.equal(gpu.tokens, cpu.tokens)
    for name in ("mean_norm", "mean_square", "mean"):
        torch.testing.assert_close(getattr(gpu, name), getattr(cpu, name), rtol=1e-3, atol=1e-4)
    again = harvest(make_plan(tmp_path / "again", contexts, shard_bytes=4_000), lambda: lm)
    assert again.manifest.shards == gpu.manifest.shards


def _harvest_one_shard_slowly(started: Event, folder: Path) -> None:
    parts.SECONDS = 0.0
    _harvest_slowly(started, folder, 10**6)


def test_a_harvest_killed_within_a_shard_ends_with_the_same_bytes(tmp_path: Path, lm) -> None:
    plan = make_plan(tmp_path / "whole", random_contexts(80, shortest=4), shard_bytes=10**6, lm_batch_size=2)
    harvest(plan, lambda: lm)
    # Its 40 batches take 0.8 seconds at least: no process could compute them all without those that were killed.
    killed = kill_after((0.4, 0.4, 0.4, 0.4), _harvest_one_shard_slowly, tmp_path / "killed")
    assert killed >= 2, "it was too quick"
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


def _harvest_slowly(started: Event, folder: Path, shard_bytes: int = 4_000) -> None:
    plain = harvesting.activations_at_each

    def slowed(*arguments: Any) -> list[torch.Tensor]:
        time.sleep(0.02)
        return plain(*arguments)

    harvesting.activations_at_each = slowed
    lm = make_lm()
    started.set()
    harvest(make_plan(folder, random_contexts(80, shortest=4), shard_bytes=shard_bytes, lm_batch_size=2), lambda: lm)


def test_a_harvest_killed_again_and_again_ends_with_the_same_bytes(tmp_path: Path, lm) -> None:
    plan = make_plan(tmp_path / "whole", random_contexts(80, shortest=4), shard_bytes=4_000, lm_batch_size=2)
    harvest(plan, lambda: lm)
    assert kill_after((0.05, 0.13, 0.21, 0.29, 0.35), _harvest_slowly, tmp_path / "killed") >= 3, "it was too quick"
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert "manifest.json" in whole and len(whole) > 10
    assert {path.name: path.read_bytes() for path in (tmp_path / "killed").iterdir()} == whole


def test_the_store_of_a_chat_has_its_turns(tmp_path, lm) -> None:
    plain = random_contexts(6, shortest=5)
    turns = plain.positions.div(3, rounding_mode="floor").where(plain.valid, -1)
    in_turn = (plain.positions % 3).where(plain.valid, -1)
    chats = replace(plain, turns=turns, positions_in_turn=in_turn)
    assert chats.fingerprint != plain.fingerprint
    plan = make_plan(tmp_path / "chats", chats, shard_bytes=1)
    plan = replace(plan, identity=plan.identity.model_copy(update={"turns": True}))
    store = harvest(plan, lambda: lm)
    assert store.turns.equal(turns.T) and store.positions_in_turn.equal(in_turn.T)
    without = harvest(make_plan(tmp_path / "plain", plain, shard_bytes=1), lambda: lm)
    assert without.turns is None and without.positions_in_turn is None
    assert "turns" not in without.identity.model_dump()
    assert without.contexts(0, 6).x.equal(store.contexts(0, 6).x)


class Interrupted(Exception):
    """Stands for a power cut."""


def interrupt_after(n_batches: int, monkeypatch: pytest.MonkeyPatch, counts: list[int]) -> None:
    """Raise in the LM's batch number ``n_batches``; count batches in ``counts``."""
    plain = harvesting.activations_at_each

    def run(lm, hook_points, contexts):
        if len(counts) == n_batches:
            raise Interrupted
        counts.append(len(contexts))
        return plain(lm, hook_points, contexts)

    monkeypatch.setattr(harvesting, "activations_at_each", run)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_interruption_loses_one_part_of_a_shard(tmp_path: Path, lm, monkeypatch: pytest.MonkeyPatch) -> None:
    contexts = random_contexts(24, shortest=3)
    harvest(make_plan(tmp_path / "whole", contexts, lm_batch_size=2), lambda: lm)  # one shard of 12 batches
    monkeypatch.setattr("scansion.activations.parts.SECONDS", 0.0)
    plan = make_plan(tmp_path / "cut", contexts, lm_batch_size=2)
    for stop in (5, 3):
        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            interrupt_after(stop, patch, [])
            harvest(plan, lambda: lm)
    assert sorted(path.name for path in (tmp_path / "cut").glob("part-*"))[-1] == "part-00000-000007-000008.safetensors"
    with monkeypatch.context() as patch:
        interrupt_after(100, patch, counts := [])
        harvest(plan, lambda: lm)
    assert len(counts) == 12 - 8
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["bit", "cut", "swapped", "gone"])
def test_a_damaged_part_is_computed_again(
    damage: str, tmp_path: Path, lm, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    contexts = random_contexts(24, shortest=3)
    harvest(make_plan(tmp_path / "whole", contexts, lm_batch_size=2), lambda: lm)
    monkeypatch.setattr("scansion.activations.parts.SECONDS", 0.0)
    plan = make_plan(tmp_path / "cut", contexts, lm_batch_size=2)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_after(6, patch, [])
        harvest(plan, lambda: lm)
    parts = sorted((tmp_path / "cut").glob("part-*"))
    raw = parts[2].read_bytes()
    match damage:
        case "bit":
            parts[2].write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
        case "cut":
            parts[2].write_bytes(raw[: len(raw) // 2])
        case "swapped":
            parts[2].write_bytes(parts[3].read_bytes())
        case "gone":
            parts[2].unlink()
    with monkeypatch.context() as patch:
        interrupt_after(100, patch, counts := [])
        harvest(plan, lambda: lm)
    assert len(counts) == 12 - 2
    assert ("computing it again" in capsys.readouterr().err) == (damage != "gone")
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "whole")


def test_parts_of_other_batches_are_not_used(tmp_path: Path, lm, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a harvest begun on a GPU, where batches are formed by length, goes on without it."""
    contexts = random_contexts(12, shortest=3)
    monkeypatch.setattr("scansion.activations.parts.SECONDS", 0.0)
    for by_length, n_computed in ((False, 6), (True, 6), (True, 1)):  # the last batch of a shard is in no part
        buffer = ShardBuffer.empty(8, 12, 16, "float32")
        parts = {HookPoint(1): Parts(tmp_path / "shard-00000.safetensors", f"store {by_length}")}
        with monkeypatch.context() as patch:
            interrupt_after(100, patch, counts := [])
            harvesting._fill_shards({HookPoint(1): buffer}, contexts, lm, 2, by_length, lambda _: None, parts)
        assert len(counts) == n_computed
