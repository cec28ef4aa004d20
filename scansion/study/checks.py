"""Everything in a plan that can be wrong, found in seconds and before anything heavy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from scansion.errors import ConfigError, ScansionError
from scansion.evals.probing_sets import check_probing_sets
from scansion.files import require_writable
from scansion.lm import ModelFacts
from scansion.masks import build_mask
from scansion.study.plan import StudyPlan
from scansion.study.record import source_of
from scansion.training.warm_start import check_usage_source


def check_plan(plan: StudyPlan, folders: Mapping[int, Path]) -> ModelFacts:
    """Raise unless the entries exist, folders are writable, and names, shapes, text and data sets all fit.

    Returns:
        What is known of the language model.

    Raises:
        ScansionError: the first thing that does not fit.
    """
    check_entries(plan, folders)
    for folder in folders.values():
        require_writable(folder)
    if plan.sparse_probing:
        check_probing_sets(plan.sparse_probing.datasets, plan.sparse_probing.order_corpus, plan.sparse_probing.hub)
    facts = source_of(plan).check()
    for arm in plan.arms():
        if arm.run in folders:
            try:
                build_mask(arm.sae.mask, plan.corpus.context_length, arm.sae.d_sae)
                check_usage_source(arm.sae, facts.d_model)
            except ScansionError as error:
                raise ConfigError(f"run {arm.run} ({arm.name}): {error}") from error
    return facts


def check_entries(plan: StudyPlan, entries: Iterable[int]) -> None:
    """Raise unless the plan has these runs."""
    for index in entries:
        if not 0 <= index < len(plan.runs):
            raise ConfigError(f"the plan {plan.name!r} has no run {index}; it has 0 to {len(plan.runs) - 1}")
