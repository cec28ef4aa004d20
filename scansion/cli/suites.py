"""``scansion saebench | sae-probes``: the test suites of others on trained SAEs, their figures in our tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from scansion.cli.evaluating import evaluate_runs
from scansion.evals.suites.config import SAEBenchConfig, SaeProbesConfig, SuiteConfig
from scansion.mirroring import fetched
from scansion.records import read_json


def saebench(
    runs: list[Path],
    *,
    held_out: Path,
    settings: Annotated[SAEBenchConfig | None, Parameter(name="*", group="SAEBench")] = None,
) -> None:
    """Run SAEBench's own evaluations on trained SAEs and print tables with its figures.

    These are sparse probing, and on demand (--evaluations) core, scr, tpp and absorption. SAEBench is installed in an
    environment of its own (ENV/bin/pip install sae-bench). Its data sets and the language model come from the Hugging Face
    hub; a folder of a data set's name (OWNER/NAME) in the working directory is used instead. absorption passes single tokens
    without their places, so that a masked SAE needs --flat lifted for it.

    Example: scansion saebench runs/topk --held-out stores/sotu/held_out --python ENV/bin/python

    Parameters
    ----------
    runs
        Folders of trained runs.
    held_out
        Activation store of documents that the runs were not trained on: for L0 and FVE, which stand beside the figures.
    """
    _run(runs, held_out, settings or SAEBenchConfig())


def sae_probes(
    runs: list[Path],
    *,
    held_out: Path,
    settings: Annotated[SaeProbesConfig | None, Parameter(name="*", group="sae-probes")] = None,
) -> None:
    """Run sae-probes' own probes on trained SAEs and print tables with its figures.

    sae-probes is installed in an environment of its own (ENV/bin/pip install sae-probes) and brings its data sets. It passes
    the last token of each text without its place, so that a masked SAE needs --flat lifted.

    Example: scansion sae-probes runs/topk --held-out stores/sotu/held_out --python ENV/bin/python

    Parameters
    ----------
    runs
        Folders of trained runs.
    held_out
        Activation store of documents that the runs were not trained on: for L0 and FVE, which stand beside the figures.
    """
    _run(runs, held_out, settings or SaeProbesConfig())


def _run(runs: list[Path], held_out: Path, config: SuiteConfig) -> None:
    python = {} if config.python is None else {"python": str(config.python)}
    given: dict[str, Any] = {config.evaluation: config.model_dump(mode="json") | python}
    if runs:
        measured = fetched(runs[0], checkpoints=False) / "evals" / "core.json"
        if measured.is_file():  # not measured again with other settings
            given["core"] = read_json(measured)["data"]["config"]
    names = f"core,{config.evaluation}"
    evaluate_runs(runs, held_out=held_out, evaluations=names, settings=json.dumps(given)[1:-1])
