"""Small charts as SVG inside the page: they take the page's colours, and its text size on a phone.

Drawn by hand rather than by matplotlib, whose SVG holds its own colours and is twenty times as
large. A chart is as wide as a phone, so its letters are as large there as anywhere.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from trl_recipes.report.page import Html, element, join, number, plus_minus, text
from trl_recipes.report.plots import moving_average

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 8, 34
MOST_POINTS = 250  # a line; more than a chart has pixels for
COLORS = 7
BINS = 24
ROW = 40  # height of a bar with its name above


class Series(NamedTuple):
    """One line of a chart: values over steps, arrays of shape (N,); nan is left out.

    Attributes:
        name: for the legend.
        steps: where the values are.
        values: in the chart's unit.
        color: its place among the colours; None: that among the lines.
    """

    name: str
    steps: Sequence[float]
    values: Sequence[float]
    color: int | None = None


class Interval(NamedTuple):
    """A mean and half the width of its 95 percent interval; nan where there is none.

    Attributes:
        name: of the model.
        mean: in the chart's unit.
        half: half the interval's width.
    """

    name: str
    mean: float
    half: float


def line_chart(
    title: str,
    unit: str,
    series: Sequence[Series],
    *,
    smooth: bool = False,
    target: float | None = None,
    note: str = "",
) -> Html:
    """Draw values over the steps of a run.

    Args:
        title: what is drawn.
        unit: of the values.
        series: the lines; empty ones are left out.
        smooth: faint points and a moving average over a tenth of the steps, in the place of lines.
        target: a value to draw a dashed line at.
        note: a sentence below.

    Returns:
        A figure; empty where no series has a finite value.
    """
    known = [(line, *_finite(line)) for line in _colored(series)]
    known = [(line, steps, values) for line, steps, values in known if len(values)]
    if not known:
        return Html("")
    lowest = min(values.min() for _, _, values in known)
    highest = max(values.max() for _, _, values in known)
    if target is not None:
        lowest, highest = min(lowest, target), max(highest, target)
    ticks = _ticks(lowest, highest, 4)
    low, high = min(lowest, ticks[0]), max(highest, ticks[-1])
    last = max(steps.max() for _, steps, _ in known)
    across = _ticks(0, last, 5, whole=True)

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / max(last, 1)

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / ((high - low) or 1)

    drawn = [_level(y(tick), _short(tick)) for tick in ticks]
    drawn += [_place(x(step), _short(step)) for step in across if step <= last]
    if target is not None:
        drawn.append(_path("target", [LEFT, WIDTH - RIGHT], [y(target)] * 2))
        beside = -4 if y(target) > TOP + 16 else 13  # below the line where it is the top
        drawn.append(_label(LEFT + 4, y(target) + beside, f"target {target:g}"))
    for line, steps, values in known:
        drawn += _line(line.color, steps, values, x, y, smooth)
    drawn.append(_label(WIDTH - RIGHT, HEIGHT - 4, "step", "end"))
    told = "; ".join(
        f"{line.name + ': ' if len(known) > 1 else ''}{number(float(values[0]))} at step "
        f"{steps[0]:g}, {number(float(values[-1]))} at step {steps[-1]:g}"
        for line, steps, values in known
    )
    legend = [(line.color, line.name) for line, _, _ in known] if len(series) > 1 else []
    return _figure(title, unit, drawn, HEIGHT, told, legend, note)


def interval_chart(title: str, rows: Sequence[Interval]) -> Html:
    """Draw means as bars with their 95 percent intervals, one below the other.

    Args:
        title: what was measured.
        rows: a bar each; those without a mean are left out.

    Returns:
        A figure; empty where none has a mean.
    """
    rows = [row for row in rows if math.isfinite(row.mean)]
    if not rows:
        return Html("")
    halves = [row.half if math.isfinite(row.half) else 0.0 for row in rows]
    low = min(0.0, *(row.mean - half for row, half in zip(rows, halves, strict=True)))
    high = max(0.0, *(row.mean + half for row, half in zip(rows, halves, strict=True)))

    def x(value: float) -> float:
        return 4 + (WIDTH - 12) * (value - low) / ((high - low) or 1)

    drawn: list[Html] = []
    for i, (row, half) in enumerate(zip(rows, halves, strict=True)):
        top = ROW * i
        start, end = sorted((x(0), x(row.mean)))
        drawn.append(_label(4, top + 13, row.name, class_="name"))
        drawn.append(_label(WIDTH - 8, top + 13, plus_minus(row.mean, row.half), "end"))
        drawn.append(
            Html(
                f'<rect class="k{i % COLORS}" x="{start:.1f}" y="{top + 19}" '
                f'width="{end - start:.1f}" height="12" fill-opacity=".55"/>'
            )
        )
        if half:
            ends = [x(row.mean - half), x(row.mean + half)]
            drawn.append(_path("whisker", ends, [top + 25] * 2))
        drawn.append(_path("axis", [x(0)] * 2, [top + 17, top + 33]))
    told = "; ".join(f"{row.name}: {plus_minus(row.mean, row.half)}" for row in rows)
    return _figure(title, "", drawn, ROW * len(rows), told, [], "")


def histogram(title: str, unit: str, values: Sequence[tuple[str, Sequence[float]]]) -> Html:
    """Draw how values of several models are spread: the share in each of equally wide bins.

    Args:
        title: what is drawn.
        unit: of the values.
        values: name and values of each model.

    Returns:
        A figure; empty where there are no values.
    """
    pooled = [value for _, several in values for value in several]
    if not pooled:
        return Html("")
    edges = np.histogram_bin_edges(pooled, bins=BINS)
    shares = [np.histogram(several, edges)[0] / max(1, len(several)) for _, several in values]
    top = max(share.max() for share in shares)
    low, high = edges[0], edges[-1]

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / ((high - low) or 1)

    def y(share: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (top - share) / (top or 1)

    ticks = [tick for tick in _ticks(0, top, 4) if tick <= top * 1.001]
    drawn = [_level(y(tick), f"{tick:.0%}") for tick in ticks]
    drawn += [_place(x(v), _short(v)) for v in _ticks(low, high, 5) if low <= v <= high]
    for i, share in enumerate(shares):
        across = [x(edge) for edge in np.repeat(edges, 2)]
        up = [y(s) for s in (0, *np.repeat(share, 2), 0)]
        drawn.append(_path(f"thin k{i % COLORS}", across, up))
    drawn.append(_label(WIDTH - RIGHT, HEIGHT - 4, unit, "end"))
    told = "; ".join(f"{name}: {len(several)} values" for name, several in values)
    legend = [(i, name) for i, (name, _) in enumerate(values)]
    return _figure(title, "share of responses", drawn, HEIGHT, told, legend, "")


def legend_of(names: Sequence[tuple[int, str]]) -> Html:
    """Make a list of colours and what they stand for.

    Args:
        names: number of the colour, and name.
    """
    marks = (
        (
            Html(
                '<svg viewBox="0 0 24 10" aria-hidden="true">'
                f'<path class="line k{i % COLORS}" d="M0 5H24"/></svg>'
            ),
            name,
        )
        for i, name in names
    )
    return element("ul", join(element("li", *mark) for mark in marks), class_="legend")


def _figure(title, unit, drawn, height, told, legend, note) -> Html:
    """A figure with its caption; the description says what who cannot see it wants to know."""
    caption = element("figcaption", title, element("span", f" ({unit})") if unit else "")
    picture = (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{text(f"{title}: {told}")}">{join(drawn)}</svg>'
    )
    named = legend_of(legend) if legend else ""
    below = element("small", note) if note else ""
    return element("figure", caption, named, Html(picture), below)


def _line(i, steps, values, x, y, smooth) -> list[Html]:
    color = f"k{i % COLORS}"
    points = _fewer(steps, values)
    if len(values) == 1:  # a line through one point shows nothing
        return [
            Html(
                f'<circle class="{color}" cx="{x(steps[0]):.1f}" cy="{y(values[0]):.1f}" r="3.5"/>'
            )
        ]
    if not smooth:
        return [_path(f"line {color}", [x(s) for s in points[0]], [y(v) for v in points[1]])]
    dots = join(
        Html(f'<circle class="dot {color}" cx="{x(s):.1f}" cy="{y(v):.1f}" r="2.2"/>')
        for s, v in zip(*points, strict=True)
    )
    average = moving_average(values, max(1, min(len(values), 3), len(values) // 10))
    steps, average = _fewer(steps, average)
    return [dots, _path(f"line {color}", [x(s) for s in steps], [y(v) for v in average])]


def _colored(series: Sequence[Series]) -> list[Series]:
    return [s._replace(color=i if s.color is None else s.color) for i, s in enumerate(series)]


def _finite(line: Series) -> tuple[np.ndarray, np.ndarray]:
    steps, values = np.asarray(line.steps, float), np.asarray(line.values, float)
    kept = np.isfinite(values) & np.isfinite(steps)
    return steps[kept], values[kept]


def _fewer(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of neighbours, where there are more points than a chart can show."""
    if len(values) <= MOST_POINTS:
        return steps, values
    parts = np.array_split(np.arange(len(values)), MOST_POINTS)
    return tuple(np.array([column[part].mean() for part in parts]) for column in (steps, values))


