from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from neuroranker_pipeline.datasets.tables import PASSAGES
from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.export.onnx import export_student
from neuroranker_pipeline.ranking import embeddings
from neuroranker_pipeline.ranking.embeddings import (
    TorchEncoder,
    cosine_scores,
    embed_passages,
    embedding_schema,
    encode_texts,
    rank_by_cosine,
    read_embeddings,
)
from neuroranker_pipeline.ranking.models import BiEncoder, CrossEncoder
from neuroranker_pipeline.ranking.rerank import rerank
from neuroranker_pipeline_tests.ranking.conftest import FLOAT32


@pytest.fixture(scope="module")
def model(tiny):
    return BiEncoder.load(tiny)


def test_embeddings_on_disk_score_as_embeddings_in_memory(model, collection, tmp_path, monkeypatch):
    passages = pa.table([list(collection.passages), list(collection.passages.values())], schema=PASSAGES)
    assert embed_passages(passages.to_batches(max_chunksize=128), 300, tmp_path / "vectors", model, FLOAT32) == 300
    stored = read_embeddings(tmp_path / "vectors")
    assert pq.read_schema(tmp_path / "vectors" / "part-00000.parquet") == embedding_schema(32)
    np.testing.assert_allclose(np.linalg.norm(stored.vectors, axis=1), 1, atol=1e-6)
    encoder = TorchEncoder(model, FLOAT32)
    queries = encode_texts(collection.queries, list(collection.queries), encoder, "qid")
    monkeypatch.setattr(embeddings, "ROWS_PER_PRODUCT", 77)
    table = cosine_scores(collection.candidates, queries, stored)
    expected = rank_by_cosine(collection.candidates, collection.queries, collection.passages, encoder)
    assert table["pid"].to_pylist() == collection.candidates["pid"].to_pylist()
    np.testing.assert_allclose(table["score"].to_numpy(), expected["score"].to_numpy(), atol=1e-5)
    with pytest.raises(BadInput, match="qid 'q1' of the candidates has no embedding"):
        cosine_scores(collection.candidates, encode_texts(collection.queries, ["q0"], encoder, "qid"), stored)


def test_a_ranker_is_recognised_by_its_folder(tiny, collection, tmp_path):
    teacher = CrossEncoder.start(tiny, 32)
    teacher.save(tmp_path / "teacher")
    texts = collection.queries, collection.passages
    by_teacher = rerank(tmp_path / "teacher", collection.candidates, *texts, FLOAT32)
    row = by_teacher.slice(17, 1).to_pylist()[0]
    expected = teacher.score([texts[0][row["qid"]]], [texts[1][row["pid"]]], FLOAT32)[0]
    assert row["score"] == pytest.approx(expected, abs=1e-5)

    by_student = rerank(tiny, collection.candidates, *texts, FLOAT32)
    direct = rank_by_cosine(collection.candidates, *texts, TorchEncoder(BiEncoder.load(tiny), FLOAT32))
    assert by_student.equals(direct)


def test_an_onnx_folder_ranks_as_the_student_it_came_from(tiny, collection, tmp_path):
    export_student(tiny, tmp_path / "onnx")
    texts = collection.queries, collection.passages
    by_onnx = rerank(tmp_path / "onnx", collection.candidates, *texts, FLOAT32)
    by_student = rerank(tiny, collection.candidates, *texts, FLOAT32)
    assert by_onnx["pid"].equals(by_student["pid"])
    np.testing.assert_allclose(by_onnx["score"].to_numpy(), by_student["score"].to_numpy(), atol=1e-4)
