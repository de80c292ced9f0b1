"""A few hundred attacks on a served Bento, and that the script that sends them sees what is wrong."""

from __future__ import annotations

import importlib
import pickletools
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def hostile() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("hostile")


def test_attacks_are_answered_and_change_nothing(hostile: ModuleType, url: str, tmp_path: Path) -> None:
    before = hostile.good_answers(url)
    assert [status for status, _ in before.values()] == [200, 200, 404], "this Bento has no collection"
    statuses, complaints = hostile.assault(url, hostile.attacks(400, 0, tmp_path / "unpickled"))
    assert complaints == []
    assert not (tmp_path / "unpickled").exists()
    assert {200, 400, 404, 405, 415} <= set().union(*statuses.values())
    assert hostile.good_answers(url) == before


def test_slow_clients_do_not_keep_others_waiting(hostile: ModuleType, url: str) -> None:
    with hostile.SlowClients(url, 30) as slow:
        _, statuses = hostile.latencies(url, 6)
    assert set(statuses) == {200}
    assert statuses[200] > 10
    assert slow.ended["slow body"] >= 30


def test_the_same_seed_gives_the_same_attacks(hostile: ModuleType, tmp_path: Path) -> None:
    first, again, other = (hostile.attacks(60, seed, tmp_path) for seed in (0, 0, 1))
    assert first == again != other
    assert len(first) == 60


def test_the_payload_is_one_that_works(hostile: ModuleType, tmp_path: Path) -> None:
    import attacks  # beside the script

    payload = attacks.unpickled_creates(tmp_path / "made")
    steps = [(code.name, value) for code, value, _ in pickletools.genops(payload)]
    assert steps == [
        *[("GLOBAL", "builtins open"), ("MARK", None), ("UNICODE", str(tmp_path / "made")), ("UNICODE", "w")],
        *[("TUPLE", None), ("REDUCE", None), ("STOP", None)],  # REDUCE calls the function with the tuple
    ]


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        ((200, "application/json", b"[]", 1.0), None),
        ((400, "application/json", b'{"error": "a", "detail": "b"}', 1.0), None),
        ((200, "application/json", b"[]", 31.0), "took 31 seconds"),
        ((0, "", b"", 1.0), "no answer"),
        ((500, "application/json", b'{"error": "a", "detail": "b"}', 1.0), "status 500"),
        ((200, "text/html", b"Traceback (most recent call last)", 1.0), "shows the server's code"),
        (
            (404, "application/json", b'{"error": "neuroranker_pipeline/serving", "detail": ""}', 1.0),
            "shows the server's code",
        ),
        ((400, "text/plain", b"bad", 1.0), "an error that is not {error, detail}"),
        ((400, "application/json", b'{"error": "a"}', 1.0), "an error that is not {error, detail}"),
    ],
)
def test_what_is_wrong_with_an_answer_is_seen(
    hostile: ModuleType, answer: tuple[int, str, bytes, float], wrong: str | None
) -> None:
    assert hostile.complaint(hostile.Attack("any", b"GET / HTTP/1.1"), hostile.Answer(*answer)) == wrong


def test_a_payload_that_is_not_refused_is_seen(hostile: ModuleType) -> None:
    attack = hostile.Attack("pickle", b"POST / HTTP/1.1", refused=True)
    assert hostile.complaint(attack, hostile.Answer(200, "application/json", b"[]", 1.0)) == "not refused"
