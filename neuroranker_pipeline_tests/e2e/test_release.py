"""A student made worse on purpose: blocked at the gate, released by a person's word, and rolled back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from neuroranker_pipeline.cli import main
from neuroranker_pipeline.resources.lake import Lake
from neuroranker_pipeline.resources.manifest import Manifest, digest_files
from neuroranker_pipeline.resources.releases import History, Registry, person
from neuroranker_pipeline.serving.packaging import bento_folder, served_order
from neuroranker_pipeline.serving.store import latest_tag
from neuroranker_pipeline_tests.e2e.conftest import PROFILE, Graph
from neuroranker_pipeline_tests.export.models import QUERY, TEXTS
from neuroranker_pipeline_tests.export.worse import add_noise

pytestmark = pytest.mark.e2e

NAME = "ranker-smoke"
REASON = "the noise is wanted: a drill"
RULES = {
    "extends": "smoke",
    "release": {"over_bm25": -1.0, "loss_to_base": 0.0, "loss_to_release": 0.0, "alpha": 0.1},
    "interpolation": {"grid": []},  # or BM25's score would make up for the noise
}


@dataclass
class Lab:
    """A copy of the finished graph, and the command line over it, where a loss counts."""

    root: Path
    outputs: dict[str, Result] = field(default_factory=dict)

    @property
    def lake(self) -> Lake:
        return Lake(self.root / "lake", PROFILE)

    @property
    def history(self) -> History:
        return Registry(self.lake).history()

    @property
    def latest(self) -> str | None:
        return latest_tag(NAME, self.root / "bentoml")

    def bento(self, tag: str) -> dict[str, dict]:
        """The digests of a Bento in the store."""
        return digest_files(bento_folder(tag, self.root / "bentoml"))

    def command(self, *arguments: str) -> Result:
        return CliRunner().invoke(main, [*arguments, "--profile", str(self.root / "smoke.yaml")])

    def decision(self) -> Manifest:
        manifest = self.lake.manifest("release_decision")
        assert manifest is not None
        return manifest


@pytest.fixture(scope="module")
def lab(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The copy, with a worse student in the place of the trained one, after a run."""
    lab = Lab(tmp_path_factory.mktemp("release"))
    shutil.copytree(graph.root / "lake", lab.root / "lake")
    shutil.copytree(graph.root / "bentoml", lab.root / "bentoml")
    (lab.root / "smoke.yaml").write_text(yaml.safe_dump(RULES))
    trained = lab.lake.usable("student_checkpoint")
    folder = lab.lake.open(trained)
    with lab.lake.publish(
        "student_checkpoint",
        None,
        fingerprint=trained.fingerprint,
        code_version=trained.code_version,
        settings=trained.settings,
        inputs=trained.inputs,
    ) as draft:
        add_noise(folder, draft.path)
        for file in ("training.json", "README.md"):
            shutil.copyfile(folder / file, draft.path / file)
        draft.checks.extend(trained.checks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEURORANKER_LAKE", str(lab.root / "lake"))
        patch.setenv("BENTOML_HOME", str(lab.root / "bentoml"))
        patch.setenv("DAGSTER_HOME", str(lab.root / "lake" / ".dagster" / PROFILE))
        yield lab


def test_the_story(lab: Lab) -> None:
    first = lab.history.current
    assert first is not None
    assert first.tag == lab.latest
    before = lab.bento(first.tag)

    blocked = lab.command("run")
    assert blocked.exit_code == 1
    assert "✓ gate_evaluation" in blocked.output
    assert "✓ ranker_bento" not in blocked.output
    failed = [check.name for check in lab.decision().failed_checks]
    assert "search_not_worse_than_best_release" in failed, lab.decision().checks
    error = blocked.output.strip().splitlines()[-1]
    assert "search_not_worse_than_best_release" in error
    assert "neuroranker release --override REASON" in error
    evidence = json.loads((lab.lake.open(lab.decision()) / "decision.json").read_text())
    (test,) = [test for test in evidence["tests"] if test["against"] == f"release {first.number}"]
    assert evidence["compared_with"]["release"] == first.number
    assert test["difference"] < 0
    assert test["p"] < RULES["release"]["alpha"]
    assert (lab.latest, lab.history.current) == (first.tag, first)
    assert sorted(served_order(f"{NAME}:latest", QUERY, TEXTS)) == [0, 1], "the last Bento goes on serving"

    refused = lab.command("release", "--override", " ")
    assert (refused.exit_code, "needs a reason" in refused.output) == (1, True)
    overridden = lab.command("release", "--override", REASON)
    assert overridden.exit_code == 0, overridden.output
    second = lab.history.current
    assert second is not None
    assert (second.compared_with, second.replaced) == (first.number, first.number)
    assert (second.measured, second.evidence) == ((first.number,), "weak")
    assert second.override is not None
    assert (second.override.reason, second.override.model) == (REASON, second.model)
    assert second.override.who == person()
    assert lab.latest == second.tag != first.tag
    labels = yaml.safe_load((bento_folder(second.tag) / "bento.yaml").read_text())["labels"]
    assert (labels["override_reason"], labels["model"], labels["evidence"]) == (REASON, second.model, "weak")
    assert any(REASON in str(check.metadata) for check in lab.decision().checks), "it passes, and says why"

    back = lab.command("rollback", "--reason", "the drill is over")
    assert back.exit_code == 0, back.output
    assert f"Release {first.number} ({first.tag}) is current, in place of {second.number}." in back.output
    assert (lab.latest, lab.history.current) == (first.tag, first)
    assert lab.bento(first.tag) == before, "digest for digest"

    again = lab.command("run")
    assert again.exit_code == 0, again.output
    assert "0 steps run" in again.output
    assert f"release {first.number} serves: the model of this run was rolled back" in again.output
    assert (lab.latest, lab.history.current) == (first.tag, first)
    listed = lab.command("releases").output
    assert first.tag in listed
    assert "rolled back" in listed
    assert "weak evidence" in " ".join(listed.split())
