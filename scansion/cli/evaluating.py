"""``scansion eval``: scores of trained SAEs, and how they are shown."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated

import yaml
from cyclopts import Parameter

from scansion.activations import ActivationStore
from scansion.cli.app import app, output, table_console
from scansion.errors import ConfigError
from scansion.evals.core.evaluate import CoreConfig
from scansion.evals.position import PositionConfig
from scansion.evals.probing.evaluate import SparseProbingConfig
from scansion.lm import LanguageModel, load_language_model
from scansion.pipeline.evaluate import evaluate_runs
from scansion.pipeline.extras import check_store, evaluate_extras, lines, parse_extras
from scansion.pipeline.run_results import RunResults
from scansion.report import (
    BUDGET_NOTE,
    POSITION_NOTE,
    PROBING_NOTE,
    FeatureConfig,
    budget_table,
    position_table,
    probing_table,
    runs_data,
    summarise,
    write_report,
)


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
    check_store(store, extras, core or CoreConfig(), probing=probing)
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
        # Local weights have no commit but a fingerprint, which the evaluation compares.
        return load_language_model(identity.model, identity.model_id.commit, device, identity.model_dtype)

    results = evaluate_runs(
        folders,
        store,
        load_lm,
        core or CoreConfig(),
        (probes or SparseProbingConfig()) if probing else None,
        (position or PositionConfig()) if positions else None,
    )
    present(results)
    if report:
        page = write_report(runs_data(results, folders, store), report, FeatureConfig(), load_lm)
        output.print(f"report: {page}", markup=False)
    for line in lines(evaluate_extras(extras, folders, store, load_lm)):
        output.print(line, markup=False)


def present(results: list[RunResults]) -> None:
    """Print the tables of results."""
    summary = summarise(results)
    if summary.rows:
        table_console(200).print(summary.table())
    for name, why in summary.set_apart:
        output.print(f"{name}: {why}", markup=False)
    for note in summary.notes:
        output.print(note, markup=False)
    sound = [run for run in results if not run.reasons]
    for table, note in (
        (probing_table(sound), PROBING_NOTE),
        (position_table(sound), POSITION_NOTE),
        (budget_table(sound), BUDGET_NOTE),
    ):
        if table is not None:
            table_console(200).print(table)
            output.print(note, markup=False)
