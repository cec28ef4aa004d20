"""Quality at equal tokens: SAEs of ours and of the peers, trained on the same tokens in the same order, one score for all.

Each peer's own loop trains its SAE. ``scansion import`` reads what it saved, so that our core evaluation measures every
SAE on the same held-out text. ReLU SAEs are trained again with another L1 coefficient until their L0 is near a target. A
training that is in the file already is not repeated, so that further calls add to the table. ``score`` then adds what needs
the language model, for all SAEs at once.
"""

from __future__ import annotations

import importlib
import itertools
import math
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from cyclopts import App

from benchmarks.peer_saes import DEFAULT_BATCHES, MODULES, TRAINERS, Batches, Task
from benchmarks.quality import stream_for, trained
from benchmarks.quality_tables import is_near
from benchmarks.rounds import Record
from scansion.activations import ActivationStore, ActivationStream
from scansion.device import disable_malloc_trim
from scansion.evals.base import LoadedSAE, value_of
from scansion.evals.core.evaluate import CoreConfig, evaluate_core
from scansion.evals.probing.config import SparseProbingConfig
from scansion.evals.probing.evaluate import evaluate_sparse_probing
from scansion.lm import HookPoint, load_language_model
from scansion.pipeline.importing import import_sae
from scansion.progress import say
from scansion.records import read_json, write_json
from scansion.sae import ReluConfig, TopKConfig, load_sae, save_sae
from scansion.training import TrainingConfig

Kind = Literal["topk", "relu"]
Run = dict[str, Any]

app = App(help_format="plaintext")
OURS = "scansion"
PROBING = SparseProbingConfig(
    datasets=("sst2", "ag_news"), train_size=100, test_size=60, k_values=(1, 5), untrained_draws=1
)
_FIRST = {OURS: 0.072, "dictionary-learning": 0.055, "sae-lens": 20.0}
# The first L1 coefficient tried. sae-lens does not scale its inputs by default, whose norms are about 90 here.


class Subject(NamedTuple):
    """Whose SAE, of which architecture, trained by which recipe: the library's ``default``, ``ours``, ``scaled``."""

    kind: Kind
    who: str
    recipe: str


SUBJECTS = [
    Subject(kind, who, recipe)
    for kind in ("topk", "relu")
    for who, recipe in (
        (OURS, "default"),
        ("dictionary-learning", "ours"),
        ("sae-lens", "ours"),
        ("sae-lens", "scaled"),
        ("dictionary-learning", "default"),
        ("sae-lens", "default"),
    )
]


@app.default
def measure(
    train: Path,
    held_out: Path,
    *,
    out: Path,
    saes: Path,
    tokens: tuple[int, ...] = (200_000, 1_000_000, 5_000_000),
    kinds: tuple[Kind, ...] = ("topk", "relu"),
    who: tuple[str, ...] = (OURS, *TRAINERS),
    recipes: tuple[str, ...] = ("default", "ours", "scaled"),
    seeds: tuple[int, ...] = (0,),
    d_sae: int = 2304,
    k: int = 32,
    tries: int = 5,
    threads: int = 1,
) -> None:
    """Train and score every subject; the file is written after each training. Run again to resume, or to add others.

    Args:
        train, held_out: stores.
        out: the JSON file.
        saes: folder for the trained SAEs, one run each.
        tokens: training tokens; a store that has fewer is read again.
        kinds, who, recipes: which of the subjects; see ``benchmarks/peer_saes.py`` for the recipes.
        seeds: of weights and data.
        d_sae, k: of every SAE; ReLU SAEs are to have k active features per token.
        tries: trainings at most per ReLU SAE, each with another L1 coefficient.
        threads: of torch.
    """
    torch.set_num_threads(threads)
    disable_malloc_trim()  # for the peers too: otherwise part of their time would be that of page faults
    stores = ActivationStore(train), ActivationStore(held_out)
    settings = {
        "model": stores[0].identity.model,
        "hook_point": stores[0].identity.hook_point,
        "train": stores[0].manifest.key,
        "train_tokens": stores[0].manifest.n_tokens,
        "held_out": stores[1].manifest.key,
        "held_out_tokens": stores[1].manifest.n_tokens,
        "d_sae": d_sae,
        "k": k,
    }
    record = Record(out, "equal_tokens", settings)
    earlier: dict[str, Any] = read_json(out) if out.exists() else {}
    runs: list[Run] = earlier.get("runs", []) if earlier.get("settings") == settings else []
    chosen = [one for one in SUBJECTS if one.kind in kinds and one.who in who and one.recipe in recipes]
    streams: dict[tuple[int, int | None], ActivationStream] = {}
    for n, seed, subject in itertools.product(tokens, seeds, chosen):
        key: Run = {**subject._asdict(), "tokens": n, "seed": seed}
        training = TrainingConfig(tokens=n, seed=seed, data_seed=seed, device="cpu")
        if subject.recipe == "default" and subject.who in DEFAULT_BATCHES:
            training = training.model_copy(update={"batch_tokens": DEFAULT_BATCHES[subject.who]})
        while (coefficient := next_coefficient(key, runs, k, tries)) is not None:
            batch = seed, training.per_position(1)
            if batch not in streams:
                streams.clear()  # each keeps the store in memory
                streams[batch] = stream_for(training, stores[0])
            made = {"topk": TopKConfig(d_sae=d_sae, k=k), "relu": ReluConfig(d_sae=d_sae, l1_coefficient=coefficient)}
            run = {**key, **({"coefficient": coefficient} if subject.kind == "relu" else {})}
            folder = saes / _name(run)
            taken = _train(subject, made[subject.kind], training, streams[batch], stores[1], folder)
            (result,) = evaluate_core([_saved(folder)], stores[1], None, CoreConfig(loss_contexts=0))
            runs.append(
                {
                    **run,
                    **taken,
                    "fve_without_outliers": value_of(result.fve_without_outliers),
                    "fve": result.fve.value,
                    "l0": result.l0,
                    "dead_share": result.dead_share,
                }
            )
            say(str(runs[-1]))
            record.put(runs=runs)


