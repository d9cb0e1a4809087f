"""Small line charts as one SVG, without a library: one for each series, with its smallest and largest value."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

from benchmarks.figures import Series, number

_WIDTH, _HEIGHT, _COLUMNS = 380, 150, 2
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 14, 30, 24
_STYLE = (
    "text{font:11px sans-serif;fill:#444}.title{font-weight:bold;fill:#111}"
    ".line{fill:none;stroke:#1769aa;stroke-width:1.5}.frame{fill:none;stroke:#ccc}"
    ".mark{stroke:#b3541e;stroke-width:1;stroke-dasharray:4 3}.label{fill:#b3541e}"
)


def charts(series: Sequence[Series]) -> str:
    """Return an SVG document.

    The vertical axis of a chart begins at 0, so that flat looks flat, unless its series says otherwise. Marks are drawn
    dashed; the horizontal axis is long enough to show them.
    """
    rows = -(-len(series) // _COLUMNS)
    width, height = _COLUMNS * _WIDTH, rows * _HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
        f'<style>{_STYLE}</style><rect width="100%" height="100%" fill="#fff"/>',
    ]
    for index, each in enumerate(series):
        row, column = divmod(index, _COLUMNS)
        parts.append(f'<g transform="translate({column * _WIDTH},{row * _HEIGHT})">{_chart(each)}</g>')
    return "\n".join([*parts, "</svg>", ""])


def _chart(series: Series) -> str:
    inner_width, inner_height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    along = [*series.x, *(mark.at for mark in series.marks if mark.axis == "x")]
    first, last = min(along), max(along)
    bottom = series.bottom
    top = max([*series.y, bottom]) if series.top is None else series.top
    top = top if top > bottom else bottom + 1.0

    def across(x: float) -> float:
        return _LEFT + ((x - first) / (last - first) if last > first else 0.5) * inner_width

    def down(y: float) -> float:
        return _TOP + (1 - (min(max(y, bottom), top) - bottom) / (top - bottom)) * inner_height

    points = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in zip(series.x, series.y, strict=True))
    base = _TOP + inner_height
    marks = "".join(
        _mark_across(mark.label, down(mark.at), _LEFT + inner_width)
        if mark.axis == "y"
        else _mark_down(mark.label, across(mark.at), base)
        for mark in series.marks
    )
    return (
        f'<text class="title" x="{_LEFT}" y="18">{escape(series.name)}</text>'
        f'<rect class="frame" x="{_LEFT}" y="{_TOP}" width="{inner_width}" height="{inner_height}"/>'
        f"{marks}"
        f'<polyline class="line" points="{points}"/>'
        f'<text x="{_LEFT - 6}" y="{_TOP + 10}" text-anchor="end">{number(top)} {escape(series.unit)}</text>'
        f'<text x="{_LEFT - 6}" y="{base}" text-anchor="end">{number(bottom)}</text>'
        f'<text x="{_LEFT}" y="{base + 16}">{escape(series.along)} {number(first)}</text>'
        f'<text x="{_LEFT + inner_width}" y="{base + 16}" text-anchor="end">{number(last)}</text>'
    )


def _mark_across(label: str, y: float, right: float) -> str:
    return (
        f'<line class="mark" x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>'
        f'<text class="label" x="{right - 4}" y="{y + 12:.1f}" text-anchor="end">{escape(label)}</text>'
    )


def _mark_down(label: str, x: float, base: float) -> str:
    # Beside the line, towards the middle of the chart.
    left = x > _LEFT + (_WIDTH - _LEFT - _RIGHT) / 2
    return (
        f'<line class="mark" x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{base}"/>'
        f'<text class="label" x="{x + (-4 if left else 4):.1f}" y="{base - 6}"'
        f' text-anchor="{"end" if left else "start"}">{escape(label)}</text>'
    )
