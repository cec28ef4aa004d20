"""``scansion assets`` and ``scansion doctor``: what is on this machine."""

from __future__ import annotations

from cyclopts import App

from scansion import assets as bundled
from scansion.cli.app import app, output
from scansion.doctor import report as doctor_report
from scansion.files import human_bytes
from scansion.lm import BUNDLED_MODEL, BUNDLED_MODEL_ASSET, model_facts

assets_app = App(name="assets", help="The bundled model, text and labelled sets: fetch, list, verify.")
app.command(assets_app)


@assets_app.command
def fetch(*names: str) -> None:
    """Download what is not in the cache yet, check its hash, unpack its data, and make the model ready to load.

    Example: scansion assets fetch

    Parameters
    ----------
    names
        Assets to fetch; all if none is named.
    """
    bundled.fetch(names or None)
    if not names or BUNDLED_MODEL_ASSET in names:
        model_facts(BUNDLED_MODEL)
    list_assets()


@assets_app.command(name="list")
def list_assets() -> None:
    """Show every asset: version, licence, size, and whether it is in the cache."""
    for name, asset in bundled.ASSETS.items():
        output.print(
            f"{name} {asset.version}  {human_bytes(asset.kept_bytes)}  {asset.licence}  {bundled.status(name)}\n  {asset.what}",
            markup=False,
        )
    output.print(f"cache: {bundled.cache_dir()}", markup=False)


@assets_app.command
def verify(*names: str) -> None:
    """Hash every unpacked file again and compare with what was fetched.

    Example: scansion assets verify sotu
    """
    bundled.verify(names or None)
    output.print("all files are as they were fetched")


@app.command
def doctor() -> None:
    """Say what this machine offers and whether Scansion will work on it.

    Example: scansion doctor
    """
    for line in doctor_report():
        output.print(line, markup=False)
