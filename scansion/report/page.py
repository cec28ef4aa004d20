"""The report: a page that opens from disk with everything about a study in it, and the same figures as files for papers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from scansion.files import atomic_file, expanded
from scansion.lm import LanguageModel
from scansion.palette import COLOURS
from scansion.report.charts import (
    Chart,
    pareto_charts,
    position_charts,
    probing_charts,
    specialisation_charts,
    training_charts,
)
from scansion.report.chunks import Chunks
from scansion.report.data import ReportData
from scansion.report.dictionaries import Dictionaries, read_dictionaries
from scansion.report.document import add_plotly, render
from scansion.report.features import FeatureConfig, pack_features
from scansion.report.plotly_form import colour_of, figure_of
from scansion.report.tables.budget import budget_table
from scansion.report.tables.measured import other_tables
from scansion.report.tables.page import full_table, headline_table, verdicts
from scansion.report.tables.position import position_table
from scansion.report.tables.probing import probing_table
from scansion.report.tables.summary import NOTHING, measured_on
from scansion.report.tables.table import ONE_SAE_NOTE
from scansion.study.compare.figures import figure
from scansion.study.compare.tables import HOW_TO_READ, difference_text, legend, shown_figures


def write_report(
    data: ReportData,
    folder: Path | str,
    features: FeatureConfig | None,
    load_lm: Callable[[], LanguageModel] | None = None,
    device: str = "auto",
) -> Path:
    """Write ``index.html`` and ``figures/*.pdf`` and ``*.png`` to ``folder``; returns the page's path.

    Args:
        data: what to report on.
        folder: created if need be.
        features: how much feature pages show; None leaves them out, and with them the language model.
        load_lm: gives the language model of ``data.held_out``; None to load it here.
        device: where the SAEs run, and the language model if it is loaded here.

    Example:
        >>> scansion.write_report(data, "runs/demo/report", features=None)
    """
    from scansion.report.paper import write_figures  # here, because matplotlib takes a while to load

    folder = expanded(folder)
    dictionaries = read_dictionaries(data, features, load_lm, device)
    sections = _charts(data)
    charts = [chart for _, _, some in sections for chart in some]
    write_figures(charts, dictionaries.maps, [arm.name for arm in data.sound], folder / "figures")
    html = page(data, sections, dictionaries)
    path = folder / "index.html"
    with atomic_file(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return path


def page(data: ReportData, sections: Sequence[tuple[str, str, list[Chart]]], dictionaries: Dictionaries) -> str:
    """The page as text.

    Args:
        data: what to report on.
        sections: (id, title, charts) in the order of the page.
        dictionaries: maps and feature pages.
    """
    runs = [arm.results[0] for arm in data.sound]
    chunks = Chunks()
    chunks.add_json("charts", {chart.key: figure_of(chart) for _, _, some in sections for chart in some})
    for index, one in enumerate(dictionaries.maps):
        arrays = {str(number): table for number, table in enumerate(one.panels.values())}
        chunks.add_arrays(f"map-{index}", arrays)
    if dictionaries.maps:
        abouts = [
            {"arm": m.arm, "positions": m.positions, "panels": list(m.panels), "note": m.note}
            for m in dictionaries.maps
        ]
        chunks.add_json("maps", abouts)
    if sections or dictionaries.maps:
        add_plotly(chunks)
    if dictionaries.pages:
        store = data.held_out
        pack_features(dictionaries.pages, store.tokens, store.valid, dictionaries.decode, chunks)
    links = [("summary", "Summary"), *((key, title) for key, title, _ in sections)]
    measured = other_tables(runs)
    links += [("evaluations", "Other evaluations")] if measured else []
    links += [("maps", "Masks")] if dictionaries.maps else []
    links += [("features", "Features")] if dictionaries.pages else []
    return render(
        "report.html",
        data.title,
        _lead(data),
        [*links, ("provenance", "Provenance")],
        chunks,
        plan=_plan(data),
        one_seed=data.one_seed,
        headline=headline_table(data),
        every=full_table(data),
        how_to_read=_notes(data),
        star_note=_star_note(data, every=False),
        star_note_every=_star_note(data, every=True),
        set_apart=list(data.comparison.set_apart.items()),
        caveats=[(arm.name, caveat) for arm in data.comparison.arms for caveat in arm.caveats],
        not_applicable=[
            (arm.name, name, why) for arm in data.comparison.arms for name, why in arm.not_applicable.items()
        ],
        verdicts=verdicts(data),
        baseline=data.comparison.baseline,
        arms=[
            {"name": arm.name, "colour": colour_of(index), "turn": index // len(COLOURS) % 3, "changes": arm.changes}
            for index, arm in enumerate(data.sound)
        ],
        chart_sections=sections,
        has_maps=bool(dictionaries.maps),
        has_features=bool(dictionaries.pages),
        features_note=dictionaries.note,
        details={
            "specialisation": list(filter(None, (position_table(runs), budget_table(runs)))),
            "probing": list(filter(None, (probing_table(runs, every_k=True),))),
        },
        measured=measured,
        commands=data.commands,
        store=data.held_out.identity.model_dump_json(indent=1),
        provenance=[(arm.name, arm.info.status, _provenance(arm.info.model_dump(mode="json"))) for arm in data.arms],
    )


def _charts(data: ReportData) -> list[tuple[str, str, list[Chart]]]:
    if not data.sound:
        return []
    found = [
        ("cost", "Cost and quality", pareto_charts(data)),
        ("specialisation", "Specialisation", specialisation_charts(data)),
        ("probing", "Probing", probing_charts(data)),
        ("positions", "By position", position_charts(data)),
        ("training", "Training", training_charts(data)),
    ]
    return [section for section in found if section[2]]


def _lead(data: ReportData) -> str:
    if not data.sound:
        return f"{data.held_out.identity.model}, {data.held_out.identity.hook_point}. {NOTHING}"
    return measured_on(data.sound[0].results[0].core)


def _notes(data: ReportData) -> list[str]:
    if not data.sound:
        return [NOTHING]
    return [ONE_SAE_NOTE if data.one_seed else HOW_TO_READ, *data.comparison.notes]


def _star_note(data: ReportData, *, every: bool) -> str:
    shown = shown_figures(data.comparison, every=every)
    marked = [
        [difference_text(arm.differences.get(name), figure(name)) for name in shown] for arm in data.comparison.arms
    ]
    return " ".join(legend(data.comparison, marked, every=every))


def _plan(data: ReportData) -> dict[str, Any] | None:
    plan = data.plan
    if plan is None:
        return None
    how, smallest = figure(plan.primary_metric), plan.margin(plan.primary_metric)
    return {
        "hypothesis": plan.hypothesis,
        "primary_metric": plan.primary_metric,
        "primary_label": how.label,
        "minimum_effect": None if smallest is None else f"{smallest * how.scale:g}",
        "stopping_rule": plan.stopping_rule,
        "digest": plan.digest,
        "yaml": yaml.safe_dump(plan.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110),
    }


def _provenance(info: dict[str, Any]) -> str:
    shown = {name: info[name] for name in ("seeds", "reasons", "costs", "provenance")}
    return yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, width=110)
