"""The summary table: one row a run, with intervals; runs that mean nothing or cannot be compared say so instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from scansion.evals.probing.result import SparseProbingResult
from scansion.evals.statistics import Estimate
from scansion.pipeline.run_results import RunResults
from scansion.study.compare.figures import figure

_CORE = ("fve", "l0", "dead_share", "ce_loss_recovered")
_SHOWN_KS = (1, 5, 20)


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

    def table(self) -> Table:
        """The table for a terminal."""
        table = Table()
        for index, column in enumerate(self.columns):
            table.add_column(column, justify="left" if index < 3 else "right")
        for row in self.rows:
            table.add_row(*(Text(cell) for cell in row))  # Text, for a name may look like markup
        return table


def summarise(runs: Sequence[RunResults]) -> Summary:
    """The summary of some runs, in the order given."""
    sound = [run for run in runs if not run.reasons]
    set_apart = [(run.name, f"degenerate: {'; '.join(run.reasons)}") for run in runs if run.reasons]
    comparable: list[RunResults] = []
    for run in sound:
        problems = run.not_comparable_with(sound[0])
        if problems:
            set_apart.append((run.name, f"not comparable with {sound[0].name}: {'; '.join(problems)}"))
        else:
            comparable.append(run)
    ks = shown_ks([run.sparse_probing for run in comparable if run.sparse_probing])
    probed = (*(f"sae_top_{k}_test_accuracy" for k in ks), "sae_test_accuracy", "llm_test_accuracy") if ks else ()
    columns = ["run", "SAE", "mask", *(figure(name).label for name in (*_CORE, *probed))]
    return Summary(columns, [_row(run, ks) for run in comparable], set_apart, _notes(comparable, bool(ks)))


def _row(run: RunResults, ks: Sequence[int]) -> list[str]:
    core, probing = run.core, run.sparse_probing
    cells = [
        run.name,
        f"{core.sae_config.architecture} {core.sae_config.d_sae}",
        core.sae_config.mask.family,
        _cell(core.fve),
        "-" if core.l0 is None else f"{core.l0:.1f}",
        f"{core.dead_share:.1%}",
        _cell(core.ce_loss_recovered),
    ]
    if ks and probing:
        cells += [with_gain(probing.sae_top_k[k], probing.gain_top_k[k]) for k in ks]
        cells += [with_gain(probing.sae_test_accuracy, probing.gain_test_accuracy), _cell(probing.lm_test_accuracy)]
    return cells + ["-"] * (len(_CORE) + 3 + (len(ks) + 2 if ks else 0) - len(cells))


def _cell(estimate: Estimate | None) -> str:
    return "-" if estimate is None or estimate.value is None else str(estimate)


def with_gain(accuracy: Estimate, gain: Estimate) -> str:
    """A probe's accuracy, and what it is above that of an untrained SAE, with its interval."""
    if accuracy.value is None or gain.value is None or gain.low is None or gain.high is None:
        return "-"
    return f"{accuracy.value:.3f} ({gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}])"


def shown_ks(results: Sequence[SparseProbingResult]) -> list[int]:
    """The numbers of features whose probes a table shows."""
    found = {k for one in results for k in one.sae_top_k}
    return sorted(found & set(_SHOWN_KS)) or sorted(found)


def _notes(runs: Sequence[RunResults], probed: bool) -> list[str]:
    if not runs:
        return ["no run can be compared"]
    core = runs[0].core
    where = "all positions" if 0 in core.positions else "position 0 left out"
    notes = [
        f"{core.sae_metadata.model}, {core.sae_metadata.hook_point}, {core.sae_metadata.tokens:,} training tokens; "
        f"measured on {core.n_tokens:,} tokens of held-out documents, {where}.",
        "Brackets hold 95% bootstrap intervals over contexts (probing: over test texts) of one trained SAE; "
        "they do not cover the variation between seeds.",
    ]
    if probed:
        notes.append(
            "Probes: mean accuracy over data sets, chance 0.5; 'all' uses every feature, 'LM' every raw dimension. In "
            "parentheses, the gain over an untrained SAE of the same settings."
        )
        if probing := runs[0].sparse_probing:
            notes += _detectable_gain([run.sparse_probing for run in runs if run.sparse_probing])
            failed = [one.name for one in probing.datasets if not one.qualified]
            notes.append(
                f"The bag of words scores {probing.bag_test_accuracy} with no order at all. "
                + (
                    f"The LM does not beat it beyond chance on: {', '.join(failed)}."
                    if failed
                    else "The LM beats it on all."
                )
            )
    return notes


def _detectable_gain(results: Sequence[SparseProbingResult]) -> list[str]:
    gains = [gain for one in results for gain in (one.gain_test_accuracy, *one.gain_top_k.values())]
    sizes = [gain.detectable for gain in gains if gain.detectable is not None]
    if not sizes:
        return []
    return [
        f"A gain of {max(sizes):.3f}, over all these data sets, would have been found with any of these probes in 4 of 5 "
        "draws of test texts; a smaller one may have been missed."
    ]
