"""Training settings, and the schedules that follow from them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field

from scansion.activations import TokenExclusion

SHORT_STEPS = 1000
"""A run of fewer steps is marked short: more steps would change its figures."""
SMALLEST_BATCH, LARGEST_BATCH = 128, 2048
"""Limits of the default tokens per step."""


def is_short(steps: int | None) -> bool:
    """Whether a run took too few steps for its figures to be final; False if none was taken or it is not known."""
    return steps is not None and 0 < steps < SHORT_STEPS


class TrainingConfig(TokenExclusion):
    """How long and how an SAE is trained, and on which tokens.

    Inputs are scaled so that tokens which are no outliers have unit mean norm: rates then mean the same for every model.

    Example:
        >>> scansion.TrainingConfig(tokens=1_000_000, batch_tokens=1024, lr=1e-3)
    """

    model_config = ConfigDict(
        validate_by_name=True, validate_by_alias=True, serialize_by_alias=True
    )  # for `from` alone

    from_: Path | None = Field(
        default=None,
        alias="from",
        exclude_if=lambda run: run is None,  # so that runs from before this setting keep their identity
        description="Start from the SAE of this run, of the same architecture and size, under the mask given here. What "
        "is not its weights starts afresh: the optimiser, the rates and the counts of dead features.",
    )
    tokens: int = Field(
        default=2_000_000,
        ge=0,
        description="Tokens to train on; if larger than the store, the store is read again (epochs).",
    )
    batch_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Tokens per step, rounded so that every position has equally many; default by the length of the run, "
        f"between {SMALLEST_BATCH} and {LARGEST_BATCH}, so that a short one still has many steps.",
    )
    lr: float = Field(default=1e-3, gt=0, description="Peak learning rate of Adam.")
    lr_warmup_steps: int | None = Field(
        default=None,
        ge=0,
        description="Steps to reach the peak rate; default 1000, or a twentieth of the run if that is less.",
    )
    lr_decay_fraction: float = Field(
        default=0.2, ge=0, le=1, description="Share of the run, at its end, over which the rate falls to zero."
    )
    sparsity_warmup_fraction: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Share of the run, at its start, over which the sparsity penalty grows to its full weight.",
    )
    beta1: float = Field(default=0.9, ge=0, lt=1, description="Adam's first decay rate.")
    beta2: float = Field(default=0.999, ge=0, lt=1, description="Adam's second decay rate.")
    clip_norm: float = Field(default=1.0, gt=0, description="Largest gradient norm; a larger gradient is scaled down.")
    dead_after_tokens: int | None = Field(
        default=None,
        ge=1,
        description="A feature is dead once it has not fired for this many tokens at positions its mask allows; "
        "default a twentieth of the run, at most 10 million.",
    )
    seed: int = Field(default=0, ge=-(2**63), lt=2**63, description="Seed of the initial weights and of revivals.")
    data_seed: int = Field(default=0, ge=-(2**63), lt=2**63, description="Seed of the order of the data.")
    use_position_0: bool = Field(
        default=False, description="Also train on the first position (BOS, the attention sink)."
    )
    log_every: int = Field(default=25, ge=1, description="Steps between lines of metrics.jsonl.")
    checkpoint_seconds: float = Field(default=60.0, ge=0, description="Seconds between checkpoints.")
    device: str = Field(default="auto", description="Where to train: auto, cpu, cuda, mps.")
    precision: Literal["auto", "float32", "tf32", "bf16"] = Field(
        default="auto",
        exclude_if=lambda precision: precision == "auto",  # so that runs from before this setting keep their identity
        description="Type in which large matrix products read their operands: float32, tf32 (NVIDIA GPUs) or bf16; auto "
        "is bf16 on NVIDIA GPUs that have it, else float32. Weights, optimiser and sums are float32 in any case.",
    )

    def per_position(self, n_positions: int) -> int:
        """Tokens per step at each of the positions trained on; at least one."""
        return max(1, round((self.batch_tokens or _batch_for(self.tokens)) / n_positions))

    def short_warning(self, n_positions: int) -> str | None:
        """Whether the run will be marked short, and what would make it long enough; None if it will not.

        Args:
            n_positions: positions trained on.
        """
        batch = self.per_position(n_positions) * n_positions
        steps = self.n_steps(batch)
        if not is_short(steps):
            return None
        enough = self.tokens // SHORT_STEPS // n_positions * n_positions
        smaller = f"batch_tokens {enough:,} or less, or " if enough else ""
        return (
            f"{steps:,} steps of {batch:,} tokens are fewer than {SHORT_STEPS:,}, and the run will be marked short; "
            f"{smaller}tokens {SHORT_STEPS * batch:,} or more would make it long enough"
        )

    def n_steps(self, tokens_per_batch: int) -> int:
        """Steps needed to read ``tokens`` tokens, rounded up."""
        return -(-self.tokens // tokens_per_batch)

    def dead_after(self) -> int:
        """Tokens without firing after which a feature is dead."""
        return self.dead_after_tokens or max(1, min(10_000_000, self.tokens // 20))

    def lr_at(self, step: int, n_steps: int) -> float:
        """Learning rate of ``step`` (from 0): linear warm-up, constant, linear decay to zero after the last step."""
        warmup = min(1000, n_steps // 20) if self.lr_warmup_steps is None else self.lr_warmup_steps
        rising = min(1.0, (step + 1) / warmup) if warmup else 1.0
        decay = self.lr_decay_fraction * n_steps
        falling = min(1.0, (n_steps - step) / decay) if decay else 1.0
        return self.lr * min(rising, falling)

    def sparsity_weight_at(self, step: int, n_steps: int) -> float:
        """Factor in (0, 1] on the sparsity penalty at ``step``."""
        warmup = self.sparsity_warmup_fraction * n_steps
        return min(1.0, (step + 1) / warmup) if warmup else 1.0

    def may_revive_at(self, step: int, n_steps: int) -> bool:
        """True in the first three quarters of the time before the rate decays: a revived feature needs time to settle."""
        return step < 0.75 * (1 - self.lr_decay_fraction) * n_steps


def _batch_for(tokens: int) -> int:
    """The default tokens per step: the power of two that gives 2,000 steps or more, within the limits."""
    fitting = 2 ** max(0, (tokens // 2000).bit_length() - 1)
    return min(LARGEST_BATCH, max(SMALLEST_BATCH, fitting))
