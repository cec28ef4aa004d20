"""SAELens 6: a folder with ``cfg.json`` and ``sae_weights.safetensors``. Older folders without ``metadata`` are read too."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast, get_args

from safetensors.torch import save_file
from torch import Tensor

from scansion.errors import ConfigError, ModelError
from scansion.files import atomic_folder, expanded
from scansion.interop.weights import (
    ForeignSAE,
    log_of_threshold,
    read_safetensors,
    read_settings,
    standard_weights,
    take,
)
from scansion.lm import HookPoint
from scansion.masks import NoMaskConfig
from scansion.records import write_json
from scansion.sae import (
    SAE,
    TSAE,
    WEIGHTS,
    BatchTopKSAE,
    GatedConfig,
    GatedSAE,
    InputNorm,
    JumpReluConfig,
    JumpReluSAE,
    MatryoshkaSAE,
    ReluConfig,
    ReluSAE,
    SAEConfig,
    SAEMetadata,
    TopKConfig,
    TopKSAE,
    parse_sae_config,
)

NAME = "SAELens"
# Their readers take an absent or lower version for the old layout, and then drop what the metadata say.
_VERSION = "6.0.0"
_ARCHITECTURES: dict[type[SAE], str] = {
    ReluSAE: "standard",
    TopKSAE: "topk",
    JumpReluSAE: "jumprelu",
    BatchTopKSAE: "jumprelu",
    MatryoshkaSAE: "jumprelu",
    TSAE: "jumprelu",
    GatedSAE: "gated",
}
REGISTERED_AS, OURS = "scansion", "scansion"
"""Architecture of SAEs that have no counterpart there, and the key of our settings in ``cfg.json``."""
_SCALED = "expected_average_only_in"
_NORMS = tuple(norm for norm in get_args(InputNorm) if norm != "none")
_STANDARD = ("W_enc", "b_enc", "W_dec", "b_dec")


def fits(path: Path) -> bool:
    """Whether a folder is of this library."""
    return (
        (path / "cfg.json").is_file()
        and (path / WEIGHTS).is_file()
        and "architecture" in read_settings(path / "cfg.json")
    )


def read(path: Path, input_factor: float | None = None) -> ForeignSAE:
    """Read a folder.

    Args:
        path: the folder.
        input_factor: what activations are multiplied by before such an SAE, for ``expected_average_only_in``.

    Raises:
        ConfigError: an architecture or a setting that our SAEs do not have.
        DamagedError: the weights cannot be read.
    """
    cfg = read_settings(path / "cfg.json")
    scaled = cfg.get("normalize_activations") == _SCALED
    if scaled and input_factor is None:
        raise ConfigError(
            f"{path}: normalize_activations is {_SCALED!r}, and the folder does not say the factor; give it with "
            "--input-factor (in SAELens' list of releases it is norm_scaling_factor)"
        )
    if input_factor is not None and not (scaled and 0 < input_factor < math.inf):
        raise ConfigError(f"{path}: an input factor above 0 is for SAEs whose normalize_activations is {_SCALED!r}")
    _refuse_settings(cfg, path)
    tensors = read_safetensors(path / WEIGHTS)
    if input_factor is not None:
        for name, factor in (("W_enc", input_factor), ("W_dec", 1 / input_factor), ("b_dec", 1 / input_factor)):
            tensors[name] = tensors[name].float() * factor
    about = cast("dict[str, Any]", cfg.get("metadata") or cfg)
    where = (about.get("model_name"), about.get("hook_name"), about.get("context_size"))
    if cfg["architecture"] == REGISTERED_AS:
        config, n_positions = _ours(cfg, path)
        return ForeignSAE(NAME, config, tensors, *where, n_positions=n_positions)
    config, weights = _converted(cfg, tensors, path)
    if (norm := cfg.get("normalize_activations")) in _NORMS:
        config = config.model_copy(update={"input_norm": norm})
    return ForeignSAE(NAME, config, weights, *where)


def _ours(cfg: dict[str, Any], path: Path) -> tuple[SAEConfig, int]:
    """Our settings and the number of positions, of a folder that we wrote."""
    try:
        return parse_sae_config(cfg[OURS]["sae"]), int(cfg[OURS]["n_positions"])
    except (KeyError, TypeError, ValueError) as error:  # ValidationError is a ValueError
        raise ConfigError(f"{path / 'cfg.json'} does not hold our settings: {' '.join(str(error).split())}") from error


def read_own(path: Path) -> SAE:
    """An SAE that :func:`write_saelens` wrote, in evaluation mode, of the architecture that it had here.

    Raises:
        ConfigError: another program wrote it.
        DamagedError: the weights cannot be read.
    """
    cfg = read_settings(path / "cfg.json")
    if OURS not in cfg:
        raise ConfigError(f"{path} is not an SAE of Scansion; `scansion import` reads those of other libraries")
    config, n_positions = _ours(cfg, path)
    tensors = read_safetensors(path / WEIGHTS)
    if cfg["architecture"] == "gated":
        tensors["b_enc"] = tensors.pop("b_gate")
    elif cfg["architecture"] == "jumprelu":
        threshold = tensors.pop("threshold")
        learnt = isinstance(config, JumpReluConfig)
        tensors |= {"log_threshold": threshold.log()} if learnt else {"threshold": threshold[0]}
    sae = ForeignSAE(NAME, config, tensors, n_positions=n_positions).build(n_positions)
    try:
        sae.provenance = SAEMetadata.model_validate(cfg[OURS]["metadata"])
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{path / 'cfg.json'} does not say where the SAE comes from") from error
    return sae


def _refuse_settings(cfg: dict[str, Any], path: Path) -> None:
    """Raise :class:`ConfigError` for settings that change what the SAE computes and that ours do not have."""
    plain = {
        "normalize_activations": ("none", None, False, _SCALED, *_NORMS),
        "reshape_activations": ("none", None),
        "finetuning_scaling_factor": (False, None),
        "use_error_term": (False, None),
    }
    for name, values in plain.items():
        if cfg.get(name) not in values:
            raise ConfigError(
                f"{path}: {name} is {cfg[name]!r}, which Scansion's SAEs do not have: it would change what they compute"
            )


def _converted(cfg: dict[str, Any], tensors: dict[str, Tensor], path: Path) -> tuple[SAEConfig, dict[str, Tensor]]:
    architecture = str(cfg["architecture"])
    if architecture == "standard" and cfg.get("activation_fn_str", cfg.get("activation_fn")) == "topk":  # before 6
        architecture = "topk"
    subtracts = bool(cfg.get("apply_b_dec_to_input", True))
    file = path / WEIGHTS
    if architecture == "gated":
        W_enc, b_gate, r_mag, b_mag, W_dec, b_dec = take(
            tensors, ("W_enc", "b_gate", "r_mag", "b_mag", "W_dec", "b_dec"), file
        )
        weights = standard_weights(W_enc, b_gate, W_dec, b_dec, subtracts_bias=True)
        weights |= {"r_mag": r_mag.float(), "b_mag": b_mag.float()}
        if not subtracts:
            # Both paths read the input itself: each bias makes up for what ours subtracts.
            missing = weights["b_dec"] @ weights["W_enc"]
            weights["b_enc"] = weights["b_enc"] + missing
            weights["b_mag"] = weights["b_mag"] + missing * weights["r_mag"].exp()
        return GatedConfig(d_sae=W_enc.shape[1]), weights
    extra = ("threshold",) if architecture == "jumprelu" else ()
    if architecture not in ("standard", "topk", "jumprelu"):
        raise ConfigError(
            f"{path} is a {NAME} SAE of the architecture {architecture!r}; Scansion reads standard, topk, jumprelu (which "
            "BatchTopK SAEs are saved as) and gated"
        )
    W_enc, b_enc, W_dec, b_dec, *rest = take(tensors, (*_STANDARD, *extra), file)
    d_sae = W_enc.shape[1]
    if architecture == "topk" and cfg.get("rescale_acts_by_decoder_norm"):
        norm = W_dec.float().norm(dim=1)
        bias = b_enc if subtracts else b_enc.float() + b_dec.float() @ W_enc.float()
        W_enc, b_enc, W_dec, subtracts = W_enc.float() * norm, bias * norm, W_dec.float() / norm[:, None], True
    weights = standard_weights(W_enc, b_enc, W_dec, b_dec, subtracts_bias=subtracts)
    if architecture == "standard":
        return ReluConfig(d_sae=d_sae), weights
    if architecture == "topk":
        k = cfg.get("k", (cfg.get("activation_fn_kwargs") or {}).get("k"))
        if not isinstance(k, int):
            raise ConfigError(f"{path / 'cfg.json'} does not say k")
        return TopKConfig(d_sae=d_sae, k=k), weights
    return JumpReluConfig(d_sae=d_sae), weights | {"log_threshold": log_of_threshold(rest[0], d_sae)}


def write_saelens(sae: SAE, metadata: SAEMetadata, folder: Path | str, drop_mask: bool = False) -> str:
    """Write a folder that ``sae_lens.SAE.load_from_disk`` opens.

    BatchTopK, Matryoshka and T-SAE become ``jumprelu`` with their one threshold, which is what they compute when in use. An
    SAE whose mask is in force, or which has no counterpart, is written for the architecture that
    :mod:`scansion.interop.saelens_masked` registers there. ``cfg.json`` also holds our settings, under ``scansion``.

    Args:
        sae: takes unscaled activations.
        metadata: where it comes from.
        folder: is replaced.
        drop_mask: write an SAE with a mask as if it had none: every feature may fire at every position.

    Returns:
        The architecture it has there.

    Raises:
        ConfigError: it is of a plugin, it reads windows of tokens, its bands have a decoder bias each and the mask is to be
            dropped, or it has an ``input_norm`` and no counterpart there.

    Example:
        >>> scansion.write_saelens(*scansion.load_sae("runs/topk"), "exported")
    """
    dropped = drop_mask and not sae.treats_positions_alike
    if dropped and sae.b_dec.ndim > 1:
        raise ConfigError("this SAE's bands have a decoder bias each: without its mask it would have none")
    for part in (sae, sae.mask):
        if type(part).__module__.partition(".")[0] != "scansion":
            raise ConfigError(
                f"{type(part).__name__} is of a plugin, which {NAME} would not find; it cannot be written"
            )
    if sae.window > 1:
        raise ConfigError(
            f"{sae.config.architecture} reads windows of {sae.window} tokens, and {NAME} gives it one at a time"
        )
    settings = sae.config.model_dump(mode="json")
    if dropped:
        settings["mask"] = NoMaskConfig().model_dump(mode="json")
    elif sae.config.mask.beyond == "error":  # in the middle of a text that is being generated
        settings["mask"]["beyond"] = "clamp"
    cfg: dict[str, Any] = {
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": sae.config.input_norm,
        "reshape_activations": "none",
        "metadata": _metadata(metadata) | ({"scansion_mask_dropped": sae.config.mask.family} if dropped else {}),
        OURS: {"sae": settings, "n_positions": sae.n_positions, "metadata": metadata.model_dump(mode="json")},
    }
    # A class derived from one of these computes something else.
    architecture = _ARCHITECTURES.get(type(sae)) if dropped or sae.treats_positions_alike else None
    if architecture is None:
        if sae.config.input_norm != "none":
            raise ConfigError(
                f"this SAE normalises each token ({sae.config.input_norm}) and has no counterpart there: {NAME} cannot be "
                "given one that has both a mask, or the architecture switch, and such a norm"
            )
        tensors = {name: each for name, each in sae.state_dict().items() if not (dropped and name.startswith("mask."))}
        architecture = REGISTERED_AS
    else:
        tensors, more = _theirs(sae, architecture)
        cfg |= more
    cfg["architecture"] = architecture
    with atomic_folder(expanded(folder)) as temporary:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary / WEIGHTS)
        write_json(temporary / "cfg.json", cfg, sealed=False)
    return architecture


def _theirs(sae: SAE, architecture: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors as one of their architectures has them, and its settings."""
    tensors = {name: getattr(sae, name).detach().float() for name in _STANDARD}
    if isinstance(sae, TopKSAE):
        return tensors, {"k": sae.config.k, "rescale_acts_by_decoder_norm": False}
    if isinstance(sae, GatedSAE):
        tensors["b_gate"] = tensors.pop("b_enc")
        tensors |= {name: getattr(sae, name).detach().float() for name in ("r_mag", "b_mag")}
    elif architecture == "jumprelu":
        threshold: Tensor = getattr(sae, "threshold")  # noqa: B009 - of several classes
        tensors["threshold"] = threshold.detach().float().clamp_min(0.0).expand(sae.d_sae)
    return tensors, {}


def _metadata(metadata: SAEMetadata) -> dict[str, Any]:
    try:
        hook_name = HookPoint.parse(metadata.hook_point).transformer_lens_name
    except ModelError:  # planted activations belong to no layer
        hook_name = metadata.hook_point
    return {
        "sae_lens_version": _VERSION,
        "model_name": metadata.model,
        "hook_name": hook_name,
        "hook_head_index": None,
        "prepend_bos": True,
        "context_size": metadata.context_length,
        "seqpos_slice": [None] if metadata.use_position_0 else [1, None],
    }
