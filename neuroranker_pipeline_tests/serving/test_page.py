"""The search page in a real browser, from a real server; the service behind it is tested elsewhere."""

from __future__ import annotations

import re
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route

from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.serving import page
from neuroranker_pipeline.serving.page import SearchPage
from neuroranker_pipeline_tests.serving.browser import Browser, chromium

HOSTILE = "<script>document.title = 'hacked'</script><img src=x onerror=\"document.title = 'hacked'\"> tides & moons"
LONG = "The sun raises tides too, but less than half as high as the moon does. " * 12
# (pid, text, cosine, BM25's rank, BM25's score): 17 -> 1, 1 -> 2, 3 -> 3, 2 -> 4
PASSAGES = [
    ("7130104", "Water on the side that faces the Moon is pulled towards it, and so the sea rises.", 0.8312, 17, 8.25),
    ("42", HOSTILE, 0.7461, 1, 15.5),
    ("9", LONG, 0.5127, 3, 12.0),
    ("11", "What a tide table is for.", -0.0213, 2, 14.125),
]
KEY = "open-sesame"


def hit(rank: int, passage: tuple[str, str, float, int, float]) -> dict[str, Any]:
    pid, text, score, bm25_rank, bm25_score = passage
    return {
        "pid": pid,
        "text": text,
        "rank": rank,
        "score": score,
        "bm25_rank": bm25_rank,
        "bm25_score": bm25_score,
    }


async def answer(request: Request) -> Response:
    """``POST /search`` as agreed; what is asked says which of its answers to give."""
    body = await request.json()
    query, status = body["query"], re.fullmatch(r"fail (\d+)", body["query"])
    if query == "locked" and request.headers.get("authorization") != f"Bearer {KEY}":
        return JSONResponse({"error": "Unauthorized", "detail": "a key is needed"}, status_code=401)
    if query == "wrong field":
        detail = [{"type": "string_too_long", "loc": ["query"], "msg": "at most 3 characters"}]
        return JSONResponse({"error": "query: at most 3 characters", "detail": detail}, status_code=400)
    if query == "garbled":
        return HTMLResponse("<h1>a proxy</h1>")
    if status:
        error = {"error": "no", "detail": f"why it is {status[1]} & <b>not</b> 200"}
        return JSONResponse(error, status_code=int(status[1]), headers={"Retry-After": "7"})
    found = [] if query == "nothing" else [hit(rank, p) for rank, p in enumerate(PASSAGES[: body["k"]], 1)]
    milliseconds = {"bm25": 4.21, "encode": 6.5, "rank": 1.25, "total": 12.5}
    about = {"candidates": 1000, "bm25_weight": 0.3 if query == "both" else 0.0, "milliseconds": milliseconds}
    return JSONResponse({"query": query, "hits": found, **about})


async def own_page(request: Request) -> Response:
    """What BentoML has at ``/``: a page that brings a script of a third party."""
    return HTMLResponse("<title>own page</title><script>document.title = 'counted'</script>")


ROUTES = [Route("/search", answer, methods=["POST"]), Route("/", own_page, methods=["GET", "POST"])]


@contextmanager
def served(prefix: str = "") -> Iterator[str]:
    """The page around the small application, on a free loopback port."""
    app = Starlette(routes=ROUTES)
    app.add_middleware(SearchPage)
    if prefix:
        app = Starlette(routes=[Mount(prefix, app)])
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            deadline = time.monotonic() + 20
            while not server.started:
                assert thread.is_alive()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served() as address:
        yield address


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("chromium")) as tab:
        yield tab


def ask(browser: Browser, url: str, query: str, **more: Any) -> None:
    """Open the page with a question in its address, and wait for what it shows."""
    browser.open(f"{url}/?{urllib.parse.urlencode({'q': query, **more})}")
    settled(browser)


def settled(browser: Browser) -> None:
    browser.wait("document.querySelector('#status').textContent !== 'Searching…'")


