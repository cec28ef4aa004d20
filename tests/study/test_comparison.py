"""Comparisons: intervals and p-values of known cases, corrections, fronts, and who may not be compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scansion.errors import ConfigError
from scansion.evals import evaluations
from scansion.evals.statistics import CrossedMean, Estimate, TextGroups
from scansion.records import read_json
from scansion.study import ArmInfo, compare
from scansion.study.by_text import read_by_text
from scansion.study.compare.comparison import (
    SPARSITY_NOTE,
    STAR_NOTE,
    UNEQUAL_L0_NOTE,
    WINDOWS_NOTE,
    Comparison,
    Difference,
    holm,
)
from scansion.study.compare.figures import figure
from scansion.study.compare.tables import (
    difference_text,
    figure_text,
    legend,
    lines_below,
    terminal_tables,
    write_comparison,
)
from scansion.study.notes import verdict

SAME = {
    "model": "m", "model_revision": "r", "hook_point": "h", "contexts": "c", "context_length": 8, "use_position_0": False,
    "tokens": 100, "evaluated_on": {"core": "e", "position": "f"}, "plan": "p", "sae": {"d_sae": 64},
}  # fmt: skip


def info(seeds: dict[int, float], *, l0: float = 32.0, seconds: float = 1.0, **changes: Any) -> ArmInfo:
    """An arm with these FVEs by seed."""
    values: dict[str, list[float | None]] = {"fve": list(seeds.values()), "l0": [l0] * len(seeds)}
    return ArmInfo(
        means={"fve": sum(seeds.values()) / len(seeds), "l0": l0}, stderrs={}, values=values, seeds=list(seeds),
        status="ok", provenance={**SAME, **changes}, costs={"train_seconds": seconds},
    )  # fmt: skip


BASE = info({0: 0.80, 1: 0.82, 2: 0.84})


def difference(comparison: Comparison, arm: str, figure: str = "fve") -> Difference:
    return next(one for one in comparison.arms if one.name == arm).differences[figure]


def test_differences_are_paired_by_seed() -> None:
    # Far apart between seeds, close together within them: only pairing can tell them apart.
    found = difference(compare({"base": BASE, "other": info({2: 0.83, 0: 0.79, 1: 0.80})}), "other")
    # -0.01, -0.02, -0.01: mean -4/300, standard deviation 0.01/sqrt(3), so t = -4 with 2 degrees of freedom.
    assert found.estimate.value == pytest.approx(-4 / 300)
    assert found.estimate.high - found.estimate.value == pytest.approx(4.30265 * 0.01 / 3, rel=1e-4)
    assert found.p == pytest.approx(0.0571910, rel=1e-4)  # Student's t, 2 degrees of freedom, |t| > 4
    assert found.seeds == [2, 0, 1] and not found.significant


def test_intervals_cover_text_where_figures_are_known_by_it(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    parts = {"base": generator.normal(0.8, 0.01, (3, 8)), "other": generator.normal(0.7, 0.01, (3, 8))}
    parts["other"] += generator.normal(0, 0.1, (1, 8))  # on some text it is much better than on other
    infos = {
        name: info(dict(enumerate(part.mean(axis=1).tolist()))).model_copy(
            update={"by_text": {"fve": {s: TextGroups.of_ratio(row, np.ones(8)) for s, row in enumerate(part)}}}
        )
        for name, part in parts.items()
    }
    comparison = compare(infos)
    found = difference(comparison, "other")
    gap = parts["other"] - parts["base"]
    without = (gap.sum(axis=1, keepdims=True) - gap) / 7
    crossed = CrossedMean.of(gap.mean(axis=1).tolist(), without)
    assert found.estimate.low == pytest.approx(crossed.estimate().low)
    assert (found.p, found.detectable) == pytest.approx((crossed.p, crossed.detectable))
    alone = difference(compare({name: one.model_copy(update={"by_text": {}}) for name, one in infos.items()}), "other")
    assert found.estimate.high - found.estimate.low > 2 * (alone.estimate.high - alone.estimate.low)
    assert comparison.arms[0].seeds_alone == ["l0"]
    assert any("those of L0 other seeds on this text" in line for line in lines_below(comparison))
    write_comparison(comparison, infos, tmp_path)
    assert read_by_text(tmp_path) == {name: one.by_text for name, one in infos.items()}


def test_only_shared_seeds_are_paired() -> None:
    found = difference(compare({"base": BASE, "other": info({1: 0.80, 9: 0.1})}), "other")
    assert found.seeds == [1] and found.estimate.value == pytest.approx(-0.02)
    assert (found.estimate.low, found.p, found.p_holm, found.detectable) == (None, None, None, None)
    strangers = compare({"base": BASE, "other": info({7: 0.8})})
    assert strangers.arms[1].differences == {}


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_correction_is_over_the_arms_of_each_figure() -> None:
    arms = {"base": BASE, **{f"arm {i}": info({0: 0.7, 1: 0.72 + i / 1000, 2: 0.74}) for i in range(1, 5)}}
    comparison = compare(arms)
    raw = [difference(comparison, name).p for name in list(arms)[1:]]
    assert [difference(comparison, name).p_holm for name in list(arms)[1:]] == pytest.approx(holm(raw))
    assert difference(comparison, "arm 1", "l0").p is None, "no spread, no test"


@pytest.mark.parametrize("seeds", [{0: 0.1 + 0.2, 1: 0.3 + 0.2}, {0: 0.3, 1: 0.5, 2: 0.7}])
def test_the_same_difference_at_every_seed_has_no_interval(seeds: dict[int, float]) -> None:
    # Up to rounding: 0.3 - 0.1 and 0.5 - 0.3 differ in the last place, and a t-test on them would be sure of anything.
    found = difference(compare({"base": info({0: 0.1, 1: 0.3, 2: 0.5}), "other": info(seeds)}), "other")
    assert found.estimate.value == pytest.approx(0.2) and found.estimate.low is None
    assert (found.p, found.p_holm, found.detectable, found.significant) == (None, None, None, False)
    alike = f"+0.200 at each of {len(seeds)} seeds, which does not show how much seeds vary"
    assert verdict(found, "fve") == alike


def test_no_difference_at_any_seed_is_said_so_whatever_the_rounding() -> None:
    found = difference(compare({"base": info({0: 0.3, 1: 0.6}), "same": info({0: 0.1 + 0.2, 1: 0.6})}), "same")
    assert verdict(found, "fve") == "equal to the baseline's at every seed (n=2)"


def test_what_could_have_been_found_is_said_for_each_headline_figure() -> None:
    noisy, steady = info({0: 0.7, 1: 0.75, 2: 0.8}), info({0: 0.70, 1: 0.72, 2: 0.75})
    comparison = compare({"base": BASE, "noisy": noisy, "steady": steady})
    sizes = sorted(difference(comparison, name).detectable for name in ("noisy", "steady"))
    (line,) = [line for line in lines_below(comparison) if "4 of 5" in line]
    assert f"FVE, all tokens {sizes[0]:.3f} to {sizes[1]:.3f}" in line
    one_seed = compare({"base": info({0: 0.8}), "other": info({0: 0.7})})
    assert not any("4 of 5" in line for line in lines_below(one_seed)), "one seed tells nothing of its spread"


def test_a_marked_gain_says_what_of_it_is_not_the_controls() -> None:
    def probed(accuracies: list[float], controls: list[float]) -> ArmInfo:
        values = {
            "sae_test_accuracy_gain": [a - c for a, c in zip(accuracies, controls, strict=True)],
            "sae_test_accuracy": accuracies,
        }
        return BASE.model_copy(update={"values": BASE.values | values})

    base = probed([0.70, 0.71, 0.72], [0.65, 0.66, 0.67])
    arms = {"base": base, "worse control": probed([0.70, 0.712, 0.719], [0.550, 0.561, 0.571])}
    comparison = compare(arms)
    gain = comparison.arms[1].differences["sae_test_accuracy_gain"]
    own = comparison.arms[1].differences["sae_test_accuracy"].estimate
    assert gain.significant and gain.estimate.value == pytest.approx(0.3 / 3, abs=1e-3)
    assert own.low < 0 < own.high, "the control alone differs"
    *_, note = legend(comparison, [[difference_text(gain, figure("sae_test_accuracy_gain"))]])
    assert note.startswith("A marked difference in probe gain over untrained, all features may be its control's.")
    assert note.endswith(f"(probe, all features): worse control {figure_text(own, figure('sae_test_accuracy'), '+')}.")
    assert not any("control" in line for line in legend(compare({"base": base, "same": base}), []))


def test_a_marked_share_of_position_is_shown_with_that_before_training() -> None:
    def measured(shares: list[float], start: float | None) -> ArmInfo:
        values = {"position_share_lifted": shares, "position_share_start": [start] * 3}
        return BASE.model_copy(update={"values": BASE.values | values})

    base, more = measured([0.010, 0.011, 0.012], 0.021), measured([0.020, 0.0213, 0.0219], 0.022)
    cell = [["", "+1.00 *"]]
    (note,) = [line for line in legend(compare({"base": base, "masked": more}), cell) if "Before training" in line]
    assert note.endswith("Before training it is: base 2.10 [2.10, 2.10]; masked 2.20 [2.20, 2.20].")
    assert not any("Before training" in line for line in legend(compare({"base": base, "same": base}), cell))
    unknown = {"base": measured([0.010, 0.011, 0.012], None), "masked": measured([0.020, 0.0213, 0.0219], None)}
    assert not any("Before training" in line for line in legend(compare(unknown), cell))


def test_every_gain_names_the_figure_that_it_is_of() -> None:
    gains = [one for kind in evaluations.names() for one in evaluations.called(kind).figures if "_gain" in one.name]
    assert gains, "sparse probing has them"
    for gain in gains:
        one = gain.at(5) if gain.numbers else gain
        assert one.gain_of is not None and evaluations.figure(one.gain_of) is not None, gain.name


def test_fronts_keep_what_nothing_beats() -> None:
    arms = {
        "base": info({0: 0.8, 1: 0.8}, l0=32, seconds=3),
        "sparser": info({0: 0.7, 1: 0.7}, l0=16, seconds=3),
        "worse": info({0: 0.6, 1: 0.6}, l0=20, seconds=4),
        "equal": info({0: 0.8, 1: 0.8}, l0=32, seconds=9),
    }
    fronts = {(front.x, front.y): front.arms for front in compare(arms).fronts}
    assert fronts["l0", "fve"] == ["base", "sparser", "equal"]
    assert fronts["train_seconds", "fve"] == ["base"]


def test_a_cost_that_tables_show_as_equal_puts_no_run_on_a_front() -> None:
    arms = {
        "base": info({0: 0.8}, l0=32),
        "starved": info({0: 0.5}, l0=31.9986),
        "sparser": info({0: 0.7}, l0=31.9),
    }
    front = compare(arms).fronts[0]
    assert (front.x, front.arms) == ("l0", ["base", "sparser"])


def test_what_seeds_do_not_tell_from_a_front_is_said() -> None:
    arms = {
        "base": info({0: 0.80, 1: 0.82, 2: 0.84}),
        "beaten": info({0: 0.70, 1: 0.71, 2: 0.74}),
        "noisy": info({0: 0.79, 1: 0.84, 2: 0.80}),
    }
    comparison = compare(arms)
    front = comparison.fronts[0]
    assert (front.x, front.y, front.arms, front.near) == ("l0", "fve", ["base"], ["noisy"])
    assert any(line.endswith(": base. Within seed noise of it: noisy.") for line in lines_below(comparison))
    one_seed = compare({"base": info({0: 0.8}), "lower": info({0: 0.7})})
    assert one_seed.fronts[0].near == [], "one seed tells nothing, and that is said once"


@pytest.mark.parametrize(
    ("change", "value", "why"),
    [
        ("model", "other", "model is 'other', not 'm'"),
        ("hook_point", "layers.19", "hook_point is 'layers.19', not 'h'"),
        ("contexts", "other", "contexts is 'other', not 'c'"),
        ("tokens", 7, "tokens is 7, not 100"),
        ("evaluated_on", {"core": "other"}, "core was measured on other data or with other settings"),
        ("evaluated_on", {"core": "e", "position": "x"}, "position was measured on other data or with other settings"),
    ],
)
def test_other_questions_are_not_compared(change: str, value: object, why: str) -> None:
    comparison = compare({"base": BASE, "other": info({0: 0.8}, **{change: value})})
    assert [arm.name for arm in comparison.arms] == ["base"]
    assert comparison.set_apart == {"other": f"not comparable with base: {why}"}
    assert f"other: not comparable with base: {why}" in lines_below(comparison)


def test_what_windows_show_of_the_position_by_construction_is_said() -> None:
    def on_windows(window: int, **figures: float) -> ArmInfo:
        one = info({0: 0.8}, sae={"d_sae": 64, "window": window})
        return one.model_copy(update={"means": one.means | figures})

    said = compare({"base": BASE, "wide": on_windows(5, position_information=0.1), "unmeasured": on_windows(5)}).notes
    assert said == [f"wide {WINDOWS_NOTE}"]
    assert compare({"base": BASE, "one": on_windows(1, position_information=0.1)}).notes == []


def test_another_name_of_the_same_model_is_compared() -> None:
    here, there = ({"model": name, "model_revision": "xxh3:" + "a" * 32} for name in ("./gemma", "/models/gemma"))
    assert compare({"base": info({0: 0.8}, **here), "other": info({0: 0.8}, **there)}).set_apart == {}


def test_an_evaluation_that_one_run_lacks_does_not_set_it_apart() -> None:
    comparison = compare({"base": BASE, "other": info({0: 0.8}, evaluated_on={"core": "e", "absorption": "a"})})
    assert [arm.name for arm in comparison.arms] == ["base", "other"] and not comparison.set_apart


@pytest.mark.parametrize("status", ["degenerate", "failed", "unfinished"])
def test_runs_without_a_result_are_listed_apart(status: Any) -> None:
    bad = ArmInfo(status=status, reasons=["all features are dead"])
    comparison = compare({"bad": bad, "base": BASE, "other": info({0: 0.7, 1: 0.7, 2: 0.7})})
    assert comparison.baseline == "base" and comparison.set_apart == {"bad": f"{status}: all features are dead"}
    assert f"The baseline bad is {status}, so runs are compared with base instead." in comparison.notes, (
        "also when nobody named it"
    )
    assert "other" in [arm.name for arm in comparison.arms]
    stood_in = compare({"bad": bad, "base": BASE}, "bad")
    assert (
        stood_in.baseline == "base"
        and f"The baseline bad is {status}, so runs are compared with base instead." in stood_in.notes
    )


def test_a_difference_in_sparsity_is_pointed_out() -> None:
    comparison = compare({"base": BASE, "dense": info({0: 0.9, 1: 0.9}, l0=60.0), "near": info({0: 0.8}, l0=33.0)})
    assert comparison.arms[1].caveats == ["L0: 60.0, baseline 32.0"]
    assert "dense: L0: 60.0, baseline 32.0" in lines_below(comparison) and SPARSITY_NOTE in comparison.notes
    assert comparison.arms[2].caveats == []
    means = {"l0": 32.0, "position_l0_lifted": 60.0}
    lifted = BASE.model_copy(update={"means": {**BASE.means, "position_l0_lifted": 30.0}})
    comparison = compare({"base": lifted, "loose": BASE.model_copy(update={"means": {**BASE.means, **means}})})
    assert comparison.arms[1].caveats == ["L0, mask lifted: 60.0, baseline 30.0"]


def test_nothing_to_compare_is_an_error_and_no_sound_run_is_a_line() -> None:
    with pytest.raises(ConfigError, match="there is no run to compare"):
        compare({})
    with pytest.raises(ConfigError, match="there is no run called 'nobody'; there are 'base'"):
        compare({"base": BASE}, "nobody")
    nothing = compare({"bad": ArmInfo(reasons=["not begun"])})
    assert nothing.baseline is None and terminal_tables(nothing) == []
    assert lines_below(nothing)[0] == "No run can be compared."


def test_tables_hold_every_figure_and_names_do_no_harm(tmp_path: Path) -> None:
    infos = {
        "base": BASE,
        "a | b\n[red]": info({0: 0.7, 1: 0.7, 2: 0.71}),
        "bad": ArmInfo(status="failed", reasons=["x"]),
    }
    comparison = compare(infos)
    markdown, data = write_comparison(comparison, infos, tmp_path)
    text = markdown.read_text()
    assert "| base | 64 | 0.820 [0.770, 0.870] | 32.0 [32.0, 32.0] |" in text
    assert "a \\| b [red]" in text and "bad: failed: x" in text
    written = read_json(data)
    assert written["runs"]["base"]["values"]["fve"] == BASE.values["fve"]
    assert Comparison.model_validate({k: v for k, v in written.items() if k not in ("runs", "shown")}) == comparison


def made(value: float, low: float | None, high: float | None) -> Difference:
    estimate = {"value": value, "low": low, "high": high}
    return Difference.model_validate(
        {"estimate": estimate, "p": None, "p_holm": None, "detectable": 0.02, "seeds": [0, 1, 2]}
    )


def test_verdicts_say_no_more_than_the_interval() -> None:
    assert verdict(made(-0.1, -0.2, -0.05), "fve") == "lower than the baseline's: -0.100 [-0.200, -0.050], worse (n=3)"
    assert "higher" in verdict(made(0.1, 0.05, 0.2), "dead_share") and "worse" in verdict(
        made(0.1, 0.05, 0.2), "dead_share"
    )
    assert verdict(made(0.1, 0.05, 0.2), "l0").endswith("+0.1 [+0.1, +0.2] (n=3)"), "neither way is better"
    assert verdict(made(0.0, 0.0, 0.0), "fve") == "equal to the baseline's at every seed (n=3)"
    unclear = verdict(made(0.01, -0.03, 0.05), "fve")
    assert (
        unclear.startswith("no difference detectable at n=3: +0.010")
        and "4 of 5 such studies would detect a true one of 0.020" in unclear
    )
    assert "does not show how much seeds vary" in verdict(made(0.1, None, None), "fve")


def test_what_a_star_means_is_said_below_each_table_that_has_one(tmp_path: Path) -> None:
    arms = {"base": BASE, "lower": info({0: 0.700, 1: 0.721, 2: 0.739}), "same": info({0: 0.8, 1: 0.83, 2: 0.83})}
    comparison = compare(arms)
    figures, differences = terminal_tables(comparison)
    assert [row[2].endswith(" *") for row in differences.groups[0]] == [True, False]
    assert (figures.caption, differences.caption) == (None, STAR_NOTE)
    written = write_comparison(comparison, arms, tmp_path)[0].read_text()
    assert written.count(STAR_NOTE) == 2, "below the headline's differences, and below those of every figure"
    without = compare({"base": BASE, "same": arms["same"]})
    assert all(table.caption is None for table in terminal_tables(without))


def test_unequal_sparsity_is_marked_beside_every_difference(tmp_path: Path) -> None:
    arms = {"base": BASE, "loose": info({0: 0.9, 1: 0.93, 2: 0.93}, l0=40.0), "alike": info({0: 0.8, 1: 0.83, 2: 0.83})}
    comparison = compare(arms)
    assert difference(comparison, "loose").unequal_l0 and not difference(comparison, "loose", "l0").unequal_l0
    assert not difference(comparison, "alike").unequal_l0
    text = write_comparison(comparison, arms, tmp_path)[0].read_text()
    assert "] † * |" in text or "] † |" in text
    assert text.count(UNEQUAL_L0_NOTE) == 2, "below both tables of differences"


def test_how_often_a_star_may_be_chance_is_said_where_there_is_one() -> None:
    values = {"fve": [0.80, 0.82, 0.84], "dead_share": [0.1, 0.2, 0.3]}
    base = BASE.model_copy(update={"values": {**BASE.values, **values}})
    lower = {"fve": [0.700, 0.721, 0.739], "dead_share": [0.2, 0.1, 0.4]}
    other = BASE.model_copy(update={"values": {**BASE.values, **lower}})
    (_, differences) = terminal_tables(compare({"base": base, "other": other}))
    assert (
        "2 figures are tested. If no run differed, one would still expect stars at up to 0.1 of them"
        in differences.caption
    )
    assert "one or more with a chance of up to 10%" in differences.caption


def test_verdicts_heed_the_correction() -> None:
    sure = made(0.03, 0.02, 0.04)
    assert "higher than the baseline's" in verdict(sure.model_copy(update={"p": 0.01, "p_holm": 0.02}), "fve", 0.01)
    away = verdict(sure.model_copy(update={"p": 0.01, "p_holm": 0.16}), "fve", 0.01)
    assert away.startswith("+0.030 [+0.020, +0.040], not significant at n=3 after Holm's correction over the runs")
    assert "higher" not in away and away.endswith(
        "it may or may not reach 0.01, the plan's smallest effect that matters"
    )


def test_no_zero_has_a_sign() -> None:
    how = figure("fve")
    assert figure_text(Estimate(value=-0.0001, low=-0.0004, high=0.0002), how) == "0.000 [0.000, 0.000]"
    assert difference_text(made(-0.0001, -0.0004, 0.0002), how) == "+0.000 [+0.000, +0.000]"


@pytest.mark.parametrize(
    ("interval", "says"),
    [
        ((0.001, -0.004, 0.006), "equivalent: smaller than 0.01, the plan's smallest effect that matters"),
        ((0.001, 0.0005, 0.0015), "equivalent: smaller than 0.01"),
        ((0.03, 0.02, 0.04), "different: at least 0.01"),
        ((0.02, 0.005, 0.035), "different: it may or may not reach 0.01, the plan's smallest effect that matters"),
        ((0.0, -0.05, 0.05), "undecided: it may or may not reach 0.01"),
    ],
)
def test_verdicts_weigh_the_effect_that_matters(interval: tuple[float, float, float], says: str) -> None:
    assert says in verdict(made(*interval), "fve", 0.01)
