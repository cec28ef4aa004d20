"""``scansion eval | evaluations``: scores of trained SAEs, how they are shown, and what can be measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

from scansion.activations import ActivationStore
from scansion.assets import fetch
from scansion.cli.app import output, tables
from scansion.errors import ConfigError
from scansion.evals import EvaluationConfig, Figure
from scansion.evals import evaluations as registered
from scansion.files import require_writable
from scansion.listing import lines
from scansion.lm import LanguageModel, load_language_model
from scansion.mirroring import fetched, send
from scansion.pipeline.evaluate import evaluate
from scansion.pipeline.run_results import RunResults
from scansion.records import parse_yaml, read_yaml, require_known_format
from scansion.remote import Remote, local_copy, named, url_of
from scansion.report import (
    FeatureConfig,
    budget_table,
    other_tables,
    position_table,
    probing_table,
    runs_data,
    summarise,
    write_report,
)


def evaluate_runs(
    runs: list[Path],
    *,
    held_out: Path,
    evaluations: str = "core,sparse_probing,position",
    settings: str = "",
    report: Path | None = None,
    device: str = "auto",
) -> None:
    """Evaluate trained SAEs on held-out activations and print tables.

    Example: scansion eval runs/topk runs/relu --held-out stores/sotu/held_out --report runs/report

    Parameters
    ----------
    runs
        Folders of trained runs, or their URLs; results are uploaded there.
    held_out
        Activation store of documents that the runs were not trained on, for example stores/sotu/held_out.
    evaluations
        What to measure: names separated by commas. `scansion evaluations` lists all of them. Sparse probing takes longest.
        core is always run.
    settings
        Settings of the evaluations: a YAML file, or YAML itself, for example
        "core: {loss_contexts: 0}, sparse_probing: {train_size: 400}". `scansion evaluations NAME` lists the settings.
    report
        Folder to write an HTML report to, or its URL.
    device
        Where the SAEs and the language model run: auto, cpu, cuda, cuda:1 or mps.
    """
    configs = parse_evaluations(evaluations, settings)
    store = ActivationStore(held_out)
    folders: dict[str, Path] = {}
    for run in [fetched(run, checkpoints=False, to_write=True) for run in runs]:
        config = run / "config.yaml"
        if not config.is_file():
            hint = (
                named(run.parent)
                if (run.parent / "config.yaml").is_file()
                else "the folder that `scansion train` wrote"
            )
            raise ConfigError(f"{named(run)} is not a run: it has no config.yaml; give {hint}")
        name = str(require_known_format(read_yaml(config), config).get("name", run.name))
        if name in folders:
            raise ConfigError(f"{named(run)} and {named(folders[name])} are both called {name!r}; rename one")
        folders[name] = run
    if report:  # before an hour of evaluation
        if url := url_of(report):
            Remote(url).require_writable()
        report = local_copy(report)
        require_writable(report)

    fetch(asset for one in registered.build(configs).values() for asset in one.assets())

    @cache
    def load_lm() -> LanguageModel:
        identity = store.identity
        # Local weights have no commit but a fingerprint, which the evaluation compares.
        return load_language_model(identity.model, identity.model_id.commit, device, identity.model_dtype)

    results = evaluate(folders, configs, store, load_lm, device)
    for folder in folders.values():
        send(folder)
    present(results)
    if report:
        page = write_report(runs_data(results, folders, store), report, FeatureConfig(), load_lm, device)
        send(report)
        output.print(f"report: {named(page)}", markup=False)


def list_evaluations(name: str | None = None) -> None:
    """List the evaluations, or the metrics and settings of one.

    Example: scansion evaluations absorption

    Parameters
    ----------
    name
        Show the metrics and settings of this evaluation; without it, one line per evaluation.
    """
    described, *settings = lines(registered, name)
    figures: Sequence[Figure] = registered.called(name).figures if name is not None else ()
    better = {"up": "; higher is better", "down": "; lower is better", None: ""}
    measured = [f"  measures {figure.name} ({figure.label}{better[figure.better]})" for figure in figures]
    for line in (described, *measured, *settings):
        output.print(line, markup=False)


def parse_evaluations(names: str, settings: str = "") -> dict[str, EvaluationConfig]:
    """The evaluations of a command line, with their settings.

    Args:
        names: separated by commas, for example ``core,absorption``.
        settings: path of a YAML file, or YAML itself, of ``name: {setting: value}``.

    Raises:
        ConfigError: an unknown name or setting, or settings that cannot be read.
    """
    wanted = dict.fromkeys(["core", *(name.strip() for name in names.split(",") if name.strip())])
    given: Mapping[str, Any] = _read_settings(settings) if settings else {}
    for name in wanted:
        registered.config_called(name)
    if unasked := [name for name in given if name not in wanted]:
        raise ConfigError(
            f"--settings names {', '.join(map(str, unasked))}, which --evaluations does not ask for; "
            f"it asks for {', '.join(wanted)}"
        )
    return registered.parse_all({name: given.get(name) for name in wanted})


def _read_settings(settings: str) -> Mapping[str, Any]:
    try:
        is_file = Path(settings).is_file()
    except OSError:  # longer than a path can be
        is_file = False
    is_yaml = ":" in settings and not is_file
    if not is_yaml and not is_file:
        raise ConfigError(f"there is no settings file {settings}; give a YAML file of `name: {{setting: value}}`")
    found: object = (
        parse_yaml(f"{{{settings}}}", "--settings") if is_yaml else parse_yaml(Path(settings).read_bytes(), settings)
    )
    if not isinstance(found, dict):
        raise ConfigError(f"--settings {settings} should hold settings under the names of evaluations")
    return cast(Mapping[str, Any], found)


def present(results: list[RunResults]) -> None:
    """Print the tables of results."""
    summary = summarise(results)
    if summary.rows:
        tables.print(summary.table())
    for name, why in summary.set_apart:
        output.print(f"{name}: {why}", markup=False)
    for note in summary.notes:
        output.print(note, markup=False)
    sound = [run for run in results if not run.reasons]
    for table in (probing_table(sound), position_table(sound), budget_table(sound), *other_tables(sound)):
        if table is None:
            continue
        if table.groups:
            tables.print(table.table())
        for note in table.notes:
            output.print(f"{table.name}: {note}", markup=False)
