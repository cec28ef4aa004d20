"""Evaluate trained runs together, so that the store and the LM are read once, and keep each result in its run's folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from scansion.activations import ActivationStore, TokenExclusion
from scansion.device import resolve_device
from scansion.errors import ConfigError, DamagedError
from scansion.evals import Evaluation, EvaluationConfig, evaluations
from scansion.evals.base import EvalResult, LoadedSAE
from scansion.evals.reading.training import fill_from_training, require_same_tokenizer
from scansion.evals.registry import LoadLM
from scansion.files import fingerprint
from scansion.lm import LanguageModel
from scansion.pipeline.run_results import RunResults
from scansion.progress import say
from scansion.records import read_json, require_known_format, write_json
from scansion.remote import origin
from scansion.sae import load_sae

Result = TypeVar("Result", bound=EvalResult)


def evaluate(
    runs: Mapping[str, Path],
    configs: Mapping[str, EvaluationConfig],
    held_out: ActivationStore,
    load_lm: LoadLM,
    device: str = "auto",
) -> list[RunResults]:
    """Evaluate each run's SAE, or read the results where the same SAE was evaluated the same way before.

    Args:
        runs: name -> folder of a trained run; results go to its ``evals``.
        configs: evaluation -> settings, as :meth:`EvaluationRegistry.parse_all` gives them; ``core`` is among them.
        held_out: activations of documents no run was trained on.
        load_lm: gives the language model, each time it is needed.
        device: where the SAEs run; see :func:`scansion.device.resolve_device`.

    Raises:
        ConfigError: the device is not usable here.
        EvalError: the SAEs were trained differently, and a setting that follows training is not set.
        ScansionError: whatever the store cannot be used for, before any SAE is loaded; whatever an evaluation raises.
    """
    check_evaluations(configs, held_out)
    place = resolve_device(device)
    saes = [LoadedSAE(name, *load_sae(folder / "sae", place)) for name, folder in runs.items()]
    for evaluation in evaluations.build(configs).values():
        for sae in saes:
            evaluation.check_sae(sae.sae.config)
    text = origin(held_out.folder) or held_out.folder
    for sae in saes:
        if sae.metadata.contexts == held_out.identity.contexts:
            say(f"{sae.name} was trained on the very text of {text}: what it measures is not of held-out text")
        elif sae.metadata.corpus not in (None, fingerprint(held_out.identity.corpus)):
            say(f"{sae.name} was trained on other text than {text} is from, or on text cut otherwise")
    configs = {name: fill_from_training(config, saes) for name, config in configs.items()}
    folders = [folder / "evals" for folder in runs.values()]

    def load_checked() -> LanguageModel:
        lm = load_lm()
        require_same_tokenizer(lm, held_out)
        return lm

    by_name = {
        name: _evaluate(evaluation, saes, folders, held_out, load_checked)
        for name, evaluation in evaluations.build(configs).items()
    }
    return [RunResults({name: results[i] for name, results in by_name.items()}) for i in range(len(saes))]


def check_evaluations(configs: Mapping[str, EvaluationConfig], held_out: ActivationStore) -> None:
    """Raise :class:`ScansionError` for evaluations that the store has no truth, no text or no language model for."""
    if not held_out.identity.has_lm:
        refuse_without_lm(configs, str(held_out.folder))
    for name, evaluation in evaluations.build(configs).items():
        config = configs[name]
        if isinstance(config, TokenExclusion) and held_out.identity.has_lm:
            config.check_ids(held_out.identity.model, held_out.identity.model_id.commit)
        evaluation.check(held_out)


def refuse_without_lm(configs: Mapping[str, EvaluationConfig], planted: str) -> None:
    """Raise :class:`ConfigError` if one of these evaluations needs a language model; ``planted`` has none."""
    needing_lm = [name for name, evaluation in evaluations.build(configs).items() if evaluation.needs_lm]
    if needing_lm:
        raise ConfigError(
            f"{planted} holds activations made from known features or given as tensors, for which there is neither text nor a "
            f"language model: leave out {', '.join(needing_lm)}"
        )


def _evaluate(
    evaluation: Evaluation[Any, Any],
    saes: Sequence[LoadedSAE],
    folders: Sequence[Path],
    held_out: ActivationStore,
    load_lm: LoadLM,
) -> Sequence[EvalResult]:
    folder_of = dict(zip((sae.name for sae in saes), folders, strict=True))

    def run(missing: list[LoadedSAE]) -> Sequence[EvalResult]:
        results = evaluation.run(missing, held_out, load_lm)
        for sae in missing:
            evaluation.save_more(sae, folder_of[sae.name])
        return results

    return evaluate_missing(
        evaluation.file, evaluation.result, saes, folders, evaluation.data(held_out), run, evaluation.saebench
    )


def evaluate_missing(
    name: str,
    kind: type[Result],
    saes: Sequence[LoadedSAE],
    folders: Sequence[Path],
    data: dict[str, object],
    run: Callable[[list[LoadedSAE]], Sequence[Result]],
    saebench: Callable[[Result, LoadedSAE], dict[str, Any] | None] | None = None,
) -> list[Result]:
    """The SAEs' results of one evaluation, computed where ``FOLDER/name.json`` does not hold them yet.

    Args:
        name: of the files.
        kind: class of the results.
        saes, folders: SAEs, and the ``evals`` folder of each.
        data: what a result's ``data`` must say to count as the same evaluation.
        run: called once, with all the SAEs that lack a result.
        saebench: a result in SAEBench's layout, for ``FOLDER/name.saebench.json``; None if it has none.
    """
    files = [folder / f"{name}.json" for folder in folders]
    results = [_read(file, kind, sae, data) for file, sae in zip(files, saes, strict=True)]
    missing = [index for index, result in enumerate(results) if result is None]
    if len(missing) < len(saes):
        say(f"{name}: {len(saes) - len(missing)} of {len(saes)} already evaluated")
    if missing:
        for index, result in zip(missing, run([saes[i] for i in missing]), strict=True):
            if saebench and (layout := saebench(result, saes[index])) is not None:
                # Before the result itself, whose presence then says that both are there.
                write_json(folders[index] / f"{name}.saebench.json", layout, sealed=False)
            write_json(files[index], result.model_dump(mode="json"))
            results[index] = result
    return [result for result in results if result is not None]


def _read(file: Path, kind: type[Result], sae: LoadedSAE, data: dict[str, object]) -> Result | None:
    """A result on disk, if it is of this SAE and these settings."""
    if not file.exists():
        return None
    try:
        result = kind.model_validate(require_known_format(read_json(file), file))
    except DamagedError as error:
        say(f"{error}; evaluating again")
        return None
    except ValidationError:  # written by another version: evaluate again
        return None
    if result.schema_version != kind.model_fields["schema_version"].default:  # its figures were defined otherwise
        return None
    same = result.sae_fingerprint == sae.fingerprint and all(result.data.get(key) == data[key] for key in data)
    return result if same else None
