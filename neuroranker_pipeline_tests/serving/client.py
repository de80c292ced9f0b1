"""How the tests ask a service over HTTP."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any


def ask(url: str, body: Any = None, key: str | None = None) -> tuple[int, str]:
    """Status and text of the answer to a POST of ``body``, or without one to a GET."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=30) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def post(url: str, body: Any) -> tuple[int, Any]:
    """Status and JSON of the answer to a POST of ``body``."""
    status, text = ask(url, body)
    return status, json.loads(text)
