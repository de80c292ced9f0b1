"""Training on every GPU of this machine from one process: its inputs go into a folder, and PyTorch's launcher starts a
process a GPU, which read them there. One GPU, or none, is trained on in the process itself."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from neuroranker_pipeline.errors import BadInput, NeuroRankerError, NotReady
from neuroranker_pipeline.progress import Progress, silent
from neuroranker_pipeline.ranking.device import Device
from neuroranker_pipeline.ranking.distributed import join_world, leave_world
from neuroranker_pipeline.ranking.lists import TrainingLists
from neuroranker_pipeline.ranking.loop import TrainingDiverged, TrainingResult
from neuroranker_pipeline.ranking.settings import StudentSettings, TeacherSettings
from neuroranker_pipeline.ranking.settings_file import read_settings
from neuroranker_pipeline.ranking.student import train_student
from neuroranker_pipeline.ranking.teacher import train_teacher

INPUTS, LOG = "inputs", "launch.log"  # in the work folder
ERRORS = {error.__name__: error for error in (BadInput, NotReady, TrainingDiverged)}


def train(
    lists: TrainingLists,
    queries: Mapping[str, str],
    passages: Mapping[str, str],
    relevant: Mapping[str, set[str]],
    settings: TeacherSettings | StudentSettings,
    seed: int,
    out: Path,
    work: Path,
    *,
    dev: pa.Table | None = None,
    device: Device = "auto",
    progress: Progress = silent,
    processes: int | None = None,
) -> TrainingResult:
    """``train_teacher`` or ``train_student``, as ``settings`` says, in as many ``processes`` (by default, one a GPU).

    The other arguments, and the errors, are theirs. Raises ``NotReady`` when a process ends without telling why.
    """
    processes = processes or (1 if device == "cpu" else max(1, torch.cuda.device_count()))
    if processes == 1:
        arguments = lists, queries, passages, relevant
        if isinstance(settings, TeacherSettings):
            return train_teacher(*arguments, settings, seed, out, work, dev=dev, device=device, progress=progress)
        return train_student(*arguments, settings, seed, out, work, dev=dev, device=device, progress=progress)
    inputs = work / INPUTS
    shutil.rmtree(inputs, ignore_errors=True)
    inputs.mkdir(parents=True)
    _write_arguments(inputs, settings, seed, device, out, work)
    _write_inputs(inputs, lists, queries, passages, relevant, dev)
    _launch(inputs, work / LOG, processes, progress)
    result = TrainingResult(**json.loads((inputs / "result.json").read_text()))
    shutil.rmtree(inputs)
    return result


def _launch(inputs: Path, log: Path, processes: int, progress: Progress) -> None:
    """Run the processes to their end, and pass on the progress that the first of them prints.

    Should this process be killed, that one finds nobody reading, ends, and the launcher ends the others.
    """
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [*launcher, "-m", __name__, str(inputs.resolve())]
    with (
        log.open("w", encoding="utf-8") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            for line in process.stdout or ():
                if line.startswith("["):
                    progress(*json.loads(line))
            process.wait()
        finally:
            process.terminate()
    if process.returncode:
        raise _error(inputs, f"training on {processes} devices ended with status {process.returncode}; see {log}")


def _error(inputs: Path, otherwise: str) -> NeuroRankerError:
    """What a process told of its end, as an error of the kind that it was."""
    told = sorted(inputs.glob("error-*.json"))
    kind, message = json.loads(told[0].read_text()) if told else (NotReady.__name__, otherwise)
    return ERRORS.get(kind, NotReady)(message)


def _work(inputs: Path) -> int:
    """What each process does; its exit status."""
    given = json.loads((inputs / "arguments.json").read_text())
    world = join_world(given["device"])

    def printed(label: str, done: int, total: int) -> None:
        if world.main:
            print(json.dumps([label, done, total]), flush=True)

    lists, queries, passages, relevant, dev = _read_inputs(inputs)
    arguments = lists, queries, passages, relevant
    places = given["seed"], Path(given["out"]), Path(given["work"])
    more = {"dev": dev, "device": given["device"], "progress": printed, "world": world}
    try:
        if given["kind"] == "teacher":
            settings = read_settings(inputs / "settings.json", TeacherSettings)
            result = train_teacher(*arguments, settings, *places, **more)
        else:
            result = train_student(
                *arguments, read_settings(inputs / "settings.json", StudentSettings), *places, **more
            )
    except NeuroRankerError as error:
        (inputs / f"error-{world.rank}.json").write_text(json.dumps([type(error).__name__, str(error)]))
        return 1
    if world.main:
        (inputs / "result.json").write_text(json.dumps(asdict(result)))
    leave_world()
    return 0


def _write_arguments(
    folder: Path, settings: TeacherSettings | StudentSettings, seed: int, device: Device, out: Path, work: Path
) -> None:
    (folder / "settings.json").write_text(json.dumps(asdict(settings)))
    kind = "teacher" if isinstance(settings, TeacherSettings) else "student"
    given = {"kind": kind, "seed": seed, "device": device, "out": str(out.resolve()), "work": str(work.resolve())}
    (folder / "arguments.json").write_text(json.dumps(given))


def _write_inputs(
    folder: Path,
    lists: TrainingLists,
    queries: Mapping[str, str],
    passages: Mapping[str, str],
    relevant: Mapping[str, set[str]],
    dev: pa.Table | None,
) -> None:
    rows = {"qid": pa.array(lists.qids, pa.string()), "pids": _nested(lists.pids, pa.string())}
    for name, scores in (("prior", lists.prior), ("teacher", lists.teacher)):
        if scores is not None:
            rows[name] = _nested(scores, pa.float32())
    skipped = {"skipped": str(lists.skipped)}
    pq.write_table(pa.table(rows).replace_schema_metadata(skipped), folder / "lists.parquet")
    for name, texts in (("queries", queries), ("passages", passages)):
        columns = [pa.array(texts.keys(), pa.string()), pa.array(texts.values(), pa.string())]
        pq.write_table(pa.table(columns, ["id", "text"]), folder / f"{name}.parquet")
    for name, judged in (("relevant", relevant), ("lists_relevant", lists.relevant)):
        pids = pa.array([sorted(found) for found in judged.values()], pa.list_(pa.string()))
        pq.write_table(
            pa.table([pa.array(judged.keys(), pa.string()), pids], ["qid", "pids"]), folder / f"{name}.parquet"
        )
    if dev is not None:
        pq.write_table(dev, folder / "dev.parquet")


def _read_inputs(
    folder: Path,
) -> tuple[TrainingLists, dict[str, str], dict[str, str], dict[str, set[str]], pa.Table | None]:
    def mapping(name: str) -> dict[str, str]:
        table = pq.read_table(folder / f"{name}.parquet")
        return dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))

    def judged(name: str) -> dict[str, set[str]]:
        table = pq.read_table(folder / f"{name}.parquet")
        return dict(zip(table["qid"].to_pylist(), map(set, table["pids"].to_pylist()), strict=True))

    def matrix(name: str) -> np.ndarray:
        flat = rows[name].combine_chunks().flatten()
        return flat.to_numpy(zero_copy_only=False).reshape(len(rows), -1)

    rows = pq.read_table(folder / "lists.parquet")
    lists = TrainingLists(
        qids=rows["qid"].to_pylist(),
        pids=matrix("pids"),
        prior=matrix("prior") if "prior" in rows.column_names else None,
        teacher=matrix("teacher") if "teacher" in rows.column_names else None,
        relevant=judged("lists_relevant"),
        skipped=int(rows.schema.metadata[b"skipped"]),
    )
    dev = pq.read_table(folder / "dev.parquet") if (folder / "dev.parquet").exists() else None
    return lists, mapping("queries"), mapping("passages"), judged("relevant"), dev


def _nested(matrix: np.ndarray, kind: pa.DataType) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel(), kind), matrix.shape[1])


if __name__ == "__main__":
    sys.exit(_work(Path(sys.argv[1])))
