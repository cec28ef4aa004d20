"""An SAE on disk: a folder with ``cfg.json`` and ``sae_weights.safetensors``, enough to use it anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import xxhash
from pydantic import ValidationError

from scansion.errors import ConfigError, DamagedError, ScansionError, describe
from scansion.files import atomic_folder, expanded
from scansion.mirroring import fetched
from scansion.plugins import missing_plugins, say_if_plugins_differ
from scansion.records import read_json, require_known_format, write_json
from scansion.sae.base import SAE
from scansion.sae.metadata import SAEMetadata
from scansion.sae.registry import build_sae, parse_sae_config
from scansion.tensor_file import load_tensors, save_tensors

FORMAT_VERSION = 1
WEIGHTS = "sae_weights.safetensors"


def save_sae(sae: SAE, folder: Path | str, metadata: SAEMetadata) -> None:
    """Save atomically to ``folder``, replacing what is there.

    Args:
        sae: takes unscaled activations (see :meth:`SAE.fold_scale`).
        folder: gets ``cfg.json`` and ``sae_weights.safetensors``.
        metadata: model, hook point, data and training.

    Example:
        >>> scansion.save_sae(sae, "runs/copy/sae", metadata)
    """
    with atomic_folder(expanded(folder)) as temporary:
        weights = {name: tensor.detach().contiguous().cpu() for name, tensor in sae.state_dict().items()}
        digest = save_tensors(temporary / WEIGHTS, weights)
        write_json(
            temporary / "cfg.json",
            {
                "format_version": FORMAT_VERSION,
                "weights": digest,
                "d_in": sae.d_in,
                "n_positions": sae.n_positions,
                **sae.config.model_dump(mode="json"),
                "metadata": metadata.model_dump(mode="json"),
            },
        )


def load_sae(folder: Path | str, device: str | torch.device = "cpu") -> tuple[SAE, SAEMetadata]:
    """Load what :func:`save_sae` wrote: the SAE in evaluation mode, and its metadata.

    Args:
        folder: of the SAE, or of a run, whose SAE is in ``sae``; or the URL of one, which is fetched into the cache.
        device: where to put it.

    Raises:
        ScansionError: the folder holds no SAE, one of another format, or damaged weights.

    Example:
        >>> sae, metadata = scansion.load_sae("runs/topk")
    """
    folder = expanded(fetched(folder, checkpoints=False))
    if not (folder / "cfg.json").exists() and (folder / "sae/cfg.json").exists():
        folder = folder / "sae"
    if not (folder / "cfg.json").exists():
        raise ScansionError(
            f"{folder} holds no SAE (no cfg.json); give the folder of a run, or the 'sae' folder inside"
        )
    settings = require_known_format(read_json(folder / "cfg.json"), folder / "cfg.json", FORMAT_VERSION)
    if (
        not isinstance(settings, dict) or settings.pop("format_version", None) is None
    ):  # other tools write a cfg.json too
        raise ScansionError(f"{folder / 'cfg.json'} is not of an SAE that Scansion saved: it has no format_version")
    digest = settings.pop("weights", None)
    try:
        metadata = SAEMetadata.model_validate(settings.pop("metadata", None))
        d_in, n_positions = _size(settings, "d_in"), _size(settings, "n_positions")
        config = parse_sae_config(settings)
    except (ConfigError, ValidationError) as error:
        text = describe(error, "cfg.json") if isinstance(error, ValidationError) else str(error)
        raise ConfigError(f"{folder / 'cfg.json'}: {text}{missing_plugins([folder.parent])}") from error
    say_if_plugins_differ(folder.parent)
    sae = build_sae(config, d_in, n_positions, torch.Generator().manual_seed(0))
    try:
        sae.load_state_dict(load_tensors(folder / WEIGHTS, digest))
    except (DamagedError, RuntimeError) as error:
        why = str(error) if isinstance(error, DamagedError) else f"{folder / WEIGHTS} does not fit its cfg.json"
        raise DamagedError(
            f"{why}; delete {folder} and train again, from the last checkpoint if there is one"
        ) from error
    sae.provenance = metadata
    return sae.to(device).eval(), metadata


def sae_fingerprint(sae: SAE, metadata: SAEMetadata) -> str:
    """A 32-digit hash of the settings, provenance and weights: equal only for the same SAE."""
    digest = xxhash.xxh3_128()
    digest.update((sae.config.model_dump_json() + metadata.model_dump_json()).encode())
    for name, tensor in sae.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _size(settings: dict[str, Any], name: str) -> int:
    size = settings.pop(name, None)
    if not isinstance(size, int) or size < 1:
        raise ConfigError(f"{name} is {size!r}, not a whole number from 1")
    return size
