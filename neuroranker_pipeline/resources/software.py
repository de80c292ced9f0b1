"""Which versions of what made an artifact."""

from __future__ import annotations

import platform
from functools import cache
from importlib import metadata

PACKAGES = ("torch", "transformers", "onnxruntime", "pyserini", "dagster", "bentoml")


@cache
def versions() -> dict[str, str]:
    """``{"python": "3.11.9", "torch": "2.13.0", ...}`` of what decides an artifact's content, where it is installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
