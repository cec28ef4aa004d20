"""Studies: a plan of runs that share one harvest, carried out, measured and compared."""

from scansion.study.comparison import Comparison, compare
from scansion.study.compiling import compile_run
from scansion.study.execute import execute
from scansion.study.final_info import ArmInfo, read_final_info
from scansion.study.plan import ArmPlan, RunPlan, StudyPlan, load_plan
from scansion.study.record import ArmRecord, StudyRecord, infos_of, open_runs
from scansion.study.sources import Source, prepare

__all__ = [
    "ArmInfo",
    "ArmPlan",
    "ArmRecord",
    "Comparison",
    "RunPlan",
    "Source",
    "StudyPlan",
    "StudyRecord",
    "compare",
    "compile_run",
    "execute",
    "infos_of",
    "load_plan",
    "open_runs",
    "prepare",
    "read_final_info",
]
