"""``scansion assets`` and ``scansion doctor``: what is on this machine."""

from __future__ import annotations

from scansion import assets as bundled
from scansion.cli.app import output
from scansion.doctor import report as doctor_report
from scansion.files import human_bytes
from scansion.lm import BUNDLED_MODEL, BUNDLED_MODEL_ASSET, model_facts


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


def doctor() -> None:
    """Check that Scansion works on this machine, and print processors, versions and disk.

    Example: scansion doctor
    """
    for line in doctor_report():
        output.print(line, markup=False)
