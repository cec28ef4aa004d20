"""The trained SAEs behind a report: maps of their masks and profiles, and their feature pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

from torch import Tensor

from scansion.activations import ActivationStore
from scansion.device import resolve_device
from scansion.errors import ModelError
from scansion.evals.base import LoadedSAE
from scansion.evals.interp.autointerp import AutoInterpResult
from scansion.lm import LanguageModel, load_language_model
from scansion.progress import say
from scansion.report.data import ReportArm, ReportData
from scansion.report.features import (
    FeatureConfig,
    FeaturePages,
    LogitLens,
    Neighbours,
    gather_features,
    largest_entries,
    logit_lens,
    nearest_features,
    nearest_in,
)
from scansion.report.maps import Maps, maps_of, rates_of, read_profiles
from scansion.sae import load_sae


@dataclass(frozen=True, eq=False)
class Dictionaries:
    """What is shown of the SAE of each arm's first seed.

    Attributes:
        maps, pages: in the order of the arms.
        decode: text of a token id.
        note: what the feature pages come from.
    """

    maps: list[Maps] = field(default_factory=list[Maps])
    pages: list[FeaturePages] = field(default_factory=list[FeaturePages])
    decode: Callable[[int], str] = str
    note: str = ""


def read_dictionaries(
    data: ReportData,
    config: FeatureConfig | None,
    load_lm: Callable[[], LanguageModel] | None = None,
    device: str = "auto",
) -> Dictionaries:
    """Load and look through the SAE of every sound arm's first seed.

    Args:
        data: the report's.
        config: how much feature pages show; None for no feature pages, which need the language model.
        load_lm: gives it; None to load it here.
        device: where the SAEs run, and the language model if it is loaded here.
    """
    no_lm = config is None or not data.sound or not data.held_out.identity.has_lm
    lm = None if no_lm else (load_lm or (lambda: language_model_of(data.held_out, device)))()
    place = resolve_device(device)
    maps: list[Maps] = []
    pages: list[FeaturePages] = []
    decoders: list[Tensor] = []
    for arm in data.sound:
        seed, folder = next(iter(arm.folders.items()))
        subject = LoadedSAE(arm.name, *load_sae(folder / "sae", place))
        profiles = read_profiles(folder)
        rates = {} if profiles is None else rates_of(profiles)
        if config is not None and lm is not None:
            information = None if profiles is None else profiles.get("in_force.information")
            features = gather_features(subject, data.held_out, config, information)
            neighbours = nearest_features(subject.sae.directions, config.neighbours)
            lens = _lens(subject, lm, config.lens_tokens)
            entries = largest_entries(subject.sae.directions)
            page = FeaturePages(
                arm.name, seed, features, neighbours, lens, entries, _mask_note(arm), subject.fingerprint
            )
            pages.append(replace(page, explanations=_explanations(arm, seed)))
            decoders.append(subject.sae.directions.detach().cpu())
            rates = rates or {"firing": features.profile.rates}
        if rates or subject.sae.config.mask.has_weights:
            maps.append(maps_of(subject, data.held_out, rates))
    if config is not None and config.neighbours:
        pages = [replace(page, elsewhere=_elsewhere(index, decoders)) for index, page in enumerate(pages)]
    if config is None or lm is None:
        return Dictionaries(maps, pages)
    decode = cache(lambda token: str(lm.tokenizer.decode([token])))
    read = min(config.n_contexts, data.held_out.n_contexts)
    note = (
        f"All features of each run's first seed, on {read:,} held-out contexts. Specialisation: mutual information of firing "
        "and position above chance. Fidelity: AUROC of the mask as a predictor of firing; 0.5 is chance."
    )
    return Dictionaries(maps, pages, decode, note)


def _elsewhere(index: int, decoders: Sequence[Tensor]) -> dict[int, Neighbours]:
    """Another SAE -> its feature that is nearest to each of this one's."""
    own = decoders[index]
    return {other: nearest_in(own, theirs) for other, theirs in enumerate(decoders) if other != index}


def _explanations(arm: ReportArm, seed: int) -> dict[int, str]:
    """What a language model said of features, where the evaluation ``autointerp`` was run."""
    said = arm.evaluations[seed].results.get("autointerp")
    return {one.feature: one.explanation for one in said.features} if isinstance(said, AutoInterpResult) else {}


def language_model_of(store: ActivationStore, device: str) -> LanguageModel:
    """The language model that a store was made with."""
    identity = store.identity
    return load_language_model(identity.model, identity.model_id.commit, device, identity.model_dtype)


def _lens(subject: LoadedSAE, lm: LanguageModel, n: int) -> LogitLens | None:
    if n == 0:
        return None
    try:
        return logit_lens(subject.sae.directions, lm, n)
    except ModelError as error:
        say(f"no logit lens of {subject.name}: {error}")
        return None


def _mask_note(arm: ReportArm) -> str:
    mask = arm.results[0].core.sae_config.mask
    settings = mask.model_dump(mode="json", exclude_defaults=True)
    settings.pop("family", None)
    said = [f"{name} {value}" for name, value in settings.items()]
    if not mask.has_weights:
        return "Solid line: share of tokens at each position on which it fires."
    name = ", ".join([mask.family, *said])
    return f"Solid line: share of tokens on which it fires. Dotted line: weight of its mask ({name})."
