"""L0 and FVE of JumpReLU against its coefficient, at the size of ``scansion demo``: ``python -m benchmarks.jumprelu``.

All SAEs are trained on one stream and evaluated on held-out text. A TopK SAE from the same stream shows what FVE is usual
at such an L0.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from cyclopts import App

from benchmarks.training_tables import Rows, table
from scansion.evals.base import LoadedSAE
from scansion.evals.core.evaluate import CoreConfig, CoreResult, evaluate_core
from scansion.files import atomic_file
from scansion.sae import JumpReluConfig, SAEConfig, TopKConfig, load_sae
from scansion.study.loading import load_plan
from scansion.study.record import source_of
from scansion.training import TrainingRun, train

COEFFICIENTS = (1e-4, 1e-3, 3e-3, 1e-2, 1e-1, 1.0)
app = App(help_format="plaintext")


@app.default
def measure(*, out: Path, into: Path | None = None, plan: str = "demo", d_sae: int = 2304) -> None:
    """Train, evaluate, and print the table or put it in its place in a page. Run again to resume.

    Args:
        out: folder of the runs.
        into: a page with a place for the table, ``<!-- measured: jumprelu -->`` to ``<!-- end -->``.
        plan: whose activations and training settings are used.
        d_sae: features of each SAE.
    """
    study = load_plan(plan)
    configs: dict[str, SAEConfig] = {
        f"{coefficient:g}": JumpReluConfig(d_sae=d_sae, l0_coefficient=coefficient) for coefficient in COEFFICIENTS
    }
    configs["TopK, k 32"] = TopKConfig(d_sae=d_sae)
    stores = source_of(study).build()
    runs = [TrainingRun(name, out / name, config, study.training) for name, config in configs.items()]
    train(runs, stores.train)
    saes = [LoadedSAE(run.name, *load_sae(run.folder / "sae")) for run in runs]
    text = rows_of(evaluate_core(saes, stores.held_out, None, CoreConfig(loss_contexts=0)), list(configs))
    if into is None:
        sys.stdout.write(text + "\n")
        return
    place = r"(<!-- measured: jumprelu -->\n).*?(<!-- end -->)"
    page = re.sub(place, rf"\g<1>{text}\n\g<2>", into.read_text(encoding="utf-8"), flags=re.DOTALL)
    with atomic_file(into) as temporary:
        temporary.write_text(page, encoding="utf-8")


def rows_of(results: list[CoreResult], names: list[str]) -> str:
    """The table, one row per SAE."""
    rows: Rows = [("`l0_coefficient`", "L0", "FVE", "FVE without outlier tokens", "dead share")]
    for name, core in zip(names, results, strict=True):
        fves = (core.fve, core.fve_without_outliers or core.fve)
        cells = ["" if one.value is None else f"{one.value:.3f}" for one in fves]
        rows.append((name, f"{core.l0:.1f}", *cells, f"{core.dead_share:.2f}"))
    return table(*rows)


if __name__ == "__main__":
    app()
