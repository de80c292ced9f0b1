"""A run killed with ``kill -9`` and started again ends as if nothing had happened, to the last digit."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

from neuroranker_pipeline.ranking.settings import ListSettings, StudentSettings, TeacherSettings, TrainingSettings
from neuroranker_pipeline_tests.ranking import runs

TRAINING = TrainingSettings(
    epochs=3, lists_per_step=5, learning_rate=2e-3, head_learning_rate=1e-2, dropout=0.1, precision="float32",
    log_every=3, eval_every=5, checkpoint_steps=4, checkpoint_seconds=0,
)  # fmt: skip
STEPS = 18
KILLS = {  # after which steps the runs are killed; drawn
    kind.__name__: np.random.default_rng([20, seed]).choice(np.arange(4, STEPS), 3, replace=False).tolist()
    for seed, kind in enumerate((TeacherSettings, StudentSettings))
}


def settings(kind, base, training=TRAINING):
    return asdict(kind(base=str(base), max_length=32, lists=ListSettings(negatives=4), training=training))


@pytest.fixture(scope="module")
def killed(tiny, collection, oracle, tmp_path_factory):
    """For both models a whole run, and three that are killed after a drawn step and started again."""
    folder, wanted = tmp_path_factory.mktemp("resume"), []
    for kind in (TeacherSettings, StudentSettings):
        given, name = settings(kind, tiny), kind.__name__
        wanted.append(runs.Run(f"{name}-whole", given, f"{name}-whole-work"))
        for draw, step in enumerate(KILLS[name]):
            work = f"{name}-{draw}-work"
            wanted.append(runs.Run(f"{name}-{draw}-killed", given, work, kill=step))
            wanted.append(runs.Run(f"{name}-{draw}", given, work))
    runs.start(collection, oracle, folder, wanted)
    return folder


@pytest.mark.parametrize("kind", ["TeacherSettings", "StudentSettings"])
@pytest.mark.parametrize("draw", [0, 1, 2])
def test_a_killed_run_ends_as_an_uninterrupted_one(killed, kind, draw):
    whole = runs.history(killed, f"{kind}-whole")
    assert [line["step"] for line in whole if "loss" in line] == [3, 6, 9, 12, 15, 18]
    assert [line["step"] for line in whole if "dev_mrr" in line] == [5, 10, 15, 18]
    assert not (killed / f"{kind}-{draw}-killed" / "model.safetensors").exists()
    assert runs.history(killed, f"{kind}-{draw}") == whole
    saved = KILLS[kind][draw] // 4 * 4
    assert runs.result(killed, f"{kind}-{draw}")["seen"] == list(range(saved + 1, STEPS + 1))
    one, two = (killed / name / "model.safetensors" for name in (f"{kind}-whole", f"{kind}-{draw}"))
    assert one.read_bytes() == two.read_bytes()
