"""Reports: results become a table, figures and one self-contained page."""

from scansion.report.page import write_report
from scansion.report.summary import Summary, summarise

__all__ = ["Summary", "summarise", "write_report"]