def _ticks(low: float, high: float, count: int, whole: bool = False) -> list[float]:
    """Round numbers, about `count` of them, that reach from below `low` to above `high`.

    >>> _ticks(0.03, 0.97, 4)
    [0.0, 0.5, 1.0]
    >>> _ticks(0, 80, 5, whole=True)
    [0, 20, 40, 60, 80]
    """
    if not high > low:
        spread = abs(high) or 1.0
        low, high = low - spread / 2, high + spread / 2
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    step = max(1.0, step) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [round(i * step, 12) for i in range(first, last + 1)]
    return [int(tick) for tick in ticks] if whole else ticks


def _short(value: float) -> str:
    """A tick's label.

    >>> [_short(x) for x in (0.5, -20, 1500, 20000, 0.00002)]
    ['0.5', '-20', '1500', '20k', '2e-05']
    """
    shown = f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:g}"
    return shown


def _path(kind: str, x: Sequence[float], y: Sequence[float]) -> Html:
    points = "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))
    fill = ' style="fill:none"' if kind.startswith(("line", "thin")) else ""
    return Html(f'<path class="{kind}"{fill} d="M{points}"/>')


def _label(
    x: float, y: float, words: str, anchor: str = "start", class_: str | None = None
) -> Html:
    return element("text", words, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, class_=class_)


def _level(y: float, words: str) -> Html:
    return join(
        [_path("grid", [LEFT, WIDTH - RIGHT], [y, y]), _label(LEFT - 6, y + 4, words, "end")]
    )


def _place(x: float, words: str) -> Html:
    return _label(x, HEIGHT - BOTTOM + 14, words, "middle")
