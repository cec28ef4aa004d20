"""Studies: a plan of runs that share one harvest, carried out, measured and compared."""

from scansion.study.compiling import compile_run
from scansion.study.execute import execute
from scansion.study.plan import RunPlan, StudyPlan, load_plan
from scansion.study.seeds import execute_seeds
from scansion.study.sources import Source, prepare

__all__ = ["RunPlan", "Source", "StudyPlan", "compile_run", "execute", "execute_seeds", "load_plan", "prepare"]
