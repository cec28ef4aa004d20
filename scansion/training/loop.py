"""The training loop: one stream of batches trains any number of SAEs; an interrupted run resumes to the same bytes."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scansion.activations import ActivationStream, PositionedBatch
from scansion.activations.on_the_fly import TextStore, TrainingStore, held_for_training, open_stream
from scansion.device import resolve_device
from scansion.errors import ConfigError, TrainingError
from scansion.execution.precision import resolve_precision
from scansion.files import expanded, fingerprint, one_line_io_errors
from scansion.masks import build_mask
from scansion.progress import progress, say
from scansion.remote import named
from scansion.sae import SAE, SAEConfig, SAEMetadata, build_sae, n_previous, save_sae
from scansion.training.config import TrainingConfig
from scansion.training.learner import METRICS, Learner, require_memory
from scansion.training.run_folder import RunFolder, require_same_run
from scansion.training.trial import training_device
from scansion.training.warm_start import check_same_data, check_start, start_from_trained

# Runs with equal values of these read the same batches, so one pass over the stream trains them all.
STREAM_SETTINGS = ("tokens", "batch_tokens", "data_seed", "use_position_0", "device", "exclude", "exclude_tokens")
_SCALE_RULE = {"input_scale": "outliers left out"}

_PENDING, _WAYS = "metrics.values", "metrics.ways"
"""Names in a checkpoint of what the next line of metrics will hold of the steps before it."""


@dataclass(frozen=True)
class TrainingRun:
    """One SAE to be trained: its name, its folder, its config and its training settings.

    Example:
        >>> scansion.TrainingRun.at("runs/small", scansion.TopKConfig(d_sae=64, k=8))
    """

    name: str
    folder: Path
    sae: SAEConfig
    training: TrainingConfig

    @classmethod
    def at(cls, folder: Path | str, sae: SAEConfig, training: TrainingConfig | None = None) -> TrainingRun:
        """A run named after its folder.

        Example:
            >>> run = scansion.TrainingRun.at("runs/other", scansion.TopKConfig(d_sae=1024, k=16))
        """
        path = expanded(folder)
        return cls(path.name, path, sae, training or TrainingConfig())

    def settings(self) -> dict[str, Any]:
        """What the folder's config.yaml holds, except for the store."""
        return {
            "name": self.name,
            "sae": self.sae.model_dump(mode="json"),
            "training": self.training.model_dump(mode="json"),
        }


OnMetrics = Callable[[TrainingRun, dict[str, Any]], None]
"""Called with a run and each line of its metrics when it is written."""


def train(runs: Sequence[TrainingRun], store: TrainingStore, on_metrics: OnMetrics | None = None) -> None:
    """Train every run that is not finished, all of them in one pass over one stream.

    Each run's ``sae`` folder then holds an SAE that takes unscaled activations. A run that was killed resumes from its
    last checkpoint and ends with the same bytes, whichever other runs are trained with it.

    Args:
        runs: must have equal stream settings (``STREAM_SETTINGS``) and different folders.
        store: the activations, or text of which they are made meanwhile.
        on_metrics: called with a run and each line of its metrics, for example to show them in an experiment tracker.

    Raises:
        ConfigError: the runs do not share a stream.
        TrainingError: a folder holds another run, or a loss is no longer finite.
        BusyError: another process is training in one of the folders.

    Example:
        >>> settings = scansion.TrainingConfig(tokens=2_000)
        >>> run = scansion.TrainingRun.at("runs/small", scansion.TopKConfig(d_sae=64, k=8), settings)
        >>> scansion.train([run], store)
    """
    if not runs:
        return
    config = runs[0].training
    for run in runs[1:]:
        differing = [name for name in STREAM_SETTINGS if getattr(run.training, name) != getattr(config, name)]
        if differing:
            raise ConfigError(f"{runs[0].name} and {run.name} cannot share a stream: {', '.join(differing)} differ")
    with one_line_io_errors("training"), ExitStack() as held:
        sessions: list[Session] = []
        for session in [Session(run, store, on_metrics) for run in runs]:
            if not session.folder.finished:
                held.enter_context(session.folder.writing())
            if session.folder.finished:  # perhaps by another process, just before it left the folder to this one
                say(f"{session.run.name}: already trained, in {named(session.folder.path)}")
            else:
                sessions.append(session)
        if sessions:
            _train_sessions(sessions, store, config)


def check_folders(runs: Sequence[TrainingRun]) -> None:
    """Raise unless every run's folder is new or holds the same run, on any store; creates nothing.

    Raises:
        TrainingError: a folder holds another run.
    """
    for run in runs:
        require_same_run(run.folder, run.settings())


