"""Show our progress bars while transformers loads a model, silence its own bars and warnings, and report its errors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import contextmanager
from importlib import import_module
from pickle import UnpicklingError  # PyTorch's, of a file of weights that holds more than tensors
from typing import Any

from safetensors import SafetensorError

from scansion.errors import ModelError
from scansion.progress import progress

_OURS = {"Converting and de-quantizing GGUF tensors...": "de-quantise", "Loading weights": "load weights"}


@contextmanager
def loading(name: str) -> Generator[None, None, None]:
    """Show our progress bars, and turn an error into a :class:`ModelError` of one line."""
    try:
        with our_progress():
            yield
    except (OSError, ValueError, ImportError, RuntimeError, KeyError, SafetensorError, UnpicklingError) as error:
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(f"the model {name} exists but cannot be loaded: {why}") from error


@contextmanager
def our_progress() -> Generator[None, None, None]:
    """Within the block, transformers prints errors only, and its two long loops show our progress bars.

    The hub client's download bars stay: a download of gigabytes needs one.
    """
    from transformers.utils import logging as transformers_logging

    # The GGUF reader imports tqdm itself, so that neither transformers' switch nor its hook reaches that bar.
    gguf_reader: Any = import_module("transformers.modeling_gguf_pytorch_utils")
    verbosity = transformers_logging.get_verbosity()
    # Older versions of transformers have no such hook; their bars then stay.
    set_hook: Callable[[Any], Any] = getattr(transformers_logging, "set_tqdm_hook", lambda hook: hook)
    hook = set_hook(lambda _, args, keywords: _bar(*args, **keywords))
    transformers_logging.set_verbosity_error()
    theirs = gguf_reader.tqdm
    gguf_reader.tqdm = _bar
    try:
        yield
    finally:
        gguf_reader.tqdm = theirs
        transformers_logging.set_verbosity(verbosity)
        set_hook(hook)


def _bar(items: Collection[Any], desc: str = "", **_: object) -> Iterator[Any]:
    if desc not in _OURS:
        yield from items
        return
    with progress(_OURS[desc], len(items), "tensors") as advance:
        for item in items:
            yield item
            advance(1)
