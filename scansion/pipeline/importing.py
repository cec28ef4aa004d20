"""SAEs of other libraries as runs: imported beside ours to be measured and compared, or exported from ours."""

from __future__ import annotations

from pathlib import Path

from scansion.activations import ActivationStore
from scansion.errors import ConfigError, ModelError
from scansion.files import require_writable
from scansion.interop import ForeignSAE, read_foreign
from scansion.interop.hub import PREFIX, download
from scansion.lm import HookPoint
from scansion.locks import only_writer
from scansion.progress import say
from scansion.records import write_yaml
from scansion.sae import SAEMetadata, save_sae


def import_sae(source: Path, store: ActivationStore, out: Path, input_factor: float | None = None) -> ForeignSAE:
    """Make an SAE of another library a run, which can be evaluated on the store and compared with runs of ours.

    Args:
        source: what :func:`scansion.interop.read_foreign` reads, or ``hub:owner/repo:sae_id``.
        store: activations that the SAE is for, of the same model and hook point. Files of other libraries name a model
            by its hub name only, so the store says exactly which one it is.
        out: the run's folder; new.
        input_factor: as :func:`scansion.interop.read_foreign` takes it.

    Raises:
        ConfigError: the SAE cannot be read, or is not for these activations; the folder is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is there already; choose another folder")
    on_hub = str(source).startswith(PREFIX)
    foreign = read_foreign(download(str(source)) if on_hub else source, input_factor)
    identity = store.identity
    if foreign.d_in != identity.d_in:
        raise ConfigError(
            f"{source} reads activations of width {foreign.d_in}, and those of {store.place} have {identity.d_in}"
        )
    _require_hook_point(foreign, source, store)
    if foreign.model and foreign.model.split("/")[-1].lower() != identity.model.split("/")[-1].lower():
        say(
            f"{source} says that it is for {foreign.model}, and {store.place} is of {identity.model}: are they the same model?"
        )
    metadata = SAEMetadata(
        model=identity.model,
        model_revision=identity.model_revision,
        hook_point=identity.hook_point,
        store_key="",
        contexts="",
        context_length=identity.context_length,
        use_position_0=False,
        input_scale=1.0,
        steps=None,
        tokens=None,
        seed=None,
        training={},
        imported=f"{foreign.library} ({source})",
    )
    sae = foreign.build(store.n_positions)
    require_writable(out)
    with only_writer(out, "importing"):
        save_sae(sae, out / "sae", metadata)
        record = {"name": out.name, "imported": metadata.imported, "sae": sae.config.model_dump(mode="json")}
        write_yaml(out / "config.yaml", record)
    return foreign


def _require_hook_point(foreign: ForeignSAE, source: Path, store: ActivationStore) -> None:
    if foreign.hook_point is None:
        return
    try:
        theirs = str(HookPoint.parse(foreign.hook_point))
    except ModelError:
        say(f"{source} is for {foreign.hook_point!r}: is that {store.identity.hook_point}?")
        return
    if theirs != store.identity.hook_point:
        raise ConfigError(f"{source} is for {theirs}, and {store.place} holds {store.identity.hook_point}")
