import itertools
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pyarrow.parquet as pq
import pytest
from rich.cells import cell_len

from neuroranker_pipeline.datasets.trec import read_run
from neuroranker_pipeline.evaluation import report as reports
from neuroranker_pipeline.evaluation import tables
from neuroranker_pipeline.evaluation.evaluation import evaluate
from neuroranker_pipeline.evaluation.report import ReportContext, render_html, report_data, write_report

ATTACK = "</title><script>alert(1)</script><img src=x onerror=alert(1)> | `code` [link](javascript:alert(1))"


def context(evaluation, text="a query about sorting") -> ReportContext:
    qids, pids = evaluation.example_ids()
    loss = [{"step": step, "loss": 1 / (step + 1), "lr": 1e-4, "dev MRR@10": 0.4} for step in range(300)]
    return ReportContext(
        profile=text,
        created="2025-01-31",
        dataset={"name": text, "licence": text, "queries": {"test": 60}},
        settings={"student": {text: 1e-4, "layers": (0, 1), "none": None}},
        versions={"torch": text},
        costs=[{"name": text, "seconds": 245.0, "bytes": 23_000_000}, {"name": "index"}],
        histories={"teacher": [*loss, {"step": 300, "loss": float("nan")}], "student": loss},
        queries=dict.fromkeys(qids, text),
        passages=dict.fromkeys(pids, text),
    )


class Elements(HTMLParser):
    """Every element with its attributes, and the text between."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def written(evaluation, tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    return out, write_report(evaluation, context(evaluation), out)


def test_json_holds_everything_and_is_strict_json(evaluation, written):
    out, data = written

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    read = json.loads((out / "report.json").read_text("utf-8"), parse_constant=refuse)
    assert read == data
    assert [row["ranker"] for row in read["rankers"]] == list(evaluation.runs)
    assert read["histories"]["teacher"][-1]["loss"] is None
    assert len(read["differences"]) == evaluation.queries
    assert {c["verdict"] for c in read["comparisons"]} <= {"better", "worse", "not significantly different"}
    assert read["examples"][0]["query"] == "a query about sorting"


def test_runs_and_per_query_values_are_written_as_measured(evaluation, written):
    out, _ = written
    assert pq.read_table(out / "per_query.parquet").equals(evaluation.per_query)
    assert {file.name for file in (out / "runs").iterdir()} == {
        "BM25.trec", "base-student.trec", "teacher.trec", "student.trec",
        "hard-label-control.trec", "student-ONNX.trec", "student-int8.trec",
    }  # fmt: skip
    assert read_run(out / "runs" / "student-int8.trec").equals(evaluation.runs["student int8"])


def test_html_shows_every_ranker_measure_and_finding(written):
    out, data = written
    page = Elements((out / "report.html").read_text("utf-8"))
    for row in data["rankers"]:
        assert row["ranker"] in page.text
        assert all(f"{value:.3f}" in page.text for value in row["measures"].values())
    assert all(finding in page.text for finding in data["findings"])
    assert sum(tag == "svg" for tag, _ in page.elements) == 2 + 2 + 1


def test_html_asks_nothing_of_the_network_and_runs_no_script(evaluation):
    html = render_html(report_data(evaluation, context(evaluation, ATTACK)))
    page = Elements(html)
    assert ATTACK in page.text  # shown, as text
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "img", "iframe", "link", "object", "embed", "a", "form", "base", "image", "use"}
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name in {"src", "href", "style", "srcset"}]
    assert not re.search(r"url\(|@import", html)
    policy = next(a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_markdown_shows_text_from_outside_literally(evaluation):
    text = reports.render_markdown(report_data(evaluation, context(evaluation, ATTACK)))
    assert "<script" not in re.sub(r"\\<", "", text)
    assert "](javascript" not in text.replace("\\]", "")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in rows}  # an unescaped bar would add a column
    assert widths == {10, 11, 5, 3}


def test_markdown_tables_are_whole(written):
    out, _ = written
    lines = (out / "report.md").read_text("utf-8").splitlines()
    for previous, line in itertools.pairwise(lines):
        if line.startswith("| ---"):
            assert previous.startswith("|")
        if line.startswith("|") and not previous.startswith("|"):
            assert previous == ""


@pytest.mark.parametrize("long", [False, True])
def test_the_terminal_table_fits_a_hundred_columns(evaluation, runs_and_qrels, long):
    if long:
        runs, qrels = runs_and_qrels
        evaluation = evaluate({**runs, "a ranker with quite a long name " * 3: runs["teacher"]}, qrels)
    data = json.loads(json.dumps(report_data(evaluation, context(evaluation))))
    text = tables.table_text(data, width=140)
    assert max(cell_len(line.rstrip()) for line in text.splitlines()) <= 100
    for row in data["rankers"][:7]:
        line = next(line for line in text.splitlines() if line.startswith(f"│ {row['ranker']} "))
        cells = [cell.strip() for cell in line.split("│")]
        assert cells[2:5] == [f"{row['measures'][m]:.3f}" for m in ("MRR@10", "nDCG@10", "R@100")]
        change = tables.change(data, row["ranker"], "BM25")
        assert cells[5] == tables.change_text(change)
    assert ("…" in text) == long  # only the long name is cut


def test_the_terminal_table_takes_names_literally(evaluation):
    data = report_data(evaluation, replace(context(evaluation), profile="[red]quick[/red]"))
    assert "[red]quick[/red]" in tables.table_text(data)


def test_a_single_run_and_an_empty_context_make_a_report(runs_and_qrels, tmp_path):
    runs, qrels = runs_and_qrels
    data = write_report(evaluate({"mine": runs["student"]}, qrels.slice(0, 1)), ReportContext("smoke"), tmp_path)
    assert data["rankers"][0]["intervals"]["MRR@10"] == [None, None]  # one query says nothing about the spread
    assert "mine" in tables.table_text(data)
    assert "Only 1 judged" in (tmp_path / "report.md").read_text("utf-8")


def test_sizes_and_times_for_people():
    assert [reports.size(n) for n in (None, 12, 23_400_000)] == [tables.DASH, "12 B", "23.4 MB"]
    assert [reports.seconds(s) for s in (8.21, 185, 7260)] == ["8.2 s", "3 min 05 s", "2 h 01 min"]
    assert reports.file_name("student int8") == "student-int8"
    assert reports.file_name("../../etc/passwd") == "etc-passwd"
    assert tables.p_value(0.0001) == "p <0.001"
