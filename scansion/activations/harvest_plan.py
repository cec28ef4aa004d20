"""What a harvest is to compute and where, and the checks before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from scansion.activations.filling import finished_store
from scansion.activations.shard import SIDE_BYTES
from scansion.activations.store import ActivationStore, StoreIdentity
from scansion.corpus import Contexts
from scansion.device import DTYPES, resolve_dtype
from scansion.files import require_free_space, require_writable

TEXT_BYTES = 17
"""Of one token in contexts that are not harvested yet."""


class HarvestConfig(BaseModel):
    """How activations are computed and laid out on disk. Only ``dtype`` changes what the store holds.

    Example:
        >>> scansion.HarvestConfig(dtype="float32")
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    dtype: str = Field(default="bfloat16", description="Stored type: bfloat16, float16 or float32.")
    lm_batch_size: int = Field(default=16, ge=1, description="Contexts the language model reads at once.")
    shard_bytes: int = Field(default=64_000_000, ge=1, description="Approximate size of a shard, the unit of resuming.")
    on_the_fly: bool = Field(
        default=False,
        exclude_if=lambda value: not value,  # so that plans from before this setting keep their identity
        description="Keep only the text for training, and make its activations while training: for more text than the disk "
        "has room for. Held-out text is harvested as always.",
    )
    buffer_tokens: int = Field(
        default=500_000,
        ge=1,
        exclude_if=lambda value: value == 500_000,
        description="On the fly: tokens whose activations are in memory and on disk at once, and are mixed in training.",
    )


@dataclass(frozen=True)
class HarvestPlan:
    """A harvest that has not started: what it will store and where.

    Attributes:
        identity: what the store will hold.
        folder: the store's folder.
        contexts: the text, in the order of the store's context axis.
        config: layout and batch size.
    """

    identity: StoreIdentity
    folder: Path
    contexts: Contexts
    config: HarvestConfig

    @property
    def n_bytes(self) -> int:
        """Bytes of the finished store on disk; on the fly, those of the text and of the activations at any one time."""
        per_token = self.identity.d_in * DTYPES[self.config.dtype].itemsize + SIDE_BYTES + 8 * self.identity.turns
        n_tokens = self.identity.n_contexts * self.identity.context_length
        if not self.config.on_the_fly:
            return n_tokens * per_token
        # The buffer's four chunks, and the first chunk.
        held = min(n_tokens, self.config.buffer_tokens * 5 // 4)
        return held * per_token + n_tokens * (TEXT_BYTES + 8 * self.identity.turns)

    def finished_store(self) -> ActivationStore | None:
        """The store this plan would make, if it is finished already, or None.

        Raises:
            StoreError: the folder holds a finished store of something else.
        """
        return finished_store(self.folder, self.identity)

    def check(self) -> None:
        """Raise unless the harvest can finish: a known type, a writable folder, enough disk space."""
        check_harvests([self])


def check_harvests(plans: Sequence[HarvestPlan]) -> None:
    """Raise unless all these harvests can finish: known types, writable folders, enough space on the first one's disk."""
    missing = 0
    for plan in plans:
        resolve_dtype(plan.config.dtype)
        require_writable(plan.folder)
        written = sum(file.stat().st_size for file in plan.folder.glob("shard-*.safetensors"))
        missing += max(plan.n_bytes - written, 0)
    if plans:
        require_free_space(plans[0].folder, missing, "the activation store")
