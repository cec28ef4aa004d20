"""Reports: results become a table, figures and one self-contained page."""

from scansion.report.page import write_report
from scansion.report.position_table import POSITION_NOTE, position_table
from scansion.report.summary import Summary, summarise

__all__ = ["POSITION_NOTE", "Summary", "position_table", "summarise", "write_report"]
