"""Small plots as inline SVG strings, and as text for places that show no images.

Drawn by hand rather than with matplotlib, so that they take their colours from the page (light and dark),
keep real text, and stay a few kilobytes. Every length is in SVG units; ``WIDTH`` units fill a phone's width
at about full size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import escape

WIDTH = 380
SERIES = 9  # colours of lines
POINTS = 200  # a longer curve is averaged down to this many points
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 36  # margins of a plot with two axes

Point = tuple[float, float]


def intervals(
    rows: Sequence[tuple[str, float, float, float]], label: str, ceiling: float | None = None, emphasised: str = ""
) -> str:
    """A dot with its interval for each ``(name, value, low, high)``, one of them emphasised, and the ceiling as a
    line.
    """
    row_height, left, right = 26, 132, 48
    height = len(rows) * row_height + BOTTOM + TOP
    known = [x for _, *numbers in rows for x in numbers if math.isfinite(x)]
    low, high = _padded(known + ([ceiling] if ceiling is not None else []))
    x = _scale(low, high, left, WIDTH - right)
    bottom = height - BOTTOM
    parts = _x_axis(x, low, high, bottom, label)
    if ceiling is not None:
        parts.append(f'<line class="ceiling" x1="{x(ceiling):.1f}" x2="{x(ceiling):.1f}" y1="{TOP}" y2="{bottom}"/>')
    for i, (name, value, start, end) in enumerate(rows):
        y = TOP + (i + 0.5) * row_height
        final = " final" if name == emphasised else ""
        parts.append(f'<text class="name{final}" x="{left - 10}" y="{y + 4:.1f}">{escape(_cut(name, 20))}</text>')
        if math.isfinite(start) and math.isfinite(end):
            parts.append(
                f'<line class="range{final}" x1="{x(start):.1f}" x2="{x(end):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
            )
        parts.append(f'<circle class="dot{final}" cx="{x(value):.1f}" cy="{y:.1f}" r="4.5"/>')
        parts.append(f'<text class="value{final}" x="{WIDTH - 4}" y="{y + 4:.1f}">{value:.3f}</text>')
    return _svg(height, parts, f"{label} of each ranker with its 95% interval")


def lines(series: Mapping[str, Sequence[Point]], x_label: str, y_label: str, height: int = 200) -> str:
    """One line a series of ``(x, y)``, x a whole number; points that are not finite leave a gap. The legend is the
    caller's.
    """
    shown = {name: downsample(points) for name, points in series.items()}
    points = [p for line in shown.values() for p in line if math.isfinite(p[1])]
    if not points:
        return ""
    (x_low, x_high), (y_low, y_high) = _span([p[0] for p in points]), _padded([p[1] for p in points])
    x, y = _scale(x_low, x_high, LEFT, WIDTH - RIGHT), _scale(y_low, y_high, height - BOTTOM, TOP)
    parts = _x_axis(x, x_low, x_high, height - BOTTOM, x_label, grid=False, whole=True)
    parts += _y_axis(y, y_low, y_high)
    for i, line in enumerate(shown.values()):
        for piece in _finite_pieces(line):
            path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in piece)
            parts.append(f'<polyline class="line series-{i % SERIES}" points="{path}"/>')
            if len(piece) == 1:
                at = f'cx="{x(piece[0][0]):.1f}" cy="{y(piece[0][1]):.1f}"'
                parts.append(f'<circle class="point series-{i % SERIES}" {at} r="2.5"/>')
    return _svg(height, parts, f"{y_label} over {x_label}: {', '.join(series)}")


def differences(values: Sequence[float], label: str, height: int = 210) -> str:
    """The per-query differences in ascending order as one area: losses left and below zero, wins right and
    above.
    """
    if not values:
        return ""
    low, high = min(-0.05, *values), max(0.05, *values)
    x, y = _scale(0, len(values), LEFT, WIDTH - RIGHT), _scale(low, high, height - BOTTOM + 12, TOP)
    parts = _y_axis(y, low, high)
    parts.append(f'<text class="axis-label" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{height - 6}">{escape(label)}</text>')
    for css, side in (("loss", np.minimum), ("win", np.maximum)):
        heights = side(np.asarray(values, np.float64), 0.0)
        if not heights.any():
            continue
        steps = " ".join(f"{x(i):.1f},{y(v):.1f} {x(i + 1):.1f},{y(v):.1f}" for i, v in _runs(heights))
        parts.append(f'<polygon class="{css}" points="{x(0):.1f},{y(0):.1f} {steps} {x(len(values)):.1f},{y(0):.1f}"/>')
    parts.append(f'<line class="zero" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(0):.1f}" y2="{y(0):.1f}"/>')
    return _svg(height, parts, label)


def scatter(
    points: Sequence[tuple[str, float, float]], x_label: str, y_label: str, final: str = "", floor: float | None = None
) -> str:
    """A dot for each ``(name, x, y)`` with x above 0 on a logarithmic axis, its name in a column at the right.

    ``floor``: the y that all are to beat, as a line across. ``final`` is emphasised.
    """
    if not points:
        return ""
    right, height = 112, max(220, 17 * len(points) + TOP + BOTTOM)
    (x_low, x_high), ys = _log_span([x for _, x, _ in points]), [y for _, _, y in points]
    y_low, y_high = _padded([*ys, *([floor] if floor is not None else [])])
    x, y = _scale(x_low, x_high, LEFT, WIDTH - right), _scale(y_low, y_high, height - BOTTOM, TOP)
    bottom = height - BOTTOM
    parts = [f'<line class="axis" x1="{LEFT}" x2="{WIDTH - right}" y1="{bottom}" y2="{bottom}"/>']
    for tick in log_ticks(x_low, x_high):
        at = x(math.log10(tick))
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{at:.1f}" y="{bottom + 14}">{tick:g}</text>')
    parts.append(
        f'<text class="axis-label" x="{(LEFT + WIDTH - right) / 2}" y="{bottom + 30}">{escape(x_label)}</text>'
    )
    parts += _y_axis(y, y_low, y_high, right)
    if floor is not None:
        parts.append(
            f'<line class="ceiling" x1="{LEFT}" x2="{WIDTH - right}" y1="{y(floor):.1f}" y2="{y(floor):.1f}"/>'
        )
    dots = sorted(((x(math.log10(a)), y(b), name) for name, a, b in points), key=lambda dot: dot[1])
    for (at, level, name), place in zip(dots, _apart([dot[1] for dot in dots], 15, TOP, bottom), strict=True):
        css, start = (" final" if name == final else ""), WIDTH - right + 8
        parts.append(f'<path class="leader" d="M{at:.1f},{level:.1f} L{start - 4},{place:.1f}"/>')
        parts.append(f'<circle class="dot{css}" cx="{at:.1f}" cy="{level:.1f}" r="4.5"/>')
        parts.append(f'<text class="side{css}" x="{start}" y="{place + 4:.1f}">{escape(_cut(name, 18))}</text>')
    return _svg(height, parts, f"{y_label} against {x_label} of each ranker")


def histogram(relevant: Sequence[int], others: Sequence[int], low: float, high: float, height: int = 100) -> str:
    """Two histograms over the same equally wide bins from ``low`` to ``high``, each as shares of its own total: the others
    as an area, the relevant as a line.
    """
    shares = {"others": _shares(others), "relevant": _shares(relevant)}
    top = max(max(values, default=0.0) for values in shares.values()) or 1.0
    bottom = height - 20
    x, y = _scale(low, high, 12, WIDTH - RIGHT), _scale(0.0, top, bottom, TOP)
    parts = _x_axis(x, low, high, bottom, "", grid=False)
    width = (high - low) / max(len(others), 1)
    for css, values in shares.items():
        if any(values):
            tops = [(x(low + (i + side) * width), y(value)) for i, value in enumerate(values) for side in (0, 1)]
            path = " ".join(f"{a:.1f},{b:.1f}" for a, b in [(x(low), bottom), *tops, (x(high), bottom)])
            parts.append(f'<polygon class="{css}" points="{path}"/>')
    return _svg(height, parts, "Scores of relevant passages and of the others")


def bar(value: float, maximum: float, cells: int = 20) -> str:
    """``value`` out of ``maximum`` as block characters, to an eighth of a cell."""
    eighths = round(min(max(value / maximum, 0.0), 1.0) * cells * 8) if maximum > 0 else 0
    full, rest = divmod(eighths, 8)
    return "█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")


def sparkline(values: Sequence[float], cells: int = 30) -> str:
    """A curve as one line of block characters; values that are not finite are left out."""
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        return ""
    means = [float(np.mean(chunk)) for chunk in np.array_split(finite, min(cells, len(finite)))]
    low, high = min(means), max(means)
    return "".join("▁▂▃▄▅▆▇█"[round(7 * (m - low) / (high - low)) if high > low else 0] for m in means)


def downsample(points: Sequence[Point], limit: int = POINTS) -> list[Point]:
    """At most ``limit`` points: means of equally long stretches of the curve."""
    if len(points) <= limit:
        return list(points)
    chunks = np.array_split(np.asarray(points, np.float64), limit)
    return [(float(x), float(y)) for x, y in (chunk.mean(axis=0) for chunk in chunks)]


def ticks(low: float, high: float, count: int = 7) -> list[float]:
    """About ``count`` round numbers (1, 2 or 5 times a power of ten apart) from ``low`` to ``high``."""
    raw = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    return [round(i * step, 12) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between ``10 ** low`` and ``10 ** high``: 1, 2 and 5 times powers of ten, or the powers alone over
    more than three decades.
    """
    factors = (1, 2, 5) if high - low <= 3 else (1,)
    powers = range(math.floor(low), math.ceil(high) + 1)
    marks = [factor * 10.0**power for power in powers for factor in factors]
    return [mark for mark in marks if low - 1e-9 <= math.log10(mark) <= high + 1e-9]


