"""Processes of ``quality.py``: jobs that have no result yet, several at once, on the GPUs in turn."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path


def run_all(command: Sequence[str], waiting: Sequence[str], at_once: int) -> None:
    """Run ``command --job NAME`` for every name, so many at once; stops at the first that fails."""
    import torch

    gpus = max(1, torch.cuda.device_count())
    queue, running = deque(waiting), []
    while queue or running:
        busy = [gpu for _, _, gpu, _ in running]
        if queue and len(running) < at_once:
            name, gpu = queue.popleft(), min(range(gpus), key=busy.count)
            environment = {**os.environ, "CUDA_VISIBLE_DEVICES": str(gpu), "OMP_NUM_THREADS": "4"}
            process = subprocess.Popen([sys.executable, *command, "--job", name], env=environment)
            running.append((name, process, gpu, time.monotonic()))
            continue
        time.sleep(0.3)
        for job in [job for job in running if job[1].poll() is not None]:
            running.remove(job)
            name, process, _, start = job
            print(
                f"{time.strftime('%X')} {name}: rc {process.returncode}, {time.monotonic() - start:.0f} s", flush=True
            )
            if process.returncode:
                for _, other, _, _ in running:
                    other.kill()
                raise SystemExit(f"{name} failed")


def said(name: str) -> Callable[[str, int, int], None]:
    """Progress in lines that say whose it is, one in 20 seconds."""
    last = [time.monotonic()]

    def progress(label: str, done: int, total: int) -> None:
        if time.monotonic() - last[0] > 20:
            last[0] = time.monotonic()
            print(f"  {time.strftime('%X')} {name}: {label} {done:,} of {total:,}", flush=True)

    return progress


def missing(work: Path, jobs: dict[str, str]) -> list[str]:
    """The jobs whose result, a file in ``work``, is not there."""
    return [job for job, result in jobs.items() if not (work / f"{result}.parquet").is_file()]
