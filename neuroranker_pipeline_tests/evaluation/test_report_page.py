"""The report in a browser: it asks nothing of anyone, and fits a desktop and a phone."""

import pytest

from neuroranker_pipeline.evaluation.compare import compare, render_comparison
from neuroranker_pipeline.evaluation.report import write_report
from neuroranker_pipeline_tests.evaluation.test_compare import past
from neuroranker_pipeline_tests.evaluation.test_report import context
from neuroranker_pipeline_tests.serving.browser import chromium

LONG = "numpy.ma.core." + "very_long_name_" * 8 + " how do I <b>sort</b> & count"
# What sticks out of the column of text.
OUTSIDE = """[...document.querySelectorAll('main *')]
    .filter((e) => e.checkVisibility() && e.getBoundingClientRect().right > document.querySelector('main').clientWidth
        + document.querySelector('main').getBoundingClientRect().left + 0.5)
    .map((e) => e.outerHTML.slice(0, 80))"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("browser")) as browser:
        browser.command("Network.enable")
        yield browser


@pytest.fixture(scope="module")
def pages(evaluation, tmp_path_factory):
    out = tmp_path_factory.mktemp("pages")
    write_report(evaluation, context(evaluation, LONG), out)
    before, after = past(evaluation, "before"), past(evaluation, "after", shift=0.2, settings={"a": {LONG: LONG}})
    text = render_comparison(compare(before, after), dict.fromkeys(evaluation.example_ids()[0], LONG), html=True)
    (out / "compare.html").write_text(text, encoding="utf-8")
    return out


@pytest.mark.parametrize("name", ["report.html", "compare.html"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_and_asks_nothing_of_the_network(browser, pages, name, width):
    browser.events.clear()
    browser.resize(width, 844)
    browser.open((pages / name).as_uri())
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run(OUTSIDE) == []
    asked = [e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    assert [url for url in asked if url != "about:blank"] == [(pages / name).as_uri()]
    assert browser.run("document.scripts.length") == 0


def test_details_open_and_show_both_top_tens(browser, pages):
    browser.resize(390, 844)
    browser.open((pages / "report.html").as_uri())
    browser.run("document.querySelectorAll('details').forEach((e) => { e.open = true; })")
    assert browser.run("document.documentElement.scrollWidth") <= 390
    assert browser.texts("details .pair h3")[:2] == ["BM25", "student int8"]
    assert browser.run("document.querySelectorAll('details .pair ol')[0].children.length") == 10
