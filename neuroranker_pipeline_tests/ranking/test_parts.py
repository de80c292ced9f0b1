from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from neuroranker_pipeline.datasets.tables import CANDIDATES, PASSAGES, SCORES, read_table, write_table
from neuroranker_pipeline.errors import BadInput, NotReady
from neuroranker_pipeline.ranking import embeddings, scoring
from neuroranker_pipeline.ranking.device import Compute
from neuroranker_pipeline.ranking.distributed import World
from neuroranker_pipeline.ranking.embeddings import embed_passages
from neuroranker_pipeline.ranking.models import BiEncoder, CrossEncoder
from neuroranker_pipeline.ranking.parts import PartFolder, RowsOfTexts, infer_in_parts, model_digest
from neuroranker_pipeline.ranking.scoring import score_candidates
from neuroranker_pipeline_tests.ranking.conftest import FLOAT32, WORDS

PAIRS, PART = 20_000, 2048

# What a process of its own runs: it scores and, when told to, kills itself as soon as so many pairs are done.
SCORE = """
import json, os, signal, sys
from pathlib import Path
import torch
from neuroranker_pipeline.datasets.tables import SCORES, read_table, write_table
from neuroranker_pipeline.ranking import scoring
from neuroranker_pipeline.ranking.device import Compute
from neuroranker_pipeline.ranking.distributed import join_world, leave_world
from neuroranker_pipeline.ranking.models import CrossEncoder

given = json.loads(sys.argv[1])
scoring.ROWS_PER_PART = given["part"]
texts = json.loads(Path(given["texts"]).read_text())

def progress(label, done, total):
    if given["kill"] and done >= given["kill"]:
        os.kill(os.getpid(), signal.SIGKILL)

world = join_world("cpu")
scores = scoring.score_candidates(
    CrossEncoder.load(given["model"]), read_table(Path(given["candidates"])), texts["queries"], texts["passages"],
    Compute(torch.device("cpu"), torch.float32), progress, Path(given["work"]), world,
)
write_table(Path(given["out"] + str(world.rank)), scores, SCORES)
leave_world()
"""


