"""What is kept of a failed run: one JSON file, one line of Markdown, and the same JSON posted to a webhook.

They lie in ``<lake>/<profile>/failures/``, named by the time of the failure: ``cat failures/*.md`` is the log of them all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from neuroranker_pipeline.resources.lake import Lake

WEBHOOK_VARIABLE = "NEURORANKER_WEBHOOK"
FOLDER = "failures"
POST_SECONDS = 5.0  # to connect, and again until the answer's first line


@dataclass(frozen=True)
class FailedRun:
    """A failed run: ``what`` failed, as people name it, ``reason`` in one line; times are ISO 8601 in UTC."""

    profile: str
    run_id: str
    job: str
    what: str
    partition: str | None
    reason: str
    failed_at: str
    started_at: str | None = None
    seconds: float | None = None
    steps: Sequence[str] = ()
    failed_checks: Sequence[Mapping[str, Any]] = ()
    tags: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True, default=str)

    def to_markdown(self) -> str:
        """One line, an item of a list."""
        after = "" if self.seconds is None else f" after {self.seconds:.0f} s"
        reason = " ".join(self.reason.split())
        return (
            f"- {self.failed_at[:19].replace('T', ' ')} UTC, **{self.what}**{after}: {reason} (run `{self.run_id}`)\n"
        )


def keep(failed: FailedRun, lake: Lake) -> str:
    """Write both files; returns the JSON file's path. A second time for the same failure replaces the first."""
    stamp = failed.failed_at[:19].translate(str.maketrans("", "", "-:"))
    stem = f"{lake.base}/{FOLDER}/{stamp}-{failed.run_id[:8]}"
    _write(lake, f"{stem}.md", failed.to_markdown())
    _write(lake, f"{stem}.json", failed.to_json() + "\n")
    return f"{stem}.json"


def post(failed: FailedRun, url: str) -> str | None:
    """Post the JSON to a webhook; returns what went wrong, if anything, without the address, which may hold a secret."""
    import httpx

    try:
        address = httpx.URL(url)
        if address.scheme not in ("http", "https") or not address.host:
            return f"{WEBHOOK_VARIABLE}: expected an http:// or https:// address, got one of scheme '{address.scheme}'"
        headers = {"Content-Type": "application/json"}
        with httpx.stream(
            "POST", address, content=failed.to_json(), headers=headers, timeout=POST_SECONDS, follow_redirects=False
        ) as answer:
            if not answer.is_success:
                return f"{WEBHOOK_VARIABLE}: {address.host} answered {answer.status_code}"
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return f"{WEBHOOK_VARIABLE}: nothing could be posted ({type(error).__name__})"
    return None


def _write(lake: Lake, path: str, text: str) -> None:
    if not lake.is_local:
        lake.fs.pipe_file(path, text.encode())
        return
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(file)
