"""Cached outcomes of the baseline probes: on the bag of words, on the LM's activations and on untrained SAEs."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

import torch
import xxhash

from scansion.evals.probing.config import SparseProbingConfig
from scansion.evals.probing.probes import ProbeOutcome
from scansion.evals.probing.split import ProbingSplit
from scansion.evals.reading.cache import ActivationCache
from scansion.evals.reading.texts import TextReader
from scansion.files import fingerprint
from scansion.sae import SAE

FORMAT_VERSION = 2
"""1: special tokens in a text were parsed."""


class CachedBaselines:
    """Outcomes on the tasks of one data set, under names of all that they depend on.

    Args:
        reader: of the texts; its cache holds the outcomes too.
        splits: the tasks.
        config: of the probes.
    """

    def __init__(self, reader: TextReader, splits: Sequence[ProbingSplit], config: SparseProbingConfig) -> None:
        self._cache: ActivationCache = reader.cache
        self._splits = splits
        texts = xxhash.xxh3_128()
        for split in splits:
            for side in (split.train, split.test):
                for text, label in zip(side.texts, side.labels.tolist(), strict=True):
                    texts.update(f"{label} {len(text)} {text}".encode("utf-8", "surrogatepass"))
        bands = config.bands if config.pooling == "bands" else None
        # Another solver, or another version of it, settles elsewhere within its tolerance.
        self._depends_on = [
            FORMAT_VERSION, version("scikit-learn"), *reader.source, reader.context_length, config.pooling, bands,
            list(config.k_values), texts.hexdigest(),
        ]  # fmt: skip

    def load(self, key: str) -> list[ProbeOutcome] | None:
        """The outcome of each task, or None if they are not there; ``key`` is from :meth:`key`."""
        found = self._cache.load(key)
        if found is None:
            return None
        unconverged = found.pop("unconverged").tolist()
        return [
            ProbeOutcome(found[str(index)].double().numpy(), int(n))
            for index, n in zip(range(len(self._splits)), unconverged, strict=True)
        ]

    def keep(self, key: str, outcomes: Sequence[ProbeOutcome]) -> None:
        """Keep the outcome of each task; ``key`` is from :meth:`key`."""
        tensors = {str(i): torch.from_numpy(one.correct).half() for i, one in enumerate(outcomes)}
        self._cache.keep(key, {**tensors, "unconverged": torch.tensor([one.unconverged for one in outcomes])})

    def key(self, features: str | SAE) -> str:
        """The name of the outcomes on some features.

        Args:
            features: ``bag``, ``lm``, or an untrained SAE whose decoder bias has not been moved yet.
        """
        if isinstance(features, str):
            return fingerprint([*self._depends_on, features])
        weights = xxhash.xxh3_128()
        for tensor in features.state_dict().values():
            weights.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return fingerprint([*self._depends_on, features.config.model_dump_json(), weights.hexdigest()])
