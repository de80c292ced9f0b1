import base64
import itertools
import json
import math
import re
import xml.etree.ElementTree as ET
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
from neuroranker_pipeline.evaluation.significance import FLOOR

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
        costs=[
            {
                "name": "student",
                "bytes": 91_000_000,
                "milliseconds": 530.0,
                "slowest": 544.0,
                "passages_per_second": 188.0,
            },
            {"name": "student int8", "seconds": 245.0, "bytes": 23_000_000, "milliseconds": 212.0, "device": text},
            {"name": text},
        ],
        history=[
            {"created": "2025-01-01", "run_id": "0123456789", "measures": {"BM25": 0.2, "student": 0.4, "gone": 0.1}},
            {"created": text, "run_id": "89abcdef01", "measures": {"BM25": 0.21, "student": 0.45}},
        ],
        run_id="fedcba98-76",
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
    # Intervals and differences, two of costs, a ranker's scores each, history, two losses and the measures on the way.
    assert sum(tag == "svg" for tag, _ in page.elements) == 2 + 2 + 7 + 1 + 2 + 1
    for title in ("Quality against cost", "Scores", "MRR@10 by query type", "MRR@10 by query length", "History"):
        assert title in page.text
    for group in data["breakdowns"]:
        assert group["group"] in page.text
    assert "fedcba98" in page.text


def test_markdown_holds_what_the_page_shows(written):
    out, data = written
    text = (out / "report.md").read_text("utf-8")
    for title in (
        "Results", "Comparisons", "Quality against cost", "Scores", "MRR@10 by query type", "MRR@10 by query length",
        "History", "Training", "Queries that moved most", "Data set", "Settings", "Versions",
    ):  # fmt: skip
        assert f"\n## {title}\n" in text, title
    assert "| student int8 | 0." in text
    assert "| 212 |" in text
    assert "| 2025-01-31 | fedcba98 |" in text
    for example in data["examples"]:
        for rows in example["rankings"].values():
            assert all(row["pid"] in text for row in rows)


def test_history_ends_with_this_evaluation(evaluation, written):
    _, data = written
    assert [past["run_id"][:8] for past in data["history"]] == ["01234567", "89abcdef", "fedcba98"]
    assert data["history"][-1]["measures"]["student"] == evaluation.rankers[3].measures["MRR@10"]
    lines = reports.history_lines(data)
    assert [point[1] for point in lines["student"][:2]] == [0.4, 0.45]
    assert math.isnan(lines["teacher"][0][1])
    assert "gone" not in lines


def test_plots_for_the_ui_are_images_that_carry_themselves(written):
    _, data = written
    images = reports.plot_images(data)
    assert len(images) == 6
    for title, image in images.items():
        label, encoded = re.fullmatch(r"!\[(.*)\]\(data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)\)", image).groups()
        assert label == tables.markdown(title)
        svg = base64.b64decode(encoded).decode()
        root = ET.fromstring(svg)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        used = set(re.findall(r"var\((--\w+)\)", svg))
        assert used <= set(re.findall(r"(--\w+):", svg))  # colours of its own, for it cannot take the page's
        assert not re.search(r"https?://(?!www\.w3\.org)", svg)


def test_a_report_without_costs_or_history_leaves_them_out(evaluation, tmp_path):
    data = write_report(evaluation, ReportContext("smoke"), tmp_path)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "Quality against cost" not in page
    assert "<h2>History</h2>" not in page
    assert set(reports.plot_images(data)) == {"MRR@10 with 95% intervals", "change in MRR@10 by query"}


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
    assert widths == {13, 11, 10, 5, 4, 3}


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
    assert [tables.p_number(p) for p in (0.01234, 0.00002, 1.0)] == ["0.0123", "<0.0001", "1.0000"]
    assert tables.p_number(FLOOR) == "<0.00001"
    assert tables.p_number(7 * FLOOR, FLOOR) == "<0.00007"
    assert tables.p_number(0.0007, 0.0001) == "0.0007"
    assert tables.p_value(200 * FLOOR, FLOOR) == "p <0.002"
    assert [tables.short(value) for value in (None, 0.41234, -21.66, 1240.4, 1e-9)] == [
        tables.DASH, "0.412", "\N{MINUS SIGN}21.7", "1,240", "0",
    ]  # fmt: skip
    assert reports.minute("2025-01-31T12:05:33+00:00") == "2025-01-31 12:05"
    assert reports.minute("2025-01-31") == "2025-01-31"
