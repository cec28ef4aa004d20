"""Whether the model hub can be reached: tried once, for three seconds; its own client would try for half a minute."""

from __future__ import annotations

import socket
import urllib.request
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

_PATIENCE_SECONDS = 3.0


def hub_options(local: bool) -> dict[str, Any]:
    """Arguments for ``from_pretrained``: read only local files if the model is local or the hub cannot be reached."""
    return {"local_files_only": local or not hub_answers()}


@cache
def hub_answers() -> bool:
    """True if a connection to the hub can be opened. Behind a proxy always True: only a real request would show it."""
    if HF_HUB_OFFLINE:
        return False
    if urllib.request.getproxies().get("https"):
        return True
    address = urlsplit(ENDPOINT)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        with socket.create_connection((address.hostname or "", port), timeout=_PATIENCE_SECONDS):
            return True
    except OSError:
        return False
