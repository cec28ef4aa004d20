"""``scansion report``: everything about a study in one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from scansion.assets import fetch
from scansion.cli.app import output
from scansion.files import require_writable
from scansion.remote import named
from scansion.report import FeatureConfig, study_data, write_report
from scansion.study import StudyRecord
from scansion.study.checks import plan_assets
from scansion.study.plan import slug


def report(
    study: Path,
    *,
    out: Path | None = None,
    features: bool = True,
    device: str = "auto",
    shown: Annotated[FeatureConfig | None, Parameter(name="*")] = None,
) -> None:
    """Write the report of a study: one HTML page that opens from disk, and its figures as PDF and PNG.

    The page holds the comparison, every plot, the masks before and after training, and a page for every feature of the
    first seed of each run. It loads nothing from the network.

    Example: scansion report runs/positional_masking

    Parameters
    ----------
    study
        Folder of a study, which holds run_0, run_1, ...
    out
        Folder for index.html and figures/; default: STUDY/report.
    features
        Write the pages of features, which need the language model and are most of the report's size.
    device
        Where the SAEs and the language model run: auto, cpu, cuda, cuda:1 or mps.
    """
    record = StudyRecord.open(study)
    require_writable(out or study / "report")
    fetch(plan_assets(record.plan))
    write_pages(record, out or study / "report", (shown or FeatureConfig()) if features else None, device)


def write_pages(record: StudyRecord, folder: Path, features: FeatureConfig | None, device: str = "auto") -> None:
    """Write a study's page, or a page in a folder for each of its synthetic worlds, and print where."""
    for part in record.by_world():
        place = folder / slug(part.world) if part.world else folder
        page = write_report(study_data(part), place, features, device=device)
        output.print(f"report: {named(page)}", markup=False)
