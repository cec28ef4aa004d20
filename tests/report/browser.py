"""What tests of pages in a browser share beside the browser itself: screens, and waiting for something to be so."""

from __future__ import annotations

import time
from typing import Any

LAPTOP, PHONE = (1280, 800), (390, 844)


def until(page: Any, condition: str, seconds: float = 10) -> None:
    """Wait for a JavaScript expression to be true. Playwright's own way would ask the page to run text as code."""
    end = time.monotonic() + seconds
    while not page.evaluate(condition):
        assert time.monotonic() < end, f"it never came to be that {condition}"
        page.wait_for_timeout(20)
