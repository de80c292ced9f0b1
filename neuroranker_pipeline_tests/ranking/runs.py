"""Training runs in processes of their own, which a test can kill: ``python -m`` this, a JSON of ``Runs`` on stdin.

PyTorch is imported once; every process of a run is then a fork, joined to the others as ``torchrun`` would join them.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from neuroranker_pipeline.datasets.tables import CANDIDATES, QRELS, SCORES
from neuroranker_pipeline.ranking.distributed import World, join_world, leave_world
from neuroranker_pipeline.ranking.lists import positives, sample_lists
from neuroranker_pipeline.ranking.loop import TrainingResult
from neuroranker_pipeline.ranking.models import BiEncoder
from neuroranker_pipeline.ranking.settings_file import read_settings
from neuroranker_pipeline.ranking.student import StudentSettings, train_student
from neuroranker_pipeline.ranking.teacher import TeacherSettings, train_teacher


@dataclass
class Run:
    """One run.

    kill: the step after which its first process kills itself; 0 is never.
    fails: every process is to end with an error, which it leaves in ``error-RANK.txt``.
    """

    name: str
    settings: dict[str, Any]
    work: str
    kill: int = 0
    processes: int = 1
    fails: bool = False


@dataclass
class Runs:
    folder: str
    candidates: list[dict[str, Any]]
    qrels: list[dict[str, Any]]
    queries: dict[str, str]
    passages: dict[str, str]
    teacher: list[dict[str, Any]]
    runs: list[dict[str, Any]] = field(default_factory=list)


def start(data, oracle: pa.Table, folder: Path, runs: list[Run]) -> None:
    """Carry out the runs, one after the other; each leaves ``folder/NAME/`` with its model and ``result.json``."""
    given = Runs(
        str(folder), data.candidates.to_pylist(), data.qrels.to_pylist(), data.queries, data.passages,
        oracle.to_pylist(), [asdict(run) for run in runs],
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", __name__], input=json.dumps(asdict(given)), text=True, capture_output=True, timeout=300,
        check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def result(folder: Path, name: str) -> dict[str, Any]:
    """What a run returned, and under ``seen`` the steps it took itself."""
    return json.loads((folder / name / "result.json").read_text())


def history(folder: Path, name: str) -> list[dict[str, float]]:
    """The lines of a run's history, without what the clock says."""
    lines = result(folder, name)["history"]
    return [{key: value for key, value in line.items() if key != "examples_per_second"} for line in lines]


def _train(given: Runs, run: Run) -> None:
    world = join_world("cpu")
    out = Path(given.folder, run.name)
    out.mkdir(parents=True, exist_ok=True)
    is_teacher = "distill_loss" not in run.settings
    file = out / f"settings-{world.rank}.json"
    file.write_text(json.dumps(run.settings))
    settings = read_settings(file, TeacherSettings if is_teacher else StudentSettings)

    seen: list[int] = []

    def kill(label: str, done: int, total: int) -> None:
        seen.append(done)
        if done == run.kill:
            os.kill(os.getpid(), signal.SIGKILL)

    candidates = pa.Table.from_pylist(given.candidates, CANDIDATES)
    qrels, oracle = pa.Table.from_pylist(given.qrels, QRELS), pa.Table.from_pylist(given.teacher, SCORES)
    lists = sample_lists(candidates, qrels, settings.lists, 7, teacher=oracle)
    train: Any = train_teacher if is_teacher else train_student
    done: TrainingResult = train(
        lists, given.queries, given.passages, positives(qrels), settings, 7, out, Path(given.folder, run.work),
        dev=candidates.slice(0, 100), device="cpu", progress=kill, world=world,
    )  # fmt: skip
    if world.main:
        (out / "result.json").write_text(json.dumps({**asdict(done), "seen": seen}))
    _exchange(world, out)
    leave_world()


def _exchange(world: World, out: Path) -> None:
    """Write what the world's own operations give between the run's processes."""
    x = torch.arange(3.0, requires_grad=True)
    (world.all_sum(x * (world.rank + 1)) * torch.tensor([1.0, 10.0, 100.0]) * (world.rank + 1)).sum().backward()
    missing, there = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2, 2))
    there.grad = torch.full((2, 2), world.rank + 1.0)
    if world.main:
        missing.grad = torch.ones(2)
    world.sum_gradients([missing, there])
    figures = {
        "share": world.share(np.arange(5)).tolist(),
        "gathered": world.gather(np.arange(world.rank + 1, dtype=np.float32)).tolist(),
        "nothing": world.gather(np.zeros(0)).tolist(),
        "gradient": x.grad.tolist(),
        "missing": None if missing.grad is None else missing.grad.tolist(),
        "there": there.grad.tolist(),
    }
    (out / f"world-{world.rank}.json").write_text(json.dumps(figures))


def _fork(given: Runs, run: Run, rank: int, port: int) -> int:
    child = os.fork()
    if child:
        return child
    try:
        if run.processes > 1:
            os.environ.update(RANK=str(rank), WORLD_SIZE=str(run.processes), MASTER_ADDR="127.0.0.1")
            os.environ["MASTER_PORT"] = str(port)
        _train(given, run)
        os._exit(0)
    except BaseException as error:
        Path(given.folder, run.name, f"error-{rank}.txt").write_text(str(error))
        print(f"{run.name}, process {rank}: {error!r}", file=sys.stderr, flush=True)
        os._exit(1)


def _carry_out(given: Runs, run: Run) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [_fork(given, run, rank, port) for rank in range(run.processes)]
    first, *others = children
    _, status = os.waitpid(first, 0)
    assert os.waitstatus_to_exitcode(status) == (-signal.SIGKILL if run.kill else int(run.fails)), run.name
    for child in others:
        if run.kill:
            os.kill(child, signal.SIGKILL)  # as torchrun does when a process dies; it may have failed by itself before
        _, status = os.waitpid(child, 0)
        assert run.kill or os.waitstatus_to_exitcode(status) == int(run.fails), run.name


if __name__ == "__main__":
    torch.set_num_threads(1)
    everything = Runs(**json.load(sys.stdin))
    BiEncoder.load(everything.runs[0]["settings"]["base"])  # imports what every fork would
    for one in everything.runs:
        _carry_out(everything, Run(**one))
