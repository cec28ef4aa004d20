"""Which library wrote an SAE."""

from __future__ import annotations

from pathlib import Path

from scansion.errors import ConfigError
from scansion.files import expanded
from scansion.interop import dictionary_learning, gemma_scope, openai, saelens, sparsify
from scansion.interop.weights import ForeignSAE

# In this order: a SAELens folder and one of sparsify both have a cfg.json.
_READERS = (saelens, sparsify, gemma_scope, dictionary_learning, openai)
FORMATS = ", ".join(reader.NAME for reader in _READERS)
"""Names of the libraries whose SAEs are read."""


def read_foreign(path: Path | str, input_factor: float | None = None) -> ForeignSAE:
    """Read an SAE that another library wrote.

    Args:
        path: a folder of SAELens, sparsify, dictionary_learning or Gemma Scope, or a file of Gemma Scope or OpenAI.
        input_factor: what activations are multiplied by before an SAE of SAELens with ``expected_average_only_in``, whose
            folder does not say it.

    Raises:
        ConfigError: nothing there is known, or our SAEs cannot compute the same.
        DamagedError: the weights cannot be read.

    Example:
        >>> scansion.read_foreign("exported").build(n_positions=128)
    """
    path = expanded(path)
    if not path.exists():
        raise ConfigError(f"there is nothing at {path}; give a folder or file with an SAE of {FORMATS}")
    for reader in _READERS:
        if reader.fits(path):
            if reader is saelens:
                return saelens.read(path, input_factor)
            if input_factor is not None:
                raise ConfigError(f"{path} is an SAE of {reader.NAME}, which takes no input factor; leave it out")
            return reader.read(path)
    inside = ", ".join(sorted(file.name for file in path.iterdir())[:8]) if path.is_dir() else path.name
    raise ConfigError(f"{path} is not an SAE of {FORMATS}; it holds {inside or 'nothing'}")