@pytest.fixture(scope="module")
def many(tiny, tmp_path_factory) -> dict[str, str]:
    """20,000 pairs of short texts and a cross-encoder, on disk."""
    folder = tmp_path_factory.mktemp("many")
    rng = np.random.default_rng(0)
    queries = {f"q{i}": " ".join(rng.choice(WORDS, 2)) for i in range(PAIRS // 20)}
    passages = {f"p{i}": " ".join(rng.choice(WORDS, rng.integers(1, 5))) for i in range(3000)}
    rows = np.arange(PAIRS)
    columns = [[f"q{i}" for i in rows // 20], [f"p{i * 7 % 3000}" for i in rows], rows % 20 + 1, -(rows % 20)]
    write_table(folder / "candidates", pa.table(columns, names=CANDIDATES.names).cast(CANDIDATES), CANDIDATES)
    (folder / "texts.json").write_text(json.dumps({"queries": queries, "passages": passages}))
    CrossEncoder.start(tiny, 32).save(folder / "model")
    return {
        "candidates": f"{folder / 'candidates'}",
        "texts": f"{folder / 'texts.json'}",
        "model": f"{folder / 'model'}",
    }


def start(given: dict, **env: str) -> subprocess.Popen:
    threads = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-W", "error", "-c", SCORE, json.dumps(given)]
    return subprocess.Popen(command, env={**os.environ, **threads, **env}, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen, code: int = 0) -> None:
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors.decode()[-2000:]


def scored_here(given: dict[str, str], out: Path, work: Path | None) -> bytes:
    """The file of scores of this process, on one thread as the others."""
    texts = json.loads(Path(given["texts"]).read_text())
    model, candidates = CrossEncoder.load(given["model"]), read_table(Path(given["candidates"]))
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "ROWS_PER_PART", PART)
        torch.set_num_threads(1)
        scores = score_candidates(model, candidates, texts["queries"], texts["passages"], FLOAT32, work=work)
        torch.set_num_threads(threads)
    write_table(out, scores, SCORES)
    return (out / "part-00000.parquet").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(many, tmp_path_factory) -> bytes:
    """The file of scores of a run that nobody kills, in one go and without a work folder."""
    return scored_here(many, tmp_path_factory.mktemp("undisturbed"), None)


def test_scoring_that_is_killed_twice_writes_the_same_file(many, undisturbed, tmp_path):
    given = {**many, "part": PART, "work": f"{tmp_path / 'work'}", "out": f"{tmp_path / 'out'}"}
    finish(start({**given, "kill": 3 * PART + 100}), -signal.SIGKILL)
    first = finished_parts(tmp_path / "work")
    assert list(first) == ["000000", "000001", "000002"]
    finish(start({**given, "kill": 7 * PART + 1}), -signal.SIGKILL)
    second = finished_parts(tmp_path / "work")
    assert len(second) == 7
    assert first.items() <= second.items()  # what was finished was not computed again
    assert scored_here(many, tmp_path / "out", tmp_path / "work") == undisturbed
    assert second.items() <= finished_parts(tmp_path / "work").items()


def test_two_processes_share_the_parts_and_both_get_all_scores(many, undisturbed, tmp_path):
    given = {**many, "part": PART, "kill": 0, "work": f"{tmp_path / 'work'}", "out": f"{tmp_path / 'out'}"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launcher = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [start(given, RANK=str(rank), LOCAL_RANK=str(rank), **launcher) for rank in range(2)]
    for process in processes:
        finish(process)
    for rank in range(2):
        assert (tmp_path / f"out{rank}" / "part-00000.parquet").read_bytes() == undisturbed


def finished_parts(work: Path) -> dict[str, int]:
    """The parts that are there, and when each was written."""
    return {file.stem: file.stat().st_mtime_ns for file in sorted((work / "parts").glob("[0-9]*.parquet"))}


def test_parts_of_other_models_precisions_and_texts_are_computed_again(tiny, collection, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "ROWS_PER_PART", 64)
    model, work = CrossEncoder.start(tiny, 32), tmp_path / "work"
    passages = dict(collection.passages)

    def scored(model: CrossEncoder, compute: Compute = FLOAT32) -> tuple[pa.Table, int]:
        before = finished_parts(work)
        scores = score_candidates(model, collection.candidates, collection.queries, passages, compute, work=work)
        return scores, len(finished_parts(work).items() - before.items())

    first, written = scored(model)
    assert written == 5
    assert scored(model) == (first, 0)
    changed = collection.candidates["pid"][70].as_py()
    passages[changed] = "w1 w2"
    again, written = scored(model)
    assert written == 1  # the part with the changed text
    differs = np.flatnonzero(again["score"].to_numpy() != first["score"].to_numpy())
    assert 70 in differs
    assert set(differs // 64) == {1}
    other, written = scored(CrossEncoder.start(tiny, 32, seed=1))
    assert written == 5
    assert not other.equals(again)
    assert scored(CrossEncoder.start(tiny, 16, seed=1))[1] == 5
    assert scored(CrossEncoder.start(tiny, 16, seed=1), Compute(torch.device("cpu"), torch.bfloat16))[1] == 5


def test_parts_that_a_longer_run_left_are_removed(tiny, collection, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "ROWS_PER_PART", 64)
    model, texts = CrossEncoder.start(tiny, 32), (collection.queries, collection.passages, FLOAT32)
    score_candidates(model, collection.candidates, *texts, work=tmp_path)
    short = score_candidates(model, collection.candidates.slice(0, 100), *texts, work=tmp_path)
    assert len(short) == 100
    assert list(finished_parts(tmp_path)) == ["000000", "000001"]


def test_a_damaged_part_is_computed_again(tiny, collection, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "ROWS_PER_PART", 64)
    model, texts = CrossEncoder.start(tiny, 32), (collection.queries, collection.passages, FLOAT32)
    expected = score_candidates(model, collection.candidates, *texts, work=tmp_path)
    file = tmp_path / "parts" / "000002.parquet"
    file.write_bytes(file.read_bytes()[:50])
    assert score_candidates(model, collection.candidates, *texts, work=tmp_path).equals(expected)


def test_embedding_resumes_and_writes_the_same_file(tiny, collection, tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "ROWS_PER_PART", 64)
    passages = pa.table([list(collection.passages), list(collection.passages.values())], schema=PASSAGES)
    model = BiEncoder.load(tiny)

    def stop(label: str, done: int, total: int) -> None:
        if done > 150:
            raise KeyboardInterrupt

    def embedded(name: str, **more) -> bytes:
        batches = passages.to_batches(max_chunksize=100)
        assert embed_passages(batches, 300, tmp_path / name, model, FLOAT32, **more) == 300
        return (tmp_path / name / "part-00000.parquet").read_bytes()

    alone, work = embedded("alone"), tmp_path / "work"
    with pytest.raises(KeyboardInterrupt):
        embedded("stopped", progress=stop, work=work)
    kept = finished_parts(work)
    assert list(kept) == ["000000", "000001"]
    assert pq.read_table(tmp_path / "alone")["pid"].to_pylist() == list(collection.passages)
    assert embedded("again", work=work) == alone
    assert kept.items() <= finished_parts(work).items()


def test_a_text_is_tokenized_while_the_part_before_it_is_in_use(tiny, collection):
    model, texts = BiEncoder.load(tiny), list(collection.passages.values())
    second, threads = threading.Event(), []

    def tokenize(part: list[str]):
        threads.append(threading.current_thread())
        if len(threads) == 2:
            second.set()
        return model.tokenize(part)

    batches = pa.table([list(collection.passages), texts], schema=PASSAGES).to_batches(max_chunksize=100)
    rows = RowsOfTexts(
        batches,
        300,
        lambda part: (part["text"].to_pylist(),),
        tokenize,
        lambda part, _: pa.table([part["pid"]], ["pid"]),
    )
    results = infer_in_parts(model, rows, FLOAT32, "encoding")
    assert len(next(results)) == 100
    assert second.wait(30)  # although nobody has asked for the second part
    assert threading.main_thread() not in threads
    assert [len(result) for result in results] == [100, 100]


def test_the_digest_is_of_the_model_not_of_its_last_use(tiny):
    model = CrossEncoder.start(tiny, 32)
    fresh = model_digest(model)
    model.score(["w1"], ["w2 w3"], FLOAT32)
    assert model_digest(model) == fresh
    with torch.no_grad():
        model.head.bias += 1e-3
    assert model_digest(model) != fresh


def test_several_processes_need_a_work_folder_and_it_must_be_writable(tiny, collection, tmp_path):
    model, texts = CrossEncoder.start(tiny, 32), (collection.queries, collection.passages, FLOAT32)
    with pytest.raises(BadInput, match="work folder"):
        score_candidates(model, collection.candidates, *texts, world=World(0, 2))
    (tmp_path / "file").write_text("")
    with pytest.raises(NotReady, match="cannot be written"):
        PartFolder(tmp_path / "file" / "parts").save(0, "x", collection.candidates)


def test_no_rows_have_no_scores(tiny, collection, tmp_path):
    model = CrossEncoder.start(tiny, 32)
    for work in (None, tmp_path):
        scores = score_candidates(model, collection.candidates.slice(0, 0), {}, {}, FLOAT32, work=work)
        assert scores.schema == SCORES
        assert len(scores) == 0
