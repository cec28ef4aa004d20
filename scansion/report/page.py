"""The report: one self-contained HTML page that opens from disk, with the table, the figures and where it all comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from scansion.activations import ActivationStore
from scansion.evals.bundle import Evaluations
from scansion.evals.probing_result import SparseProbingResult
from scansion.files import atomic_file
from scansion.report.summary import summarise, with_gain


def write_report(
    runs: Sequence[Evaluations], folders: Mapping[str, Path], held_out: ActivationStore, folder: Path
) -> Path:
    """Write ``index.html`` and ``overview.png`` to ``folder`` and return the page's path.

    Args:
        runs: results, in the order of the table.
        folders: run name -> its folder.
        held_out: the store the runs were evaluated on.
        folder: where to write; created if need be.
    """
    # Here, for matplotlib takes a while to load, which every command would wait for.
    from scansion.report.figures import overview, save_png, svg_of

    summary = summarise(runs)
    shown = {row[0] for row in summary.rows}
    sound = [run for run in runs if run.name in shown]
    figure = overview(sound, folders, held_out) if sound else None
    if figure:
        with atomic_file(folder / "overview.png") as temporary:
            save_png(figure, temporary)
    # Everything that comes from names, paths or data is escaped by the template engine.
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((files("scansion.report") / "page.html").read_text(encoding="utf-8"))
    html = template.render(
        summary=summary,
        figure=svg_of(figure) if figure else "",
        runs=[
            {
                "name": run.name,
                "status": "degenerate" if run.reasons else "ok",
                "config": run.core.sae_config.model_dump_json(indent=1),
                "metadata": run.core.sae_metadata.model_dump_json(indent=1),
                "probing": _by_dataset(run.sparse_probing) if run.sparse_probing and not run.reasons else {},
            }
            for run in runs
        ],
        store=held_out.identity.model_dump_json(indent=1),
    )
    page = folder / "index.html"
    with atomic_file(page) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return page


def _by_dataset(probing: SparseProbingResult) -> dict[str, dict[str, str]]:
    """Data set -> heading -> accuracy, an SAE's with its gain over an untrained one."""
    return {
        one.name: {
            **{f"k={k}": with_gain(accuracy, one.gain_top_k[k]) for k, accuracy in one.sae_top_k.items()},
            "all features": with_gain(one.sae_test_accuracy, one.gain_test_accuracy),
            "untrained SAE, all": str(one.random_test_accuracy),
            "LM": str(one.lm_test_accuracy),
            "bag of words": str(one.bag_test_accuracy),
            "qualified": "yes" if one.qualified else "no",
        }
        for one in probing.datasets
    }
