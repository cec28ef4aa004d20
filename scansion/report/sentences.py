"""Sentences of one's own in a page that is written already: a browser cannot run the model, so they are run before."""

from __future__ import annotations

import base64
import gzip
import json
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scansion.errors import ConfigError
from scansion.files import atomic_file
from scansion.report.chunks import packed


def require_features_of(page: Path, fingerprint: str) -> None:
    """Raise :class:`ConfigError` unless :func:`add_sentence` can add sentences of this SAE to the page."""
    _report(page, fingerprint)


def add_sentence(
    page: Path, fingerprint: str, tokens: Sequence[str], firing: Sequence[Sequence[tuple[int, float]]]
) -> Path:
    """Add a sentence to a report, which shows it under its features; one that is there already is replaced.

    Args:
        page: a report's folder or its index.html.
        fingerprint: of the SAE, as :attr:`LoadedSAE.fingerprint` gives it; one of the page's.
        tokens: of the sentence, as text.
        firing: (feature, activation) for each token, the strongest first.

    Returns:
        The page's path.

    Raises:
        ConfigError: there is no such page, it has no pages of features, or not of this SAE.
    """
    path, html, before = _report(page, fingerprint)
    others = [one for one in before if (one["sae"], one["tokens"]) != (fingerprint, [*tokens])]
    sentences = [*others, {"sae": fingerprint, "tokens": [*tokens], "features": [[*map(list, one)] for one in firing]}]
    data = packed(json.dumps(sentences, allow_nan=False, separators=(",", ":")).encode("ascii"))
    with atomic_file(path) as temporary:
        temporary.write_text(_place("sentences").sub(lambda found: found[1] + data + found[3], html), encoding="utf-8")
    return path


def _report(page: Path, fingerprint: str) -> tuple[Path, str, list[dict[str, Any]]]:
    """The page's path, its HTML and its sentences, once it is known to have features of this SAE."""
    path = page / "index.html" if page.is_dir() else page
    try:
        html = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no report; `scansion report STUDY` writes one") from error
    runs: list[dict[str, Any]] = _chunk(html, "features", path)
    if fingerprint not in {run["fingerprint"] for run in runs}:
        names = ", ".join(run["arm"] for run in runs)
        raise ConfigError(
            f"{path} has no features of this run, but of {names} (each run's first seed); write the report again, or choose "
            "one of these"
        )
    return path, html, _chunk(html, "sentences", path)


def _place(name: str) -> re.Pattern[str]:
    return re.compile(rf'(<script [^>]*id="chunk-{name}">)([A-Za-z0-9+/=]*)(</script>)')


def _chunk(html: str, name: str, path: Path) -> Any:
    found = _place(name).search(html)
    try:
        if found is not None:
            return json.loads(gzip.decompress(base64.b64decode(found[2])))
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{path} is damaged: its data cannot be read; write the report again") from error
    raise ConfigError(
        f"{path} has no pages of features that a text could be added to; `scansion report STUDY` writes them"
    )
