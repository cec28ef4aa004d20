"""Facts about a model that are known without loading its weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from scansion.errors import ModelError
from scansion.lm.identity import ModelId


@dataclass(frozen=True)
class ModelFacts:
    """Facts about a model that are known before its weights are read.

    Attributes:
        name: as the user gave it.
        revision: the hub's commit, or a fingerprint of the local files.
        location: folder or hub name that transformers loads from; of a GGUF file the folder it was converted to.
        family: transformers' ``model_type``, for example ``llama``.
        n_layers, d_model: sizes from the configuration.
        max_positions: the longest context; None if there is no limit, as in models without position embeddings (BLOOM,
            MPT, Mamba).
        config: transformers' configuration of the text part.
    """

    name: str
    revision: str
    location: str
    family: str
    n_layers: int
    d_model: int
    max_positions: int | None
    config: Any = field(default=None, compare=False, repr=False)

    @property
    def id(self) -> ModelId:
        """The identity by which two models are compared."""
        return ModelId(self.name, self.revision)

    def check_context_length(self, length: int) -> None:
        """Raise :class:`ModelError` if the model cannot read contexts of ``length`` tokens."""
        if self.max_positions is not None and length > self.max_positions:
            raise ModelError(
                f"a context of {length} tokens is longer than {self.name} allows ({self.max_positions}); "
                "ask for a shorter context"
            )
