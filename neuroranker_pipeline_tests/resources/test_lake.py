"""The one storage rule: whole artifacts or none."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from neuroranker_pipeline.errors import NotReady
from neuroranker_pipeline.pointer import resolve_artifact
from neuroranker_pipeline.resources.lake import Lake
from neuroranker_pipeline.resources.manifest import Check, content_version, digest_files, fingerprint

COMMON = {"code_version": "1", "settings": {"k1": 0.9}, "inputs": {"queries": "abc"}}


def publish(lake: Lake, text: str, asset: str = "passages", partition: str | None = None, **checks: bool) -> None:
    with lake.publish(asset, partition, fingerprint=f"f-{text}", **COMMON) as draft:
        (draft.path / "part.txt").write_text(text)
        draft.rows = len(text)
        draft.checks += [Check(name, passed, "a rule") for name, passed in checks.items()]


@pytest.fixture(params=["local", "memory"])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> Lake:
    root = str(tmp_path / "lake") if request.param == "local" else f"memory://{uuid.uuid4().hex}"
    return Lake(root, "smoke", cache=tmp_path / "cache")


def test_what_was_published_is_read_back(lake: Lake) -> None:
    publish(lake, "one")
    assert (lake.read("passages") / "part.txt").read_text() == "one"
    manifest = lake.usable("passages")
    assert (manifest.rows, manifest.fingerprint, manifest.inputs) == (3, "f-one", {"queries": "abc"})
    assert manifest.files["part.txt"]["bytes"] == 3
    on_disk = digest_files(lake.read("passages"))
    del on_disk["manifest.json"]
    assert on_disk == manifest.files
    assert manifest.data_version == content_version(on_disk)


def test_partitions_are_separate(lake: Lake) -> None:
    publish(lake, "dev rows", partition="dev")
    publish(lake, "test rows", partition="test")
    assert (lake.read("passages", "dev") / "part.txt").read_text() == "dev rows"
    assert lake.manifest("passages") is None


def test_replacing_keeps_the_version_that_readers_hold(lake: Lake) -> None:
    publish(lake, "one")
    held = lake.read("passages")
    publish(lake, "two")
    assert (held / "part.txt").read_text() == "one"
    assert (lake.read("passages") / "part.txt").read_text() == "two"
    publish(lake, "three")
    versions = lake.fs.ls(f"{lake.base}/passages/versions", detail=False)
    assert len(versions) == 2, "older versions than the previous one are cleared away"


def test_an_error_inside_leaves_the_old_version(lake: Lake) -> None:
    publish(lake, "one")
    with pytest.raises(RuntimeError), lake.publish("passages", None, fingerprint="f", **COMMON) as draft:
        (draft.path / "part.txt").write_text("half")
        raise RuntimeError("the disk is on fire")
    assert (lake.read("passages") / "part.txt").read_text() == "one"
    publish(lake, "two")
    assert (lake.read("passages") / "part.txt").read_text() == "two"


def test_a_failed_blocking_check_makes_an_artifact_unusable(lake: Lake) -> None:
    publish(lake, "bad", unique_ids=False)
    with pytest.raises(NotReady, match=r"passages failed a blocking check.*unique_ids"):
        lake.read("passages")
    publish(lake, "good", unique_ids=True)
    lake.read("passages")


def test_a_missing_artifact_says_what_to_run(lake: Lake) -> None:
    with pytest.raises(NotReady, match="neuroranker run --select queries"):
        lake.read("queries")


def test_equal_bytes_give_equal_data_versions(lake: Lake) -> None:
    publish(lake, "same")
    first = lake.usable("passages").data_version
    publish(lake, "same")
    assert lake.usable("passages").data_version == first
    publish(lake, "other")
    assert lake.usable("passages").data_version != first


def test_work_survives_a_failed_attempt_with_the_same_fingerprint_alone(lake: Lake) -> None:
    with pytest.raises(RuntimeError), lake.publish("model", None, fingerprint="same", **COMMON) as draft:
        (draft.work / "checkpoint").write_text("step 10")
        raise RuntimeError
    with pytest.raises(RuntimeError), lake.publish("model", None, fingerprint="same", **COMMON) as draft:
        assert (draft.work / "checkpoint").read_text() == "step 10"
        assert list(draft.path.iterdir()) == []
        raise RuntimeError
    with lake.publish("model", None, fingerprint="changed", **COMMON) as draft:
        assert list(draft.work.iterdir()) == []
        (draft.path / "weights").write_text("w")
    assert [p.name for p in (lake.scratch / "model" / "_").iterdir()] == ["lock"]


def test_a_second_writer_of_the_same_artifact_is_refused(lake: Lake) -> None:
    with lake.publish("passages", None, fingerprint="f", **COMMON) as draft:
        (draft.path / "part.txt").write_text("mine")
        with pytest.raises(NotReady, match=rf"passages is being written by another process \(pid {os.getpid()}\)"):
            publish(lake, "theirs")
    assert (lake.read("passages") / "part.txt").read_text() == "mine"


KILLED = """
import sys, time
from neuroranker_pipeline.resources.lake import Lake
lake = Lake(sys.argv[1], "smoke")
with lake.publish("passages", None, fingerprint="f", code_version="1", settings={}, inputs={}) as draft:
    (draft.path / "part.txt").write_text("half")
    (draft.work / "checkpoint").write_text("kept")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_kill_9_leaves_the_old_version_and_frees_the_lock(tmp_path: Path) -> None:
    lake = Lake(tmp_path, "smoke")
    publish(lake, "one")
    with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        process.kill()
        process.wait()
    assert (lake.read("passages") / "part.txt").read_text() == "one"
    with lake.publish("passages", None, fingerprint="f", **COMMON) as draft:
        assert (draft.work / "checkpoint").read_text() == "kept"
        assert list(draft.path.iterdir()) == []
        (draft.path / "part.txt").write_text("two")
    assert (lake.read("passages") / "part.txt").read_text() == "two"


