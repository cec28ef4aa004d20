"""From names in a config to open activation stores, with everything that can fail checked before heavy work starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from pydantic import ValidationError

from scansion.activations import ActivationStore, HarvestConfig, HarvestPlan, check_harvests, harvest_together
from scansion.activations.harvesting import ComputeShards
from scansion.activations.on_the_fly import TextStore, TrainingStore, require_no_text
from scansion.activations.publishing import bring_unfinished, publish, published_store
from scansion.activations.store import MANIFEST, StoreIdentity, StoreManifest
from scansion.assets import cache_dir
from scansion.corpus import Contexts, CorpusConfig, check_source, corpus_assets, kept_contexts, load_contexts
from scansion.device import dtype_name, resolve_device, resolve_dtype
from scansion.errors import ConfigError, ScansionError
from scansion.files import expanded, require_writable
from scansion.lm import (
    BUNDLED_MODEL,
    BUNDLED_MODEL_ASSET,
    HookPoint,
    LanguageModel,
    ModelFacts,
    check_layer_in_header,
    lm_dtype,
    load_language_model,
    load_tokenizer,
    model_facts,
)
from scansion.progress import say
from scansion.records import read_json
from scansion.remote import Remote, local_copy, origin


@dataclass(frozen=True)
class HarvestSpec:
    """Where a study's activations come from. The LM is loaded at most once, and only if something needs it.

    Example:
        >>> scansion.HarvestSpec("smollm2-135m", "layers.5", scansion.CorpusConfig(source="sotu"))
    """

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

    @property
    def lm_computes_in(self) -> str:
        """Number type that the language model computes in on this machine."""
        return dtype_name(lm_dtype(self.lm_dtype, resolve_device(self.device)))

    def facts(self, *hook_points: HookPoint) -> ModelFacts:
        """What is known of the language model, after a check of names, layer, context length, device and text.

        Args:
            hook_points: check these instead of its own.

        Raises:
            ScansionError: the first thing that does not.
        """
        hook_points = hook_points or (HookPoint.parse(self.hook_point),)
        lm_dtype(self.lm_dtype, resolve_device(self.device))
        resolve_dtype(self.harvest.dtype)
        check_source(self.corpus)
        for hook_point in hook_points:
            check_layer_in_header(self.model, hook_point)
        facts = model_facts(self.model, self.revision)
        for hook_point in hook_points:
            hook_point.check(facts.n_layers, self.model)
            hook_point.width(facts)
        facts.check_context_length(self.corpus.context_length)
        return facts


@dataclass(frozen=True)
class Stores:
    """The two stores of a source; no document is in both."""

    train: TrainingStore
    held_out: ActivationStore


def build_stores(source: HarvestSpec, folder: Path | str | None = None, compute: ComputeShards | None = None) -> Stores:
    """Tokenise and harvest, or reuse what is on disk.

    Args:
        source: what to harvest.
        folder: where the stores go, as ``folder/train`` and ``folder/held_out``; default the cache, under a name that
            holds the store's fingerprint, so that equal sources share it. A URL of object storage (docs/object_storage.md):
            the stores are made in the cache and uploaded; if they are there already, nothing is made.
        compute: computes shards elsewhere, see :func:`scansion.pipeline.on_cluster.harvesting_on`; default this process.

    Example:
        >>> stores = scansion.build_stores(source, "stores/mine")
        >>> stores.train, stores.held_out
    """
    at = None if folder is None else _working_folder(folder)
    return _build(source, {HookPoint.parse(source.hook_point): at}, compute)[0]


def build_stores_at(
    source: HarvestSpec,
    hook_points: Sequence[str],
    folder: Path | str | None = None,
    compute: ComputeShards | None = None,
) -> dict[str, Stores]:
    """The stores of several hook points, in one pass of the LM over the text.

    Each has the bytes that :func:`build_stores` alone gives it. Activations of another width take a pass of their own.

    Args:
        source: what to harvest; its own hook point is not used.
        hook_points: each once, in any spelling.
        folder: where the stores go, for example as ``folder/resid_post.3/train``; default the cache.
        compute: as in :func:`build_stores`.

    Returns:
        Hook point, as given -> its stores.

    Raises:
        ConfigError: two of the hook points are the same, or there is none.

    Example:
        >>> stores = scansion.build_stores_at(source, ["layers.1", "layers.1.mlp"])
        >>> stores["layers.1.mlp"].train
    """
    points = [HookPoint.parse(hook_point) for hook_point in hook_points]
    if not points or len(set(points)) < len(points):
        raise ConfigError(f"hook points {', '.join(hook_points)}: name at least one, and none of them twice")
    built = _build(
        source, {point: _working_folder(folder) / str(point) if folder else None for point in points}, compute
    )
    return dict(zip(hook_points, built, strict=True))


def _working_folder(folder: Path | str) -> Path:
    return expanded(local_copy(folder))


def _build(
    source: HarvestSpec, folders: Mapping[HookPoint, Path | None], compute: ComputeShards | None
) -> list[Stores]:
    on_the_fly = source.harvest.on_the_fly
    if on_the_fly and (url := next((url for folder in folders.values() if folder and (url := origin(folder))), None)):
        raise ConfigError(f"{url}: text for training on the fly is kept on disk; give a folder instead of a URL")
    for url in {origin(folder) for folder in folders.values() if folder} - {None}:
        _require_reachable(Remote(str(url)))
    plans = _plans(source, folders)
    for_training, to_hold_out = ([pair[split] for pair in plans] for split in range(2))
    harvested = [*([] if on_the_fly else for_training), *to_hold_out]
    for plan in harvested:
        require_no_text(plan.folder)
    there = _published(harvested)
    check_harvests([plan for plan in harvested if plan.folder not in there and plan.finished_store() is None])
    if on_the_fly:
        train = [TextStore.write(plan, lambda: source.lm) for plan in for_training]
    else:
        train = _harvest(for_training, source, there, compute)
    return [Stores(*pair) for pair in zip(train, _harvest(to_hold_out, source, there, compute), strict=True)]


def _require_reachable(remote: Remote) -> None:
    """Raise :class:`ScansionError` if the stores can be neither found there nor uploaded."""
    if any(remote.entry(f"{split}/{MANIFEST}") is None for split in ("train", "held_out")):
        remote.require_writable()


def _published(plans: Sequence[HarvestPlan]) -> dict[Path, ActivationStore]:
    """The stores that are finished on object storage, by the folders that stand for them; fetches what is unfinished there."""
    there: dict[Path, ActivationStore] = {}
    for plan in plans:
        if url := origin(plan.folder):
            if store := published_store(url, plan.identity):
                say(f"reusing {store.manifest.n_tokens:,} activations at {url}")
                there[plan.folder] = store
            else:
                bring_unfinished(url, plan.folder)
    return there


def _harvest(
    plans: Sequence[HarvestPlan],
    source: HarvestSpec,
    there: Mapping[Path, ActivationStore],
    compute: ComputeShards | None,
) -> list[ActivationStore]:
    """The stores of plans for one split, uploaded if their folders stand for URLs; those that are ``there`` are not made."""
    stores = dict(there)
    missing = [plan for plan in plans if plan.folder not in there]
    for store in harvest_together(missing, lambda: source.lm, compute) if missing else []:
        url = origin(store.folder)
        stores[store.folder] = publish(store, url) if url else store
    return [stores[plan.folder] for plan in plans]


def harvest_plans(source: HarvestSpec, folder: Path | None = None) -> tuple[HarvestPlan, HarvestPlan]:
    """What is to be harvested for training and held out, once the text is tokenised. Arguments as in :func:`build_stores`."""
    return _plans(source, {HookPoint.parse(source.hook_point): folder})[0]


def _plans(source: HarvestSpec, folders: Mapping[HookPoint, Path | None]) -> list[tuple[HarvestPlan, HarvestPlan]]:
    """The plans of every hook point, over one text."""
    facts = source.facts(*folders)
    for folder in folders.values():
        if folder is not None:  # before the text is read, which may take minutes
            require_writable(folder)
    splits = kept_contexts(source.corpus, load_tokenizer(facts, source.revision), load_contexts)

    def plan(hook_point: HookPoint, contexts: Contexts, split: str) -> HarvestPlan:
        return _plan(source, hook_point, facts, contexts, split, splits.provenance, folders[hook_point])

    return [(plan(point, splits.train, "train"), plan(point, splits.held_out, "held_out")) for point in folders]


def stores_dir() -> Path:
    """Where stores go that no folder was given for; their names end in the split and the start of their key."""
    return cache_dir() / "stores"


def _plan(
    source: HarvestSpec,
    hook_point: HookPoint,
    facts: ModelFacts,
    contexts: Contexts,
    split: str,
    provenance: dict[str, object],
    folder: Path | None,
) -> HarvestPlan:
    identity = StoreIdentity(
        model=source.model,
        model_revision=facts.revision,
        model_dtype=source.lm_computes_in,
        hook_point=str(hook_point),
        d_in=hook_point.width(facts),
        context_length=contexts.length,
        n_contexts=len(contexts),
        contexts=contexts.fingerprint,
        corpus=provenance,
        split=split,
        dtype=source.harvest.dtype,
        turns=contexts.turns is not None,
    )
    config = source.harvest
    if split != "train":
        config = config.model_copy(update={"on_the_fly": False})
    if folder is not None:
        at = folder / split
    elif config.on_the_fly:
        at = stores_dir() / f"{_name(identity)}-text"
    else:
        at = _cached(identity)
    return HarvestPlan(identity, at, contexts, config)


def _cached(identity: StoreIdentity) -> Path:
    """The folder in the cache that holds or is to hold these activations, by whatever name their model was given."""
    for recorded in sorted(stores_dir().glob(f"*-{identity.hook_point}-{identity.split}-*/{MANIFEST}")):
        try:
            same = not StoreManifest.model_validate(read_json(recorded)).identity.differences(identity)
        except (ScansionError, ValidationError):  # damaged, or of a newer version: no store that we could read
            continue
        if same:
            return recorded.parent
    return stores_dir() / _name(identity)


def _name(identity: StoreIdentity) -> str:
    return f"{Path(identity.model).name}-{identity.hook_point}-{identity.split}-{identity.key[:12]}"
