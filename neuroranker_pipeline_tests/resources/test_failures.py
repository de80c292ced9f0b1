"""Records of failed runs: what people read, where they lie, and a webhook that gets them or fails nothing."""

from __future__ import annotations

import json

import pytest

from neuroranker_pipeline.resources import failures
from neuroranker_pipeline.resources.failures import WEBHOOK_VARIABLE, FailedRun, keep, post
from neuroranker_pipeline.resources.lake import Lake
from neuroranker_pipeline_tests.resources.hook import Hook, webhook

RECORD = FailedRun(
    profile="smoke",
    run_id="6f1c2a7e-0000",
    job="__ASSET_JOB",
    what="base_scores[dev]",
    partition="dev",
    reason="no space left\non device",
    failed_at="2026-03-01T03:04:05+00:00",
    seconds=61.4,
)


def test_a_record_can_be_read_by_people() -> None:
    assert RECORD.to_markdown() == (
        "- 2026-03-01 03:04:05 UTC, **base_scores[dev]** after 61 s: no space left on device (run `6f1c2a7e-0000`)\n"
    )


def test_a_record_reaches_an_object_store() -> None:
    lake = Lake("memory://failures-test", "smoke")
    path = keep(RECORD, lake)
    assert path.endswith("/smoke/failures/20260301T030405-6f1c2a7e.json")
    assert json.loads(lake.fs.cat_file(path)) == json.loads(RECORD.to_json())
    assert lake.fs.cat_file(path.replace(".json", ".md")).decode() == RECORD.to_markdown()


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("/204/secret", None),
        ("/silent", "nothing could be posted (ReadTimeout)"),
        ("/500/secret", "127.0.0.1 answered 500"),
        ("/302/secret", "127.0.0.1 answered 302"),
    ],
)
def test_what_a_webhook_answers(path: str, problem: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "POST_SECONDS", 0.3)
    with webhook() as address:
        said = post(RECORD, address + path)
        assert Hook.posted == [("application/json", json.loads(RECORD.to_json()))], "a redirect is not followed"
    assert said == (f"{WEBHOOK_VARIABLE}: {problem}" if problem else None)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("file:///etc/secret", "expected an http:// or https:// address, got one of scheme 'file'"),
        ("secret", "expected an http:// or https:// address, got one of scheme ''"),
        ("http://", "expected an http:// or https:// address"),
        ("http://localhost:port/secret", "nothing could be posted (InvalidURL)"),
        ("http://127.0.0.1:9/secret", "nothing could be posted (ConnectError)"),
    ],
)
def test_a_wrong_webhook_is_said_without_its_secret(url: str, problem: str) -> None:
    said = post(RECORD, url)
    assert said is not None
    assert problem in said
    assert "secret" not in said
