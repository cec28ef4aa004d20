"""``scansion import | export``: SAEs of other libraries, in and out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from scansion.activations import ActivationStore
from scansion.cli.app import output
from scansion.device import resolve_device
from scansion.errors import ConfigError
from scansion.evals.base import LoadedSAE
from scansion.evals.reading.training import require_same_source
from scansion.interop import write_saelens
from scansion.interop.saelens import REGISTERED_AS
from scansion.lm import load_language_model
from scansion.pipeline.importing import import_sae
from scansion.report import FeatureConfig
from scansion.sae import load_sae


def import_run(source: Path, *, store: Path, out: Path, input_factor: float | None = None) -> None:
    """Make an SAE of another library a run that can be evaluated and compared.

    Reads folders of SAELens, sparsify (eai-sparsify), dictionary_learning and Gemma Scope, and .pt files of OpenAI.
    None of these libraries needs to be installed, and no code in the files is run. An SAE that would compute something
    else here is refused.

    Example: scansion import gemma-scope/layer_12/width_16k/average_l0_71 --store stores/gemma/held_out --out runs/scope

    Parameters
    ----------
    source
        The folder or file; or on the Hugging Face hub hub:OWNER/REPO:SAE_ID, where SAE_ID is the folder in the repository.
    store
        A store of the activations that the SAE is for. Model, hook point and context length are taken from it.
    out
        The new run's folder, for `scansion eval` and `scansion report`.
    input_factor
        What activations are multiplied by before the SAE; only for SAELens' expected_average_only_in, whose list of releases
        calls it norm_scaling_factor.
    """
    foreign = import_sae(source, ActivationStore(store), out, input_factor)
    sae = foreign.config
    output.print(f"imported from {foreign.library}: {sae.architecture}, {sae.d_sae} features, in {out}", markup=False)


def export_run(
    run: Path,
    *,
    out: Path,
    to: Annotated[Literal["saelens", "saedashboard"], Parameter(name=("--to", "--format"))] = "saelens",
    drop_mask: bool = False,
    held_out: Path | None = None,
    device: str = "auto",
) -> None:
    """Write a run's SAE for another library.

    sae_lens.SAE.load_from_disk(OUT) opens the folder. BatchTopK, Matryoshka and T-SAEs are written as jumprelu,
    which computes what they do when in use. An SAE with a positional mask, and a Switch SAE, is written in a form of ours:
    import scansion.interop.saelens_masked before opening it.

    saedashboard writes its features as JSON instead, in the layout of SAEDashboard, which Neuronpedia reads.

    Example: scansion export runs/plain --out exported

    Parameters
    ----------
    run
        Folder of a trained run.
    out
        Folder to write; it must be new.
    to
        The library.
    drop_mask
        Write an SAE with a positional mask with every feature open at every position, in one of the library's own forms.
    held_out
        Store of activations that features are shown on; for saedashboard.
    device
        Where the SAE and the language model run; for saedashboard.
    """
    if out.exists():
        raise ConfigError(f"{out} is there already; choose another folder")
    if (to == "saedashboard") != (held_out is not None):
        raise ConfigError(
            "--format saedashboard shows features on a store: give --held-out STORE"
            if held_out is None
            else f"--held-out is for --format saedashboard; {to} takes none"
        )
    if held_out is not None:
        from scansion.report.features.dashboard import write_dashboard

        store = ActivationStore(held_out)
        identity, place = store.identity, resolve_device(device)
        subject = LoadedSAE(run.name, *load_sae(run / "sae", place))
        require_same_source([subject], store)
        lm = load_language_model(identity.model, identity.model_id.commit, device, identity.model_dtype)
        files = write_dashboard(subject, store, lm, out, FeatureConfig())
        output.print(f"written for {to}: {len(files)} files in {out}", markup=False)
        return
    sae, metadata = load_sae(run / "sae")
    architecture = write_saelens(sae, metadata, out, drop_mask)
    output.print(f"written for {to} as {architecture}: {out}", markup=False)
    if architecture == REGISTERED_AS:
        output.print("import scansion.interop.saelens_masked before opening it", markup=False)
