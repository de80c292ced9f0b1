import time

import pyarrow as pa

from neuroranker_pipeline.evaluation.latency import QUERIES, queries_to_time, time_rerank


def asked(count):
    return [(f"query {i}", [f"passage {j}" for j in range(4)]) for i in range(count)]


def test_every_query_is_timed_once_after_a_first_one_that_does_not_count():
    seen = []
    found = time_rerank(lambda query, passages: seen.append((query, len(passages))), asked(5))
    assert seen == [("query 0", 4), *((f"query {i}", 4) for i in range(5))]
    assert (found.queries, found.candidates) == (5, 4.0)
    assert 0 <= found.milliseconds <= found.slowest


def test_it_stops_at_ten_queries_and_after_its_time_but_not_before_three():
    assert time_rerank(lambda query, passages: None, asked(50)).queries == QUERIES[1]
    assert time_rerank(lambda query, passages: time.sleep(0.01), asked(50), seconds=0.001).queries == QUERIES[0]
    assert time_rerank(lambda query, passages: None, asked(1)).queries == 1


def test_the_queries_to_time_are_those_with_most_candidates_and_at_most_a_hundred_of_them():
    rows = [("few", f"p{i:03d}") for i in range(2)] + [("many", f"p{i:03d}") for i in range(130)]
    rows += [(f"q{i}", "p000") for i in range(20)]
    candidates = pa.table({"qid": [qid for qid, _ in rows], "pid": [pid for _, pid in rows]})
    texts = {f"p{i:03d}": f"text {i}" for i in range(130)}
    chosen = dict(queries_to_time(candidates, {qid: f"the query {qid}" for qid, _ in rows}, texts))
    assert len(chosen) == 10
    assert chosen["the query many"] == [f"text {i}" for i in range(100)]
    assert chosen["the query few"] == ["text 0", "text 1"]
    assert queries_to_time(candidates.slice(0, 0), {}, {}) == []
