"""RunResults beyond core and sparse probing, by name: run those asked for and keep each result in its run's folder."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import BaseModel, ValidationError

from scansion.activations import ActivationStore
from scansion.errors import ConfigError, describe
from scansion.evals.ablation.saebench import scr_json, tpp_json
from scansion.evals.ablation.scr import ScrConfig, ScrResult, evaluate_scr
from scansion.evals.ablation.tpp import TppConfig, TppResult, evaluate_tpp
from scansion.evals.absorption.evaluate import AbsorptionConfig, evaluate_absorption
from scansion.evals.absorption.result import AbsorptionResult
from scansion.evals.absorption.saebench import absorption_json
from scansion.evals.base import EvalResult, LoadedSAE
from scansion.evals.core.evaluate import CoreConfig
from scansion.evals.interp.autointerp import AutoInterpConfig, AutoInterpResult, evaluate_autointerp
from scansion.evals.interp.offline import OfflineInterpConfig, OfflineInterpResult, evaluate_offline_interp
from scansion.evals.interp.saebench import autointerp_json
from scansion.evals.recovery.evaluate import SyntheticConfig, SyntheticResult, evaluate_synthetic
from scansion.evals.unlearning.evaluate import UnlearningConfig, evaluate_unlearning
from scansion.evals.unlearning.result import UnlearningResult
from scansion.evals.unlearning.saebench import unlearning_json
from scansion.lm import HookPoint, LanguageModel
from scansion.pipeline.evaluate import evaluate_missing
from scansion.sae import load_sae

LoadLM = Callable[[], LanguageModel]


@dataclass(frozen=True)
class Extra:
    """One evaluation: its settings, its result, how it is run, and the result in SAEBench's layout (None: it has none)."""

    config: type[BaseModel]
    result: type[EvalResult]
    run: Callable[[Sequence[LoadedSAE], ActivationStore, LoadLM, Any], Sequence[EvalResult]]
    layout: Callable[[Any, LoadedSAE], dict[str, Any]] | None
    reads_store: bool = False


def _on_lm(
    evaluate: Callable[[Sequence[LoadedSAE], LanguageModel, HookPoint, Any], Sequence[EvalResult]],
) -> Callable[[Sequence[LoadedSAE], ActivationStore, LoadLM, Any], Sequence[EvalResult]]:
    """An evaluation that reads texts of its own through the LM, at the store's hook point."""

    def run(
        subjects: Sequence[LoadedSAE], held_out: ActivationStore, load_lm: LoadLM, config: Any
    ) -> Sequence[EvalResult]:
        return evaluate(subjects, load_lm(), HookPoint.parse(held_out.identity.hook_point), config)

    return run


def _autointerp(
    subjects: Sequence[LoadedSAE], held_out: ActivationStore, load_lm: LoadLM, config: AutoInterpConfig
) -> Sequence[EvalResult]:
    tokenizer: Any = load_lm().tokenizer
    return evaluate_autointerp(subjects, held_out, lambda token: str(tokenizer.decode([token])), config)


EXTRAS: dict[str, Extra] = {
    "absorption": Extra(AbsorptionConfig, AbsorptionResult, _on_lm(evaluate_absorption), absorption_json),
    "tpp": Extra(TppConfig, TppResult, _on_lm(evaluate_tpp), tpp_json),
    "scr": Extra(ScrConfig, ScrResult, _on_lm(evaluate_scr), scr_json),
    "autointerp": Extra(AutoInterpConfig, AutoInterpResult, _autointerp, autointerp_json, reads_store=True),
    "autointerp_offline": Extra(
        OfflineInterpConfig,
        OfflineInterpResult,
        lambda subjects, held_out, _, config: evaluate_offline_interp(subjects, held_out, config),
        None,
        reads_store=True,
    ),
    "unlearning": Extra(UnlearningConfig, UnlearningResult, _on_lm(evaluate_unlearning), unlearning_json),
    "synthetic": Extra(
        SyntheticConfig,
        SyntheticResult,
        lambda subjects, held_out, _, config: evaluate_synthetic(subjects, held_out, config),
        None,
        reads_store=True,
    ),
}


