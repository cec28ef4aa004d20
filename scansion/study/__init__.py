"""Studies: a plan of runs that share one harvest, carried out, measured and compared."""

from scansion.study.compare.comparison import Comparison, compare
from scansion.study.execute import execute
from scansion.study.final_info import ArmInfo, read_final_info
from scansion.study.loading import load_plan
from scansion.study.plan import ArmPlan, RunPlan, StudyPlan
from scansion.study.record import ArmRecord, StudyRecord, infos_of, open_runs

__all__ = [
    "ArmInfo",
    "ArmPlan",
    "ArmRecord",
    "Comparison",
    "RunPlan",
    "StudyPlan",
    "StudyRecord",
    "compare",
    "execute",
    "infos_of",
    "load_plan",
    "open_runs",
    "read_final_info",
]
