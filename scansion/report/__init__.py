"""Reports: results become a table, figures and one self-contained page."""

from scansion.report.data import ReportArm, ReportData, runs_data, study_data
from scansion.report.features import FeatureConfig
from scansion.report.page import write_report
from scansion.report.tables.budget import budget_table
from scansion.report.tables.measured import measured_table, other_tables
from scansion.report.tables.position import position_table
from scansion.report.tables.probing import probing_table
from scansion.report.tables.summary import Summary, summarise
from scansion.report.tables.table import ReportTable

__all__ = [
    "FeatureConfig",
    "ReportArm",
    "ReportData",
    "ReportTable",
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
