"""The summary table: one row per run, with intervals; runs that mean nothing or cannot be compared say so instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scansion.activations import TokenExclusion
from scansion.activations.outliers import NOTABLE
from scansion.evals import evaluations
from scansion.evals.core.evaluate import CoreResult
from scansion.evals.probing.result import SparseProbingResult
from scansion.pipeline.run_results import RunResults
from scansion.report.tables.probing import shown_ks, with_gain
from scansion.report.tables.table import ONE_SAE_NOTE, row_name
from scansion.study.compare.comparison import SHORT_NOTE
from scansion.study.compare.figures import figure
from scansion.study.compare.tables import figure_text
from scansion.text_table import TextTable

NOTHING = "No run can be compared."


@dataclass(frozen=True)
class Summary:
    """A table as text.

    Attributes:
        columns: headings.
        rows: cells of each comparable run, as many as there are columns.
        set_apart: (run, why) for runs that are degenerate or not comparable with the first one that is not.
        notes: what a reader must know to read the figures.
    """

    columns: list[str]
    rows: list[list[str]]
    set_apart: list[tuple[str, str]]
    notes: list[str]

    def table(self) -> TextTable:
        """The table for a terminal."""
        return TextTable(self.columns, [self.rows], left=3)


def summarise(runs: Sequence[RunResults]) -> Summary:
    """The summary of some runs, in the order given.

    Example:
        >>> summary = scansion.summarise(results)
    """
    sound = [run for run in runs if not run.reasons]
    set_apart = [(run.name, f"degenerate: {'; '.join(run.reasons)}") for run in runs if run.reasons]
    comparable: list[RunResults] = []
    for run in sound:
        if problems := run.not_comparable_with(sound[0]):
            set_apart.append((run.name, f"not comparable with {sound[0].name}: {'; '.join(problems)}"))
        else:
            comparable.append(run)
    probed = [run.sparse_probing for run in comparable if run.sparse_probing]
    ks = shown_ks(probed)
    names = [one.name for one in evaluations.called("core").figures if one.headline]
    if ks:
        names += [*(f"sae_top_{k}_test_accuracy" for k in ks), "sae_test_accuracy", "llm_test_accuracy"]
    columns = ["run", "SAE", "mask", *(figure(name).label for name in names)]
    return Summary(columns, [_row(run, names, ks) for run in comparable], set_apart, _notes(comparable, probed))


def _row(run: RunResults, names: Sequence[str], ks: Sequence[int]) -> list[str]:
    config, probing, figures = run.core.sae_config, run.sparse_probing, run.figures()
    cells = {name: figure_text(figures.get(name), figure(name)) for name in names}
    if probing:
        cells |= {f"sae_top_{k}_test_accuracy": with_gain(probing.sae_top_k[k], probing.gain_top_k[k]) for k in ks}
        cells["sae_test_accuracy"] = with_gain(probing.sae_test_accuracy, probing.gain_test_accuracy)
    return [row_name(run.core), f"{config.architecture} {config.d_sae}", config.mask.family, *cells.values()]


def measured_on(core: CoreResult) -> str:
    """What the SAE was trained and measured on, in a sentence."""
    metadata = core.sae_metadata
    where = "all positions" if 0 in core.positions else "position 0 left out"
    trained = "" if metadata.tokens is None else f"trained on {metadata.tokens:,} tokens and "
    tokens, variance = core.outlier_token_share or 0.0, core.outlier_variance_share or 0.0
    outliers = f" {tokens:.1%} of these are outlier tokens, which hold {variance:.0%} of the variance behind FVE."
    documents = "held-out" if core.data.get("split") == "held_out" else "training"
    left_out = any(core.data.get("config", {}).get(name) for name in TokenExclusion.model_fields)
    return (
        f"{metadata.model}, {metadata.hook_point}, contexts of {metadata.context_length} tokens. Each SAE was {trained}"
        f"measured on {core.n_tokens:,} tokens of {documents} documents, {where}"
        f"{', without the tokens that the settings of core exclude' if left_out else ''}."
        f"{outliers if variance > NOTABLE else ''}"
    )


def _origins(runs: Sequence[RunResults]) -> list[str]:
    """A sentence on each SAE of another library, and on each that started from a trained one."""
    sentences: list[str] = []
    for run in runs:
        metadata = run.core.sae_metadata
        if metadata.imported is not None:
            sentences.append(
                f"{run.name} was imported from {metadata.imported}: on which text and how long it was trained is not known."
            )
        if (start := metadata.started_from) is not None:
            before = "for how long is not known" if start.tokens is None else f"on {start.tokens:,} tokens"
            sentences.append(f"{run.name} started from {start.folder}, which had been trained already ({before}).")
    return sentences


def _notes(runs: Sequence[RunResults], probed: Sequence[SparseProbingResult]) -> list[str]:
    if not runs:
        return [NOTHING]
    of_known_training = [run for run in runs if run.core.sae_metadata.tokens is not None]
    notes = [measured_on((of_known_training or runs)[0].core), *_origins(runs), ONE_SAE_NOTE]
    if any(run.is_short for run in runs):
        notes.append(SHORT_NOTE)
    if probed:
        bag = figure_text(probed[0].bag_test_accuracy, figure("bag_of_words_test_accuracy"))
        failed = [one.name for one in probed[0].datasets if not one.qualified]
        beaten = f"does not beat it beyond chance on: {', '.join(failed)}" if failed else "beats it on every data set"
        notes += [
            "Probes: mean test accuracy over data sets; chance is 0.5. Parentheses hold the gain over untrained SAEs of the "
            "same settings.",
            *_detectable_gain(probed),
            f"A bag of words, which ignores word order, scores {bag}. The language model {beaten}.",
        ]
    return notes


def _detectable_gain(results: Sequence[SparseProbingResult]) -> list[str]:
    gains = [gain for one in results for gain in (one.gain_test_accuracy, *one.gain_top_k.values())]
    sizes = [gain.detectable for gain in gains if gain.detectable is not None]
    if not sizes:
        return []
    return [
        f"Every probe would find a mean gain of {max(sizes):.3f} in 4 of 5 draws of test texts; it may miss a smaller one."
    ]
