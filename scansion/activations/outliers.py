"""Outlier tokens: the few whose activations have a far larger norm than all others and may hold most of the variance.

Language models give such activations to the first token of a context (the attention sink) and to some words elsewhere,
such as line breaks ("massive activations", Sun et al. 2024, arXiv:2402.17762). An SAE that reconstructs only these tokens
has a high FVE already. Position 0 is apart: whether it counts is a setting of its own (``use_position_0``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from torch import Tensor

from scansion.errors import ConfigError, DamagedError, ModelError
from scansion.files import atomic_file
from scansion.lm import model_facts
from scansion.progress import progress, say
from scansion.remote import origin
from scansion.tensor_file import load_tensors, save_tensors

if TYPE_CHECKING:
    from scansion.activations.shard import Shard
    from scansion.activations.store import ActivationStore

RATIO = 3.0
"""A token is an outlier if its norm is above this multiple of the median norm of the tokens after position 0."""
NORMS, SUMS = "norms.safetensors", "outliers.safetensors"
NOTABLE = 0.1
"""Outliers that hold a larger share of the variance are worth a line."""

_say_once = cache(say)  # a study trains on a store and evaluates on it many times


class TokenExclusion(BaseModel):
    """Which tokens are left out; every other token counts."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    exclude: Literal["none", "outliers"] = Field(
        default="none",
        exclude_if=lambda value: value == "none",  # so that runs from before this setting keep their identity
        description="'outliers': leave out tokens after position 0 whose norm is above 3 times the median norm.",
    )
    exclude_tokens: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = Field(
        default=(),
        exclude_if=lambda value: not value,
        description="Leave out tokens with these ids, for example those of special tokens. Repeat the flag for several.",
    )

    def check_ids(self, model: str, revision: str | None) -> None:
        """Raise :class:`ConfigError` for ids to leave out that the model's vocabulary does not have.

        Args:
            model, revision: a language model; nothing is checked where it cannot be looked up.
        """
        if not self.exclude_tokens:
            return
        with suppress(ModelError):
            size = getattr(model_facts(model, revision).config, "vocab_size", None)
            if size is not None and (beyond := [id for id in self.exclude_tokens if id >= size]):
                raise ConfigError(
                    f"exclude_tokens: {', '.join(map(str, beyond))} is no token of {model}, whose ids are 0 to {size - 1}"
                )

    def excluded(self, store: ActivationStore) -> Bool[Tensor, "L C"] | None:
        """The tokens of a store that are left out; None if there are none. Ids that the store lacks are said in a line."""
        out = store.outliers.mask if self.exclude == "outliers" else torch.zeros_like(store.valid)
        if self.exclude_tokens:
            ids = torch.tensor(self.exclude_tokens)
            out = out | (torch.isin(store.tokens, ids) & store.valid)
            if absent := ids[~torch.isin(ids, store.tokens[store.valid])].tolist():
                _say_once(
                    f"{store.place} has no token with the id {', '.join(map(str, absent))}, which is to be left out"
                )
        return out if bool(out.any()) else None


@dataclass(frozen=True, eq=False)
class Outliers:
    """The outlier tokens of a store.

    Attributes:
        mask: True at each of them; never at position 0.
        norm: the norm above which a token is one; infinite if the median norm is 0.
        token_share: share of the tokens after position 0 that are outliers, in [0, 1].
        variance_share: share of ``sum |x - mean x|^2`` over the tokens after position 0 that the outliers hold, in [0, 1].
        most_frequent: the token id that most of them have, and the share of them that have it; None if there are none.
    """

    mask: Bool[Tensor, "L C"]
    norm: float
    token_share: float
    variance_share: float
    most_frequent: tuple[int, float] | None

    @classmethod
    def of(cls, store: ActivationStore) -> Outliers:
        """Those of a store, from the norm of every token."""
        valid, norms = store.valid.clone(), store.norms
        valid[0] = False
        n = int(valid.sum())
        median = float(norms[valid].median()) if n else 0.0
        norm = RATIO * median if median > 0 else float("inf")
        mask = valid & (norms > norm)
        n_out = int(mask.sum())
        if not n_out:
            return cls(mask, norm, 0.0, 0.0, None)
        sums, squares, sums_out = (
            store.sums[1:].sum(dim=0),
            float(store.squares[1:].sum()),
            _computed_once(
                store.derived / SUMS, f"{store.contents} {RATIO}", "sum", lambda: store.sum_of(mask).sum(dim=0)
            ),
        )
        mean = sums / n
        total = squares - n * float(mean.square().sum())
        held = float(norms[mask].square().sum() - 2 * mean @ sums_out + n_out * mean.square().sum())
        ids, counts = store.tokens[mask].unique(return_counts=True)
        first = counts.argmax()
        share = min(max(held / total, 0.0), 1.0) if total > 0 else 0.0
        return cls(mask, norm, n_out / n, share, (int(ids[first]), float(counts[first]) / n_out))

    def warn(self, folder: Path) -> None:
        """Say in one line that the outliers hold much of the variance, if it is more than a tenth."""
        if self.variance_share > NOTABLE and self.most_frequent is not None:
            token, share = self.most_frequent
            _say_once(
                f"{origin(folder) or folder}: outlier tokens ({share:.0%} with the id {token}) are {self.token_share:.1%} of "
                f"the tokens and hold {self.variance_share:.0%} of the variance; read FVE without them (docs/evaluations.md, "
                "Outlier tokens)"
            )


def token_norms(folder: Path, of: str, shards: Sequence[Shard]) -> Float[Tensor, "L C"]:
    """The L2 norm of every activation (float64), 0 where not valid; computed once and then read from ``norms.safetensors``.

    Args:
        folder: the store's.
        of: identifies the store's contents.
        shards: all of them, in order.
    """
    return _computed_once(folder / NORMS, of, "norms", lambda: torch.cat(list(_norms(shards)), dim=1))


def _computed_once(path: Path, of: str, name: str, compute: Callable[[], Tensor]) -> Tensor:
    """A tensor that follows from a store's activations, read from a file if it was computed before."""
    if path.exists():
        try:
            return load_tensors(path, of=of)[name]
        except (DamagedError, KeyError) as error:
            say(f"{path} is read again from the activations ({error})")
    value = compute()
    with (
        suppress(OSError, SafetensorError),
        atomic_file(path) as temporary,
    ):  # a store that is not writable can still be read
        save_tensors(temporary, {name: value}, of)
    return value


def _norms(shards: Sequence[Shard]) -> Iterable[Tensor]:
    with progress("norms of tokens", sum(shard.n_contexts for shard in shards), "contexts") as advance:
        for shard in shards:
            acts = shard.contexts(0, shard.n_contexts)
            # One position at a time, so that the float64 copy stays small.
            yield torch.stack([torch.linalg.vector_norm(at.double(), dim=1) for at in acts])
            advance(shard.n_contexts)
