"""One run of the whole graph for all end-to-end tests: killed with ``kill -9`` in five places, and run again each time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from neuroranker_pipeline.resources.lake import Lake
from neuroranker_pipeline.resources.manifest import MANIFEST, Manifest, digest_files

PROFILE = "smoke"
SECONDS = 600.0


@dataclass
class Graph:
    """A lake, a BentoML store, and the command line over both."""

    root: Path
    killed: dict[str, dict] = field(default_factory=dict)
    output: str = ""

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "NEURORANKER_LAKE": str(self.root / "lake"),
            "BENTOML_HOME": str(self.root / "bentoml"),
            "OMP_NUM_THREADS": "1",  # another test may have the other processor
        }

    @property
    def lake(self) -> Lake:
        return Lake(self.root / "lake", PROFILE)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "neuroranker_pipeline.cli", *arguments, "--profile", PROFILE],
            env=self.environment,
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    def kill_when(self, name: str, reached: Callable[[], dict | None]) -> None:
        """Run the graph and kill it, without a chance to clean up, as soon as ``reached`` returns something."""
        arguments = [sys.executable, "-m", "neuroranker_pipeline.cli", "run", "--profile", PROFILE]
        with (self.root / "killed.log").open("ab") as log:
            process = subprocess.Popen(arguments, env=self.environment, cwd=self.root, stdout=log, stderr=log)
            deadline = time.monotonic() + SECONDS
            while (state := reached()) is None:
                assert process.poll() is None, f"the run ended before {name}: {(self.root / 'killed.log').read_text()}"
                assert time.monotonic() < deadline, f"the run never got to {name}"
                time.sleep(0.005)
            process.kill()
            process.wait()
        self.killed[name] = state
        assert_whole(self.lake)

    def staged(self, asset: str, partition: str = "_") -> Callable[[], dict | None]:
        """Something was written of an asset that is not done."""
        stage = self.lake.scratch / asset / partition / "stage"
        return lambda: {} if stage.is_dir() and any(stage.iterdir()) else None

    def checkpointed(self, asset: str, step: int, folder: str = "") -> Callable[[], dict | None]:
        """The training of an asset has saved a checkpoint at ``step`` or later, in ``folder`` of its work folder: its state,
        and the records of the members of an ensemble that were ``finished``."""
        work = self.lake.scratch / asset / "_"

        def reached() -> dict | None:
            for file in sorted(work.glob(f"*/{folder}step-*/state.json")):
                try:
                    state = json.loads(file.read_text())
                except (FileNotFoundError, ValueError):  # replaced by the next one just now
                    continue
                if state["result"]["steps"] >= step:
                    finished = [json.loads(record.read_text()) for record in work.glob("*/members/*/training.json")]
                    return {**state, "finished": finished}
            return None

        return reached


def assert_whole(lake: Lake) -> int:
    """Every current version in the lake has all its files, with the digests of its manifest; returns how many there are."""
    pointers = list(Path(lake.base).rglob("CURRENT"))
    for pointer in pointers:
        version = pointer.parent / "versions" / pointer.read_text()
        manifest = Manifest.from_json((version / MANIFEST).read_text())
        files = digest_files(version)
        del files[MANIFEST]
        assert files == manifest.files, f"{version} is not what its manifest says"
    return len(pointers)


@pytest.fixture(scope="session")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """The finished smoke graph, after its five deaths."""
    graph = Graph(tmp_path_factory.mktemp("smoke"))
    graph.kill_when("indexing", graph.staged("lucene_index"))
    graph.kill_when("retrieval", graph.staged("bm25_candidates", "train-00"))
    graph.kill_when("teacher training", graph.checkpointed("teacher_checkpoint", 3, "training-second/"))
    graph.kill_when("student training", graph.checkpointed("student_checkpoint", step=3))
    graph.kill_when("export", graph.staged("student_onnx"))
    done = graph.command("run")
    assert done.returncode == 0, done.stdout + done.stderr
    graph.output = done.stdout
    return graph
