"""``scansion assets`` and ``scansion doctor``: what is on this machine."""

from __future__ import annotations

from pathlib import Path

from scansion import assets as bundled
from scansion.cli.app import output
from scansion.doctor import report as doctor_report
from scansion.errors import ConfigError, DamagedError
from scansion.files import human_bytes
from scansion.lm import BUNDLED_GPT2, BUNDLED_MODEL, BUNDLED_MODEL_ASSET, model_facts
from scansion.lm import train_gpt2 as train_small_model
from scansion.records import write_json
from scansion.study.integrity import findings_under, repair_store


def fetch(*names: str) -> None:
    """Download assets that are not in the cache yet, and check their hashes.

    Example: scansion assets fetch

    Parameters
    ----------
    names
        Names of assets to download; without names, all of them.
    """
    bundled.fetch(names or None)
    if not names or BUNDLED_MODEL_ASSET in names:
        model_facts(BUNDLED_MODEL)
    list_assets()


def list_assets() -> None:
    """List all assets: version, licence, size, and whether each is in the cache."""
    for name, asset in bundled.ASSETS.items():
        output.print(
            f"{name} {asset.version}  {human_bytes(asset.kept_bytes)}  {asset.licence}  {bundled.status(name)}\n  {asset.what}",
            markup=False,
        )
    output.print(f"cache: {bundled.cache_dir()}", markup=False)


def verify(*names: str) -> None:
    """Check that the files in the cache are still those that were downloaded.

    Example: scansion assets verify sotu
    """
    bundled.verify(names or None)
    output.print("all files are as they were fetched")


def train_gpt2(*, out: Path | None = None) -> None:
    """Train gpt2-sotu, a small GPT-2 with learned absolute positions, on the bundled text: about an hour on one core.

    It is kept in the cache, and `--model gpt2-sotu` then names it. What was interrupted is resumed. Equal processors with as
    many threads (OMP_NUM_THREADS) give equal weights.

    Example: scansion assets train-gpt2 --out gpt2.json

    Parameters
    ----------
    out
        Write how it was trained and its perplexity on held-out text to this file as well.
    """
    record = train_small_model()
    held_out = record["held_out"]
    output.print(
        f"{BUNDLED_GPT2}: perplexity {held_out['perplexity']:.1f} ({held_out['bits_per_byte']:.2f} bits per byte) on "
        f"{held_out['tokens']:,} tokens of {held_out['documents']} held-out documents; token frequencies alone give "
        f"{held_out['unigram_perplexity']:.1f}"
    )
    if out is not None:
        write_json(out, record)


def doctor(folder: Path | None = None, *, repair: bool = False, device: str = "auto") -> None:
    """Check that Scansion works on this machine; or that the files in a folder are what was written.

    Example: scansion doctor stores/sotu/train --repair

    Parameters
    ----------
    folder
        A store, a run, a study, or a folder of several: every file that Scansion reads again is compared with its digest,
        and files that must be there and are not, or that have no digest, are named.
        Without it, processors, versions and disk are printed.
    repair
        Compute the damaged shards of a store again, from the text and the model that its manifest names.
    device
        Where the language model runs to repair: auto, cpu, cuda, cuda:1 or mps.
    """
    if folder is None:
        if repair:
            raise ConfigError("--repair needs the folder of a store")
        for line in doctor_report():
            output.print(line, markup=False)
        return
    if repair:
        repair_store(folder, device)
    found = findings_under(folder)
    for problem in found.problems:
        output.print(problem, markup=False)
    for file in found.unchecked:
        output.print(f"{file} has no checksum: an earlier version, another program or a person wrote it", markup=False)
    if found.problems:
        n = len(found.problems)
        raise DamagedError(f"{n} of {found.n_files} files in {folder} {'is' if n == 1 else 'are'} damaged or missing")
    n = len(found.unchecked)
    but = f", but for the {n} without a checksum, which can be read and not checked" if n else ""
    output.print(f"all {found.n_files} files are what was written{but}", markup=False)
