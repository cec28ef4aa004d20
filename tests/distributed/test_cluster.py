"""Harvests and studies on a Ray cluster of two nodes give the bytes of one process, also if a node dies in the middle."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster as Nodes

from scansion.activations import HarvestConfig, harvesting
from scansion.corpus import CorpusConfig
from scansion.distributed.cluster import ClusterConfig, connect
from scansion.errors import ClusterError
from scansion.pipeline import HarvestSpec, build_stores, stores
from scansion.pipeline.on_cluster import harvesting_on
from scansion.registry import load_plugin
from scansion.study import StudyPlan, execute, read_final_info, trials
from scansion.training import loop
from tests.study.conftest import settings_of

# Workers wait at step 10, or at a shard, while a file says so: the node that is killed is in the middle of its work.
HOLDING = """
import os, time
from pathlib import Path
from scansion.activations import harvesting
from scansion.training import loop

HERE = Path(__file__).parent
step, run = loop.Session.advance, harvesting.ShardJob.run

def note(kind, what):
    with (HERE / "notes").open("a") as file:
        file.write(f"{os.getpid()} {kind} {what}\\n")

def hold(kind):
    while (HERE / f"hold {kind}").exists():
        time.sleep(0.05)

def advance(self, batch):
    note("step", f"{self.run.folder} at {self.learner.step}")
    if self.learner.step == 10:
        hold("step")
    step(self, batch)

def shard(self, *arguments):
    note("shard", self._span)
    hold("shard")
    run(self, *arguments)

loop.Session.advance, harvesting.ShardJob.run = advance, shard
"""
SMALL = {"object_store_memory": 80_000_000, "include_dashboard": False, "node_ip_address": "127.0.0.2"}


@pytest.fixture(scope="module")
def quiet_ray() -> Iterator[None]:
    """Ray keeps its files in a folder of the test's (a short one: sockets are in it), and reports nothing to anybody."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="ray-") as folder:
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        before = set(psutil.Process().children(recursive=True))
        yield
        _, alive = psutil.wait_procs(set(psutil.Process().children(recursive=True)) - before, timeout=10)
        assert not [process for process in alive if "ray" in " ".join(process.cmdline())]


@pytest.fixture(scope="module")
def nodes(quiet_ray: None) -> Iterator[Nodes]:
    """A head that takes no task; tests add the nodes that work."""
    # A dead node is noticed within seconds, a slow one is not taken for dead.
    noticing = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_timeout_ms": 20_000}
    head = {**SMALL, "num_cpus": 0, "_system_config": {**noticing, "health_check_failure_threshold": 3}}
    there = Nodes(initialize_head=True, head_node_args=head)
    yield there
    there.shutdown()


@pytest.fixture
def two(nodes: Nodes) -> Iterator[tuple[Nodes, Any]]:
    """Two nodes with a CPU each: the cluster, and the node that a test may kill."""
    pair = [nodes.add_node(num_cpus=1, **SMALL) for _ in range(2)]
    yield nodes, pair[0]
    for node in pair:
        if node in nodes.worker_nodes:
            nodes.remove_node(node)


@dataclass
class Holding:
    """The plugin that holds workers, and what they did."""

    folder: Path

    def notes(self) -> list[tuple[int, str]]:
        """Process and what it did, in order."""
        written = (self.folder / "notes").read_text() if (self.folder / "notes").exists() else ""
        return [(int(line.split()[0]), line.partition(" ")[2]) for line in written.splitlines()]

    def held(self, kind: str) -> set[int]:
        """Processes that have come to the place where they are held."""
        return {
            process
            for process, what in self.notes()
            if what.startswith(kind) and (kind == "shard" or what.endswith(" at 10"))
        }


@pytest.fixture
def holding(tmp_path: Path, own_plugins: None, monkeypatch: pytest.MonkeyPatch) -> Holding:
    monkeypatch.setattr(loop.Session, "advance", loop.Session.advance)
    monkeypatch.setattr(harvesting.ShardJob, "run", harvesting.ShardJob.run)
    (tmp_path / "holding.py").write_text(HOLDING)
    load_plugin(tmp_path / "holding.py")
    return Holding(tmp_path)


