"""Several stores from one pass of the language model are those that harvests one after the other give, byte for byte."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest
import torch

from scansion.activations import HarvestPlan, harvest, harvest_together, harvesting
from scansion.activations.shard import ShardBuffer
from scansion.corpus import Contexts
from scansion.errors import ConfigError, StoreError
from scansion.lm import HookPoint, LanguageModel
from scansion.registry import load_plugin
from tests.conftest import FAMILIES, WIDTH, make_lm, make_plan, random_contexts
from tests.killing import kill_after
from tests.lm.test_sites import EXAMPLE

POINTS = ("mlp_out.1", "resid_pre.2", "attn_out.0", "resid_post.1")


def plan_at(hook_point: str, folder: Path, contexts: Contexts, d_in: int = WIDTH, **layout: Any) -> HarvestPlan:
    plan = make_plan(folder / hook_point, contexts, **{"shard_bytes": 4_000, "lm_batch_size": 3, **layout})
    identity = plan.identity.model_copy(update={"hook_point": hook_point, "d_in": d_in})
    return HarvestPlan(identity, plan.folder, contexts, plan.config)


def plans_at(points: tuple[str, ...], folder: Path, contexts: Contexts, **layout: Any) -> list[HarvestPlan]:
    return [plan_at(point, folder, contexts, **layout) for point in points]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def never() -> LanguageModel:
    raise AssertionError("the LM was loaded")


@pytest.fixture
def blocks(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The blocks of the LM in the order in which they run, a number per call; what checks the hook points aside."""
    monkeypatch.setattr(harvesting, "check_parts", lambda *_: None)
    calls: list[int] = []
    layers = lm.model.model.layers
    handles = [
        layer.register_forward_pre_hook(lambda *_, index=index: calls.append(index))
        for index, layer in enumerate(layers)
    ]
    yield calls
    for handle in handles:
        handle.remove()


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[HarvestPlan], LanguageModel, int], None]:
    """Harvest, and fail at a batch."""

    def run(plans: list[HarvestPlan], lm: LanguageModel, batches: int) -> None:
        plain, left = harvesting.activations_at_each, iter(range(batches))

        def failing(*arguments: Any) -> Any:
            if next(left, None) is None:
                raise InterruptedError("stop")
            return plain(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(harvesting, "activations_at_each", failing)
            with pytest.raises(Exception, match="harvesting into"):
                harvest_together(plans, lambda: lm)

    return run


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", [{}, {"dtype": "bfloat16", "lm_batch_size": 5}, {"shard_bytes": 10**6}])
def test_each_store_has_the_bytes_of_a_harvest_alone(tmp_path: Path, family: str, layout: dict[str, Any]) -> None:
    lm, contexts = make_lm(family), random_contexts(30, shortest=4)
    for plan in plans_at(POINTS, tmp_path / "alone", contexts, **layout):
        harvest(plan, lambda: lm)
    stores = harvest_together(plans_at(POINTS, tmp_path / "together", contexts, **layout), lambda: lm)
    assert [store.identity.hook_point for store in stores] == list(POINTS)
    assert len({store.manifest.key for store in stores}) == len(POINTS)
    alone = files_of(tmp_path / "alone")
    assert len(alone) >= 3 * len(POINTS) and files_of(tmp_path / "together") == alone


def test_one_pass_no_deeper_than_the_deepest_and_one_bar(tmp_path: Path, lm, blocks: list[int], monkeypatch) -> None:
    bars: list[tuple[Any, ...]] = []
    plain = harvesting.progress
    monkeypatch.setattr(harvesting, "progress", lambda *bar: (bars.append(bar), plain(*bar))[1])
    contexts = random_contexts(20)
    harvest_together(plans_at(("resid_post.1", "attn_out.0"), tmp_path, contexts), lambda: lm)
    n_batches = len(blocks) // 2
    assert blocks == [0, 1] * n_batches and 20 / 3 <= n_batches <= 20 / 3 + len(list(tmp_path.glob("*/shard-*"))) / 2
    assert bars == [("harvest train", contexts.n_tokens, "tokens", 0)]


@pytest.mark.usefixtures("own_plugins")
def test_another_width_has_other_shards_and_takes_its_own_pass(tmp_path: Path, lm, blocks: list[int]) -> None:
    load_plugin(EXAMPLE)
    contexts = random_contexts(30, shortest=4)

    def plans(folder: str) -> list[HarvestPlan]:
        narrow = plans_at(("resid_post.0", "mlp_out.0"), tmp_path / folder, contexts)
        return [narrow[0], plan_at("mlp_hidden.1", tmp_path / folder, contexts, d_in=32), narrow[1]]

    for plan in plans("alone"):
        harvest(plan, lambda: lm)
    blocks.clear()
    stores = harvest_together(plans("together"), lambda: lm)
    assert [store.d_in for store in stores] == [16, 32, 16]
    assert files_of(tmp_path / "together") == files_of(tmp_path / "alone")
    first_of_wide = blocks.index(1) - 1
    assert set(blocks[:first_of_wide]) == {0} and blocks[first_of_wide:] == [0, 1] * blocks.count(1)


@pytest.mark.parametrize("batches", [0, 1, 5, 9])
def test_an_interrupted_pass_resumes(tmp_path: Path, lm, interrupted, batches: int) -> None:
    contexts = random_contexts(30, shortest=4)
    harvest_together(plans_at(POINTS, tmp_path / "whole", contexts), lambda: lm)
    plans = plans_at(POINTS, tmp_path / "stopped", contexts)
    interrupted(plans, lm, batches)
    assert not list(tmp_path.glob("stopped/*/manifest.json"))
    assert len(list(tmp_path.glob("stopped/*/shard-*"))) == (batches // 3) * len(POINTS)
    # With other layouts, which the unfinished stores do not take.
    harvest_together(plans_at(POINTS, tmp_path / "stopped", contexts, lm_batch_size=7), lambda: lm)
    assert files_of(tmp_path / "stopped") == files_of(tmp_path / "whole")


def test_finished_begun_and_new_stores_meet(tmp_path: Path, lm, interrupted, blocks: list[int], capsys) -> None:
    contexts = random_contexts(30, shortest=4)
    points = ("resid_post.2", "attn_out.0", "resid_post.1")
    for plan in plans_at(points, tmp_path / "alone", contexts):
        harvest(plan, lambda: lm)
    finished, begun, new = plans_at(points, tmp_path / "together", contexts)
    harvest(finished, lambda: lm)
    interrupted([begun], lm, 4)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "together").rglob("shard-*")}
    blocks.clear()
    capsys.readouterr()
    harvest_together([finished, begun, new], lambda: lm)
    said = capsys.readouterr().err
    assert f"reusing {contexts.n_tokens} activations in {finished.folder}" in said
    assert all(f"into {plan.folder}\n" in said for plan in (begun, new))
    assert blocks == [0, 1] * blocks.count(0), "layer 2 is needed by the finished store alone"
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert files_of(tmp_path / "together") == files_of(tmp_path / "alone")
    # Another time, the new one is behind: the pass covers it alone, and no deeper than it needs.
    (begun.folder / "manifest.json").unlink()
    (begun.folder / "shard-00001.safetensors").unlink()
    blocks.clear()
    harvest_together([finished, begun, new], lambda: lm)
    assert set(blocks) == {0}
    assert files_of(tmp_path / "together") == files_of(tmp_path / "alone")
    assert len(harvest_together([new, finished], never)) == 2


