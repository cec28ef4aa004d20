"""The position evaluation: every SAE in each of its states on the same held-out text, then on the same text moved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float

from scansion.activations import ActivationStore
from scansion.errors import EvalError
from scansion.evals.base import LoadedSAE, data_from, reasons_before_running, reasons_from_activity
from scansion.evals.position.agreement import divergence
from scansion.evals.position.budget import budget_of
from scansion.evals.position.by_band import BandRetention, retention_by_band
from scansion.evals.position.config import PositionConfig
from scansion.evals.position.firing import Firing, Text, record, threshold_for
from scansion.evals.position.information import Null
from scansion.evals.position.localised import localised_features
from scansion.evals.position.measure import Measured, measure
from scansion.evals.position.moving import MovedText, move_text, offset_for
from scansion.evals.position.profiles import Profiles, profiles_of
from scansion.evals.position.replacement import Replacement, ShiftEffect, replaced
from scansion.evals.position.result import PositionResult, SinceStart
from scansion.evals.position.sink import sink_fve
from scansion.evals.position.states import acts_in_forward, measured_mask, permuted, rebuild_start, weights_at
from scansion.evals.reading.contexts import read_contexts
from scansion.evals.reading.training import as_trained, fill, require_same_model, require_same_source
from scansion.evals.statistics import finite
from scansion.lm import LanguageModel
from scansion.progress import progress
from scansion.sae import SAE

# Draws of a null of which only the mean over features is used.
_MEAN_ONLY_DRAWS = 20
# States of which every feature has a p-value.
_RESOLVED = ("in_force", "lifted")
# Mask lifted, and activations counted above a threshold that leaves as many as with the mask in force.
_EQUAL_L0 = "equal_l0"


def evaluate_position(
    subjects: Sequence[LoadedSAE],
    store: ActivationStore,
    load_lm: Callable[[], LanguageModel] | None,
    config: PositionConfig,
) -> list[tuple[PositionResult, Profiles]]:
    """Evaluate SAEs on a held-out store in the documents layout; the text is moved through the LM once for all of them.

    Returns:
        For each subject its result, and its profiles.

    Raises:
        EvalError: an SAE belongs to another model or hook point; contexts mix documents; there are too few documents;
            text is to be moved too far, or without an LM.
    """
    config = as_trained(config, subjects)
    require_same_source(subjects, store)
    text = Text.of(store, config)
    moved: MovedText | str = "it was switched off (replaced_contexts is 0)"
    if config.replaced_contexts and not store.identity.has_lm:
        moved = "the activations are of no language model, and no language model can read moved text"
    elif config.replaced_contexts:
        offset = offset_for(store.n_positions, config.offset)
        if load_lm is None:
            raise EvalError("moving the text needs the language model; give load_lm, or set replaced_contexts to 0")
        lm = load_lm()
        require_same_model(lm, store)
        draw = np.random.default_rng([config.seed, 1])
        moved = move_text(text, lm, config.replaced_contexts, offset, config.lm_batch_size, draw)
    return [_evaluate(subject, text, moved, config) for subject in subjects]


def check_position(store: ActivationStore, config: PositionConfig) -> None:
    """Raise :class:`EvalError` unless position can be measured on ``store``; quick, and so done before anything heavy."""
    # Whether position 0 counts may depend on an SAE that is yet to be trained; it makes no difference here.
    Text.of(store, fill(config, {"use_position_0": False}))
    if config.replaced_contexts:
        offset_for(store.n_positions, config.offset)


def _evaluate(
    subject: LoadedSAE, text: Text, moved: MovedText | str, config: PositionConfig
) -> tuple[PositionResult, Profiles]:
    sae, store = subject.sae, text.store
    mask, is_own = measured_mask(sae, config.seed)
    applied = acts_in_forward(sae)
    generator = torch.Generator().manual_seed(config.seed)
    draws = [permuted(mask, generator) for _ in range(config.mask_draws)]
    start = rebuild_start(subject, store)
    saes, compared = {"in_force": sae}, {}
    if applied:
        saes["lifted"] = sae.lifted()
        for index, draw in enumerate(draws, 1):
            saes[f"permuted {index}"] = sae.with_mask(draw)
            compared[f"permuted {index}"] = index
    if isinstance(start, SAE):
        saes["start"] = start.lifted() if applied else start
    if applied:
        saes[_EQUAL_L0] = saes["lifted"]
    masks = [weights_at(one, text.positions) for one in (mask, *draws)]
    measured, firings = _measure_all(subject.name, saes, masks, compared, mask.n_shared, text, config)
    free_at_l0 = measured.pop(_EQUAL_L0, measured["in_force"])
    firings.pop(_EQUAL_L0, None)
    excess = None
    if applied:
        measured["permuted"] = Measured.mean([measured.pop(name) for name in compared])
        excess = measured["in_force"].varying["information"] - measured["permuted"].varying["information"]
    free = firings.get("lifted", firings["in_force"])
    seen: dict[str, ShiftEffect] = {}
    resolved = [state for state in _RESOLVED if state in saes]
    if not isinstance(moved, str):
        seen = {state: replaced(saes[state], firings[state], moved, measured[state].significant) for state in resolved}
    in_force, lifted = (measured.get(state, measured["in_force"]).varying for state in ("in_force", "lifted"))
    by_text = {
        "position_information": in_force["information"],
        "position_information_lifted": lifted["information"],
        "position_share_lifted": lifted["information_share"],
        "position_l0_lifted": lifted["l0"],
        "positional_fidelity": in_force["auroc"],
        "positional_overlap": in_force["overlap"],
        "position_retention": lifted["retention"],
        "position_share_equal_l0": free_at_l0.varying["information_share"],
        "position_retention_equal_l0": free_at_l0.varying["retention"],
        **({"excess_specialisation": excess} if excess else {}),
    }
    reasons = reasons_before_running(subject) + _reasons_from_activity(sae, text, firings["in_force"])
    profiles = profiles_of(text, masks[0], firings, measured, seen)
    states = {name: one.figures() for name, one in measured.items()}
    for name in resolved:
        states[name] = states[name].model_copy(update={"localised": localised_features(profiles, name)})
    result = PositionResult.of(
        subject,
        data_from(store, config),
        config.seed,
        reasons,
        sae_config=sae.config,
        n_tokens=text.n_tokens,
        n_contexts=text.n_contexts,
        n_documents=text.n_documents,
        n_groups=text.n_groups,
        positions=text.positions.tolist(),
        mask="own" if is_own else "reference",
        acts_in_forward=applied,
        states=states,
        equal_l0=free_at_l0.figures() if applied else None,
        retention_by_band=_retention_by_band(sae, masks[0], firings),
        excess_specialisation=excess.estimate() if excess else None,
        since_start=_since_start(firings["start"], free) if "start" in firings else None,
        no_start=start if isinstance(start, str) else None,
        replacement=None if isinstance(moved, str) else Replacement.of(moved, seen),
        no_replacement=moved if isinstance(moved, str) else None,
        sink_fve=sink_fve(store),
        by_text={name: groups for name, one in by_text.items() if (groups := one.by_text()) is not None},
        budget=budget_of(sae, text.positions, firings["in_force"].l0_by_position()),
    )
    return result, profiles


def _measure_all(
    name: str,
    saes: dict[str, SAE],
    masks: list[Float[np.ndarray, "P F"]],
    compared: dict[str, int],
    n_shared: int,
    text: Text,
    config: PositionConfig,
) -> tuple[dict[str, Measured], dict[str, Firing]]:
    """Every state measured; where features fired is kept for all but the permuted ones.

    Args:
        name: of the subject.
        saes: state -> SAE.
        masks: its own mask, then permuted ones.
        compared: state -> which of the masks it is compared with if not its own; the others say what chance gives.
        n_shared: leading features that no mask binds.
        text, config: what is read, and how.
    """
    measured: dict[str, Measured] = {}
    firings: dict[str, Firing] = {}
    with progress(f"position: {name}", len(saes) * text.n_contexts, "contexts") as advance:
        for index, (state, sae) in enumerate(saes.items()):
            threshold = 0.0
            if state == _EQUAL_L0:
                threshold = threshold_for(sae, text, config.batch_contexts, measured["in_force"].varying["l0"].value)
                if threshold == 0:  # lifted, it fires no more than with its mask
                    measured[state] = measured["lifted"]
                    advance(text.n_contexts)
                    continue
            firing = record(sae, text, config.batch_contexts, advance, threshold)
            rate = config.false_discovery_rate if state in _RESOLVED else None
            n_draws = config.null_draws if rate is not None or state == _EQUAL_L0 else _MEAN_ONLY_DRAWS
            draw = np.random.default_rng([config.seed, 2, index])
            null = Null.of(firing, n_draws, draw, rate=rate, max_draws=config.max_null_draws)
            its = compared.get(state, 0)
            chance = [weights for which, weights in enumerate(masks) if which != its]
            measured[state] = measure(firing, null, masks[its], chance, n_shared, rate)
            if state not in compared:
                firings[state] = replace(firing, bits=None)
    return measured, firings


def _retention_by_band(
    sae: SAE, weights: Float[np.ndarray, "P F"], firings: dict[str, Firing]
) -> list[BandRetention] | None:
    bands = sae.mask.gate.bands
    return None if bands is None or "lifted" not in firings else retention_by_band(bands, weights, firings["lifted"])


def _since_start(start: Firing, end: Firing) -> SinceStart:
    before, after = ([firing.half(which).rates for which in (0, 1)] for firing in (start, end))

    def across(ours: list[np.ndarray], theirs: list[np.ndarray]) -> np.ndarray:
        return (divergence(ours[0], theirs[1]) + divergence(ours[1], theirs[0])) / 2

    def similarity(divergences: np.ndarray) -> float | None:
        known = divergences[np.isfinite(divergences)]
        return finite(1 - np.sqrt(known).mean()) if len(known) else None

    return SinceStart(
        similarity=similarity(across(before, after)),
        # Two noisy profiles diverge by half of what each diverges from another draw of itself.
        ceiling=similarity((across(before, before) + across(after, after)) / 2),
        chance=similarity(across([np.roll(rates, 1, axis=1) for rates in before], after)),
    )


@torch.no_grad()
def _reasons_from_activity(sae: SAE, text: Text, firing: Firing) -> list[str]:
    """Dead and constant dictionaries. The first contexts are enough to tell that an output never changes."""
    (part,) = read_contexts(text.store, text.positions, min(8, text.n_contexts), 8, counted=text.counted)
    x, acts = part.batch.x, part.encode(sae)
    x_hat = sae.decode(acts, part.batch.token_positions.to(acts.device), x).cpu()
    x, x_hat = (values[part.valid].double() for values in (x, x_hat))
    variances = [float(values.var(dim=0, correction=0).sum()) for values in (x_hat, x)]
    n_alive = int((firing.counts.sum(axis=(0, 1)) > 0).sum())
    return reasons_from_activity(n_alive, *variances)
