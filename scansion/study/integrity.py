"""Are the files in a folder what was written, and all there? Checks stores, runs and studies, and repairs stores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from scansion.activations import ActivationStore, HarvestConfig, HarvestPlan, harvest
from scansion.activations.store import MANIFEST, PLAN, SHARD_NAME, StoreIdentity
from scansion.corpus import CorpusConfig
from scansion.errors import ScansionError, StoreError
from scansion.pipeline.stores import HarvestSpec, harvest_plans
from scansion.records import is_sealed, read_json, read_yaml
from scansion.sae import WEIGHTS, load_sae
from scansion.study.final_info import FINAL_INFO
from scansion.study.missing import missing_under
from scansion.study.record import infos_of
from scansion.synth import PlantedDictionary, SynthConfig, plant_store
from scansion.tensor_file import has_digest, load_tensors
from scansion.training.run_folder import read_metrics

_CHECKS: dict[str, Callable[[Path], Any]] = {
    "cfg.json": lambda file: load_sae(file.parent),
    FINAL_INFO: lambda file: infos_of(file.parent),
    "*.json": read_json,
    "metrics.jsonl": lambda file: read_metrics(file.parent),
    "config.yaml": read_yaml,
    "*.safetensors": load_tensors,
}
_UNSEALED = ".saebench.json"  # in another tool's layout


@dataclass(frozen=True)
class Findings:
    """What became of the files in a folder.

    Attributes:
        n_files: how many were read.
        problems: what is damaged or missing, one line each.
        unchecked: files without a checksum: of earlier versions or other programs, or written by hand. They can be read, and
            nobody can say whether they are what was written.
    """

    n_files: int
    problems: list[str]
    unchecked: list[Path]


def findings_under(folder: Path) -> Findings:
    """Read every file of ours under ``folder`` and compare it with its digest; name those that must be there and are not.

    Args:
        folder: a store, a run, a study, or a folder of several.

    Raises:
        ScansionError: there is no such folder, or nothing of ours in it.
    """
    if not folder.is_dir():
        raise ScansionError(f"{folder} is not a folder" if folder.exists() else f"there is no such folder: {folder}")
    missing = missing_under(folder)
    n_files, problems, unchecked = 0, list[str](), list[Path]()
    stores = {manifest.parent for manifest in folder.rglob(MANIFEST)}
    for store in sorted(stores):
        found, n_shards = _store_problems(store)
        problems += found
        n_files += 1 + n_shards
    for file in sorted(folder.rglob("*")):
        check = next((check for pattern, check in _CHECKS.items() if file.match(pattern)), None)
        if check is None or not file.is_file() or file.name.startswith("."):
            continue
        if file.parent in stores and (file.name == MANIFEST or file.match(SHARD_NAME.format("*"))):
            continue
        n_files += 1
        if file.name == WEIGHTS and (file.parent / "cfg.json").is_file():  # read with it, and its digest is there
            continue
        try:
            check(file)
            if not file.name.endswith(_UNSEALED) and not _has_checksum(file):
                unchecked.append(file)
        except ScansionError as error:
            # That a part is missing is said once, with what to do.
            if not any(line.split(" is missing: ")[0] in str(error) for line in missing):
                problems.append(str(error))
    if not n_files:
        raise ScansionError(f"{folder} holds no store, run or study; give a folder that Scansion wrote")
    return Findings(n_files, list(dict.fromkeys(problems)) + missing, unchecked)


def _has_checksum(file: Path) -> bool:
    return has_digest(file) if file.suffix == ".safetensors" else is_sealed(file)


def _store_problems(folder: Path) -> tuple[list[str], int]:
    try:
        store = ActivationStore(folder)
        return [why for _, why in store.damaged()], len(store.manifest.shards)
    except ScansionError as error:
        return [str(error)], 0


def repair_store(folder: Path, device: str = "auto") -> ActivationStore:
    """Compute the damaged shards of a store again, from the text and the model that its manifest names.

    Args:
        folder: the store's.
        device: where the language model runs.

    Raises:
        StoreError: the folder holds no store, or text or model are not what they were.
        ScansionError: whatever keeps the text or the model from being read.
    """
    identity = _identity_of(folder)
    if identity.is_planted:
        world = SynthConfig.model_validate(identity.corpus["world"])
        return plant_store(PlantedDictionary.plant(world), "train" if identity.split == "train" else "held_out", folder)
    if not identity.has_lm:
        raise StoreError(f"{folder} holds activations of your own; delete it and write it again with from_tensors")
    try:
        corpus = CorpusConfig.model_validate(identity.corpus["config"])
    except (KeyError, ValidationError) as error:
        raise StoreError(f"{folder} does not say which text it is of; delete it and harvest again") from error
    spec = HarvestSpec(
        model=identity.model,
        hook_point=identity.hook_point,
        corpus=corpus,
        harvest=HarvestConfig(dtype=identity.dtype),
        revision=identity.model_id.commit,
        lm_dtype=identity.model_dtype,
        device=device,
    )
    plan = next(one for one in harvest_plans(spec, folder.parent) if one.identity.split == identity.split)
    if different := identity.differences(plan.identity):
        raise StoreError(
            f"{folder} cannot be repaired: text or model have changed ({'; '.join(different)}), or it is of an "
            "earlier version, which counted padding as tokens; harvest it again"
        )
    return harvest(HarvestPlan(plan.identity, folder, plan.contexts, plan.config), lambda: spec.lm)


def _identity_of(folder: Path) -> StoreIdentity:
    """What a store holds or is to hold, from the manifest or, if that is damaged, from the plan it was begun with."""
    for name in (MANIFEST, PLAN):
        try:
            return StoreIdentity.model_validate(read_json(folder / name)["identity"])
        except (ScansionError, ValidationError, KeyError, TypeError):
            continue
    if not any((folder / name).exists() for name in (MANIFEST, PLAN)):
        raise StoreError(
            f"{folder} is not an activation store, and only stores can be repaired; give the folder of one"
        )
    raise StoreError(f"{folder} has neither a readable {MANIFEST} nor a readable {PLAN}; delete it and harvest again")
