"""Where planted features fire: every feature gets a profile, so that bound and unbound features are equally frequent."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scansion.errors import ConfigError
from scansion.synth.config import SynthConfig

Kind = Literal["uniform", "band", "single", "periodic"]
BOUND_KINDS: tuple[Kind, ...] = ("band", "single", "periodic")


def firing_rates(config: SynthConfig) -> Float[Tensor, "n_true"]:
    """Firing rate of each true feature per token, averaged over positions, most frequent first; sums to ``mean_l0``.

    ``rate_r = c * r ** -zipf_exponent`` for rank r from 1. It does not depend on positions: worlds that differ only in
    ``bound`` have the same rates.

    Raises:
        ConfigError: the most frequent feature would fire more often than ``max_probability``.
    """
    ranks = torch.arange(1, config.n_features + 1, dtype=torch.float64)
    rates = ranks**-config.zipf_exponent
    rates *= config.mean_l0 / rates.sum()
    if rates[0] > config.max_probability:
        raise ConfigError(
            f"the most frequent feature would fire on {rates[0]:.0%} of the tokens, above max_probability "
            f"{config.max_probability}; lower mean_l0 or zipf_exponent, or plant more features"
        )
    return rates


def draw_profiles(
    config: SynthConfig, rates: Float[Tensor, "n_true"], generator: torch.Generator
) -> tuple[list[Kind], Float[Tensor, "L n_true"]]:
    """Give every feature a kind and a profile: its firing probability at each position.

    *Bound and unbound features are equally frequent.* A feature's probabilities average to its rate over the context
    whatever its kind, so that its expected firings are ``rate * L`` per context; and which features are bound is a
    systematic sample of the ranks (for ``bound = 0.5``, every second rank), so that both sets have the same
    distribution of rates up to one rank's step. Only *among* the bound ones do kinds go with frequency: a feature may
    not fire more often than ``max_probability`` anywhere, so the frequent ones need wide supports.

    Each support is placed where bound features fire least so far, which keeps the positions about equally busy.

    Args:
        config: kinds, widths and periods.
        rates: in descending order.
        generator: source of the draws.

    Returns:
        Kinds, and probabilities in [0, ``max_probability``], both in the order of ``rates``.

    Raises:
        ConfigError: some features are too frequent for every kind of support.
    """
    length = config.context_length
    offset = float(torch.rand((), generator=generator, dtype=torch.float64))
    steps = (torch.arange(config.n_features + 1, dtype=torch.float64) * config.bound + offset).floor()
    bound = steps.diff() > 0
    quotas = _quotas(config, int(bound.sum()))
    kinds: list[Kind] = []
    profiles = rates.expand(length, -1).clone()
    load = torch.zeros(length, dtype=torch.float64)
    for feature, rate in enumerate(rates.tolist()):
        if not bound[feature]:
            kinds.append("uniform")
            continue
        kind = _draw_kind(config, rate, quotas, generator)
        quotas[kind] -= 1
        kinds.append(kind)
        supports = _candidates(config, kind, _least_support(config, rate), generator)
        heights = rate * length / supports.sum(dim=1, dtype=torch.float64)
        busy = (supports.double() @ load) / supports.sum(dim=1) / heights
        # Noise as large as the feature itself keeps the placement random while differences of load stay small.
        best = int((busy + torch.rand(len(busy), generator=generator, dtype=torch.float64)).argmin())
        profiles[:, feature] = supports[best] * heights[best]
        load += profiles[:, feature]
    return kinds, profiles


def _least_support(config: SynthConfig, rate: float) -> int:
    """The fewest positions on which a feature can reach its rate without exceeding ``max_probability``."""
    return max(1, math.ceil(rate * config.context_length / config.max_probability - 1e-9))


def _periods(config: SynthConfig, least: int) -> list[int]:
    """The periods that repeat at least ``least`` times in a context, at every phase."""
    low, high = config.period
    return [period for period in range(low, high + 1) if config.context_length // period >= least]


def _offers(config: SynthConfig, kind: Kind, least: int) -> bool:
    """Whether a kind has a support of at least ``least`` positions."""
    if kind == "single":
        return least == 1
    return config.band_width[1] >= least if kind == "band" else bool(_periods(config, least))


def _quotas(config: SynthConfig, n_bound: int) -> dict[Kind, int]:
    """How many features each kind gets: the shares of the mix, rounded so that they add up."""
    shares = {kind: getattr(config.mix, kind) for kind in BOUND_KINDS}
    exact = {kind: n_bound * share / sum(shares.values()) for kind, share in shares.items()}
    quotas: dict[Kind, int] = {kind: math.floor(exact[kind]) for kind in BOUND_KINDS}
    by_remainder = sorted(BOUND_KINDS, key=lambda kind: quotas[kind] - exact[kind])
    for kind in by_remainder[: n_bound - sum(quotas.values())]:
        quotas[kind] += 1
    return quotas


def _draw_kind(config: SynthConfig, rate: float, quotas: dict[Kind, int], generator: torch.Generator) -> Kind:
    """Draw among the kinds that still have a quota and are wide enough.

    Called in order of falling rate: a kind that fits a feature fits every later one too. So a draw never takes the last
    place from a feature that has no other choice, unless there are too few such places in total.
    """
    least = _least_support(config, rate)
    places = [float(quotas[kind]) if _offers(config, kind, least) else 0.0 for kind in BOUND_KINDS]
    if sum(places) == 0:
        raise ConfigError(
            f"a bound feature that fires on {rate:.1%} of the tokens needs at least {least} of the "
            f"{config.context_length} positions to stay below max_probability {config.max_probability}, and too few "
            "profiles are that wide; widen band_width, shorten period, give narrow kinds a smaller share of the mix, "
            "or lower mean_l0 or zipf_exponent"
        )
    return BOUND_KINDS[int(torch.multinomial(torch.tensor(places), 1, generator=generator))]


def _candidates(
    config: SynthConfig, kind: Kind, least: int, generator: torch.Generator
) -> Bool[Tensor, "n_candidates L"]:
    """Every possible placement of a support of this kind; its width or period is drawn uniformly from the allowed ones."""
    positions = torch.arange(config.context_length)
    if kind == "periodic":
        periods = _periods(config, least)
        period = periods[int(torch.randint(len(periods), (), generator=generator))]
        return positions % period == torch.arange(period)[:, None]
    width = 1
    if kind == "band":
        low, high = config.band_width
        width = int(torch.randint(max(low, least), high + 1, (), generator=generator))
    starts = torch.arange(config.context_length - width + 1)[:, None]
    return (positions >= starts) & (positions < starts + width)
