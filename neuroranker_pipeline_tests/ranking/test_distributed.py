"""Two processes train the model that one would."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from neuroranker_pipeline.ranking.distributed import World, join_world
from neuroranker_pipeline.ranking.settings import StudentSettings, TeacherSettings
from neuroranker_pipeline_tests.ranking import runs
from neuroranker_pipeline_tests.ranking.test_resume import TRAINING, settings

KINDS = (TeacherSettings, StudentSettings)


@pytest.fixture(scope="module")
def pairs(tiny, collection, oracle, tmp_path_factory):
    """For both models one process and two, without dropout; for a student two with dropout, whole and killed."""
    folder, wanted = tmp_path_factory.mktemp("distributed"), []
    for kind in KINDS:
        exact = settings(kind, tiny, replace(TRAINING, dropout=0.0, learning_rate=5e-4, log_every=1))
        name = kind.__name__
        wanted.append(runs.Run(f"{name}-one", exact, f"{name}-a"))
        wanted.append(runs.Run(f"{name}-two", exact, f"{name}-b", processes=2))
    random = settings(StudentSettings, tiny)
    wanted.append(runs.Run("whole", random, "c", processes=2))
    wanted.append(runs.Run("killed", random, "d", kill=11, processes=2))
    wanted.append(runs.Run("resumed", random, "d", processes=2))
    broken = settings(TeacherSettings, tiny, replace(TRAINING, learning_rate=1e30, max_grad_norm=1e30))
    wanted.append(runs.Run("broken", broken, "e", processes=2, fails=True))
    runs.start(collection, oracle, folder, wanted)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_take_the_steps_of_one(pairs, kind):
    one, two = (runs.history(pairs, f"{kind.__name__}-{name}") for name in ("one", "two"))
    assert len(one) == 18 + 4
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    assert one[0]["loss"] == pytest.approx(two[0]["loss"], rel=1e-6)
    counts = [runs.result(pairs, f"{kind.__name__}-{name}") for name in ("one", "two")]
    assert counts[0]["examples"] == counts[1]["examples"] == 18 * 5 * 5


def test_two_killed_processes_resume_together(pairs):
    assert runs.history(pairs, "resumed") == runs.history(pairs, "whole")
    assert runs.result(pairs, "resumed")["seen"][0] == 9


def test_two_processes_diverge_together(pairs):
    first, second = ((pairs / "broken" / f"error-{rank}.txt").read_text() for rank in (0, 1))
    assert "diverged at step" in first
    assert first == second


def test_what_the_processes_exchange(pairs):
    first, second = (json.loads((pairs / "TeacherSettings-two" / f"world-{rank}.json").read_text()) for rank in (0, 1))
    assert (first["share"], second["share"]) == ([0, 1, 2], [3, 4])
    for one in (first, second):
        assert one["gathered"] == [0.0, 0.0, 1.0]
        assert one["nothing"] == []
        assert one["missing"] == [1.0, 1.0]
        assert one["there"] == [[3.0, 3.0], [3.0, 3.0]]
    # d(sum over both of w * r) / dx = (1 + 2) * w * own factor
    assert first["gradient"] == [3.0, 30.0, 300.0]
    assert second["gradient"] == [6.0, 60.0, 600.0]


def test_a_world_of_one_exchanges_nothing(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    world = join_world("cpu")
    assert world == World()
    assert world.main
    x = torch.ones(2, requires_grad=True)
    assert world.all_sum(x) is x
    assert world.share(np.arange(3)).tolist() == [0, 1, 2]
    assert world.gather(np.arange(3.0)).tolist() == [0, 1, 2]
    world.sum_gradients([torch.nn.Parameter(x.detach())])
    world.barrier()
