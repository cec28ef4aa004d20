"""``final_info.json``: a run's figures in the layout that automated research loops read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scansion.evals.bundle import Evaluations
from scansion.files import write_json


def write_final_info(folder: Path, name: str, evaluations: Evaluations) -> None:
    """Write ``final_info.json``: ``{name: {means, stderrs, seeds, status, reasons, provenance}}``.

    A standard error over seeds needs two of them; with one it is null.
    """
    figures = evaluations.means()
    metadata = evaluations.core.sae_metadata
    info: dict[str, Any] = {
        name: {
            "means": figures,
            "stderrs": dict.fromkeys(figures),
            "seeds": [metadata.seed],
            "status": "degenerate" if evaluations.reasons else "ok",
            "reasons": evaluations.reasons,
            "provenance": metadata.model_dump(mode="json"),
        }
    }
    write_json(folder / "final_info.json", info)
