import itertools
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuroranker_pipeline.evaluation import plots

NAN = float("nan")
finite = st.floats(-1e6, 1e6, allow_nan=False)


def shapes(svg: str, tag: str) -> list[dict[str, str]]:
    return [
        element.attrib | {"text": element.text or ""} for element in ET.fromstring(svg).iter() if element.tag == tag
    ]


def test_intervals_put_better_rankers_to_the_right_and_escape_names():
    svg = plots.intervals([("BM25", 0.2, 0.1, 0.3), ("<b>&", 0.6, NAN, NAN)], "MRR@10", ceiling=0.9, emphasised="BM25")
    first, second = shapes(svg, "circle")
    assert float(first["cx"]) < float(second["cx"])
    assert [shape["class"] for shape in (first, second)] == ["dot final", "dot"]
    assert float(second["cx"]) < float(next(e for e in shapes(svg, "line") if e["class"] == "ceiling")["x1"])
    assert "<b>&" in [text["text"] for text in shapes(svg, "text")]
    assert len([e for e in shapes(svg, "line") if e["class"].startswith("range")]) == 1


def test_lines_break_at_values_that_are_not_finite():
    svg = plots.lines({"loss": [(1, 3.0), (2, 2.0), (3, NAN), (4, 1.0)]}, "step", "loss")
    broken = shapes(svg, "polyline")
    assert [len(line["points"].split()) for line in broken] == [2, 1]
    heights = [float(point.split(",")[1]) for point in broken[0]["points"].split()]
    assert heights[0] < heights[1]  # a lower loss is drawn lower: SVG's y grows downwards
    assert plots.lines({"loss": [(1, NAN)]}, "step", "loss") == ""


@given(st.lists(st.tuples(st.integers(0, 10**6), finite), min_size=1, max_size=40))
def test_lines_draw_any_finite_curve_inside_the_picture(points):
    for line in shapes(plots.lines({"loss": [(float(x), y) for x, y in points]}, "step", "loss"), "polyline"):
        for point in line["points"].split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= plots.WIDTH
            assert 0 <= y <= 200


def test_differences_show_losses_below_and_wins_above_zero():
    svg = plots.differences([-0.5, 0.0, 1.0], "queries")
    zero = float(next(e for e in shapes(svg, "line") if e["class"] == "zero")["y1"])
    areas = {e["class"]: [float(p.split(",")[1]) for p in e["points"].split()] for e in shapes(svg, "polygon")}
    assert max(areas["loss"]) > zero == min(areas["loss"])
    assert min(areas["win"]) < zero == max(areas["win"])
    assert len(plots.differences(list(np.linspace(-1, 1, 7000)), "queries")) < 40_000
    assert plots.differences([], "queries") == ""


@given(finite, st.floats(1e-6, 1e6))
def test_ticks_are_round_and_inside(low, span):
    marks = plots.ticks(low, low + span)
    slack = 1e-6 * span + 1e-9
    assert all(low - slack <= mark <= low + span + slack for mark in marks)
    assert len(marks) <= 9


def test_ticks_of_a_unit_interval():
    assert plots.ticks(0.0, 1.0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]


def test_downsampling_keeps_the_mean_of_the_curve():
    points = [(float(i), float(i % 7)) for i in range(1000)]
    short = plots.downsample(points)
    assert len(short) == plots.POINTS
    assert np.mean([y for _, y in short]) == pytest.approx(np.mean([y for _, y in points]))


def test_text_bars_and_sparklines():
    assert plots.bar(1.0, 1.0, 4) == "████"
    assert plots.bar(0.5, 1.0, 1) == "▌"
    assert plots.bar(0.0, 0.0) == ""
    assert plots.sparkline([3.0, 2.0, NAN, 1.0]) == "█▅▁"  # 3.5 of 7 steps rounds to the even 4
    assert plots.sparkline([]) == ""
    assert len(plots.sparkline(list(range(500)))) == 30


def test_scatter_puts_cheaper_rankers_to_the_left_and_better_ones_higher():
    svg = plots.scatter([("slow", 2000.0, 0.5), ("<fast>", 20.0, 0.6)], "ms", "MRR@10", final="<fast>", floor=0.3)
    best, other = shapes(svg, "circle")  # from the top down
    assert (best["class"], other["class"]) == ("dot final", "dot")
    assert float(best["cx"]) < float(other["cx"])
    assert float(best["cy"]) < float(other["cy"])
    floor = next(float(e["y1"]) for e in shapes(svg, "line") if e["class"] == "ceiling")
    assert floor > float(other["cy"])
    assert [text["text"] for text in shapes(svg, "text") if text["class"].startswith("side")] == ["<fast>", "slow"]
    assert plots.scatter([], "ms", "MRR@10") == ""


@given(st.lists(st.tuples(st.floats(1e-3, 1e6), st.floats(0, 1)), min_size=1, max_size=9))
def test_names_beside_a_scatter_never_overlap_and_dots_stay_inside(points):
    svg = plots.scatter([(f"r{i}", x, y) for i, (x, y) in enumerate(points)], "ms", "MRR@10")
    height = float(ET.fromstring(svg).attrib["viewBox"].split()[3])
    names = [float(e["y"]) for e in shapes(svg, "text") if e["class"].startswith("side")]
    assert all(b - a >= 14.9 for a, b in itertools.pairwise(names))
    assert all(0 <= y <= height for y in names)
    for dot in shapes(svg, "circle"):
        assert plots.LEFT <= float(dot["cx"]) <= plots.WIDTH
        assert 0 <= float(dot["cy"]) <= height


def test_ticks_of_a_logarithmic_axis():
    assert plots.log_ticks(1, 3) == [10, 20, 50, 100, 200, 500, 1000]
    assert plots.log_ticks(0, 4) == [1, 10, 100, 1000, 10000]


def test_a_histogram_compares_shapes_not_numbers():
    svg = plots.histogram([0, 10], [5000, 5000], -1.0, 1.0)
    tops = {e["class"]: min(float(p.split(",")[1]) for p in e["points"].split()) for e in shapes(svg, "polygon")}
    bottoms = {e["class"]: max(float(p.split(",")[1]) for p in e["points"].split()) for e in shapes(svg, "polygon")}
    assert bottoms["others"] - tops["others"] == pytest.approx((bottoms["relevant"] - tops["relevant"]) / 2, abs=0.2)
    assert [e["class"] for e in shapes(plots.histogram([0, 0], [1, 2], 0, 1), "polygon")] == ["others"]
    assert shapes(plots.histogram([], [], 0, 1), "polygon") == []
