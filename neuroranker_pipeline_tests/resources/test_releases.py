"""The registry of releases: what is current, what was rolled back, whom an override lets through; and after ``kill -9``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from neuroranker_pipeline.errors import BadInput, NotReady
from neuroranker_pipeline.resources.lake import Lake
from neuroranker_pipeline.resources.manifest import digest_files
from neuroranker_pipeline.resources.releases import ARCHIVE, History, Override, Registry, Release, Rollback
from neuroranker_pipeline.serving.store import latest_tag

WHO = "ada@lab"


@pytest.fixture(params=["local", "memory"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Registry:
    root = str(tmp_path / "lake") if request.param == "local" else f"memory://{uuid.uuid4().hex}"
    return Registry(Lake(root, "smoke", cache=tmp_path / "cache"))


def files(folder: Path, text: str) -> dict[str, Path]:
    """What a release holds: an archive and a model's folder."""
    made = folder / uuid.uuid4().hex
    (made / "model").mkdir(parents=True)
    (made / ARCHIVE).write_text(f"archive of {text}")
    (made / "model" / "model.onnx").write_text(text)
    return {ARCHIVE: made / ARCHIVE, "model": made / "model"}


def release(
    registry: Registry, folder: Path, model: str, version: str = "", compared_with: int | None = None, **more
) -> int:
    made = Release(0, f"ranker:{model}{version}", model, f"bento of {model}", WHO, "now", compared_with)
    return registry.add(made, files(folder, model), **more).number


def test_releases_are_numbered_and_the_last_is_current(registry: Registry, tmp_path: Path) -> None:
    assert registry.history().current is None
    assert [release(registry, tmp_path, model) for model in "abc"] == [1, 2, 3]
    history = registry.history()
    assert history.current == history.releases[3]
    assert [one.replaced for one in history.releases.values()] == [None, 1, 2]
    assert (registry.open(2) / "model" / "model.onnx").read_text() == "b"
    assert (registry.open(2) / ARCHIVE).read_text() == "archive of b"


def test_the_same_bento_is_not_released_twice_in_a_row(registry: Registry, tmp_path: Path) -> None:
    assert release(registry, tmp_path, "a") == release(registry, tmp_path, "a") == 1
    assert release(registry, tmp_path, "a", version="2") == 2, "another build is another release"


def test_rolling_back_goes_to_what_was_replaced_and_back(registry: Registry, tmp_path: Path) -> None:
    for model in "ab":
        release(registry, tmp_path, model)
    before = digest_files(registry.open(1))
    event = registry.roll_back(None, "slow", WHO)
    assert (event.number, event.replaced, event.reason) == (1, 2, "slow")
    assert digest_files(registry.open(1)) == before
    assert release(registry, tmp_path, "c") == 3, "a number is given once"
    assert registry.roll_back(None, "", WHO).number == 1, "what release 3 replaced, which is not the one before it"
    assert registry.roll_back(3, "", WHO).number == 3
    with pytest.raises(BadInput, match="release 3 is current already"):
        registry.roll_back(3, "", WHO)
    registry.roll_back(1, "", WHO)
    with pytest.raises(NotReady, match="release 1 is the first: there is none before it"):
        registry.roll_back(None, "", WHO)


def test_requests_that_cannot_be_met_are_one_clear_line(registry: Registry, tmp_path: Path) -> None:
    for number in (None, 1):
        with pytest.raises(NotReady, match="profile smoke: nothing has been released yet: run `neuroranker run`"):
            registry.roll_back(number, "", WHO)
    release(registry, tmp_path, "a")
    with pytest.raises(BadInput, match="release 7: there is none, the last is 1; `neuroranker releases` lists them"):
        registry.roll_back(7, "", WHO)
    with pytest.raises(BadInput, match="needs a reason"):
        registry.let_through("a", " \n", WHO)


