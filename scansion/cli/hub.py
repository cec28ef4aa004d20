"""``scansion push``: a trained SAE on the Hugging Face hub."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

from scansion.cli.app import output
from scansion.errors import ConfigError
from scansion.evals import evaluations
from scansion.interop import push_to_hub
from scansion.mirroring import fetched
from scansion.sae import load_sae
from scansion.study.compare.figures import figure
from scansion.study.compare.tables import figure_text
from scansion.study.record import read_results


def push(run: Path, repo: str, *, sae_id: str = "", licence: str | None = None, private: bool = False) -> None:
    """Upload a run's SAE to the Hugging Face hub, where SAELens finds it too, with a model card.

    The card says how it was trained, shows its mask, and lists the scores that `scansion eval` measured, with intervals. Log in
    first with `hf auth login`, or set HF_TOKEN.

    Example: scansion push runs/bands me/my-saes --sae-id resid_post.5/bands --licence apache-2.0

    Parameters
    ----------
    run
        Folder of a trained run, or its URL.
    repo
        Repository, OWNER/NAME; made if it is not there.
    sae_id
        Folder in the repository; default the hook point and the run's name.
    licence
        Licence of the weights, as the hub names it.
    private
        Make a new repository private.
    """
    run = fetched(run, checkpoints=False)
    sae, metadata = load_sae(run / "sae")
    # With the evaluations that there are results of, whatever their settings.
    there = {name: None for name in evaluations.names() if (run / "evals" / f"{name}.json").is_file()}
    measured = read_results(run, evaluations.parse_all(there)).figures() if "core" in there else {}
    shown = {name: figure(name) for name, estimate in measured.items() if estimate.value is not None}
    scores = [(each.label, figure_text(measured[name], each)) for name, each in shown.items() if each.headline]
    address = push_to_hub(
        sae,
        metadata,
        repo,
        sae_id or f"{metadata.hook_point}/{run.name}",
        licence=licence,
        scores=scores,
        picture=_picture(run),
        private=private,
    )
    output.print(f"pushed: {address}", markup=False)


def _picture(run: Path) -> bytes | None:
    from scansion.plots import plot_mask

    image = BytesIO()
    try:
        drawn: Any = plot_mask(run)  # matplotlib's types are partly unknown
        drawn.savefig(image, format="png", dpi=100)
    except ConfigError:  # without a mask there is nothing to show
        return None
    return image.getvalue()
