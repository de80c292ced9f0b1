from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from neuroranker_pipeline.errors import BadInput, NotReady
from neuroranker_pipeline.evaluation.report import ReportContext, write_report
from neuroranker_pipeline.resources.evaluations import find_evaluation, list_evaluations, past_measures
from neuroranker_pipeline.resources.metrics import Figure, MetricsStore, RunRecord
from neuroranker_pipeline_tests.evaluation.conftest import make_runs

NOON = datetime(2025, 1, 31, 12, tzinfo=UTC)


def evaluated(number: int, split: str = "test", kept: bool = True, run_id: str = "") -> RunRecord:
    values = pa.table(
        {"ranker": ["BM25", "student"], "qid": ["q1"] * 2, "measure": ["MRR@10"] * 2, "value": [0.5, number / 10]}
    )
    return RunRecord(
        run_id=run_id or f"{number:04x}aaaa-run",
        profile="quickstart",
        asset="eval_report",
        partition=split,
        started_at=NOON + timedelta(hours=number),
        wall_seconds=1.0,
        code_version="2",
        data_version="d",
        fingerprint="f",
        device="cpu",
        version=f"20250131T{12 + number}0000-{number:08x}",
        settings={"seed": number},
        versions={"torch": "2.13"},
        figures=(Figure("BM25/MRR@10", 0.5), Figure("student/MRR@10", number / 10), Figure("student/MAP", 0.9)),
        per_query=values if kept else None,
    )  # fmt: skip


@pytest.fixture
def store(tmp_path) -> MetricsStore:
    store = MetricsStore(str(tmp_path / "metrics"))
    for number, split in enumerate(["test", "test-dl19", "test", "test"]):
        store.append(evaluated(number, split))
    return store


def test_history_holds_the_last_evaluations_of_a_split_oldest_first(store):
    history = past_measures(store, "test", "MRR@10")
    assert [past["measures"] for past in history] == [{"BM25": 0.5, "student": n / 10} for n in (0, 2, 3)]
    assert history[0]["created"] == "2025-01-31T12:00:00+00:00"
    assert history[0]["run_id"] == "0000aaaa-run"
    assert [past["measures"]["student"] for past in past_measures(store, "test", "MRR@10", limit=2)] == [0.2, 0.3]
    assert past_measures(store, "test-dl20", "MRR@10") == []


@pytest.mark.parametrize(
    ("text", "number"),
    [("0002aaaa-run", 2), ("0002", 2), ("20250131T14", 2), ("latest", 3), ("previous", 2), ("0001", 1)],
)
def test_an_evaluation_is_found_by_its_run_its_version_or_its_age(store, text, number):
    found = find_evaluation(store, text)
    assert found.by_query("student", "MRR@10") == {"q1": number / 10}
    assert (found.settings, found.versions) == ({"seed": number}, {"torch": "2.13"})
    assert found.split == ("test-dl19" if number == 1 else "test")
    assert found.created == f"2025-01-31T{12 + number}:00:00+00:00"


def test_a_split_chooses_among_evaluations_of_one_run(store):
    for number, split in ((5, "test-dl19"), (6, "test-dl20")):
        store.append(evaluated(number, split, run_id="shared-run"))
    with pytest.raises(BadInput, match=r"'shared' fits 2 evaluations, .*: add --split"):
        find_evaluation(store, "shared")
    assert find_evaluation(store, "shared", "test-dl20").split == "test-dl20"
    assert find_evaluation(store, "latest", "test-dl19").by_query("BM25", "MRR@10") == {"q1": 0.5}
    assert [entry.split for entry in list_evaluations(store)][:2] == ["test-dl20", "test-dl19"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ffff", r"no evaluation, and no report's folder, is named 'ffff': the last evaluations are 0003aaaa \(test, "),
        ("00", "'00' is too short for the id of a run: give at least 4 characters"),
        ("2025", r"'2025' fits 4 evaluations, .*: add --split"),
    ],
)
def test_a_name_that_fits_none_or_several_is_one_clear_line(store, text, message):
    with pytest.raises(BadInput, match=message) as caught:
        find_evaluation(store, text)
    assert "\n" not in str(caught.value)


def test_an_empty_store_and_a_single_evaluation_say_so(tmp_path):
    store = MetricsStore(str(tmp_path))
    with pytest.raises(BadInput, match="there is no latest evaluation: there is no evaluation yet"):
        find_evaluation(store, "latest")
    store.append(evaluated(1))
    with pytest.raises(BadInput, match="there is no previous evaluation"):
        find_evaluation(store, "previous")


def test_an_evaluation_whose_values_were_not_kept_says_what_to_do(store):
    store.append(evaluated(7, kept=False))
    with pytest.raises(NotReady, match="not kept query by query, as those of later ones are: name the folder"):
        find_evaluation(store, "0007")


def test_the_folder_of_a_report_is_an_evaluation(store, tmp_path):
    from neuroranker_pipeline.evaluation.evaluation import evaluate

    result = evaluate(*make_runs(20))
    folder = tmp_path / "report"
    write_report(result, ReportContext("mine", split="test", created="2025-02-01", settings={"seed": 1}), folder)
    found = find_evaluation(store, str(folder))
    assert (found.name, found.split, found.created, found.settings) == ("report", "test", "2025-02-01", {"seed": 1})
    assert len(found.by_query("student", "MRR@10")) == 20
    (folder / "report.json").write_text("{")
    with pytest.raises(BadInput, match="the report is damaged"):
        find_evaluation(store, str(folder))
    (folder / "per_query.parquet").unlink()
    with pytest.raises(BadInput, match=r"is not the folder of a report: it has no per_query\.parquet"):
        find_evaluation(store, str(folder))
