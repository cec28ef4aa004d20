"""Two stores that are there already, such as those of activations of one's own, as a source of activations."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from scansion.activations import ActivationStore
from scansion.errors import ConfigError
from scansion.files import expanded
from scansion.lm import LanguageModel, load_language_model
from scansion.pipeline.stores import Stores
from scansion.progress import say


@dataclass(frozen=True)
class ExistingSpec:
    """The folders of two finished stores.

    Example:
        >>> scansion.pipeline.ExistingSpec(Path("stores/mine/train"), Path("stores/mine/held_out"))
    """

    train: Path
    held_out: Path

    @cached_property
    def stores(self) -> Stores:
        """Both stores, opened.

        Raises:
            StoreError: a folder holds no store.
            ConfigError: they are of different models, places, widths or lengths, or of the same contexts.
        """
        train, held_out = (ActivationStore(expanded(folder)) for folder in (self.train, self.held_out))
        of_model = () if train.identity.model_id.same_as(held_out.identity.model_id) else ("model", "model_revision")
        differing = [
            f"{name} is {here} and {there}"
            for name in (*of_model, "hook_point", "d_in", "context_length")
            if (here := getattr(train.identity, name)) != (there := getattr(held_out.identity, name))
        ]
        if differing:
            raise ConfigError(f"{train.place} and {held_out.place} do not belong together: {'; '.join(differing)}")
        if train.identity.contexts == held_out.identity.contexts:
            raise ConfigError(
                f"{train.place} and {held_out.place} hold the same contexts; what is measured must not be what is trained on"
            )
        return Stores(train, held_out)

    @property
    def context_length(self) -> int:
        """Positions in a context."""
        return self.stores.train.n_positions

    @cached_property
    def lm(self) -> LanguageModel:
        """The language model that the stores name, loaded on first use.

        Raises:
            ConfigError: they were made without one.
        """
        identity = self.stores.train.identity
        if not identity.has_lm:
            raise ConfigError(f"{self.stores.train.place} was made without a language model")
        say(f"loading {identity.model}")
        return load_language_model(identity.model, identity.model_id.commit, "auto", identity.model_dtype)

    def assets(self) -> list[str]:
        """No bundled asset is read."""
        return []

    def check(self) -> int:
        """Open both stores and return the width of the activations; errors as for :attr:`stores`."""
        return self.stores.train.d_in

    def build(self) -> Stores:
        """Both stores; errors as for :attr:`stores`."""
        return self.stores
