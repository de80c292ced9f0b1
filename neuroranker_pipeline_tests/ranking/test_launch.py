from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file

from neuroranker_pipeline.errors import BadInput, NotReady
from neuroranker_pipeline.ranking import launch
from neuroranker_pipeline.ranking.launch import train
from neuroranker_pipeline.ranking.lists import positives, sample_lists
from neuroranker_pipeline.ranking.settings import ListSettings, StudentSettings, TrainingSettings

LISTS = ListSettings(negatives=3)
TRAINING = TrainingSettings(lists_per_step=8, max_steps=3, log_every=1, dropout=0.0, precision="float32")


def given(tiny, collection, **settings) -> tuple:
    student = StudentSettings(base=str(tiny), max_length=32, objective="hard_labels", lists=LISTS, training=TRAINING)
    lists = sample_lists(collection.candidates, collection.qrels, LISTS, 0)
    return lists, collection.queries, collection.passages, positives(collection.qrels), student


def test_two_processes_train_what_one_does(tiny, collection, tmp_path):
    arguments, heard = given(tiny, collection), []
    one = train(*arguments, 0, tmp_path / "one", tmp_path / "work1", device="cpu", dev=collection.candidates)
    two = train(
        *arguments, 0, tmp_path / "two", tmp_path / "work2", device="cpu", dev=collection.candidates, processes=2,
        progress=lambda *call: heard.append(call),
    )  # fmt: skip
    assert heard[-1] == ("training the control", 3, 3)
    assert two.steps == one.steps == 3
    assert two.lists == one.lists
    assert two.dev_mrr == pytest.approx(one.dev_mrr, abs=1e-6)
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("one", "two")]
    for name, value in weights[0].items():
        np.testing.assert_allclose(weights[1][name], value, atol=1e-5, err_msg=name)
    assert not (tmp_path / "work2" / launch.INPUTS).exists()


def test_what_is_written_for_the_processes_is_what_they_read(tiny, collection, tmp_path):
    lists, queries, passages, relevant, _ = given(tiny, collection)
    launch._write_inputs(tmp_path, lists, queries, passages, relevant, None)
    read, *rest = launch._read_inputs(tmp_path)
    assert read.digest() == lists.digest()
    assert (read.relevant, read.skipped) == (lists.relevant, lists.skipped)
    assert rest == [queries, passages, relevant, None]


def test_an_error_of_a_process_is_told_as_ones_own(tiny, collection, tmp_path):
    lists, queries, passages, relevant, student = given(tiny, collection)
    passages = {pid: text for pid, text in passages.items() if pid != lists.pids[0, 0]}
    launch._write_inputs(tmp_path, lists, queries, passages, relevant, None)
    launch._write_arguments(tmp_path, student, 0, "cpu", tmp_path / "out", tmp_path / "work")
    assert launch._work(tmp_path) == 1
    error = launch._error(tmp_path, "ended")
    assert isinstance(error, BadInput)
    assert "has no text" in str(error)
    assert isinstance(launch._error(tmp_path / "elsewhere", "ended"), NotReady)
