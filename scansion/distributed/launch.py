"""Train one SAE on the ranks of a job: what every rank reads, and what rank 0 writes."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from typing import Any, get_args

import torch
from torch import Tensor

from scansion.activations import ActivationStore, ActivationStream
from scansion.device import resolve_device
from scansion.distributed import checkpoint
from scansion.distributed.division import Divide, Division, Pieces, division_of, part_of
from scansion.distributed.features import TopKShare
from scansion.distributed.learner import FeatureLearner, RankLearner, Share
from scansion.distributed.ranks import Ranks, joined
from scansion.execution.plan import Way
from scansion.files import one_line_io_errors
from scansion.progress import progress, say
from scansion.remote import named
from scansion.sae import SAE, build_sae
from scansion.sae.architectures.topk import TopKConfig
from scansion.training.learner import METRICS
from scansion.training.loop import OnMetrics, Session, TrainingRun
from scansion.training.warm_start import start_from_trained

_VALUES, _WAYS = "whole/metrics.values", "whole/metrics.ways"


def train_on_ranks(
    run: TrainingRun, store: ActivationStore, on_metrics: OnMetrics | None = None, divide: Divide = "auto"
) -> bool:
    """Train one SAE on all ranks of the job that this process belongs to; every rank calls it with the same arguments.

    The SAE is the one that :func:`scansion.training.train` would train, to rounding. A job that was killed resumes from its
    last checkpoint when it is started again, on any number of ranks; on the same number it ends with the same bytes.

    Args:
        run: its folder is on a disk that all ranks share, as is the store.
        store: the activations.
        on_metrics: called on rank 0 with each line of metrics.
        divide: what ranks divide among them.

    Returns:
        Whether this is rank 0, which has written the run's folder.

    Raises:
        ConfigError: the SAE cannot be divided over so many ranks.
        TrainingError: the folder holds another run, a loss is no longer finite, or another rank was lost.
        BusyError: another process is training in the folder.
    """
    device = _own_device(run.training.device)
    with one_line_io_errors("training"), joined(device) as ranks, ExitStack() as held:
        with ranks.together():  # nothing has been read yet
            division = division_of(run.sae, store.n_positions, ranks.size, divide)
        with ranks.together():
            session = RankSession(run, store, ranks, division, on_metrics)
            if ranks.leads and not session.folder.finished:
                held.enter_context(session.folder.writing())
        if ranks.tell(session.folder.finished):
            say(f"{run.name}: already trained, in {named(session.folder.path)}")
        else:
            session.train(device)
        return ranks.leads


def _own_device(name: str) -> torch.device:
    device = resolve_device(name)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    return torch.device("cpu") if device.type == "mps" else device


class RankSession(Session):
    """A run in training on this rank."""

    def __init__(
        self, run: TrainingRun, store: ActivationStore, ranks: Ranks, division: Division, on_metrics: OnMetrics | None
    ) -> None:
        super().__init__(run, store, on_metrics)
        self._activations = store
        self._ranks = ranks
        self._division = division
        self._own_groups = division.groups_of(ranks.rank)

    def train(self, device: torch.device) -> None:
        """Take all steps that are left, and save the SAE."""
        ranks, store, config, division = self._ranks, self._activations, self.run.training, self._division
        with ranks.together():
            store.verify_share(ranks.rank, ranks.size)
        with ranks.together():
            if ranks.leads:
                store.outliers.warn(store.folder)  # leaves the norms of all tokens in the store, for the others to read
        with ranks.together():
            excluded = config.excluded(store)
            positions = store.used_positions(config.use_position_0, excluded)
            per_position = config.per_position(len(positions))
            common = (store, per_position, config.data_seed, config.use_position_0)
            # Of the whole store, for its scale and its means; it reads no activations.
            whole = ActivationStream(*common, in_memory=False, excluded=excluded)
            bands = self._untrained(whole).mask.gate.bands
            edges = bands.edges if bands else ()
            rows = [division.rows_of(rank, ranks.size, positions, edges) for rank in range(ranks.size)][ranks.rank]
            stream = ActivationStream(*common, device=device, excluded=excluded, part=rows)
        n_steps = config.n_steps(whole.tokens_per_batch)
        if warning := config.short_warning(len(positions)):
            say(f"{self.run.name}: {warning}")
        self._start(whole, Share(self._n_replicated(), positions, rows, self._owns_biases), n_steps, device)
        start, per_step = self.learner.step, whole.tokens_per_batch
        say(self._outline(positions, start, n_steps))
        with progress(f"train on {ranks.size} ranks", n_steps * per_step, "tokens", start * per_step) as advance:
            for batch in stream.batches(start, n_steps):
                if ranks.leads:
                    self._own.checkpoint_due = super()._checkpoint_is_due()
                self.advance(batch.scaled(self.scale))
                advance(per_step)
        self._collect()

    def _outline(self, positions: Tensor, start: int, n_steps: int) -> str:
        """One line: how the run is divided, and where it starts."""
        by, size = self._division.by, self._ranks.size
        what = {
            "bands": f"{self._division.n_groups} bands, with their features,",
            "tokens": f"{len(positions)} positions",
            "features": f"{self.run.sae.d_sae:,} features",
        }[by]
        begin = f"; resuming at step {start:,} of {n_steps:,}" if start else ""
        return f"{self.run.name}: {what} divided over {size} ranks{begin}"

    @property
    def _owns_biases(self) -> bool:
        return self._division.by == "bands" and self._whole.mask.n_decoder_biases > 1

    def _n_replicated(self) -> int:
        if self._division.by == "features":
            return 0
        bands = self._whole.mask.gate.bands
        return bands.shared if bands and self._division.by == "bands" else self.run.sae.d_sae

    def _untrained(self, stream: ActivationStream) -> SAE:
        self._whole = super()._untrained(stream)
        return self._whole

    def _start(self, stream: ActivationStream, share: Share, n_steps: int, device: torch.device) -> None:
        """Build this rank's learner, at step 0 or from the last checkpoint; drop the whole SAE."""
        run, whole = self.run, self._whole
        start_from_trained(whole, run.training, stream, self.scale)
        own = self._part(whole)
        self._pieces = Pieces(own, self._division, self._own_groups)
        weights = {f"sae.{name}": tensor for name, tensor in whole.state_dict().items()}
        into = {f"sae.{name}": tensor for name, tensor in own.state_dict().items()}
        with torch.no_grad():
            if own.b_dec.ndim > 1:
                own.b_dec.copy_(whole.b_dec)  # rows of other ranks' bands too, which are never read
            self._pieces.fill(into, Pieces(whole, self._division, range(self._division.n_groups)).split(weights))
        del self._whole
        kind = FeatureLearner if self._division.by == "features" else RankLearner
        self.learner = self._own = kind(own.to(device), run.training, n_steps, self._ranks, share)
        self._resume(device)
        self._clock = self._checkpointed = time.monotonic()

    @property
    def _piece(self) -> checkpoint.Piece:
        return "features" if self._division.by == "features" else "rank"

    def _part(self, whole: SAE) -> SAE:
        """This rank's part of the SAE, its weights not yet set."""
        bands, config, division = whole.mask.gate.bands, self.run.sae, self._division
        if isinstance(config, TopKConfig) and division.by == "features":
            own = sum(division.sizes[group] for group in self._own_groups)
            own_config = config.model_copy(update={"d_sae": own})
            return TopKShare(own_config, whole.d_in, whole.n_positions, self._ranks)
        if bands is not None and division.by == "bands":
            config = part_of(config, bands, whole.mask.n_decoder_biases > 1, self._own_groups)
        return build_sae(config, whole.d_in, whole.n_positions, torch.Generator().manual_seed(0))

    def _resume(self, device: torch.device) -> None:
        tensors = {name: tensor.clone() for name, tensor in self.learner.state()[0].items()}

        def wanted(counters: dict[str, int]) -> dict[str, Tensor]:
            step = counters["step"]
            n_pending = 0 if step == self.learner.n_steps else step % self.run.training.log_every
            return self._pieces.split(tensors) | _pending(torch.zeros(n_pending, len(METRICS)), set())

        loaded = checkpoint.load_newest(self.folder, self._ranks, self._piece, wanted)
        if loaded is not None:
            pieces, counters = loaded
            self.learner.restore(tensors, counters)
            if _VALUES in pieces:
                self._pending = list(pieces[_VALUES].to(device))
                taken = pieces[_WAYS].tolist()
                self.learner.ways = {way for index, way in enumerate(get_args(Way)) if taken[index]}
        if self._ranks.leads:
            self.folder.truncate_metrics(self.learner.step)

    def _checkpoint_is_due(self) -> bool:
        return self._own.checkpoint_due

    def _save_checkpoint(self, tensors: dict[str, Tensor], counters: dict[str, int]) -> None:
        learner = {name: tensor for name, tensor in tensors.items() if not name.startswith("metrics.")}
        pieces = {name: tensor.contiguous() for name, tensor in self._pieces.split(learner).items()}
        if self._ranks.leads and self._pending:  # the ways of rank 0: others may have taken others
            pieces |= _pending(torch.stack(self._pending).cpu(), self.learner.ways)
        checkpoint.save(self.folder, self._ranks, self._piece, pieces, counters)

    def _n_dead(self) -> int:
        return self._own.n_dead()

    def _record(self, line: dict[str, Any]) -> None:
        if self._ranks.leads:
            super()._record({**line, "ranks": self._ranks.size, "divided": self._division.by})

    def _raise_not_finite(self) -> None:
        if not self._ranks.leads:
            raise SystemExit(2)  # rank 0 has seen the same losses, and says so
        super()._raise_not_finite()

    def _collect(self) -> None:
        """Bring all features to rank 0, which saves the SAE."""
        run, division = self.run, self._division
        sae = build_sae(run.sae, self.store.d_in, self.store.n_positions, torch.Generator().manual_seed(0))
        weights = {f"sae.{name}": tensor for name, tensor in sae.state_dict().items()}
        own = {name: tensor for name, tensor in self.learner.state()[0].items() if name.startswith("sae.")}
        own = self._pieces.split(own)
        for name, target in Pieces(sae, division, range(division.n_groups)).split(weights).items():
            piece = name.partition("/")[0]
            owner = division.owner_of(int(piece.partition(".")[2])) if "." in piece else 0
            target.copy_(self._ranks.bring(own.get(name, target), owner))
        if self._ranks.leads:
            self._save(sae)


def _pending(values: Tensor, ways: set[str]) -> dict[str, Tensor]:
    """Metrics of the steps since the last line, by their names in a checkpoint; none if there are none."""
    if not len(values):
        return {}
    return {_VALUES: values, _WAYS: torch.tensor([way in ways for way in get_args(Way)], dtype=torch.uint8)}
