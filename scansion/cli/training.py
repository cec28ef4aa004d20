"""``scansion harvest | train | masks | compile``: from text to a trained SAE."""

from __future__ import annotations

import os
import shlex
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from scansion.activations import ActivationStore, HarvestConfig
from scansion.activations.on_the_fly import TextStore, open_training_store
from scansion.cli.app import output
from scansion.corpus import CorpusConfig
from scansion.distributed import in_job
from scansion.distributed.cluster import ClusterConfig, connect
from scansion.errors import ConfigError
from scansion.flags import SAEFlags, flags_of_architectures, sae_config
from scansion.listing import lines
from scansion.lm import BUNDLED_MODEL
from scansion.masks import MASKS
from scansion.mirroring import fetched
from scansion.remote import named, url_of
from scansion.sae import ARCHITECTURES, load_sae
from scansion.training import TrainingConfig, TrainingRun
from scansion.training import train as train_runs
from scansion.training.loop import OnMetrics
from scansion.training.run_folder import read_metrics
from scansion.training.warm_start import sae_folder


def harvest(
    *,
    out: Path,
    model: str = BUNDLED_MODEL,
    revision: str | None = None,
    hook_point: Annotated[tuple[str, ...], Parameter(show_default=", ".join)] = ("layers.5",),
    lm_dtype: Literal["auto", "fast", "float32", "bfloat16"] = "auto",
    device: str = "auto",
    corpus: Annotated[CorpusConfig | None, Parameter(name="*")] = None,
    layout: Annotated[HarvestConfig | None, Parameter(name="*")] = None,
    cluster: Annotated[ClusterConfig | None, Parameter(name="*", group="Many machines")] = None,
) -> None:
    """Run a language model over text and store its activations, with their positions.

    Example: scansion harvest --source sotu --max-tokens 300000 --pool 8 --out stores/sotu

    Parameters
    ----------
    out
        Folder for the two stores, OUT/train and OUT/held_out; with several hook points OUT/resid_post.3/train and so on; or a
        URL such as s3://bucket/stores/sotu. Run the same command again to resume after an interruption.
    model
        Language model: the bundled one, a folder, a .gguf file, or a name on the Hugging Face hub such as google/gemma-2-2b.
    revision
        Branch, tag or commit of the model on the hub.
    hook_point
        Where in the model activations are read, for example layers.5, layers.5.mlp or blocks.5.hook_resid_post, or
        any module by its path, for example model.layers.5.mlp.act_fn. Repeat the flag for several: the model then reads the
        text once for all of them.
    lm_dtype
        Number type the model computes in; auto is bfloat16 on CUDA and float32 elsewhere; fast is bfloat16 also on CPUs that
        have instructions for it, in half the time.
    device
        Where the model runs: auto, cpu, cuda, cuda:1 or mps.
    """
    # Takes a second that `train` need not wait.
    from scansion.pipeline import HarvestSpec, build_stores, build_stores_at
    from scansion.pipeline.on_cluster import harvesting_on

    source = HarvestSpec(
        model, hook_point[0], corpus or CorpusConfig(), layout or HarvestConfig(), revision, lm_dtype, device
    )
    with connect(cluster or ClusterConfig(), out) as joined:
        compute = None if joined is None else harvesting_on(joined, source)
        if len(hook_point) > 1:
            built = [*build_stores_at(source, hook_point, out, compute).values()]
        else:
            built = [build_stores(source, out, compute)]
    for store in (store for stores in built for store in (stores.train, stores.held_out)):
        if isinstance(store, TextStore):
            output.print(
                f"{store.folder}: {store.identity.n_contexts:,} contexts of text; `scansion train` will make their activations "
                f"while it trains, in {store.n_chunks:,} chunks; --batch-tokens is at most {store.largest_batch:,}",
                markup=False,
            )
            continue
        norms, outliers = store.mean_norm, store.outliers
        output.print(
            f"{store.url or store.folder}: {store.manifest.n_tokens:,} tokens; mean norm {norms[0]:.1f} at position 0, "
            f"{norms[1:].nanmean():.1f} after it; {outliers.token_share:.1%} outlier tokens",
            markup=False,
        )
        outliers.warn(store.folder)