@app.command
def score(
    held_out: Path,
    *,
    out: Path,
    saes: Path,
    seeds: tuple[int, ...] = (0,),
    loss_contexts: int = 32,
    probing: bool = False,
    threads: int = 1,
) -> None:
    """Add loss recovered, and accuracies of sparse probes, of the SAEs in the table; the language model runs once for all.

    Args:
        held_out: store.
        out: the JSON file.
        saes: folder of the trained SAEs.
        seeds: whose SAEs.
        loss_contexts: contexts for loss recovered.
        probing: also probe on two small sets.
        threads: of torch.
    """
    torch.set_num_threads(threads)
    content, store = read_json(out), ActivationStore(held_out)
    runs = [
        run
        for run in content["runs"]
        if run["seed"] in seeds and (run["kind"] == "topk" or is_near(run["l0"], content["settings"]["k"]))
    ]
    loaded = [_saved(saes / _name(run)) for run in runs]
    lm = load_language_model(store.identity.model, None, "cpu")
    # The rest of the core figures is in the table already, so that few contexts are reconstructed.
    config = CoreConfig(n_contexts=2, loss_contexts=loss_contexts)
    for run, result in zip(runs, evaluate_core(loaded, store, lambda: lm, config), strict=True):
        run |= {"loss_contexts": loss_contexts, "ce_loss_recovered": value_of(result.ce_loss_recovered)}
    write_json(out, content)
    if probing:
        hook_point = HookPoint.parse(store.identity.hook_point)
        for run, result in zip(runs, evaluate_sparse_probing(loaded, lm, hook_point, PROBING), strict=True):
            run |= {f"probe_{k}": estimate.value for k, estimate in result.sae_top_k.items()}
        write_json(out, content)


def _train(
    subject: Subject,
    config: TopKConfig | ReluConfig,
    training: TrainingConfig,
    stream: ActivationStream,
    held_out: ActivationStore,
    folder: Path,
) -> Run:
    """Train an SAE and save it as a run; returns what its training took, without the importing of what a peer has saved."""
    shutil.rmtree(folder, ignore_errors=True)
    n_steps = training.n_steps(stream.tokens_per_batch)
    if subject.who in MODULES:
        importlib.import_module(MODULES[subject.who])
    with tempfile.TemporaryDirectory() as theirs:
        wall, cpu = time.perf_counter(), time.process_time()
        if subject.who == OURS:
            sae = trained(config, training, stream)[1]
            save_sae(sae.sae, folder / "sae", sae.metadata)
            saved = None
        else:
            task = Task(config, stream.store.identity.model, subject.recipe, training)
            saved = TRAINERS[subject.who](task, Batches(stream, n_steps), Path(theirs) / "saved")
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        if saved is not None:
            import_sae(saved, held_out, folder)
    return {
        "batch_tokens": stream.tokens_per_batch,
        "steps": n_steps,
        "cpu_seconds": round(cpu, 1),
        "wall_seconds": round(wall, 1),
    }


def _name(run: Run) -> str:
    """Of the folder of a run."""
    names = ("kind", "who", "recipe", "tokens", "seed", "coefficient")
    return "-".join(str(run[name]) for name in names if name in run)


def _saved(folder: Path) -> LoadedSAE:
    return LoadedSAE(folder.name, *load_sae(folder))


def next_coefficient(key: Run, runs: list[Run], target: int, tries: int) -> float | None:
    """The L1 coefficient to train with next, 0 for TopK; None if nothing is left to do.

    L0 is taken to be a power of the coefficient between the two trainings nearest to the target.
    """
    done = [run for run in runs if key.items() <= run.items()]
    if key["kind"] == "topk":
        return None if done else 0.0
    if len(done) >= tries or any(is_near(run["l0"], target) for run in done):
        return None

    def off(run: Run) -> float:
        return math.log(max(run["l0"], 0.1) / target)

    done.sort(key=lambda run: abs(off(run)))
    if not done:
        alike = [run for run in runs if all(run[name] == key[name] for name in ("kind", "who", "recipe"))]
        alike.sort(key=lambda run: (run["tokens"] != key["tokens"], abs(off(run))))
        if alike:
            return alike[0]["coefficient"]
        return _FIRST.get(key["who"], 0.1) / (4 if key["recipe"] == "scaled" else 1)
    slope = -1.0
    if len(done) > 1:
        change = math.log(done[0]["coefficient"] / done[1]["coefficient"])
        slope = min(-0.3, max(-3.0, (off(done[0]) - off(done[1])) / change)) if change else slope
    return done[0]["coefficient"] * math.exp(-off(done[0]) / slope)


if __name__ == "__main__":
    app()