def test_old_releases_are_deleted_but_for_those_still_needed(registry: Registry, tmp_path: Path) -> None:
    release(registry, tmp_path, "a")
    release(registry, tmp_path, "b", compared_with=1)
    registry.roll_back(1, "", WHO)
    for model in "cde":
        release(registry, tmp_path, model, compared_with=1, keep=2)
    assert [n for n in range(1, 6) if registry.kept(n)] == [1, 4, 5], (
        "release 1 is the best, which the current one was held to"
    )
    assert list(registry.history().releases) == [1, 2, 3, 4, 5], "the record stays"
    with pytest.raises(NotReady, match="release 2 is no longer kept"):
        registry.roll_back(2, "", WHO)
    assert registry.history().current == registry.history().releases[5]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (ARCHIVE, "arch", r"ranker\.tar: is 4 bytes, should be 12"),
        (ARCHIVE, "ARCHIVE of a", r"ranker\.tar: changed"),
        ("model/model.onnx", None, r"model\.onnx: missing"),
        ("manifest.json", "{", "the manifest is damaged"),
        ("manifest.json", None, "has no manifest.json"),
    ],
)
def test_a_damaged_release_is_found_before_it_is_made_current(
    tmp_path: Path, file: str, text: str | None, message: str
) -> None:
    registry = Registry(Lake(tmp_path / "lake", "smoke"))
    for model in "ab":
        release(registry, tmp_path, model)
    damaged = registry.open(1) / file
    damaged.unlink()
    if text is not None:
        damaged.write_text(text)
    with pytest.raises(NotReady, match=message) as error:
        registry.roll_back(1, "", WHO)
    assert "\n" not in str(error.value)
    assert registry.history().current == registry.history().releases[2]


@pytest.mark.parametrize("text", ["", "{", '{"events": [{"kind": "party"}]}', '{"events": [{"kind": "override"}]}'])
def test_a_damaged_log_is_named(tmp_path: Path, text: str) -> None:
    registry = Registry(Lake(tmp_path / "lake", "smoke"))
    release(registry, tmp_path, "a")
    (registry.lake.read("releases", "log") / "log.json").write_text(text)
    with pytest.raises(NotReady, match=r"log\.json: the log of releases is damaged") as error:
        registry.history()
    assert "\n" not in str(error.value)


# a was released, then b, held to a; then c, held to b, and a was measured too
A, B, C = (
    Release(
        number,
        f"ranker:{model}",
        model,
        f"bento of {model}",
        WHO,
        "now",
        compared_with=number - 1 or None,
        replaced=number - 1 or None,
        measured=tuple(range(1, number)),
        evidence="full",
    )
    for number, model in enumerate("abc", 1)
)
BACK_TO_A = Rollback(1, 3, "wrong", WHO, "now")
D = Release(4, "ranker:d", "d", "bento of d", WHO, "now", 1, 1, measured=(1,), evidence="weak")


@pytest.mark.parametrize(
    ("events", "model", "measured"),
    [
        pytest.param([], "a", "", id="the first model"),
        pytest.param([A], "b", "a", id="a new model, with all that are kept"),
        pytest.param([A], "a", "", id="the current one, with what it was measured with: nothing"),
        pytest.param([A, B, C], "c", "ab", id="the current one, with what it was measured with"),
        pytest.param([A, B, C, BACK_TO_A], "c", "ab", id="one that was rolled back, as before"),
        pytest.param([A, B, C, BACK_TO_A], "a", "", id="and the one that was put back"),
        pytest.param([A, B, C, BACK_TO_A], "d", "a", id="a new model, with what was not rolled back"),
        pytest.param([A, B, C, BACK_TO_A, D], "d", "a", id="and stays measured with it"),
        pytest.param([A, B, C], "a", "bc", id="an old one that comes again, with all but itself"),
    ],
)
def test_which_releases_a_model_is_measured_with(events: list, model: str, measured: str) -> None:
    history = History(tuple(events))
    kept = history.measured_for(model, lambda number: number != 9)
    assert "".join(one.model for one in kept) == measured
    assert History.from_json(history.to_json()) == history


def test_what_is_deleted_later_changes_nothing_for_a_model_that_was_judged() -> None:
    history = History((A, B, C, BACK_TO_A))
    for model in "ac":
        assert history.measured_for(model, lambda _: False) == history.measured_for(model, lambda _: True)
    assert History((A, B, C)).measured_for("d", lambda number: number == 2) == (B,), "of those that are kept"


