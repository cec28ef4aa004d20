"""From names in a config to open activation stores, with everything that can fail checked before heavy work starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from pydantic import ValidationError

from scansion.activations import ActivationStore, HarvestConfig, HarvestPlan, harvest
from scansion.activations.store import MANIFEST, StoreIdentity, StoreManifest
from scansion.assets import cache_dir
from scansion.corpus import Contexts, CorpusConfig, check_source, corpus_assets, load_contexts
from scansion.device import dtype_name, resolve_device, resolve_dtype
from scansion.errors import ScansionError
from scansion.files import read_json, require_writable
from scansion.lm import (
    BUNDLED_MODEL,
    BUNDLED_MODEL_ASSET,
    HookPoint,
    LanguageModel,
    ModelFacts,
    lm_dtype,
    load_language_model,
    load_tokenizer,
    model_facts,
)
from scansion.progress import say


@dataclass(frozen=True)
class HarvestSpec:
    """Where a study's activations come from. The LM is loaded at most once, and only if something needs it."""

    model: str
    hook_point: str
    corpus: CorpusConfig
    harvest: HarvestConfig = field(default_factory=HarvestConfig)
    revision: str | None = None
    lm_dtype: str = "auto"
    device: str = "auto"

    @cached_property
    def lm(self) -> LanguageModel:
        """The language model, loaded on first use."""
        say(f"loading {self.model}")
        return load_language_model(self.model, self.revision, self.device, self.lm_dtype)

    @property
    def context_length(self) -> int:
        """Tokens in a context."""
        return self.corpus.context_length

    def assets(self) -> list[str]:
        """Names of the bundled assets that the model and the text are read from."""
        return [*([BUNDLED_MODEL_ASSET] if self.model == BUNDLED_MODEL else []), *corpus_assets(self.corpus)]

    def check(self) -> int:
        """Check the same as :meth:`facts` does, and return the width of the activations."""
        return HookPoint.parse(self.hook_point).width(self.facts())

    def build(self) -> Stores:
        """See :func:`build_stores`."""
        return build_stores(self)

    def facts(self) -> ModelFacts:
        """What is known of the language model, after a check of names, layer, context length, device and text.

        Raises:
            ScansionError: the first thing that does not.
        """
        hook_point = HookPoint.parse(self.hook_point)
        lm_dtype(self.lm_dtype, resolve_device(self.device))
        resolve_dtype(self.harvest.dtype)
        check_source(self.corpus)
        facts = model_facts(self.model, self.revision)
        hook_point.check(facts.n_layers, self.model)
        hook_point.width(facts)
        facts.check_context_length(self.corpus.context_length)
        return facts


@dataclass(frozen=True)
class Stores:
    """The two stores of a source; no document is in both."""

    train: ActivationStore
    held_out: ActivationStore


def build_stores(source: HarvestSpec, folder: Path | None = None) -> Stores:
    """Tokenise and harvest, or reuse what is on disk.

    Args:
        source: what to harvest.
        folder: where the stores go, as ``folder/train`` and ``folder/held_out``; default the cache, under a name that
            holds the store's fingerprint, so that equal sources share it.
    """
    plans = harvest_plans(source, folder)
    for plan in plans:
        if plan.finished_store() is None:
            plan.check()
    train, held_out = (harvest(plan, lambda: source.lm) for plan in plans)
    return Stores(train, held_out)


def harvest_plans(source: HarvestSpec, folder: Path | None = None) -> tuple[HarvestPlan, HarvestPlan]:
    """What is to be harvested for training and held out, once the text is tokenised. Arguments as above."""
    facts = source.facts()
    if folder is not None:  # before the text is read, which may take minutes
        require_writable(folder)
    splits = load_contexts(source.corpus, load_tokenizer(facts, source.revision))
    train, held_out = (
        _plan(source, facts, contexts, split, splits.provenance, folder)
        for split, contexts in (("train", splits.train), ("held_out", splits.held_out))
    )
    return train, held_out


def stores_dir() -> Path:
    """Where stores go that no folder was given for; their names end in the split and the start of their key."""
    return cache_dir() / "stores"


def _plan(
    source: HarvestSpec,
    facts: ModelFacts,
    contexts: Contexts,
    split: str,
    provenance: dict[str, object],
    folder: Path | None,
) -> HarvestPlan:
    hook_point = HookPoint.parse(source.hook_point)
    identity = StoreIdentity(
        model=source.model,
        model_revision=facts.revision,
        model_dtype=dtype_name(lm_dtype(source.lm_dtype, resolve_device(source.device))),
        hook_point=str(hook_point),
        d_in=hook_point.width(facts),
        context_length=contexts.length,
        n_contexts=len(contexts),
        contexts=contexts.fingerprint,
        corpus=provenance,
        split=split,
        dtype=source.harvest.dtype,
    )
    return HarvestPlan(identity, folder / split if folder else _cached(identity), contexts, source.harvest)


def _cached(identity: StoreIdentity) -> Path:
    """The folder in the cache that holds or is to hold these activations, by whatever name their model was given."""
    for recorded in sorted(stores_dir().glob(f"*-{identity.hook_point}-{identity.split}-*/{MANIFEST}")):
        try:
            same = not StoreManifest.model_validate(read_json(recorded)).identity.differences(identity)
        except (ScansionError, ValidationError):  # damaged, or of a newer version: no store that we could read
            continue
        if same:
            return recorded.parent
    return stores_dir() / f"{Path(identity.model).name}-{identity.hook_point}-{identity.split}-{identity.key[:12]}"
