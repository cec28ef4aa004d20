"""A client for any endpoint that speaks OpenAI's chat completions: retries, a time limit, and errors that say why."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any

from scansion.errors import EvalError

_WORTH_RETRYING = (408, 409, 425, 429, 500, 502, 503, 504, 529)
Messages = list[dict[str, str]]


@dataclass(frozen=True)
class ChatEndpoint:
    """Where completions come from.

    Attributes:
        base_url: for example ``https://api.openai.com/v1`` or ``http://localhost:8000/v1``.
        model: as the endpoint calls it.
        key: sent as a bearer token; empty for an endpoint that asks for none. Never printed or saved.
        timeout: seconds to wait for one answer.
        retries: tries after the first, for answers that another try may mend; the wait doubles each time.
        wait: seconds before the first retry.
    """

    base_url: str
    model: str
    key: str = field(default="", repr=False)
    timeout: float = 60.0
    retries: int = 4
    wait: float = 1.0

    def complete(self, messages: Messages, max_tokens: int) -> str:
        """The answer to one conversation, without surrounding white space.

        Raises:
            EvalError: the endpoint refuses, cannot be reached, or answers in another form, after all retries.
        """
        wait, problem = self.wait, ""
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(wait)
                wait *= 2
            try:
                return self._ask(messages, max_tokens)
            except urllib.error.HTTPError as error:
                body = " ".join(error.read(300).decode("utf-8", "replace").split())
                problem = f"HTTP {error.code}: {body or error.reason}"
                if error.code not in _WORTH_RETRYING:
                    break
            except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
                problem = str(getattr(error, "reason", error)) or type(error).__name__
        raise EvalError(
            f"the endpoint {self.base_url} did not answer for {self.model!r} ({problem}); check OPENAI_BASE_URL, "
            "OPENAI_MODEL and OPENAI_API_KEY, or raise the time limit"
        )

    def _ask(self, messages: Messages, max_tokens: int) -> str:
        body = {"model": self.model, "messages": messages, "max_tokens": max_tokens, "temperature": 0}
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(  # noqa: S310 - the settings take http and https only
            f"{self.base_url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers, method="POST"
        )
        with urllib.request.urlopen(request, timeout=self.timeout) as answer:  # noqa: S310 - as above
            text = answer.read()
        try:
            found: Any = json.loads(text)
            return str(found["choices"][0]["message"]["content"] or "").strip()
        except (json.JSONDecodeError, KeyError, IndexError, TypeError) as error:
            raise EvalError(
                f"the endpoint {self.base_url} answered in a form that is not a chat completion: {text[:200]!r}"
            ) from error
