"""Runs side by side: every figure with its interval over seeds, paired differences from the baseline, Pareto fronts.

Only what ``final_info.json`` says is used. Runs that answer different questions are set apart, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict

from scansion.errors import ConfigError
from scansion.evals.position.baseline import L0_TOLERANCE
from scansion.evals.statistics import CrossedMean, Estimate, TextGroups, detectable_difference, paired_p
from scansion.files import flatten
from scansion.pipeline.run_results import not_comparable
from scansion.study.compare.figures import figure
from scansion.study.final_info import ArmInfo
from scansion.training.config import SHORT_STEPS

BySeed = Mapping[int, float | None]
GroupsBySeed = Mapping[int, TextGroups]

_LEVEL = 0.05
_ROUNDING = 1e-9
_L0 = ("l0", "position_l0_lifted")
_FRONTS = [(x, y) for x in ("l0", "train_seconds") for y in ("fve_without_outliers", "ce_loss_recovered", "fve")]
STAR_NOTE = (
    "A star (*) marks a difference whose p-value is below 0.05 after Holm's correction over the runs in the table, separately "
    "for each figure."
)
SHORT_NOTE = (
    f"Runs marked short took fewer than {SHORT_STEPS:,} training steps: they are not trained to the end, and their figures and "
    "differences would change with more steps."
)
WINDOWS_NOTE = (
    "encodes windows of tokens, and they are cut where a context begins. Its features show that, so that part of what they say "
    "about the position is there by construction. The setting first_position of the position evaluation skips those positions."
)
UNEQUAL_L0_NOTE = (
    "A dagger (†) marks a difference between runs whose L0, or L0 with the mask lifted, differs by more than a tenth."
)
SPARSITY_NOTE = (
    "Where L0 differs from the baseline's by more than a tenth, differences in reconstruction and probing are partly "
    "differences in sparsity. Mutual information of firing and position also grows with how often features fire; its share of "
    "entropy does not."
)


class Difference(BaseModel):
    """An arm's figure less the baseline's, paired by seed.

    Attributes:
        estimate: mean over seeds with its 95% interval over seeds and text (:class:`CrossedMean`), or over seeds alone
            (Student's) where the figure is not known by groups of text; not corrected for the number of comparisons. There is
            no interval below two seeds, nor where all seeds differ by the same amount, which does not show how seeds vary;
            but ``[0, 0]`` where no seed differs.
        p: of the two-sided t-test that belongs to the interval; None below two seeds, or where all are equal.
        p_holm: the same after Holm's correction over all arms compared on this figure.
        detectable: the smallest true difference that such a test finds with a probability of 80%.
        seeds: the seeds that both arms have.
        unequal_l0: whether the arms differ in L0, in use or with the mask lifted, by more than a tenth.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    estimate: Estimate
    p: float | None
    p_holm: float | None
    detectable: float | None
    seeds: list[int]
    unequal_l0: bool = False

    @property
    def significant(self) -> bool:
        """Whether its p-value is below 0.05 after Holm's correction; tables mark it with a star."""
        return self.p_holm is not None and self.p_holm < _LEVEL


def family_wise(n: int) -> str:
    """What a 5% chance of error in each of n figures means for all of them (Bonferroni's inequality)."""
    return f"up to {0.05 * n:.1f} of them, and one or more with a chance of up to {min(100, 5 * n)}%"


class ComparedArm(BaseModel):
    """One arm that may be compared: figures over its seeds, and differences from the baseline (none of its own).

    Attributes:
        seeds_alone: figures whose intervals cover other seeds, and not other text: they are not known by groups of text.
        not_applicable: evaluation -> why it gave this arm no figures.
        remarks: what to know before reading its figures, see :class:`~scansion.study.final_info.ArmInfo`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    d_sae: int | None
    seeds: list[int]
    figures: dict[str, Estimate]
    differences: dict[str, Difference]
    caveats: list[str]
    seeds_alone: list[str] = []
    not_applicable: dict[str, str] = {}
    remarks: list[str] = []

    @property
    def label(self) -> str:
        """Its name in tables, with each remark's first word: ``baseline (short)``."""
        return with_remarks(self.name, self.remarks)


class Front(BaseModel):
    """The arms that no other beats on both figures, by their means: less of ``x`` and more of ``y``.

    Attributes:
        x, y: the figures.
        arms: those on the front.
        near: arms off the front whose distance from it is within seed noise: for every arm that beats one by the means, the
            95% interval of the difference in ``y``, paired by seed, holds zero. Empty if there is one seed only.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    x: str
    y: str
    arms: list[str]
    near: list[str] = []


class Comparison(BaseModel):
    """All arms together.

    Attributes:
        baseline: name of the arm that the others are compared with; None if no arm is sound.
        arms: those that may be compared, the baseline among them.
        set_apart: name -> why it may not be.
        fronts: see :class:`Front`.
        notes: what a reader must know to read the comparison.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    baseline: str | None
    arms: list[ComparedArm]
    set_apart: dict[str, str]
    fronts: list[Front]
    notes: list[str]


def compare(infos: Mapping[str, ArmInfo], baseline: str | None = None) -> Comparison:
    """Compare arms, given in the order of the table.

    Args:
        infos: arm name -> what its ``final_info.json`` says.
        baseline: the arm to compare with; default the first sound one.

    Raises:
        ConfigError: there is no arm of the baseline's name, or no arm at all.

    Example:
        >>> scansion.compare({arm.name: arm.info for arm in record.arms})
    """
    if not infos:
        raise ConfigError("there is no run to compare")
    if baseline is not None and baseline not in infos:
        raise ConfigError(f"there is no run called {baseline!r}; there are {', '.join(map(repr, infos))}")
    sound = [name for name, info in infos.items() if info.status == "ok"]
    reference = baseline if baseline in sound else (sound[0] if sound else None)
    set_apart: dict[str, str] = {}
    comparable: dict[str, ArmInfo] = {}
    for name, info in infos.items():
        if info.status != "ok":
            set_apart[name] = f"{info.status}: {'; '.join(info.reasons)}"
        elif reference and (problems := not_comparable(info.provenance, infos[reference].provenance)):
            set_apart[name] = f"not comparable with {reference}: {'; '.join(problems)}"
        else:
            comparable[name] = info
    notes: list[str] = []
    wanted = baseline or next(iter(infos))
    if reference is not None and reference != wanted:
        notes.append(f"The baseline {wanted} is {infos[wanted].status}, so runs are compared with {reference} instead.")
    if len({info.provenance.get("plan") for info in comparable.values()}) > 1:
        notes.append(
            "The plan was changed between some of these runs; plan.json in each folder holds the plan of that run."
        )
    differences = paired_differences(
        {name: _by_seed(info) for name, info in comparable.items()},
        reference,
        {name: info.by_text for name, info in comparable.items()},
    )
    caveats = {
        name: _caveats(info, comparable[reference]) if reference and name != reference else []
        for name, info in comparable.items()
    }
    arms = [
        ComparedArm(
            name=name,
            d_sae=info.provenance.get("sae", {}).get("d_sae"),
            seeds=info.seeds,
            figures=figures_of(info),
            differences={
                figure: one.model_copy(update={"unequal_l0": bool(caveats[name]) and figure not in _L0})
                for figure, one in differences[name].items()
            },
            caveats=caveats[name],
            seeds_alone=[
                figure
                for figure, by_seed in _by_seed(info).items()
                if len(present := _present(by_seed)) > 1 and _without(present, info.by_text.get(figure, {})) is None
            ],
            not_applicable=info.not_applicable,
            remarks=info.remarks,
        )
        for name, info in comparable.items()
    ]
    if any(arm.caveats for arm in arms):
        notes.append(SPARSITY_NOTE)
    if any(info.is_short for info in comparable.values()):
        notes.append(SHORT_NOTE)
    notes += [f"{name} {WINDOWS_NOTE}" for name, info in comparable.items() if _has_cut_windows(info)]
    fronts = [_front(comparable, x, y) for x, y in _FRONTS]
    return Comparison(
        baseline=reference, arms=arms, set_apart=set_apart, fronts=[one for one in fronts if one.arms], notes=notes
    )


def with_remarks(name: str, remarks: Sequence[str]) -> str:
    """A run's name in tables, with each remark's first word: ``baseline (short)``."""
    words = ", ".join(remark.partition(":")[0] for remark in remarks)
    return f"{name} ({words})" if words else name


def by_world(infos: Mapping[str, ArmInfo]) -> dict[str, dict[str, ArmInfo]]:
    """The arms of each synthetic world, which alone may be compared; all of them under ``""`` if there is one world or none.

    Returns:
        The settings that differ between the worlds, such as ``bound 0.5`` -> arm name -> what is known of it.
    """
    worlds = {name: flatten(info.provenance.get("world") or {}) for name, info in infos.items()}
    keys = dict.fromkeys(key for world in worlds.values() for key in world)
    differing = [key for key in keys if len({str(world.get(key)) for world in worlds.values()}) > 1]
    found: dict[str, dict[str, ArmInfo]] = {}
    for name, world in worlds.items():
        label = ", ".join(f"{key} {world[key]}" for key in differing if key in world)
        found.setdefault(label, {})[name] = infos[name]
    return found


def figures_of(info: ArmInfo) -> dict[str, Estimate]:
    """Every figure of an arm with its interval, over seeds and text where that is known, else over seeds."""
    return {name: _mean(_present(by_seed), info.by_text.get(name, {}))[0] for name, by_seed in _by_seed(info).items()}


def _caveats(one: ArmInfo, baseline: ArmInfo) -> list[str]:
    found: list[str] = []
    for name in _L0:
        if (values := _unlike(one, baseline, name)) is not None:
            found.append(f"{figure(name).label}: {values[0]:.1f}, baseline {values[1]:.1f}")
    return found


def _has_cut_windows(info: ArmInfo) -> bool:
    return info.provenance.get("sae", {}).get("window", 1) > 1 and "position_information" in info.means


def _unlike(one: ArmInfo, baseline: ArmInfo, figure: str) -> tuple[float, float] | None:
    """Both values of the figure, if they are more than a tenth apart."""
    ours, theirs = one.means.get(figure), baseline.means.get(figure)
    if ours is None or not theirs or abs(ours - theirs) <= L0_TOLERANCE * theirs:
        return None
    return ours, theirs


def paired_differences(
    values: Mapping[str, Mapping[str, BySeed]],
    reference: str | None,
    by_text: Mapping[str, Mapping[str, GroupsBySeed]] | None = None,
) -> dict[str, dict[str, Difference]]:
    """Arm -> figure -> difference from the reference arm, with Holm's correction over the arms of each figure.

    Args:
        values: arm -> figure -> seed -> value.
        reference: the arm that the others are compared with; None gives no difference.
        by_text: arm -> figure -> seed -> the figure by groups of text; None where that is not known.
    """
    raw: dict[str, dict[str, Difference]] = {name: {} for name in values}
    if reference is None:
        return raw
    for name, figures in values.items():
        if name != reference:
            for figure, ours in figures.items():
                groups = [(by_text or {}).get(arm, {}).get(figure, {}) for arm in (name, reference)]
                if (found := _difference(ours, values[reference].get(figure, {}), *groups)) is not None:
                    raw[name][figure] = found
    for figure in dict.fromkeys(figure for found in raw.values() for figure in found):
        tested = [name for name, found in raw.items() if figure in found and found[figure].p is not None]
        corrected = holm([raw[name][figure].p or 0.0 for name in tested])
        for name, p in zip(tested, corrected, strict=True):
            raw[name][figure] = raw[name][figure].model_copy(update={"p_holm": p})
    return raw


def _by_seed(info: ArmInfo) -> dict[str, BySeed]:
    return {figure: dict(zip(info.seeds, values, strict=True)) for figure, values in info.values.items()}


def _difference(
    ours: BySeed, theirs: BySeed, our_groups: GroupsBySeed, their_groups: GroupsBySeed
) -> Difference | None:
    pairs = _pairs(ours, theirs)
    if not pairs:
        return None
    if (equal := _equal_at_every_seed(pairs)) is not None:
        return Difference(estimate=equal, p=None, p_holm=None, detectable=None, seeds=list(pairs))
    gaps = {seed: a - b for seed, (a, b) in pairs.items()}
    estimate, p, detectable = _mean(gaps, our_groups, their_groups)
    return Difference(estimate=estimate, p=p, p_holm=None, detectable=detectable, seeds=list(pairs))


def _mean(values: Mapping[int, float], *groups: GroupsBySeed) -> tuple[Estimate, float | None, float | None]:
    """The mean with its interval, p-value and smallest detectable size.

    Args:
        values: seed -> figure, or difference of two.
        groups: of the figure; of a difference, those of both.
    """
    if len(values) > 1 and (without := _without(values, *groups)) is not None:
        crossed = CrossedMean.of(list(values.values()), without)
        return crossed.estimate(), crossed.p, crossed.detectable
    found = list(values.values())
    return Estimate.of_seeds(found), paired_p(found), detectable_difference(found)


def _without(values: Mapping[int, float], *groups: GroupsBySeed) -> Float[np.ndarray, "S G"] | None:
    """The values without each group of text; None unless it is known at every seed, by as many groups."""
    if any(seed not in one for seed in values for one in groups):
        return None
    parts = [[one[seed].leaving_out() for seed in values] for one in groups]
    if len({len(row) for rows in parts for row in rows}) != 1:
        return None
    first, *others = (np.stack(rows) for rows in parts)
    return first - others[0] if others else first


def _present(by_seed: BySeed) -> dict[int, float]:
    return {seed: value for seed, value in by_seed.items() if value is not None}


def _pairs(ours: BySeed, theirs: BySeed) -> dict[int, tuple[float, float]]:
    """Seed -> both values, of the seeds that have both."""
    return {s: (a, b) for s, a in ours.items() if a is not None and (b := theirs.get(s)) is not None}


def _equal_at_every_seed(pairs: Mapping[int, tuple[float, float]]) -> Estimate | None:
    """The difference, if it is the same at every one of several seeds; see :class:`Difference`."""
    gaps = [a - b for a, b in pairs.values()]
    # Figures that count things differ by the same amount at two seeds now and then, up to the rounding of the subtraction.
    rounding = _ROUNDING * max(max(abs(a), abs(b)) for a, b in pairs.values())
    if len(gaps) < 2 or max(gaps) - min(gaps) > rounding:
        return None
    same = 0.0 if max(map(abs, gaps)) <= rounding else gaps[0]
    end = 0.0 if same == 0 else None
    return Estimate(value=same, low=end, high=end)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values after Holm's step-down correction (1979), in the order given; each at most 1 and none below its own."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def _front(infos: Mapping[str, ArmInfo], x: str, y: str) -> Front:
    # Costs as tables show them: an L0 of 31.9986 is not less than one of 32.
    points = {
        name: (float(f"{cost:.3g}"), gain)
        for name, info in infos.items()
        if (cost := {**info.means, **info.costs}.get(x)) is not None and (gain := info.means.get(y)) is not None
    }
    beaten_by = {
        name: [n for n, (c, g) in points.items() if c <= cost and g >= gain and (c, g) != (cost, gain)]
        for name, (cost, gain) in points.items()
    }
    near = [
        name
        for name, others in beaten_by.items()
        if others and not any(_differs(infos[name], infos[other], y) for other in others)
    ]
    return Front(x=x, y=y, arms=[name for name, others in beaten_by.items() if not others], near=near)


def _differs(one: ArmInfo, other: ArmInfo, figure: str) -> bool:
    """Whether the difference has an interval without zero; also if there are too few seeds to have one."""
    found = _difference(
        _by_seed(one)[figure], _by_seed(other)[figure], one.by_text.get(figure, {}), other.by_text.get(figure, {})
    )
    return found is None or found.estimate.low is None or found.estimate.excludes_zero
