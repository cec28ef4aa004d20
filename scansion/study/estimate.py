"""What a plan would take, before anything heavy: tokens, disk, and time from a few seconds' measurement."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from scansion.activations import HarvestPlan
from scansion.corpus import Contexts
from scansion.evals.core.evaluate import CoreConfig
from scansion.evals.position import PositionConfig
from scansion.evals.probing.config import SparseProbingConfig
from scansion.evals.probing.sets import expand_probing_sets
from scansion.files import human_bytes
from scansion.lm import HookPoint, activations_at, logits
from scansion.pipeline.stores import HarvestSpec, harvest_plans
from scansion.sae import build_sae
from scansion.study.checks import check_plan, sae_bytes
from scansion.study.plan import Arm, StudyPlan
from scansion.study.record import seed_folder, source_of
from scansion.training.learner import Learner
from scansion.training.trial import made_up_batch, training_device

MEASURED_SECONDS = 5.0


@dataclass(frozen=True)
class ArmEstimate:
    """One arm: seeds still to be trained, bytes of one trained SAE and its checkpoints, seconds and steps of one seed, and a
    warning if these are too few."""

    arm: Arm
    missing: int
    n_bytes: int
    train_seconds: float
    evaluation_seconds: float
    steps: int
    warning: str | None = None


@dataclass(frozen=True)
class StudyEstimate:
    """A whole plan.

    Attributes:
        train, held_out: the two harvests.
        harvested: whether each is on disk already.
        harvest_seconds: of what is missing.
        arms: in the plan's order.
        probing_seconds: to run the LM over the probing texts, once for all SAEs.
    """

    train: HarvestPlan
    held_out: HarvestPlan
    harvested: tuple[bool, bool]
    harvest_seconds: float
    arms: list[ArmEstimate]
    probing_seconds: float

    @property
    def seconds(self) -> float:
        """All that is left to do, but for the fitting of probes and drawing of figures."""
        arms = sum(one.missing * (one.train_seconds + one.evaluation_seconds) for one in self.arms)
        return self.harvest_seconds + arms + self.probing_seconds

    @property
    def n_bytes(self) -> int:
        """Disk still to be used."""
        stores = sum(
            plan.n_bytes for plan, there in zip((self.train, self.held_out), self.harvested, strict=True) if not there
        )
        return stores + sum(one.missing * one.n_bytes for one in self.arms)

    def lines(self) -> list[str]:
        """What a user wants to know besides the table of arms."""
        lines: list[str] = []
        for plan, there in zip((self.train, self.held_out), self.harvested, strict=True):
            what = f"{plan.contexts.n_tokens:,} tokens, {human_bytes(plan.n_bytes)}, in {plan.folder}"
            made = " (there already)" if there else ""
            if plan.config.on_the_fly and plan.identity.split == "train":
                made = "; activations are made while training, once for every seed"
            lines.append(f"{plan.identity.split.replace('_', ' ')}: {what}{made}")
        warnings: dict[str, list[str]] = {}
        for one in self.arms:
            if one.warning is not None:
                warnings.setdefault(one.warning, []).append(one.arm.name)
        lines += [f"short: {', '.join(names)}: {warning}" for warning, names in warnings.items()]
        lines.append(
            f"estimated: harvest {_clock(self.harvest_seconds)}, "
            f"training {_clock(sum(one.missing * one.train_seconds for one in self.arms))}, "
            f"LM over probing texts {_clock(self.probing_seconds)}, "
            f"other evaluation {_clock(sum(one.missing * one.evaluation_seconds for one in self.arms))}; "
            f"in all {_clock(self.seconds)} and {human_bytes(self.n_bytes)} of disk"
        )
        lines.append(
            "Estimates are from a few steps on this machine as busy as it is now. They count core, position and the texts of "
            "sparse probing; fitting probes and other evaluations come on top."
        )
        return lines


def estimate(plan: StudyPlan, folders: Mapping[int, Path]) -> StudyEstimate:
    """Check the plan and measure for about five seconds, and longer only where one step takes longer.

    Args:
        plan: the study.
        folders: entry number -> the run's folder; what is finished there is not counted.

    Raises:
        ScansionError: the first thing in the plan that does not fit.
        ConfigError: the plan is not on text.
    """
    check_plan(plan, folders)
    source = source_of(plan)
    train, held_out = harvest_plans(source)
    harvested = (train.finished_store() is not None, held_out.finished_store() is not None)
    for harvest, there in zip((train, held_out), harvested, strict=True):
        if not there:
            harvest.check()
    arms = [arm for arm in plan.arms() if arm.run in folders]
    budget = MEASURED_SECONDS / (len(arms) + 2)
    hooked, whole = _lm_rates(source, train.contexts[: plan.harvest.lm_batch_size], budget)
    missing = sum(
        harvest.contexts.n_tokens
        for harvest, there in zip((train, held_out), harvested, strict=True)
        if not there and not harvest.config.on_the_fly
    )
    if plan.harvest.on_the_fly:  # in every pass over the stream again
        passes = {(seed, arm.training.tokens) for arm in arms for seed in arm.seeds}
        missing += sum(
            max((tokens for other, tokens in passes if other == seed)) for seed in {seed for seed, _ in passes}
        )
    return StudyEstimate(
        train=train,
        held_out=held_out,
        harvested=harvested,
        harvest_seconds=missing / hooked,
        arms=[_arm(plan, arm, folders[arm.run], train.identity.d_in, held_out, whole, budget) for arm in arms],
        probing_seconds=_probing_tokens(plan, source.context_length) / hooked,
    )


def _arm(
    plan: StudyPlan,
    arm: Arm,
    folder: Path,
    d_in: int,
    held_out: HarvestPlan,
    lm_rate: float,
    budget: float,
) -> ArmEstimate:
    config = arm.training
    positions = held_out.identity.context_length - (0 if config.use_position_0 else 1)
    generator = torch.Generator().manual_seed(0)
    device = training_device([(arm.sae, config)], held_out.identity.context_length)
    sae = build_sae(arm.sae, d_in, held_out.identity.context_length, generator).to(device)
    per_position = config.per_position(positions)
    first = held_out.identity.context_length - positions
    places = torch.arange(first, first + positions)
    batch = made_up_batch(arm.sae, places, per_position, d_in, generator).to(device)
    steps = config.n_steps(positions * per_position)
    learner = Learner(sae, config, max(1, steps))
    step_seconds = _seconds(lambda: learner.advance(batch), budget * 0.8)
    sae.eval()
    with torch.no_grad():
        encode_seconds = _seconds(lambda: sae(batch.x, batch.positions[:, None]), budget * 0.2)
    per_token = encode_seconds / (positions * per_position)
    read = lm_tokens = 0
    for config in plan.evaluations.values():
        if isinstance(config, CoreConfig):
            lm_tokens += config.loss_contexts * held_out.identity.context_length
        if isinstance(config, CoreConfig | PositionConfig):
            contexts = min(config.n_contexts or len(held_out.contexts), len(held_out.contexts))
            states = 1
            if isinstance(config, PositionConfig):
                states = 5 + config.mask_draws if arm.sae.mask.has_weights else 2
            read += contexts * held_out.identity.context_length * states
    finished = sum((seed_folder(folder, arm, seed) / "evals" / "core.json").exists() for seed in arm.seeds)
    n_parameters = sum(p.numel() for p in sae.parameters())
    return ArmEstimate(
        arm=arm,
        missing=len(arm.seeds) - finished,
        n_bytes=sae_bytes(n_parameters),
        train_seconds=steps * step_seconds,
        evaluation_seconds=read * per_token + lm_tokens / lm_rate,
        steps=steps,
        warning=arm.training.short_warning(positions),
    )


def _lm_rates(source: HarvestSpec, contexts: Contexts, budget: float) -> tuple[float, float]:
    """Tokens a second of the LM up to the hook point, and of the whole LM."""
    hook_point = HookPoint.parse(source.hook_point)
    few = contexts[:2]
    to_hook = _seconds(lambda: activations_at(source.lm, hook_point, contexts), budget)
    whole = _seconds(lambda: logits(source.lm, few, hook_point), budget)
    return contexts.n_tokens / to_hook, few.n_tokens / whole


def _probing_tokens(plan: StudyPlan, context_length: int) -> int:
    """Upper limit of the tokens of all probing texts; a group of data sets counts as one for each of its members."""
    config = plan.evaluations.get("sparse_probing")
    if not isinstance(config, SparseProbingConfig):
        return 0
    sets = expand_probing_sets(config.datasets, config.hub)
    return len(sets) * (config.train_size + config.test_size) * (config.context_length or context_length)


def _seconds(work: Callable[[], object], budget: float) -> float:
    """Shortest time of one call, the first one left out; at least two calls, and more while the budget lasts."""
    work()
    began = time.perf_counter()
    best = float("inf")
    while best == float("inf") or time.perf_counter() - began < budget:
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def _clock(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
