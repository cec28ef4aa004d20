"""The synthetic study: SAE variants on planted worlds, over seeds, compared with one another and with the truth."""

from scansion.study.synthetic.comparison import StudySummary, compare
from scansion.study.synthetic.execute import execute_synthetic
from scansion.study.synthetic.plan import SyntheticPlan, load_synthetic_plan
from scansion.study.synthetic.write import notes, tables, write_summary

__all__ = [
    "StudySummary",
    "SyntheticPlan",
    "compare",
    "execute_synthetic",
    "load_synthetic_plan",
    "notes",
    "tables",
    "write_summary",
]