READER = """
import sys, time
from neuroranker_pipeline.resources.lake import Lake
lake = Lake(sys.argv[1], "smoke")
end = time.monotonic() + 2
reads = 0
while time.monotonic() < end:
    folder = lake.read("passages")
    assert len({path.read_text() for path in folder.glob("*.txt")}) == 1, "a mixture of two versions"
    reads += 1
print(reads)
"""


def test_a_reader_in_another_process_never_sees_half_an_artifact(tmp_path: Path) -> None:
    lake = Lake(tmp_path, "smoke")

    def publish_pair(number: int) -> None:
        with lake.publish("passages", None, fingerprint=str(number), **COMMON) as draft:
            for name in ("a.txt", "b.txt"):
                (draft.path / name).write_text(str(number))

    publish_pair(0)
    reader = subprocess.Popen([sys.executable, "-c", READER, str(tmp_path)], stdout=subprocess.PIPE)
    number = 0
    while reader.poll() is None:
        publish_pair(number := number + 1)
        time.sleep(0.02)  # slower than a read: a reader may hold the version before the current one, no older
    output, _ = reader.communicate()
    assert reader.returncode == 0
    assert int(output) > 10
    assert number > 10


def test_an_artifact_folder_stands_for_its_current_version(tmp_path: Path) -> None:
    lake = Lake(tmp_path, "smoke")
    publish(lake, "one")
    assert resolve_artifact(tmp_path / "smoke" / "passages") == lake.read("passages")
    assert resolve_artifact(tmp_path) == tmp_path


def test_fingerprints_see_code_settings_and_inputs() -> None:
    base = fingerprint("1", {"k1": 0.9}, {"queries": "a"})
    assert base == fingerprint("1", {"k1": 0.9}, {"queries": "a"})
    assert len({base, fingerprint("2", {"k1": 0.9}, {"queries": "a"}), fingerprint("1", {"k1": 0.8}, {"queries": "a"}),
                fingerprint("1", {"k1": 0.9}, {"queries": "b"})}) == 4  # fmt: skip


def test_what_members_of_a_model_record_of_their_training_is_no_content() -> None:
    files = {"model.safetensors": {"sha256": "a"}, "members/b/model.safetensors": {"sha256": "b"}}
    timed = {**files, "training.json": {"sha256": "c"}, "members/b/training.json": {"sha256": "d"}}
    assert content_version(timed) == content_version(files)
    assert content_version({**files, "members/b/config.json": {"sha256": "e"}}) != content_version(files)


def test_what_was_removed_is_gone_and_its_neighbours_are_not(lake: Lake) -> None:
    for partition in ("1", "2"):
        publish(lake, f"release {partition}", "releases", partition)
        lake.read("releases", partition)
    lake.remove("releases", "1")
    assert lake.manifest("releases", "1") is None
    assert (lake.read("releases", "2") / "part.txt").read_text() == "release 2"
    lake.remove("releases", "1")
    publish(lake, "again", "releases", "1")
    assert (lake.read("releases", "1") / "part.txt").read_text() == "again"