def _harvest_slowly(started: Event, folder: Path) -> None:
    plain = harvesting.activations_at_each

    def slowed(*arguments: Any) -> list[torch.Tensor]:
        time.sleep(0.02)
        return plain(*arguments)

    harvesting.activations_at_each = slowed
    lm = make_lm()
    started.set()
    harvest_together(plans_at(POINTS, folder, random_contexts(60, shortest=4)), lambda: lm)


def test_a_pass_killed_again_and_again_ends_with_the_same_bytes(tmp_path: Path, lm) -> None:
    harvest_together(plans_at(POINTS, tmp_path / "whole", random_contexts(60, shortest=4)), lambda: lm)
    assert kill_after((0.05, 0.13, 0.2, 0.25), _harvest_slowly, tmp_path / "killed") >= 2, "it was too quick"
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


def test_batches_by_length_are_the_same_for_several(lm) -> None:
    """The way of a GPU, carried out on the CPU."""
    contexts = random_contexts(20, shortest=3)
    points = [HookPoint.parse(point) for point in POINTS]
    together = {point: ShardBuffer.empty(8, 20, WIDTH, "float32") for point in points}
    harvesting._fill_shards(together, contexts, lm, 3, True, lambda _: None)
    for point in points:
        alone = ShardBuffer.empty(8, 20, WIDTH, "float32")
        harvesting._fill_shards({point: alone}, contexts, lm, 3, True, lambda _: None)
        for name in ("acts", "tokens", "valid", "doc_ids", "doc_positions"):
            assert torch.equal(getattr(together[point], name), getattr(alone, name))


def test_what_cannot_be_harvested_together_is_refused(tmp_path: Path) -> None:
    plans = [
        plan_at("resid_post.0", tmp_path, random_contexts(10)),
        plan_at("mlp_out.0", tmp_path, random_contexts(11)),
    ]
    with pytest.raises(ConfigError, match=r"n_contexts is 10 there and 11 here.*one after the other"):
        harvest_together(plans, never)
    with pytest.raises(ConfigError, match="need a folder each"):
        harvest_together([plans[0], plans[0]], never)


def test_a_hook_point_that_overflows_is_named(tmp_path: Path, lm, monkeypatch) -> None:
    plain = harvesting.activations_at_each

    def overflowing(lm, hook_points, batch):
        each = zip(hook_points, plain(lm, hook_points, batch), strict=True)
        return [x * (1e9 if point.site == "mlp_out" else 1) for point, x in each]

    monkeypatch.setattr(harvesting, "activations_at_each", overflowing)
    plans = plans_at(("resid_post.0", "mlp_out.1"), tmp_path, random_contexts(9), dtype="float16")
    with pytest.raises(StoreError, match=r"at mlp_out\.1 of llama are not all finite in float16"):
        harvest_together(plans, lambda: lm)
