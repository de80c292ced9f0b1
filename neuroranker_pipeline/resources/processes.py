"""Which process runs what, so that a later one can tell whether it still lives."""

from __future__ import annotations

import socket

import psutil

PROCESS_TAG = "neuroranker/process"
CLOCK_SECONDS = 5.0  # a process's start time moves by as much as the clock was set since


def process_tag() -> str:
    """This process: its pid, start time and machine."""
    process = psutil.Process()
    return f"{process.pid}:{process.create_time():.2f}@{socket.gethostname()}"


def is_alive(tag: str) -> bool:
    """Whether the process of a tag made by :func:`process_tag` still runs.

    One of another machine counts as alive: nobody can tell from here.
    """
    process, _, machine = tag.partition("@")
    if machine and machine != socket.gethostname():
        return True
    pid, _, started = process.partition(":")
    try:
        return abs(psutil.Process(int(pid)).create_time() - float(started)) < CLOCK_SECONDS
    except psutil.NoSuchProcess:
        return False
