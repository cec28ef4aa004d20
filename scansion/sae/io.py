"""An SAE on disk: a folder with ``cfg.json`` and ``sae_weights.safetensors``, enough to use it anywhere."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from scansion.errors import ConfigError, ScansionError, describe
from scansion.files import atomic_folder, read_json, require_known_format, write_json
from scansion.plugins import missing_plugins, say_if_plugins_differ
from scansion.sae.base import SAE
from scansion.sae.metadata import SAEMetadata
from scansion.sae.registry import build_sae, parse_sae_config

FORMAT_VERSION = 1
WEIGHTS = "sae_weights.safetensors"


def save_sae(sae: SAE, folder: Path, metadata: SAEMetadata) -> None:
    """Save atomically to ``folder``, replacing what is there.

    Args:
        sae: takes unscaled activations (see :meth:`SAE.fold_scale`).
        folder: gets ``cfg.json`` and ``sae_weights.safetensors``.
        metadata: model, hook point, data and training.
    """
    with atomic_folder(folder) as temporary:
        weights = {name: tensor.detach().contiguous().cpu() for name, tensor in sae.state_dict().items()}
        save_file(weights, temporary / WEIGHTS)
        write_json(
            temporary / "cfg.json",
            {
                "format_version": FORMAT_VERSION,
                "d_in": sae.d_in,
                "n_positions": sae.n_positions,
                **sae.config.model_dump(mode="json"),
                "metadata": metadata.model_dump(mode="json"),
            },
        )


def load_sae(folder: Path, device: str | torch.device = "cpu") -> tuple[SAE, SAEMetadata]:
    """Load what :func:`save_sae` wrote: the SAE in evaluation mode, and its metadata.

    Raises:
        ScansionError: the folder holds no SAE, one of another format, or damaged weights.
    """
    if not (folder / "cfg.json").exists():
        raise ScansionError(f"{folder} holds no SAE (no cfg.json); give the 'sae' folder inside a run")
    settings = require_known_format(read_json(folder / "cfg.json"), folder / "cfg.json", FORMAT_VERSION)
    if settings.pop("format_version", None) is None:  # other tools write a cfg.json too
        raise ScansionError(f"{folder / 'cfg.json'} is not of an SAE that Scansion saved: it has no format_version")
    metadata = SAEMetadata.model_validate(settings.pop("metadata"))
    d_in, n_positions = settings.pop("d_in"), settings.pop("n_positions")
    try:
        config = parse_sae_config(settings)
    except (ConfigError, ValidationError) as error:
        text = describe(error, "cfg.json") if isinstance(error, ValidationError) else str(error)
        raise ConfigError(f"{folder / 'cfg.json'}: {text}{missing_plugins([folder.parent])}") from error
    say_if_plugins_differ(folder.parent)
    sae = build_sae(config, d_in, n_positions, torch.Generator().manual_seed(0))
    try:
        sae.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ScansionError(
            f"{folder / WEIGHTS} is missing or damaged; delete {folder} and train again, which goes on from the last checkpoint"
        ) from error
    sae.provenance = metadata
    return sae.to(device).eval(), metadata
