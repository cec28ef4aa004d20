"""Reports: results become a table, figures and one self-contained page."""

from scansion.report.data import ReportArm, ReportData, runs_data, study_data
from scansion.report.features import FeatureConfig
from scansion.report.page import write_report
from scansion.report.tables.budget import BUDGET_NOTE, budget_table
from scansion.report.tables.measured import measured_table, other_tables
from scansion.report.tables.position import POSITION_NOTE, position_table
from scansion.report.tables.probing import PROBING_NOTE, probing_table
from scansion.report.tables.summary import Summary, summarise

__all__ = [
    "BUDGET_NOTE",
    "POSITION_NOTE",
    "PROBING_NOTE",
    "FeatureConfig",
    "ReportArm",
    "ReportData",
    "Summary",
    "budget_table",
    "measured_table",
    "other_tables",
    "position_table",
    "probing_table",
    "runs_data",
    "study_data",
    "summarise",
    "write_report",
]
