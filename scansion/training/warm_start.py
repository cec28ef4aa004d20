"""Start from a trained SAE: copy its weights, and if the mask asks for it, allow features where they fire there."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from scansion.activations import ActivationStream
from scansion.activations.on_the_fly import TrainingStore
from scansion.errors import ConfigError, TrainingError
from scansion.progress import say
from scansion.remote import local_copy
from scansion.sae import SAE, SAEConfig, SAEMetadata, StartedFrom, load_sae, sae_fingerprint, window_of
from scansion.training.config import TrainingConfig

# Batches of the stream on which the usage is measured; at 2048 tokens each, about 500 tokens per position.
USAGE_BATCHES = 32
# Rows that training keeps at length 1 are that long up to rounding.
_UNIT_ROWS = 1e-3


def start_source(config: SAEConfig, training: TrainingConfig) -> Path | None:
    """Folder of the SAE that training starts from: the one of ``--from``, or the one the mask names; None for a new start.

    Raises:
        TrainingError: both name one, or the mask is to start from usage and none is named.
    """
    mask = config.mask
    if training.from_ is None:
        if mask.starts_from_usage and mask.usage_source is None:
            raise TrainingError(
                "the mask's start is from_usage, and no SAE is named: give start.sae in the mask, or --from RUN"
            )
        return mask.usage_source
    if mask.usage_source is not None:
        raise TrainingError(
            f"--from names {training.from_}, and the mask's start.sae {mask.usage_source}; leave out start.sae"
        )
    return sae_folder(training.from_)


def sae_folder(run: Path) -> Path:
    """The folder of a run's SAE, given the run's folder or that folder itself."""
    return run / "sae" if (run / "sae").is_dir() else run


def check_start(config: SAEConfig, training: TrainingConfig, d_in: int, folder: Path | None = None) -> None:
    """Raise unless the SAE to start from is there and fits; loads it, which takes about a second.

    Args:
        config, training: of the new run.
        d_in: width of its activations.
        folder: the new run's, where it is known.

    Raises:
        TrainingError: it has another architecture, d_sae, window or d_in, a decoder bias for each band, or it has a mask and
            its usage is to start another.
        ScansionError: the folder holds no SAE.
    """
    if config.input_norm != "none":
        raise TrainingError(
            f"an SAE with input_norm {config.input_norm} cannot be trained: training reads activations as they are; imported "
            "ones can be evaluated, compared and run in a model"
        )
    source = start_source(config, training)
    if source is None:
        return
    if folder is not None and local_copy(source).resolve() in (folder.resolve(), (folder / "sae").resolve()):
        raise TrainingError(
            f"{folder} holds the SAE that training starts from, which is kept; choose another folder (--out)"
        )
    trained, _ = load_sae(source)
    same = ("architecture", "d_sae", "input_norm")
    given = {name: getattr(trained.config, name) for name in same} | {"d_in": trained.d_in, "window": trained.window}
    expected = {name: getattr(config, name) for name in same} | {"d_in": d_in, "window": window_of(config)}
    if config.mask.starts_from_usage:
        given["mask"], expected["mask"] = trained.config.mask.family, "none"
    if different := [
        f"its {name} is {given[name]}, not {value}" for name, value in expected.items() if given[name] != value
    ]:
        advice = "leave out the settings that differ, or --from"
        raise TrainingError(f"{source} cannot be started from: {'; '.join(different)}; {advice}")
    if trained.b_dec.ndim > 1:
        raise TrainingError(
            f"{source} cannot be started from: it has a decoder bias for each of {len(trained.b_dec)} bands"
        )


def check_same_data(config: SAEConfig, training: TrainingConfig, store: TrainingStore) -> StartedFrom | None:
    """Where the run starts, for its record; None for a new start.

    Raises:
        TrainingError: with ``--from``, the SAE belongs to another model, hook point or text than the store.
    """
    source = start_source(config, training)
    if source is None:
        return None
    trained, metadata = load_sae(source)
    here = store.identity
    before = f"{source} cannot be started from on {store.place}: it is an SAE"
    if training.from_ is None:
        return None  # the mask's own setting names it, and the run's record with it
    if not metadata.model_id.same_as(here.model_id):
        raise TrainingError(
            f"{before} of {metadata.model_id}, and these are activations of {here.model_id}, which mean something else"
        )
    if metadata.hook_point != here.hook_point:
        raise TrainingError(f"{before} of {metadata.hook_point}, and these are activations of {here.hook_point}")
    if metadata.contexts not in ("", here.contexts):  # of an imported SAE the text is not known
        raise TrainingError(
            f"{before} of other text ({metadata.contexts[:12]}, and here {here.contexts[:12]}), so that the text held out "
            "here may be among what it learnt from; go on with the store it was trained on"
        )
    return StartedFrom(
        folder=str(source),
        fingerprint=sae_fingerprint(trained, metadata),
        tokens=_tokens(metadata),
        imported=metadata.imported or (metadata.started_from.imported if metadata.started_from else None),
    )


def _tokens(metadata: SAEMetadata) -> int | None:
    before = 0 if metadata.started_from is None else metadata.started_from.tokens
    return None if metadata.tokens is None or before is None else metadata.tokens + before


@torch.no_grad()
def start_from_trained(sae: SAE, training: TrainingConfig, stream: ActivationStream, scale: float) -> None:
    """Copy the weights of the SAE to start from, and set the mask by where its features fire if its settings say so.

    Args:
        sae: takes activations scaled by ``scale``; changed in place. Nothing happens if no SAE is named.
        training: may name the SAE.
        stream: the usage is measured on its first batches.
        scale: the stream's input scale.

    Raises:
        ConfigError: the weights have other shapes.
    """
    source = start_source(sae.config, training)
    if source is None:
        return
    trained, _ = load_sae(source, sae.W_dec.device)
    trained.fold_scale(1 / scale)
    _give_unit_rows(trained, source)
    weights = {name: tensor for name, tensor in trained.state_dict().items() if not name.startswith("mask.")}
    weights["b_dec"] = weights["b_dec"].expand_as(sae.b_dec)
    try:
        sae.load_state_dict(sae.state_dict() | weights)
    except RuntimeError as error:
        why = " ".join(str(error).split())
        raise ConfigError(f"{source} cannot be started from: {why}") from error
    if sae.config.mask.starts_from_usage:
        sae.mask.start_from_usage(_usage(trained, stream, scale))


def _give_unit_rows(sae: SAE, source: Path) -> None:
    """Rows of length 1, as training keeps them, for an SAE of another library; what it computes stays, as far as it can."""
    norms = sae.W_dec.norm(dim=1)
    norms = norms.where(norms > 0, 1.0)
    if bool((norms - 1).abs().max() < _UNIT_ROWS):
        return
    sae.rescale_features(norms)
    if "k" in type(sae.config).model_fields:
        say(
            f"{source}: decoder rows were {norms.min():.3g} to {norms.max():.3g} long and are now 1, as in all training, so "
            "that other features may be among the k largest"
        )


def _usage(sae: SAE, stream: ActivationStream, scale: float) -> Float[Tensor, "L d_sae"]:
    """Share of the tokens at each position on which each feature fires; 0 at positions that the stream skips."""
    usage = torch.zeros(stream.store.n_positions, sae.d_sae, device=sae.W_dec.device)
    for batch in stream.batches(0, USAGE_BATCHES):
        acts = sae.encode(batch.scaled(scale))
        usage[batch.positions] += (acts > 0).float().mean(dim=1) / USAGE_BATCHES
    return usage