def check_runs(runs: Sequence[TrainingRun], store: TrainingStore) -> None:
    """Raise unless every run can start. Creates missing folders; loads no activations.

    Raises:
        ConfigError: a mask does not fit the store's contexts.
        TrainingError: a folder holds another run.
        ScansionError: a folder is not writable.
    """
    with one_line_io_errors("training"):
        for run in runs:
            Session(run, store)


def _train_sessions(sessions: list[Session], store: TrainingStore, config: TrainingConfig) -> None:
    device = training_device([(session.run.sae, session.run.training) for session in sessions], store.n_positions)
    if isinstance(store, TextStore):  # before its first chunk is made
        store.buffer.home(store.d_in, store.dtype, device)
    with held_for_training(store) as first:
        first.outliers.warn(store.folder)
        n_positions = len(first.used_positions(config.use_position_0, config.excluded(first)))
        stream = open_stream(
            store,
            first,
            config.per_position(n_positions),
            config.data_seed,
            config.use_position_0,
            n_previous=max(n_previous(session.run.sae) for session in sessions),
            device=device,
            excluded=config.excluded,
        )
        if warning := config.short_warning(n_positions):
            say(f"{', '.join(session.run.name for session in sessions)}: {warning}")
        _take_all_steps(sessions, stream, config.n_steps(stream.tokens_per_batch), device)
        for session in sessions:
            session.finish()


def _take_all_steps(sessions: list[Session], stream: ActivationStream, n_steps: int, device: torch.device) -> None:
    for session in sessions:
        session.start(stream, n_steps, device)
    start = min(session.learner.step for session in sessions)
    if start:
        names = ", ".join(session.run.name for session in sessions)
        say(f"resuming {names} at step {start:,} of {n_steps:,}")
    if start < n_steps:
        stream.prepare(start)
    per_step = stream.tokens_per_batch * len(sessions)
    with progress(f"train {len(sessions)} SAEs", n_steps * per_step, "tokens", start * per_step) as advance:
        for step, batch in enumerate(stream.batches(start, n_steps), start):
            # One scale for all, but where runs of an earlier version are resumed together with new ones.
            scaled = {scale: batch.scaled(scale) for scale in {session.scale for session in sessions}}
            for session in sessions:
                if session.learner.step == step:  # False while a run that was interrupted earlier catches up
                    session.advance(scaled[session.scale])
            advance(per_step)