def get(url: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    request = urllib.request.Request(url, method=method, headers={k.replace("_", "-"): v for k, v in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, {k.lower(): v for k, v in response.headers.items()}, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, {k.lower(): v for k, v in error.headers.items()}, error.read()


def test_the_page_comes_with_a_strict_policy_and_asks_nobody_else(url: str) -> None:
    status, headers, body = get(f"{url}/")
    assert status == 200
    assert headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == "'self'"
    for name in ("script-src", "style-src"):
        assert re.fullmatch(r"'sha256-[A-Za-z0-9+/]{43}='", policy[name])
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    text = body.decode()
    assert not re.search(r"\son\w+=|\sstyle=|\ssrc=|innerHTML|@import|localStorage|sessionStorage|cookie", text)
    assert re.findall(r"https?://[^'\" ]+", text) == ["http://www.w3.org/2000/svg"]  # a name, which nobody fetches


def test_a_policy_allows_each_script_and_style_by_its_hash_and_no_other() -> None:
    assert "script-src 'none'; style-src 'none'" in page.content_security_policy("<p>plain</p>")
    # echo -n 'let a' | openssl dgst -sha256 -binary | base64
    hashes = (
        "'sha256-IfEXP/8HLuXoAiy0hZVrCAcjcLsZqYFpLOHDGj8enqE=' 'sha256-gZ7YtBHYJlXDIlfAddq5Sw/QYJv5E8tJmDWivVTn/60='"
    )
    expected = f"script-src {hashes}; style-src 'none'"
    assert expected in page.content_security_policy("<script>let a</script><p></p><script>let b</script>")


def test_a_browser_that_has_the_page_is_told_so(url: str) -> None:
    _, headers, body = get(f"{url}/")
    assert headers["cache-control"] == "no-cache"
    status, again, nothing = get(f"{url}/", if_none_match=f'"other", W/{headers["etag"]}')
    assert (status, nothing) == (304, b"")
    assert again["etag"] == headers["etag"]
    assert get(f"{url}/", if_none_match='"other"')[::2] == (200, body)


def test_head_is_get_without_the_page(url: str) -> None:
    _, headers, body = get(f"{url}/")
    status, head, nothing = get(f"{url}/", "HEAD")
    assert (status, nothing) == (200, b"")
    assert head["content-length"] == str(len(body))
    assert {**headers, "date": ""} == {**head, "date": ""}


def test_everything_else_is_passed_on(url: str) -> None:
    assert get(f"{url}/", "POST")[2].startswith(b"<title>own page")
    assert get(f"{url}/missing")[0] == 404
    assert get(f"{url}/search")[0] == 405


def test_the_page_that_was_at_the_root_moves_to_docs_without_third_parties(url: str, browser: Browser) -> None:
    status, headers, body = get(f"{url}/docs")
    assert status == 200
    assert body.startswith(b"<title>own page")
    assert headers["content-security-policy"] == page.DOCS_POLICY
    browser.open(f"{url}/docs")
    assert browser.run("document.title") == "own page"


def test_it_works_under_a_path_prefix(browser: Browser) -> None:
    with served("/ranker") as url:
        assert get(f"{url}/ranker/docs")[2].startswith(b"<title>own page")
        ask(browser, f"{url}/ranker", "why tides")
        assert len(browser.texts("#after .hit")) == len(PASSAGES)


def test_a_build_without_the_page_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(page, "PAGE_FILE", tmp_path / "page.html")
    with pytest.raises(BadInput, match=r"page\.html: the search page cannot be read"):
        SearchPage(Starlette())


def test_a_question_in_the_address_shows_both_orders(url: str, browser: Browser) -> None:
    ask(browser, url, "Why is there a tide on the side facing the moon?")
    assert browser.text("#status") == "The best 4 of 1,000 candidates, in 12.5 ms"
    assert browser.run("document.title") == "Why is there a tide on the side facing the moon? | NeuroRanker"
    assert browser.texts("#after .place") == ["Rank 1", "Rank 2", "Rank 3", "Rank 4"]
    assert browser.texts("#after .move") == ["▲ up 16", "▼ down 1", "= same place", "▼ down 2"]
    assert browser.texts("#after .score") == ["cosine 0.8312", "cosine 0.7461", "cosine 0.5127", "cosine -0.0213"]
    assert browser.texts("#after .pid") == ["id 7130104", "id 42", "id 9", "id 11"]
    assert browser.text("#after .facts").split("\n")[-2:] == ["BM25 rank 17 (score 8.25)", "id 7130104"]
    assert browser.texts("#before .place") == ["BM25 rank 1", "BM25 rank 2", "BM25 rank 3", "BM25 rank 17"]
    assert browser.texts("#before .facts b") == ["2", "4", "3", "1"]
    assert browser.texts("#before .move") == ["▼ down 1", "▼ down 2", "= same place", "▲ up 16"]
    assert browser.texts("#times div") == ["BM254.2 ms", "question to vector6.5 ms", "ranking1.3 ms", "other0.5 ms"]
    assert not browser.shown("#intro")


def test_a_bar_is_as_long_as_its_cosine(url: str, browser: Browser) -> None:
    ask(browser, url, "why tides")
    shares = browser.run(
        "[...document.querySelectorAll('#after .score i')].map((bar) => "
        "parseFloat(getComputedStyle(bar, '::before').width) / bar.clientWidth)"
    )
    assert shares == pytest.approx([0.8312, 0.7461, 0.5127, 0], abs=0.01)


def test_the_page_says_what_orders_the_passages(url: str, browser: Browser) -> None:
    ask(browser, url, "why tides")
    assert browser.text("#after-by") == "by the student's cosine"
    assert not browser.shown("#mixed")
    ask(browser, url, "both")
    assert browser.text("#after-by") == "by the student's cosine and 0.3 \u00d7 BM25"
    assert browser.shown("#mixed")


def test_words_of_the_question_are_marked_but_not_the_ones_that_bm25_drops(url: str, browser: Browser) -> None:
    ask(browser, url, "what is the moon for")
    assert browser.texts("#after mark") == ["Moon", *["moon"] * 12, "What"]


def test_passages_are_text_and_never_markup(url: str, browser: Browser) -> None:
    ask(browser, url, "<img src=x onerror=alert(1)>")
    assert browser.texts("#after .text")[1] == HOSTILE
    assert browser.run("document.querySelectorAll('main img, main script').length") == 0
    assert browser.run("document.title") == "<img src=x onerror=alert(1)> | NeuroRanker"


def test_the_number_of_results_comes_from_the_address_within_bounds(url: str, browser: Browser) -> None:
    ask(browser, url, "why tides", k=2)
    assert len(browser.texts("#after .hit")) == 2
    for k in ("0", "101", "many"):
        ask(browser, url, "why tides", k=k)
        assert browser.run("document.querySelector('#count').value") == "10"


def test_a_long_passage_is_folded_until_asked_for(url: str, browser: Browser) -> None:
    ask(browser, url, "why tides")
    assert browser.texts("#after button") == ["Show all"]
    height = "document.querySelector('#text-3').clientHeight"
    folded = browser.run(height)
    browser.run("document.querySelector('#after button').click()")
    assert browser.run(height) > folded
    assert browser.texts("#after button") == ["Show less"]
    assert browser.run("document.querySelector('#after button').getAttribute('aria-expanded')") == "true"
    browser.run("document.querySelector('#after button').click()")
    assert browser.run(height) == folded


def test_without_a_question_the_page_explains_itself(url: str, browser: Browser) -> None:
    browser.open(f"{url}/")
    assert browser.shown("#intro")
    assert not any(browser.shown(panel) for panel in ("#found", "#error", "#locked"))
    assert browser.focus() == "question"


def test_no_candidates_is_an_answer(url: str, browser: Browser) -> None:
    ask(browser, url, "nothing")
    assert browser.text("#status") == "No passage shares a word with this question."
    assert not browser.shown("#found")


@pytest.mark.parametrize(
    ("status", "title", "again"),
    [
        (404, "There is nothing to search here", False),
        (413, "The question is too long", False),
        (429, "The service is busy", True),
        (500, "The service failed", True),
        (503, "The service is busy", True),
        (418, "The service refuses the request", False),
    ],
)
def test_an_error_is_said_in_words(url: str, browser: Browser, status: int, title: str, again: bool) -> None:
    ask(browser, url, f"fail {status}")
    assert browser.text("#error-title") == title
    assert browser.text("#error-detail") == f"why it is {status} & <b>not</b> 200\nTry again in 7 s."
    assert browser.shown("#retry") == again
    assert not browser.shown("#found")


def test_a_refused_field_and_an_answer_that_is_none_are_said_in_words(url: str, browser: Browser) -> None:
    ask(browser, url, "wrong field")
    assert browser.text("#error-detail") == "query: at most 3 characters"
    ask(browser, url, "garbled")
    assert browser.text("#error-title") == "The answer cannot be read"


def test_a_service_that_is_gone_is_said_in_words(browser: Browser) -> None:
    with served() as url:
        browser.open(f"{url}/")
    browser.type("why tides")
    browser.press("Enter")
    browser.wait("document.querySelector('#error').checkVisibility()")
    assert browser.text("#error-title") == "The service does not answer"
    assert browser.shown("#retry")


def test_a_key_is_asked_for_and_sent_and_not_kept(url: str, browser: Browser) -> None:
    ask(browser, url, "locked")
    assert browser.text("#locked-detail") == "a key is needed"
    assert browser.focus() == "key"
    browser.type("wrong")
    browser.press("Enter")
    browser.wait("document.querySelector('#key').value === '' && document.querySelector('#locked').checkVisibility()")
    browser.type(KEY)
    browser.press("Enter")
    browser.wait("document.querySelector('#found').checkVisibility()")
    assert not browser.shown("#locked")
    assert KEY not in browser.run("location.href + document.documentElement.outerHTML + document.cookie")
    assert browser.run("localStorage.length + sessionStorage.length") == 0
    ask(browser, url, "locked")
    assert browser.shown("#locked")


def test_the_keyboard_does_it_all(url: str, browser: Browser) -> None:
    browser.open(f"{url}/")
    browser.type("why tides")
    browser.press("Enter")
    browser.wait("document.querySelector('#found').checkVisibility()")
    assert browser.run("location.search") == "?q=why+tides&k=10"
    visited = []
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "ArrowUp", "ArrowRight", "ArrowDown", "ArrowUp", "ArrowUp"):
        browser.press(key)
        visited.append(browser.focus())
    # 2 is first in BM25's order, and above the first is the question.
    assert visited == ["after:1", "after:2", "before:2", "question", "question", "after:1", "question", "question"]
    browser.press("ArrowDown")
    assert browser.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    browser.press("/", "/")
    assert browser.focus() == "question"
    browser.press("/", "/")  # a letter like any other in the question, whose text is selected
    assert browser.run("document.querySelector('#question').value") == "/"
    browser.press("Escape")
    assert browser.run("location.search + document.querySelector('#question').value") == ""
    assert browser.shown("#intro")
    assert not browser.shown("#found")


def test_the_same_passage_is_marked_in_the_other_order(url: str, browser: Browser) -> None:
    ask(browser, url, "why tides")
    browser.press("ArrowDown")
    assert browser.run("document.querySelector('.linked').closest('ol').id") == "before"
    assert browser.run("document.querySelector('.linked').dataset.rank") == "1"
    browser.run("document.querySelector('#before .hit').click()")
    assert browser.focus() == "after:2"


def test_back_goes_to_the_question_before(url: str, browser: Browser) -> None:
    ask(browser, url, "why tides", k=2)
    browser.run("document.querySelector('#question').select()")
    browser.type("nothing")
    browser.press("Enter")
    browser.wait("document.querySelector('#status').textContent.startsWith('No passage')")
    browser.run("history.back()")
    browser.wait("document.querySelector('#found').checkVisibility()")
    assert browser.run("document.querySelector('#question').value") == "why tides"
    assert len(browser.texts("#after .hit")) == 2


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(url: str, browser: Browser, width: int) -> None:
    browser.resize(width, 844)
    ask(browser, url, "why tides" + "s" * 300)
    assert browser.run("document.documentElement.scrollWidth") <= width
    columns = browser.run("getComputedStyle(document.querySelector('#results')).gridTemplateColumns").split()
    assert len(columns) == (1 if width == 390 else 2)