def parse_extras(names: str, settings: Path | None = None) -> dict[str, BaseModel]:
    """The settings of each evaluation asked for, checked before anything heavy.

    Args:
        names: separated by commas, for example ``absorption,tpp``; empty for none.
        settings: a YAML file, ``name: {setting: value}``.

    Raises:
        ConfigError: an unknown name or setting, or no such file.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in EXTRAS]
    if unknown:
        raise ConfigError(f"no evaluation is called {', '.join(unknown)}; there are {', '.join(EXTRAS)}")
    if settings is not None and not settings.is_file():
        raise ConfigError(f"there is no settings file {settings}; give a YAML file of `name: {{setting: value}}`")
    given: Any = yaml.safe_load(settings.read_text(encoding="utf-8")) if settings else {}
    by_name = cast(dict[str, Any], given) if isinstance(given, dict) else {"": given}
    if not set(by_name) <= set(wanted):
        raise ConfigError(f"{settings} should hold settings of {', '.join(wanted) or 'nothing'}, by their names")
    parsed: dict[str, BaseModel] = {}
    for name in wanted:
        try:
            parsed[name] = EXTRAS[name].config.model_validate(by_name.get(name) or {})
        except ValidationError as error:
            raise ConfigError(f"{name}: {describe(error, 'settings')}") from error
    return parsed


def check_store(store: ActivationStore, extras: Collection[str], core: CoreConfig, *, probing: bool) -> None:
    """Raise :class:`ConfigError` for evaluations that the store has no truth, no text or no language model for.

    Args:
        store: held-out activations.
        extras: names of further evaluations.
        core: settings of the core evaluation.
        probing: whether sparse probing is to be done.
    """
    if not store.identity.is_planted:
        if "synthetic" in extras:
            raise ConfigError(
                f"{store.folder} holds activations of {store.identity.model}, whose true features nobody knows; the "
                "synthetic evaluation needs a store made by `scansion synth` and an SAE trained on it"
            )
        return
    without_lm = [name for name in extras if name != "synthetic"]
    changes = [
        *(["--core.loss-contexts 0"] if core.loss_contexts else []),
        *(["--no-probing"] if probing else []),
        *([f"leave out {', '.join(without_lm)}"] if without_lm else []),
    ]
    if changes:
        raise ConfigError(
            f"{store.folder} holds activations made from known features, for which there is neither text nor a language "
            f"model: {'; '.join(changes)}"
        )


def evaluate_extras(
    extras: Mapping[str, BaseModel], runs: Mapping[str, Path], held_out: ActivationStore, load_lm: LoadLM
) -> list[EvalResult]:
    """Carry evaluations out, or read the results where the same SAE was evaluated the same way before.

    Args:
        extras: name -> settings, from :func:`parse_extras`.
        runs: name -> folder of a trained run; ``evals/NAME.json`` and ``evals/NAME.saebench.json`` go there.
        held_out: activations of documents no run was trained on.
        load_lm: gives the language model, each time it is needed.
    """
    if not extras:
        return []
    subjects = [LoadedSAE(name, *load_sae(folder / "sae")) for name, folder in runs.items()]
    folders = [folder / "evals" for folder in runs.values()]
    results: list[EvalResult] = []
    for name, config in extras.items():
        extra = EXTRAS[name]

        def run(missing: list[LoadedSAE], extra: Extra = extra, config: BaseModel = config) -> Sequence[EvalResult]:
            return extra.run(missing, held_out, load_lm, config)

        data: dict[str, object] = {"config": config.model_dump(mode="json")}
        if extra.reads_store:
            data["store"] = held_out.manifest.key
        results += evaluate_missing(name, extra.result, subjects, folders, data, run, extra.layout)
    return results


def lines(results: Sequence[EvalResult]) -> list[str]:
    """Each result on one line, its notes under the first of its kind."""
    found: list[str] = []
    told: set[str] = set()
    for result in results:
        figures = ", ".join(
            f"{name} {'not finite' if value is None else format(value, '.3f')}"
            for name, value in result.headline().items()
        )
        reasons = f" ({'; '.join(result.reasons)})" if result.reasons else ""
        found.append(f"{result.eval}: {result.sae}: {figures or result.status}{reasons}")
        found += [f"  note: {note}" for note in result.notes if note not in told]
        told |= set(result.notes)
    return found