class Session:
    """One run in training: its learner, its folder, and the metrics not yet written."""

    learner: Learner
    scale: float

    def __init__(self, run: TrainingRun, store: TrainingStore, on_metrics: OnMetrics | None = None) -> None:
        self.run = run
        self._on_metrics = on_metrics
        self.store = store
        if store.identity.has_lm:
            run.training.check_ids(store.identity.model, store.identity.model_id.commit)
        require_memory(run.sae, store.d_in, store.n_positions)
        build_mask(run.sae.mask, store.n_positions, run.sae.d_sae)  # raises if it does not fit, before a folder is made
        if isinstance(store, TextStore):
            how = run.training
            store.check_batches(how.per_position, how.n_steps, how.use_position_0, how.exclude_tokens)
        check_start(run.sae, run.training, store.d_in, run.folder)
        self.started_from = check_same_data(run.sae, run.training, store)
        resolve_precision(run.training.precision, resolve_device(run.training.device))
        # Runs of earlier versions, whose scale counts outliers, do not record the rule; they are resumed as they began.
        self._robust = RunFolder.may_record(run.folder, "input_scale")
        rule = _SCALE_RULE if self._robust else {}
        start = {"started_from": self.started_from.fingerprint} if self.started_from else {}
        self.folder = RunFolder(run.folder, {**run.settings(), "store": store.key, **rule, **start})
        self._pending: list[Tensor] = []
        self._durations: list[float] = []
        self._last_finite_loss: tuple[int, float] | None = None

    def start(self, stream: ActivationStream, n_steps: int, device: torch.device) -> None:
        """Build the learner, at step 0 or from the last checkpoint."""
        self.learner = Learner(self._untrained(stream).to(device), self.run.training, n_steps)
        checkpoint = self.folder.load_newest_checkpoint()
        if checkpoint is None:
            start_from_trained(self.learner.sae, self.run.training, stream, self.scale)
        else:
            tensors, counters = checkpoint
            try:
                self.learner.restore(tensors, counters)
            except (KeyError, RuntimeError, TypeError) as error:
                raise TrainingError(
                    f"the checkpoint {self.folder.checkpoints()[0]} does not fit this SAE "
                    f"({' '.join(str(error).split())[:200]}); delete it to go on from the one before it"
                ) from error
            # Metrics are means since the last line: so that a resumed run writes the lines of one that was not stopped.
            if _PENDING in tensors:
                self._pending = list(tensors[_PENDING].to(device))
                self.learner.ways = set(bytes(tensors[_WAYS].tolist()).decode().split("+"))
        self.folder.truncate_metrics(self.learner.step)
        self._clock = self._checkpointed = time.monotonic()

    def _untrained(self, stream: ActivationStream) -> SAE:
        """The SAE at its initial weights, for activations scaled by what is then :attr:`scale`."""
        generator = torch.Generator().manual_seed(self.run.training.seed)
        sae = build_sae(self.run.sae, stream.store.d_in, stream.store.n_positions, generator)
        self.scale = stream.input_scale if self._robust else stream.input_scale_with_outliers
        sae.start_at(stream.mean_by_position * self.scale, stream.positions)
        return sae

    def advance(self, batch: PositionedBatch) -> None:
        """Take one step; write metrics and a checkpoint if they are due."""
        start = time.perf_counter()
        self._pending.append(self.learner.advance(batch))
        self._durations.append(time.perf_counter() - start)
        if self.learner.step % self.run.training.log_every == 0 or self.learner.step == self.learner.n_steps:
            self._write_metrics()
        if self._checkpoint_is_due():
            self._checkpoint()

    def _checkpoint_is_due(self) -> bool:
        return time.monotonic() - self._checkpointed >= self.run.training.checkpoint_seconds

    def finish(self) -> None:
        """Save the SAE with the input scale folded into its weights, so that it takes the LM's activations unscaled."""
        self._save(self.learner.sae)

    def _save(self, sae: SAE) -> None:
        learner, identity = self.learner, self.store.identity
        sae.eval().fold_scale(self.scale)
        metadata = SAEMetadata(
            model=identity.model,
            model_revision=identity.model_revision,
            hook_point=identity.hook_point,
            store_key=self.store.key,
            contexts=identity.contexts,
            corpus=fingerprint(identity.corpus),
            context_length=identity.context_length,
            use_position_0=self.run.training.use_position_0,
            input_scale=self.scale,
            steps=learner.step,
            tokens=learner.tokens,
            seed=self.run.training.seed,
            training=self.run.training.model_dump(mode="json"),
            started_from=self.started_from,
        )
        save_sae(sae, self.folder.sae, metadata)

    def _checkpoint(self) -> None:
        if not self._pending_are_finite():
            self._raise_not_finite()
        if self.learner.step:
            tensors, counters = self.learner.state()
            if self._pending:
                tensors[_PENDING] = torch.stack(self._pending).cpu()
                tensors[_WAYS] = torch.tensor(list("+".join(sorted(self.learner.ways)).encode()), dtype=torch.uint8)
            self._save_checkpoint(tensors, counters)
        self._checkpointed = time.monotonic()

    def _save_checkpoint(self, tensors: dict[str, Tensor], counters: dict[str, int]) -> None:
        self.folder.save_checkpoint(tensors, counters)

    def _n_dead(self) -> int:
        return int(self.learner.dead.mask.sum())

    def _record(self, line: dict[str, Any]) -> None:
        """Write a line of metrics."""
        self.folder.append_metrics(line)
        if self._on_metrics:
            self._on_metrics(self.run, line)

    def _write_metrics(self) -> None:
        if not self._pending_are_finite():
            self._raise_not_finite()
        now = time.monotonic()
        values = torch.stack(self._pending).mean(dim=0).tolist()
        training, learner = self.run.training, self.learner
        line = {
            "step": learner.step,
            "tokens": learner.tokens,
            **dict(zip(METRICS, values, strict=True)),
            "way": "+".join(sorted(learner.ways)),
            "precision": learner.precision,
            "dead": self._n_dead(),
            "lr": training.lr_at(learner.step - 1, learner.n_steps),
            "seconds": round(now - self._clock, 3),
            # Of this SAE alone. None except on the CPU: elsewhere a step returns before it has been computed.
            "step_ms": round(1000 * statistics.median(self._durations), 3) if learner.on_cpu else None,
        }
        self._record(line)
        self._last_finite_loss = (learner.step, values[0])
        self._pending.clear()
        self._durations.clear()
        learner.ways.clear()
        self._clock = now

    def _pending_are_finite(self) -> bool:
        return not self._pending or bool(torch.isfinite(torch.stack(self._pending)[:, 0]).all())

    def _raise_not_finite(self) -> None:
        losses = torch.stack(self._pending)[:, 0].tolist()
        bad = next(index for index, loss in enumerate(losses) if not math.isfinite(loss))
        step = self.learner.step - len(losses) + bad
        last = (step - 1, losses[bad - 1]) if bad else self._last_finite_loss
        checkpoint = next(iter(self.folder.checkpoints()), None)
        raise TrainingError(
            f"{self.run.name}: the loss is not finite at step {step}; "
            + (f"the last finite loss was {last[1]:.4g} at step {last[0]}; " if last else "no loss was ever finite; ")
            + (f"the last good checkpoint is {checkpoint}" if checkpoint else "there is no checkpoint yet")
            + "; lower the learning rate or check the data"
        )
