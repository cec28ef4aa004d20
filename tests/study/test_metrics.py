"""What a plan measures is known before anything is run, for a plan is decided by one of these figures."""

from __future__ import annotations

from scansion.evals.core.evaluate import CoreConfig
from scansion.study.compare.figures import measured_figures
from tests.study.conftest import Carried


def test_the_figures_of_a_plan_are_those_its_runs_have(carried: Carried) -> None:
    plan = carried.plan
    known = measured_figures(plan.core, plan.sparse_probing, plan.position)
    assert sorted(known) == sorted(carried.results[0].means()) and len(set(known)) == len(known)


def test_what_is_not_evaluated_gives_no_figure() -> None:
    few, more = (measured_figures(CoreConfig(loss_contexts=n), None, None) for n in (0, 1))
    assert "fve" in few and set(more) - set(few) == {"ce_loss_recovered", "ce_loss", "kl"}
