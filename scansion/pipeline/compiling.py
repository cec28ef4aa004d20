"""Round a trained run's mask to hard bands: a new run folder, and what the rounding cost on held-out text."""

from __future__ import annotations

from pathlib import Path

from scansion.activations import ActivationStore
from scansion.errors import ConfigError
from scansion.evals.base import LoadedSAE
from scansion.evals.core.evaluate import CoreConfig, evaluate_core
from scansion.files import require_writable
from scansion.locks import only_writer
from scansion.plugins import plugins_record
from scansion.records import write_yaml
from scansion.sae import load_sae, save_sae
from scansion.sae.rounding import round_to_bands


def compile_run(run: Path, out: Path, held_out: ActivationStore, n_bands: int, keep: float) -> list[str]:
    """Write the rounded SAE to ``out`` and describe it.

    Args:
        run: folder of a trained run.
        out: folder of the new run.
        held_out: what FVE is measured on.
        n_bands, keep: see :func:`scansion.sae.rounding.round_to_bands`.

    Returns:
        Lines for the user: what became of the features, and FVE before and after with 95% intervals.

    Raises:
        ConfigError: the mask cannot be rounded, or ``out`` is ``run``.
    """
    if out.resolve() == run.resolve():
        raise ConfigError(f"the rounded run cannot replace its origin; choose another folder than {run}")
    sae, metadata = load_sae(run / "sae")
    rounded = round_to_bands(sae, n_bands, keep)
    require_writable(out)
    before, after = (
        evaluate_core([LoadedSAE(name, one, metadata)], held_out, None, CoreConfig(loss_contexts=0))[0]
        for name, one in (("before", sae), ("after", rounded.sae))
    )
    record = {
        "name": out.name,
        "compiled_from": run.name,
        "sae": rounded.sae.config.model_dump(mode="json"),
        "keep": keep,
        "mass_lost": rounded.mass_lost,
        "fve_before": before.fve.value,
        "fve_after": after.fve.value,
        **plugins_record(),
    }
    with only_writer(out, "compiling"):
        save_sae(rounded.sae, out / "sae", metadata)
        write_yaml(out / "config.yaml", record)
    bands = rounded.sae.mask.gate.bands
    sizes = list(bands.sizes) if bands else []
    return [
        f"{rounded.sae.mask.n_shared} features shared, {sum(sizes)} tied to {len(sizes)} bands: {sizes}",
        f"{rounded.mass_lost:.1%} of the mask's weight was cut off",
        f"FVE before {before.fve}, after {after.fve}",
        f"without outlier tokens before {before.fve_without_outliers}, after {after.fve_without_outliers}",
        f"compiled: {out / 'sae'}",
    ]
