"""What a plan measures is known before anything is run, for a plan is decided by one of these figures."""

from __future__ import annotations

import pytest

from scansion.errors import ConfigError
from scansion.evals import Evaluation, EvaluationConfig, Figure, evaluations
from scansion.evals.core.evaluate import CoreConfig
from scansion.evals.core.evaluation import Core
from scansion.study.compare.figures import figure
from tests.study.conftest import Carried


def test_the_figures_of_a_plan_are_those_its_runs_have(carried: Carried) -> None:
    known = [name for one in evaluations.build(carried.plan.evaluations).values() for name in one.measured()]
    assert sorted(known) == sorted(carried.results[0].means()) and len(set(known)) == len(known)


def test_what_is_not_evaluated_gives_no_figure() -> None:
    few, more = (Core(CoreConfig(loss_contexts=n)).measured() for n in (0, 1))
    assert "fve" in few and set(more) - set(few) == {"ce_loss_recovered", "ce_loss", "kl"}


def test_every_figure_has_one_name_and_says_how_it_is_shown() -> None:
    names = [one.at(7).name if one.numbers else one.name for kind in map(evaluations.called, evaluations.names())
             for one in kind.figures]  # fmt: skip
    assert len(set(names)) == len(names)
    assert all(figure(name).label != name.replace("_", " ") or figure(name).called(name) for name in names)
    assert (
        figure("sae_top_7_test_accuracy").label == "probe, k=7" and not figure("sae_top_7_test_accuracy_gain").headline
    )
    gain = figure("sae_top_5_test_accuracy_gain")
    assert gain.headline and gain.better == "up" and not figure("sae_top_5_test_accuracy").headline
    assert figure("nobody_measures_this").label == "nobody measures this"


def test_a_figure_of_another_evaluation_is_refused() -> None:
    class ThiefConfig(EvaluationConfig):
        evaluation = "thief"

    with pytest.raises(ConfigError, match="'core' has a figure called fve already; choose another name"):

        @evaluations.register(ThiefConfig)
        class Thief(Evaluation):
            figures = (Figure("fve", "mine"),)

    assert "thief" not in evaluations.names()


def test_results_carry_the_name_of_their_evaluation() -> None:
    for name in evaluations.names():
        assert evaluations.called(name).result.model_fields["eval"].default == name
