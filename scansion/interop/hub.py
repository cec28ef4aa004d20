"""SAEs on the Hugging Face hub, where SAELens looks for them: ``REPO/SAE_ID/cfg.json`` and ``sae_weights.safetensors``.

Tokens are those of the hub's own client (``hf auth login`` or ``HF_TOKEN``); none is read, kept or shown here.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub.constants import ENDPOINT

from scansion.errors import ConfigError, ScansionError
from scansion.interop.saelens import read_own, write_saelens
from scansion.lm.hub import hub_answers
from scansion.sae import SAE, SAEMetadata

PREFIX = "hub:"
_REPO = re.compile(r"[\w.-]+/[\w.-]+")
_SAE_ID = re.compile(r"[\w.-]+(/[\w.-]+)*")
_PICTURE = "mask.png"
# A file that says: an SAE is in this folder.
_MARKS = ("cfg.json", "params.npz", "params.safetensors", "ae.pt")


def push_to_hub(
    sae: SAE,
    metadata: SAEMetadata,
    repo: str,
    sae_id: str,
    *,
    licence: str | None = None,
    scores: Sequence[tuple[str, str]] = (),
    picture: bytes | None = None,
    private: bool = False,
) -> str:
    """Upload an SAE, with a model card, and return its address.

    Args:
        sae: takes unscaled activations.
        metadata: where it comes from.
        repo: ``owner/name``; made if it is not there.
        sae_id: the folder in it, for example ``resid_post.5/bands``; what is there is replaced.
        licence: as the hub names it, for example ``apache-2.0``; None to say none.
        scores: name and text of each figure, for the card.
        picture: of the mask, PNG.
        private: whether a new repository is private.

    Raises:
        ConfigError: a name is not one, or the SAE cannot be written for SAELens.
        ScansionError: the hub refuses it or cannot be reached.

    Example:
        >>> scansion.push_to_hub(*scansion.load_sae("runs/bands"), "me/my-saes", "resid_post.5/bands", licence="apache-2.0")
    """
    _check(repo, sae_id)
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory(prefix="scansion-push-") as name:
        folder = Path(name)
        architecture = write_saelens(sae, metadata, folder / sae_id)
        if picture is not None:
            (folder / sae_id / _PICTURE).write_bytes(picture)
        card = model_card(sae, metadata, repo, sae_id, architecture, licence, scores, picture is not None)
        (folder / sae_id / "README.md").write_text(card, encoding="utf-8")
        (folder / "README.md").write_text(card, encoding="utf-8")
        api = HfApi()
        try:
            api.create_repo(repo, exist_ok=True, private=private)
            # A repository of several SAEs keeps the card that it has; each has its own beside it.
            keep = ["README.md"] if api.file_exists(repo, "README.md") else None
            api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                ignore_patterns=keep,
                commit_message=f"Add {sae_id}",
            )
        except Exception as error:  # the client and the network raise errors of many kinds
            raise ScansionError(f"{repo} cannot be written on the hub: {_reason(error)}") from error
        return f"{api.endpoint}/{repo}"


def from_pretrained(repo: str, sae_id: str, revision: str | None = None) -> SAE:
    """An SAE of ours from the hub, in evaluation mode; its ``provenance`` says where it comes from.

    Args:
        repo: ``owner/name``.
        sae_id: the folder in it.
        revision: branch, tag or commit; default ``main``.

    Raises:
        ConfigError: a name is not one, or the SAE there is not of Scansion: ``scansion import hub:REPO:SAE_ID`` reads others.
        ScansionError: it is not there, or the hub cannot be reached.

    Example:
        >>> sae = scansion.from_pretrained("me/my-saes", "resid_post.5/bands")
    """
    return read_own(download(f"{PREFIX}{repo}:{sae_id}", revision))


def download(name: str, revision: str | None = None) -> Path:
    """The folder of an SAE on the hub, in the hub's own cache.

    Args:
        name: ``hub:owner/repo:sae_id``; ``hub:owner/repo`` if the repository holds one SAE.
        revision: branch, tag or commit; default ``main``.

    Raises:
        ConfigError: the name is none, or names no single SAE; the message lists those there are.
        ScansionError: the hub refuses it or cannot be reached.
    """
    repo, _, sae_id = name.removeprefix(PREFIX).partition(":")
    _check(repo, sae_id or "any")
    from huggingface_hub import HfApi, snapshot_download

    try:
        files = HfApi().list_repo_files(repo, revision=revision)
        found = sorted({file.rpartition("/")[0] for file in files if file.rpartition("/")[2] in _MARKS} - {""})
        if sae_id not in found and (sae_id or len(found) != 1):
            there = ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")
            raise ConfigError(f"{name} names no SAE; in {repo} there is {there or 'none'}: write {PREFIX}{repo}:SAE_ID")
        folder = sae_id or found[0]
        return Path(snapshot_download(repo, revision=revision, allow_patterns=[f"{folder}/*"])) / folder
    except ConfigError:
        raise
    except Exception as error:
        raise ScansionError(f"{name} cannot be read from the hub: {_reason(error)}") from error


def model_card(
    sae: SAE,
    metadata: SAEMetadata,
    repo: str,
    sae_id: str,
    architecture: str,
    licence: str | None,
    scores: Sequence[tuple[str, str]],
    pictured: bool,
) -> str:
    """The card as Markdown: what it is, how it was trained, its scores, its mask and how to load it."""
    mask = sae.config.mask.model_dump(mode="json", exclude_defaults=True, exclude={"family"})
    facts: Mapping[str, Any] = {
        "language model": f"{metadata.model}, {metadata.hook_point}",
        "architecture": f"{sae.config.architecture}, {sae.d_sae:,} features of width {sae.d_in:,}; in SAELens `{architecture}`",
        "mask": ", ".join([sae.config.mask.family, *(f"{name}: {value}" for name, value in mask.items())]),
        "positions": f"{sae.n_positions:,}; position 0 {'took' if metadata.use_position_0 else 'took no'} part in training",
        "training": "not known" if metadata.tokens is None else f"{metadata.tokens:,} tokens, seed {metadata.seed}",
        "started from": metadata.started_from
        and f"{metadata.started_from.folder} ({metadata.started_from.fingerprint})",
        "imported from": metadata.imported,
    }
    register = (
        "import scansion.interop.saelens_masked  # registers the architecture\n" if architecture == "scansion" else ""
    )
    lines = [
        "---",
        "library_name: saelens",
        *([f"license: {licence}"] if licence else []),
        "tags: [sparse-autoencoder, scansion]",
        "---",
        f"# {sae_id}",
        "",
        "A sparse autoencoder trained with Scansion.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {_cell(value)} |" for name, value in facts.items() if value),
        *(["", f"![Which feature may fire at which position]({_PICTURE})"] if pictured else []),
        *(["", "| score | value, with 95% interval |", "|---|---|"] if scores else []),
        *(f"| {_cell(name)} | {_cell(text)} |" for name, text in scores),
        "",
        "```python",
        "from scansion.interop import from_pretrained",
        "",
        f'sae = from_pretrained("{repo}", "{sae_id}")',
        "```",
        "",
        "```python",
        f'{register}sae = sae_lens.SAE.from_pretrained("{repo}", "{sae_id}")',
        "```",
    ]
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def _check(repo: str, sae_id: str) -> None:
    if not _REPO.fullmatch(repo):
        raise ConfigError(f"{repo!r} is no repository of the hub; write owner/name")
    if not _SAE_ID.fullmatch(sae_id) or {".", ".."} & set(sae_id.split("/")):
        raise ConfigError(
            f"{sae_id!r} is no name for an SAE: letters, digits, '.', '_' and '-', in folders parted by '/'"
        )


def _reason(error: Exception) -> str:
    """Its first line, and what to do if there is no connection or no right to it."""
    if not hub_answers():
        return f"no connection to {ENDPOINT}, or HF_HUB_OFFLINE is set; check the network and HF_ENDPOINT"
    reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
        reason = f"{reason.rstrip('.')}; log in with `hf auth login`, or set HF_TOKEN to a token with the right to it"
    return reason
