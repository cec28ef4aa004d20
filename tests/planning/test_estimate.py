"""Estimates: laws of the work, bytes of the documented formulas, and figures that others have published."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from benchmarks.fit_plan import RESULTS
from scansion.errors import ConfigError
from scansion.execution import backends
from scansion.planning import DictionaryConfig, MachineConfig, Workload, estimate, kind_of, model_sizes
from scansion.planning import workload as sizes
from scansion.planning.machines import PUBLISHED
from scansion.planning.workload import layers_for
from scansion.records import read_json

GPUS = MachineConfig(kind="h200", count=4, disk=2.0, price=3.0)
SAE = DictionaryConfig(d_sae=16_384, k=64)


def workload(**settings: object) -> Workload:
    return Workload.model_validate(
        {"model": model_sizes("gemma-2-2b"), "tokens": 10**9, "dictionaries": (SAE,), **settings}
    )


def test_sizes_for_screening_are_those_of_training() -> None:
    ours = (sizes.SCREENED_FROM_TOKENS, sizes.SCREENED_FROM_WIDTH, sizes.SCREENED_FROM_D_IN)
    assert ours == (backends.SCREENING_TOKENS, backends.SCREENING_WIDTH, backends.SCREENING_D_IN)


def test_operations_of_the_model_are_those_that_the_benchmark_counts() -> None:
    stored = read_json(RESULTS / "harvest.json")
    of = stored["settings"]
    flop = of["tokens"] * model_sizes(of["model"]).flop_per_token(of["layer"] + 1, of["context_length"])
    assert flop == stored["work"]["scansion, language model to disk"]["flop"]


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("gpt2", 0.124),
        ("smollm2-135m", 0.1345),
        ("google/gemma-2-2b", 2.61),
        ("gemma-2-9b", 9.24),
        ("Llama-3.1-8B", 7.5),
    ],
)
def test_sizes_add_up_to_the_published_number_of_parameters(name: str, billions: float) -> None:
    model = model_sizes(name)
    total = model.layers * model.parameters_per_layer + model.d_model * model.vocabulary
    assert total / 1e9 == pytest.approx(billions, rel=0.01)


@pytest.mark.parametrize(
    ("hook_point", "layers"), [("layers.5", 6), ("blocks.5.hook_resid_pre", 5), ("model.layers.0.mlp", 1), ("embed", 0)]
)
def test_only_the_layers_up_to_the_hook_point_run(hook_point: str, layers: int) -> None:
    assert layers_for(hook_point) == layers


def test_embeddings_need_no_layer_and_have_a_plan() -> None:
    found = estimate(workload(hook_points=("embed",)), [MachineConfig(kind="cpu2", disk=1)])
    assert found.stages[0].seconds < 1e-3 * found.stages[2].seconds
    assert found.store is not None and found.store.least_passes is None


def test_bands_divide_the_encoder_product_and_nothing_else() -> None:
    plain = DictionaryConfig(d_sae=4096, k=32).work(512, 2048)
    banded = DictionaryConfig(d_sae=4096, k=32, bands=4).work(512, 2048)
    half = DictionaryConfig(d_sae=4096, k=32, bands=4, shared=0.5).work(512, 2048)
    assert banded["screened"] == plain["screened"] / 4 and banded["selected"] == plain["selected"] / 4
    assert half["screened"] == plain["screened"] * (0.5 + 0.5 / 4)
    assert {name: banded[name] for name in ("active", "parameters", "steps")} == {
        name: plain[name] for name in ("active", "parameters", "steps")
    }


def test_ranks_divide_what_their_division_says() -> None:
    one = DictionaryConfig(d_sae=4096, k=32, bands=8).work(512, 2048)
    bands = DictionaryConfig(d_sae=4096, k=32, bands=8).work(512, 2048, ranks=4)
    tokens = DictionaryConfig(d_sae=4096, k=32, bands=8).work(512, 2048, ranks=4, division="tokens")
    assert bands["parameters"] == one["parameters"] / 4 and tokens["parameters"] == one["parameters"]
    assert bands["active"] == tokens["active"] == one["active"] / 4


@pytest.mark.parametrize(
    ("config", "megabytes"),
    [
        # The examples of docs/ranks.md: gradient and metrics together.
        (DictionaryConfig(d_sae=2304, bands=8, shared=0.5), 5.3 + 0.014),
        (DictionaryConfig(d_sae=2304, bands=8), 0.0023 + 0.0047),
        (DictionaryConfig(d_sae=2304), 10.6 + 0.023),
    ],
)
def test_bytes_per_step_are_those_of_the_page_on_ranks(config: DictionaryConfig, megabytes: float) -> None:
    assert config.bytes_per_step(576, 2048, ranks=4) / 1e6 == pytest.approx(megabytes, rel=0.02)
    assert config.bytes_per_step(576, 2048, ranks=1) == 0


def test_twice_the_tokens_take_twice_the_time_and_twice_the_machines_half() -> None:
    once, twice = (estimate(workload(tokens=n * 10**9), [GPUS]) for n in (1, 2))
    for a, b in zip(once.stages[:3], twice.stages[:3], strict=True):
        assert b.seconds == pytest.approx(2 * a.seconds, rel=1e-3)
    wider = estimate(workload(), [GPUS.model_copy(update={"count": 8})])
    assert wider.stages[0].seconds == pytest.approx(once.stages[0].seconds / 2)


def test_every_machine_is_paid_until_the_end_of_a_stage() -> None:
    found = estimate(workload(), [GPUS])
    assert found.money == pytest.approx(found.seconds / 3600 * 4 * 3.0)
    assert estimate(workload(), [GPUS, MachineConfig(kind="a100", disk=1)]).money is None


def test_what_is_not_given_is_not_counted_and_said() -> None:
    found = estimate(workload(ranks=2), [MachineConfig(kind="a100", count=2)])
    assert found.store is None and [stage.name for stage in found.stages] == ["harvest", "train", "evaluate"]
    for part in ("disk not given", "network not given", "a100: derived, not measured"):
        assert any(part in note for note in found.notes), part


def test_storing_wins_when_passes_are_many_and_never_on_a_slow_disk() -> None:
    store = estimate(workload(epochs=5, hook_points=("layers.20",)), [MachineConfig(kind="h200", disk=5)]).store
    assert store is not None and store.passes == 5 and store.least_passes is not None
    # The rule, spelled out: from that many passes on, and not before.
    for passes in range(1, 50):
        stored, again = store.harvest + store.write + passes * store.read, passes * store.harvest
        assert (stored <= again) == (passes >= store.least_passes)
    slow = estimate(workload(hook_points=("layers.2",)), [MachineConfig(kind="h200", disk=0.1)]).store
    assert slow is not None and slow.least_passes is None


def test_a_store_that_costs_as_much_as_a_harvest_has_been_kept_for_its_days() -> None:
    found = estimate(workload(), [GPUS], storage_price=20.0)
    assert found.store is not None and found.store.days is not None
    kept = found.store.days / 30 * 20.0 * found.store_bytes / 1e12
    assert kept == pytest.approx(found.store.harvest / 3600 * 4 * 3.0)


def test_what_does_not_fit_is_said_before_it_is_tried() -> None:
    large = DictionaryConfig(d_sae=2**20, k=64, count=4)
    notes = estimate(workload(dictionaries=(large,), together=4), [MachineConfig(kind="h100")]).notes
    assert any("train fewer dictionaries together" in note for note in notes)
    with pytest.raises(ConfigError, match="no kind has the 8 machines"):
        estimate(workload(ranks=8), [GPUS])
    with pytest.raises(ValidationError, match="26 layers"):
        workload(hook_points=("layers.40",))


def test_unknown_kinds_come_from_their_published_peaks() -> None:
    peak = PUBLISHED["a100"]
    given = MachineConfig(kind="mine", flops=peak.flops, memory_bandwidth=peak.memory_bandwidth, memory=peak.memory)
    assert kind_of(given).seconds_per == kind_of(MachineConfig(kind="a100")).seconds_per
    assert not kind_of(given).measured and kind_of(MachineConfig(kind="h200")).measured
    with pytest.raises(ConfigError, match="did you mean h100"):
        kind_of(MachineConfig(kind="h10"))
    with pytest.raises(ConfigError, match="both flops and memory_bandwidth"):
        kind_of(MachineConfig(kind="mine", flops=1e14))


def test_half_the_threads_take_twice_the_time_but_for_the_overhead() -> None:
    one, two = (kind_of(MachineConfig(kind=f"cpu{n}")) for n in (1, 2))
    work = SAE.work(576, 2048)
    halves, whole = one.step(work), two.step(work)
    assert halves["compute"] == pytest.approx(2 * whole["compute"])
    assert halves["memory"] == pytest.approx(2 * whole["memory"]) and halves["overhead"] == whole["overhead"]


def gemma_scope() -> Workload:
    """Lieberum et al. 2024: 131k wide, batches of 4,096, float32, on 8 TPUv3. The model, Gemma 2 9B, is our assumption."""
    return Workload(
        model=model_sizes("gemma-2-9b"),
        hook_points=("layers.20",),
        tokens=8 * 10**9,
        dictionaries=(DictionaryConfig(architecture="jumprelu", d_sae=131_072),),
        batch_tokens=4096,
        ranks=8,
        division="features",
        bytes_per_activation=4,
    )


def test_gemma_scope_as_published() -> None:
    found = estimate(gemma_scope(), [MachineConfig(kind="tpuv3", count=8)])
    assert found.step_seconds / 0.045 == pytest.approx(
        0.79, abs=0.02
    )  # 45 ms published; docs/scale.md explains the ratio
    assert found.store_bytes / 2**40 == pytest.approx(100, rel=0.05)  # "about 100 TiB" for 8B tokens of one site
    per_second = 4096 / 0.045 * 3584 * 4
    assert per_second / 2**30 > 1  # reads of more than 1 GiB/s


def test_llama_scope_bytes_per_token_as_published() -> None:
    llama = workload(model=model_sizes("llama-3.1-8b"), tokens=1, batch_tokens=1)
    assert llama.store_bytes == 8192  # "8K bytes per token", 4,096 times the 2 bytes of its text