class _scale:
    """A linear map of [low, high] onto [start, end]."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.start, self.factor = low, start, (end - start) / (high - low)

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) * self.factor


def _x_axis(
    x: _scale, low: float, high: float, bottom: float, label: str, grid: bool = True, whole: bool = False
) -> list[str]:
    parts = [f'<line class="axis" x1="{x(low):.1f}" x2="{x(high):.1f}" y1="{bottom}" y2="{bottom}"/>']
    for tick in ticks(low, high, 7):
        if whole and tick != round(tick):
            continue
        if grid:
            parts.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{x(tick):.1f}" y="{bottom + 14}">{tick:g}</text>')
    if not label:
        return parts
    middle = (x(low) + x(high)) / 2
    return [*parts, f'<text class="axis-label" x="{middle:.1f}" y="{bottom + 30}">{escape(label)}</text>']


def _y_axis(y: _scale, low: float, high: float, right: int = RIGHT) -> list[str]:
    parts = []
    for tick in ticks(low, high, 7):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text class="tick y" x="{LEFT - 6}" y="{y(tick) + 4:.1f}">{tick:g}</text>')
    return parts


def _svg(height: float, parts: Sequence[str], title: str) -> str:
    label = escape(title)
    body = "".join(parts)
    return f'<svg class="plot" viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{label}">{body}</svg>'


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    flat = high - low <= 1e-12 + 1e-9 * max(abs(low), abs(high))  # what a picture cannot show
    return (low - 0.5, high + 0.5) if flat else (low, high)


def _padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = _span(values)
    margin = 0.06 * (high - low)
    return (max(0.0, low - margin) if low >= 0 else low - margin), high + margin


def _log_span(values: Sequence[float]) -> tuple[float, float]:
    """The decimal logarithms between which all ``values`` lie, at least a factor of four apart, with a margin."""
    low, high = math.log10(min(values)), math.log10(max(values))
    margin = max(0.08, (0.6 - (high - low)) / 2)
    return low - margin, high + margin


def _apart(places: Sequence[float], distance: float, low: float, high: float) -> list[float]:
    """Ascending ``places``, moved so that each is ``distance`` below the one before it, within [low, high] if they fit."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + distance if moved else low))
    limit = high
    for i in range(len(moved) - 1, -1, -1):
        moved[i] = min(moved[i], limit)
        limit = moved[i] - distance
    return moved


def _shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts)
    return [count / total for count in counts] if total else []


def _runs(heights: np.ndarray) -> list[tuple[int, float]]:
    """Index and height of each step, thinned to what ``2 * WIDTH`` columns can show."""
    chosen = np.unique(np.linspace(0, len(heights) - 1, min(len(heights), 2 * WIDTH)).astype(int))
    return [(int(i), float(heights[i])) for i in chosen]


def _finite_pieces(line: Sequence[Point]) -> list[list[Point]]:
    pieces: list[list[Point]] = [[]]
    for point in line:
        if math.isfinite(point[1]):
            pieces[-1].append(point)
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