def test_a_log_of_before_the_best_release_counted_still_opens() -> None:
    """Releases named what they were compared with, and neither what was measured nor how strong the evidence was."""
    old = json.loads(History((A, B, C, BACK_TO_A)).to_json())
    for event in old["events"]:
        for added in ("measured", "evidence"):
            event.pop(added, None)
    history = History.from_json(json.dumps(old))
    assert history.current == replace(A, measured=(), evidence="")
    assert [one.number for one in history.measured_for("c", lambda _: True)] == [2], "what it was compared with"
    assert [one.number for one in history.measured_for("d", lambda _: True)] == [1]


@pytest.mark.parametrize(
    ("events", "withdrawn"),
    [
        pytest.param([A, B, C], "", id="replaced is not rolled back"),
        pytest.param([A, B, C, BACK_TO_A], "bc", id="all that came after"),
        pytest.param([A, B, C, BACK_TO_A, D], "bc", id="it stays so when another is released"),
        pytest.param([A, B, C, BACK_TO_A, Rollback(3, 1, "", WHO, "now")], "b", id="until it is put back"),
        pytest.param([A, B, C, BACK_TO_A, Override("c", "after all", WHO, "now")], "b", id="or let through"),
        pytest.param([A, B, Override("c", "go", WHO, "now"), C, BACK_TO_A], "bc", id="an older word does not count"),
    ],
)
def test_what_was_rolled_back(events: list, withdrawn: str) -> None:
    history = History(tuple(events))
    assert "".join(model for model in "abcd" if history.withdrawal(model)) == withdrawn
    assert History.from_json(history.to_json()) == history


def test_an_override_holds_for_one_model_alone(registry: Registry) -> None:
    word = registry.let_through("b", "the gate's\nqueries are old", WHO)
    assert word.reason == "the gate's queries are old"
    assert registry.let_through("b", "the gate's queries are old", "eve@lab") == word, "the same word is not kept twice"
    history = registry.history()
    assert history.override_of("b") == word
    assert history.override_of("a") is None
    assert history.override_of("c") is None
    assert registry.let_through("b", "another reason", WHO) != word


def stored(home: Path, *tags: str, latest: str) -> None:
    """What the registry looks at of Bentos in a store."""
    for tag in tags:
        folder = home / "bentos" / tag.replace(":", "/")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "bento.yaml").touch()
    (home / "bentos" / "ranker" / "latest").write_text(latest)


def test_the_store_is_repaired_and_what_is_not_ours_left_alone(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "bentoml"))
    assert registry.repair_store() is None, "nothing was released"
    for model in "ab":
        release(registry, tmp_path, model)
    stored(tmp_path / "bentoml", "ranker:a", "ranker:b", "ranker:theirs", latest="b")
    assert registry.repair_store() is None
    registry.roll_back(1, "", WHO)
    registry.serve(1)
    assert latest_tag("ranker") == "ranker:a"
    for latest, repaired in (("b", "ranker:a"), ("theirs", None), ("gone", "ranker:a"), ("a", None)):
        stored(tmp_path / "bentoml", latest=latest)
        assert registry.repair_store() == repaired, latest
        assert latest_tag("ranker") == (repaired or f"ranker:{latest}")


KILLED = """
import sys
from pathlib import Path
from neuroranker_pipeline.resources.lake import Lake
from neuroranker_pipeline.resources.releases import Registry
from neuroranker_pipeline_tests.resources.test_releases import release
registry = Registry(Lake(sys.argv[1], "smoke"))
for number in range(10_000):
    release(registry, Path(sys.argv[2]), f"{sys.argv[3]}-{number}", keep=2)
    print("released", flush=True)
    if number % 3 == 2:
        registry.roll_back(None, "", "x")
"""


def test_kill_9_leaves_a_registry_that_is_whole(tmp_path: Path) -> None:
    registry = Registry(Lake(tmp_path / "lake", "smoke"))
    last = 0
    for attempt in range(6):
        arguments = [sys.executable, "-c", KILLED, str(tmp_path / "lake"), str(tmp_path), str(attempt)]
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, cwd=os.getcwd())
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.017 * (attempt + 1))
        process.kill()
        process.wait()
        process.stdout.close()
        history = registry.history()
        assert history.current is not None
        assert len(history.releases) > last, "the one after it goes on"
        last = len(history.releases)
        folder = registry.open(history.current.number)
        assert (folder / "model" / "model.onnx").read_text() == history.current.model
    assert list(registry.history().releases) == list(range(1, last + 1))
