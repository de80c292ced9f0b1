"""Which process runs what, so that a later one can tell whether it still lives."""

from __future__ import annotations

import psutil

PROCESS_TAG = "neuroranker/process"


def process_tag() -> str:
    """This process: its pid and start time."""
    process = psutil.Process()
    return f"{process.pid}:{process.create_time():.2f}"


def is_alive(tag: str) -> bool:
    """Whether the process of a tag made by :func:`process_tag` on this machine still runs."""
    pid, _, started = tag.partition(":")
    try:
        return f"{psutil.Process(int(pid)).create_time():.2f}" == started
    except psutil.NoSuchProcess:
        return False
