"""A command as a process of its own: its time, processor time and peak memory, from the operating system's accounting."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Measured:
    """wall, cpu (user and system, children included): seconds; peak: MiB of the largest single process."""

    wall: float
    cpu: float
    peak: float


def measure(command: Sequence[str], env: Mapping[str, str] | None = None) -> Measured:
    """Run a command to its end, its output to stderr; a failure ends the benchmark."""
    start = time.perf_counter()
    process = subprocess.Popen(command, env={**os.environ, **(env or {})}, stdout=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - start
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)[:200]}: exit status {process.returncode}")
    return Measured(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def children_memory() -> float:
    """MiB of all processes that this one has started: their own pages, and a share of those that several map."""
    return sum(child.memory_full_info().pss for child in psutil.Process().children(recursive=True)) / 2**20


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [[str(cell) for cell in row] for row in [header, ["---"] * len(header), *rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