def kill_at_work(nodes: Nodes, node: Any, holding: Holding, kind: str) -> Callable[[], set[int]]:
    """Kill a node and its processes once two workers are held, and let the other go on. Returns what gives the dead worker."""
    killed: set[int] = set()

    def kill() -> None:
        end = time.monotonic() + 240
        while len(holding.held(kind)) < 2 and time.monotonic() < end:
            time.sleep(0.05)
        (raylet,) = node.all_processes["raylet"]
        processes = psutil.Process(raylet.process.pid).children(recursive=True)
        killed.update({process.pid for process in processes} & holding.held(kind))
        nodes.remove_node(node, allow_graceful=False)
        for process in processes:
            if process.is_running():
                process.kill()
        hold.unlink()

    hold = holding.folder / f"hold {kind}"
    hold.touch()
    (holding.folder / "notes").unlink(missing_ok=True)
    thread = threading.Thread(target=kill)
    thread.start()

    def result() -> set[int]:
        thread.join()
        return killed

    return result


def on(nodes: Nodes, **settings: float) -> ClusterConfig:
    return ClusterConfig(on=nodes.address, **settings)


def bytes_in(folder: Path, *patterns: str) -> dict[str, bytes]:
    files = [path for each in patterns for path in sorted(folder.rglob(each)) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture
def plan(lm_folder: Path, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudyPlan:
    """Two runs at two seeds, on text; a checkpoint after every step."""
    monkeypatch.setenv("SCANSION_CACHE", str(tmp_path / "cache"))
    settings = settings_of(lm_folder, documents)
    settings["training"]["checkpoint_seconds"] = 0
    settings |= {"evaluations": {"core": {"loss_contexts": 2}}, "seeds": [0, 1], "runs": settings["runs"][:2]}
    return StudyPlan.model_validate(settings)


RESULTS = ("sae_weights.safetensors", "cfg.json", "core.json")


@pytest.mark.slow
def test_a_study_that_loses_a_node_has_the_results_of_one_process(
    plan: StudyPlan, two: tuple[Nodes, Any], holding: Holding, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, many = ({index: tmp_path / way / f"run_{index}" for index in range(2)} for way in ("one", "many"))
    records = execute(plan, one)
    shutil.rmtree(tmp_path / "cache")  # so that the stores are made on the cluster too
    capsys.readouterr()
    killed = kill_at_work(*two, holding, "step")
    with connect(on(two[0])) as cluster:
        assert cluster is not None and cluster.slots == 2
        again = execute(plan, many, cluster=cluster)
    assert bytes_in(tmp_path / "one", *RESULTS) == bytes_in(tmp_path / "many", *RESULTS)
    assert len(bytes_in(tmp_path / "many", *RESULTS)) == 12
    for index in range(2):
        (here, there) = (read_final_info(folders[index]) for folders in (one, many))
        assert [(i.status, i.values, i.stderrs) for i in here.values()] == [
            (i.status, i.values, i.stderrs) for i in there.values()
        ]
    assert [record.info.values for record in again] == [record.info.values for record in records]

    (dead,) = killed()
    held = {what for process, what in holding.notes() if process == dead and what.endswith(" at 10")}
    assert held, "it was in the middle of its training"
    for what in held:
        others = [step for process, step in holding.notes() if process != dead and step.startswith(what[:-2])]
        assert others[0] == what, "another worker continued it from its last checkpoint"
    said = capsys.readouterr().err
    assert "2 tasks, 2 at once" in said and "; 0 of 2 tasks left" in said and "seed 1: plain, masked: took" in said


@pytest.mark.slow
def test_a_harvest_that_loses_a_node_has_the_bytes_of_one_process(
    lm_folder: Path, documents: Path, two: tuple[Nodes, Any], holding: Holding, tmp_path: Path
) -> None:
    corpus = CorpusConfig(
        source=str(documents), context_length=16, max_tokens=1600, held_out_tokens=320, held_out_fraction=0.25
    )
    source = HarvestSpec(str(lm_folder), "layers.1", corpus, HarvestConfig(shard_bytes=10_000), device="cpu")
    build_stores(source, tmp_path / "one")
    killed = kill_at_work(*two, holding, "shard")
    with connect(on(two[0])) as cluster:
        assert cluster is not None
        both = build_stores(source, tmp_path / "many", harvesting_on(cluster, source))
    assert len(killed()) == 1
    assert bytes_in(tmp_path / "one", "*") == bytes_in(tmp_path / "many", "*")
    assert len(both.train.manifest.shards) > 4 and not both.train.damaged()


@pytest.mark.slow
def test_what_fails_on_a_worker_is_recorded_and_found_again(
    plan: StudyPlan, two: tuple[Nodes, Any], tmp_path: Path, own_plugins: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that raises, one whose process always dies, and one that succeeds."""
    monkeypatch.setattr(trials, "evaluate", trials.evaluate)
    (tmp_path / "failing.py").write_text(
        "import os\nfrom scansion.study import trials\nmeasure = trials.evaluate\n"
        "def evaluate(runs, *more):\n"
        "    if 'masked' in runs: raise ZeroDivisionError('its own mistake')\n"
        "    if any('seed_1' in str(folder) for folder in runs.values()): os._exit(1)\n"
        "    return measure(runs, *more)\n"
        "trials.evaluate = evaluate\n"
    )
    load_plugin(tmp_path / "failing.py")
    monkeypatch.setattr("scansion.distributed.cluster._RETRIES", 0)
    folders = {index: tmp_path / f"run_{index}" for index in range(2)}
    with connect(on(two[0])) as cluster:
        plain, masked = execute(plan, folders, cluster=cluster)
    assert (plain.info.seeds, masked.info.seeds) == ([0], [])
    assert plain.info.reasons[0].startswith("seed 1 its process was lost 1 time")
    assert masked.info.reasons[0].endswith("evaluation failed: ZeroDivisionError: its own mistake")
    with monkeypatch.context() as patch:
        patch.setattr(
            stores, "load_language_model", lambda *_: pytest.fail("nothing changed, so nothing is tried again")
        )
        assert [record.info for record in execute(plan, folders)] == [plain.info, masked.info]


@pytest.mark.slow
def test_a_worker_that_lacks_something_says_what(
    plan: StudyPlan, two: tuple[Nodes, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scansion.distributed.cluster.package_sources", lambda: b"other")
    with connect(on(two[0])) as cluster, pytest.raises(ClusterError, match="another version of scansion"):
        execute(plan, {0: tmp_path / "run_0"}, cluster=cluster)


@pytest.mark.slow
def test_a_local_cluster_starts_and_ends_with_the_command(
    run, quiet_ray: None, lm_folder: Path, documents: Path, tmp_path: Path
) -> None:
    command = (
        "harvest", "--model", lm_folder, "--hook-point", "layers.1", "--hook-point", "layers.2", "--source", documents,
        "--context-length", 16, "--max-tokens", 1600, "--held-out-tokens", 320, "--held-out-fraction", 0.25,
        "--shard-bytes", 20_000, "--device", "cpu",
    )  # fmt: skip
    before = set(psutil.Process().children(recursive=True))
    for where, more in (("one", ()), ("many", ("--on", "local")), ("text", ("--on", "local", "--on-the-fly"))):
        status, _, err = run(*command, "--out", tmp_path / where, *more)
        assert status == 0, err
    assert bytes_in(tmp_path / "one", "*") == bytes_in(tmp_path / "many", "*")
    held_out = bytes_in(tmp_path / "text", "held_out/*.safetensors")
    assert held_out and held_out == bytes_in(tmp_path / "one", "held_out/*.safetensors")
    assert len(list((tmp_path / "text").glob("*/train/on_the_fly.json"))) == 2
    _, alive = psutil.wait_procs(set(psutil.Process().children(recursive=True)) - before, timeout=10)
    assert not alive


def test_mistakes_are_one_line(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("harvest", "--source", "sotu", "--out", tmp_path)
    for more, message in (
        (("--on", "local", "--cpus-per-task", 1.5), "above 1 it is a whole number, not 1.5"),
        (("--gpus-per-task", 1), "are of a Ray cluster; say which with `on`"),
        *(
            (("--on", on), f"HOST:PORT or ray://HOST:PORT, not {on!r}")
            for on in ("", "ray://", "here", "h:0", "h:x", "s3://a:1")
        ),
    ):
        status, _, err = run(*command, *more)
        assert status == 2 and message in err and len(err.strip().splitlines()) == 1, err
    status, _, err = run(*command[:3], "--out", "s3://bucket/stores", "--on", "local")
    assert status == 2 and "a disk that all its machines share, not to s3://bucket/stores" in err

    def too_slow(*_: object, **__: object) -> None:
        raise Exception("The current node timed out during startup.\nMore.")

    monkeypatch.setattr("ray.init", too_slow)
    status, _, err = run(*command, "--on", "local")
    said = " ".join(err.split())
    assert status == 2 and "error: Ray could not be started on this machine: The current node timed out" in said
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    status, _, err = run(*command, "--on", "local")
    assert status == 2 and err == "error: running on a cluster needs Ray: pip install 'scansion[ray]'\n"