def train(
    store: Path,
    *,
    out: Path,
    sae: Annotated[SAEFlags | None, Parameter(name="*")] = None,
    training: Annotated[TrainingConfig | None, Parameter(name="*", group="Training")] = None,
    track: Literal["trackio", "wandb"] | None = None,
    divide: Literal["auto", "features"] = "auto",
) -> None:
    """Train one SAE on a store.

    Example: scansion train stores/sotu/train --tokens 500000 --mask "bands, count: 8, shared: 0.25" --out runs/bands

    On several processes or machines, the same command under torchrun (docs/ranks.md):
    torchrun --nproc-per-node 4 -m scansion train stores/sotu/train --mask "bands, count: 8, shared: 0.5" --out runs/bands

    To add a mask to a trained or imported SAE and go on training it:
    scansion train stores/sotu/train --from runs/plain --mask "soft, start: {kind: from_usage}" --out runs/masked

    Parameters
    ----------
    store
        A store made by `scansion harvest`, for example stores/sotu/train or s3://bucket/stores/sotu/train.
    out
        The run's folder, or its URL, such as s3://bucket/runs/bands: then it is uploaded after each checkpoint and at the end.
        Run the same command again to resume after an interruption.
    track
        Also show loss, FVE and L0 in this experiment tracker while training: trackio (pip install 'scansion[track]') or wandb.
    divide
        Under torchrun: what ranks divide among them. auto: bands of positions if the mask has enough, else tokens; features:
        the features of a wide TopK SAE without a mask.
    """
    start = None if training is None or training.from_ is None else load_sae(sae_folder(training.from_))[0].config
    out = fetched(out, to_write=True)
    run = TrainingRun.at(out, sae_config(sae or SAEFlags(), start), training)
    if in_job():
        from scansion.distributed.launch import train_on_ranks  # takes a second that one process need not wait

        with _tracked(run, track if os.environ["RANK"] == "0" else None) as on_metrics:
            if not train_on_ranks(run, ActivationStore(store), on_metrics, divide):
                return
    elif divide != "auto":
        raise ConfigError(f"--divide {divide} is for several ranks: start the command under torchrun (docs/ranks.md)")
    else:
        with _tracked(run, track) as on_metrics:
            train_runs([run], open_training_store(store), on_metrics)
    said = "trained" if run.training.tokens else "not trained (tokens is 0), saved with its initial weights"
    output.print(f"{said}: {named(out / 'sae')}", markup=False)
    for line in _outcome(run, store):
        output.print(line, markup=False)


def _tracked(run: TrainingRun, track: Literal["trackio", "wandb"] | None) -> AbstractContextManager[OnMetrics | None]:
    if track is None:
        return nullcontext()
    from scansion.study.tracking import live  # takes a second that others need not wait

    return live(run, track)


def _outcome(run: TrainingRun, store: Path) -> list[str]:
    """What training reached, from its last metrics, and the command that measures it."""
    lines: list[str] = []
    if metrics := read_metrics(run.folder):
        last = metrics[-1]
        lines.append(
            f"on its last training tokens, outliers included: FVE {last['fve']:.3f}, {last['l0']:.1f} features per token "
            f"(L0), {last['dead'] / run.sae.d_sae:.1%} of {run.sae.d_sae:,} features dead"
        )
    beside = store.parent / "held_out"
    there = url_of(beside)
    held_out = there or str(beside) if store.name == "train" and (there or beside.is_dir()) else "HELD_OUT_STORE"
    folder, report = (shlex.quote(named(path)) for path in (run.folder, run.folder / "report"))
    lines.append(f"next: scansion eval {folder} --held-out {shlex.quote(held_out)} --report {report}")
    return lines


def offer_all_architectures() -> None:
    """Give `train` a flag for every setting of every architecture registered so far, those of plugins included."""
    taken = {"config", "plugin", "store", "out", *SAEFlags.__annotations__, *TrainingConfig.model_fields}
    train.__annotations__["sae"] = Annotated[flags_of_architectures(taken) | None, Parameter(name="*")]


def architectures(name: str | None = None) -> None:
    """List the SAE architectures, or the settings of one.

    Example: scansion architectures gated

    Parameters
    ----------
    name
        Show the settings of this architecture; without it, one line per architecture.
    """
    for line in lines(ARCHITECTURES, name):
        output.print(line, markup=False)


def masks(family: str | None = None) -> None:
    """List the families of positional masks, or the settings of one.

    Example: scansion masks bands

    Parameters
    ----------
    family
        Show the settings of this family; without it, one line per family.
    """
    for line in lines(MASKS, family):
        output.print(line, markup=False)


def compile_mask(run: Path, *, out: Path, held_out: Path, bands: int = 8, keep: float = 0.5) -> None:
    """Round the learnt mask of a trained run to hard bands, which run faster, and print FVE before and after.

    Example: scansion compile runs/adaptive --bands 8 --held-out stores/sotu/held_out --out runs/compiled

    Parameters
    ----------
    run
        Folder of a trained run whose mask is learnt.
    out
        Folder of the new run, which `scansion eval` takes like any other.
    held_out
        A store to measure FVE on before and after, for example stores/sotu/held_out.
    bands
        Number of equal bands of positions.
    keep
        A feature is tied to a band that holds at least this share of its mask weight; all other features become shared.
    """
    from scansion.pipeline import compile_run

    for line in compile_run(run, out, ActivationStore(held_out), bands, keep):
        output.print(line, markup=False)
