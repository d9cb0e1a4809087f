"""Grouped bars on a logarithmic scale as one SVG, without a library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

from benchmarks.figures import Bars

_LEFT, _RIGHT, _TOP, _BOTTOM, _HEIGHT = 70, 14, 30, 24, 300
_BAR, _GAP, _SLOT = 24, 30, 130
_LEGEND, _LEGEND_COLUMNS = 24, 5
_STYLE = (
    "text{font:11px sans-serif;fill:#444}.title{font-weight:bold;fill:#111}"
    ".value{font-size:10px;fill:#111}.grid{stroke:#e5e5e5}"
)
_COLOURS = ("#1769aa", "#e07b00", "#4c9a52", "#8e44ad", "#c0392b", "#16808a", "#7f6a00")
# What is no contender but a limit.
_GREYS = ("#9aa0a6", "#c4c8cc", "#6d7278", "#dfe1e4")
_LIMIT = "limit "


def bar_charts(bars: Sequence[Bars]) -> str:
    """Return an SVG document, one chart below the other; the vertical axis is logarithmic, each bar says its value.

    A contender has one colour in all of them; those whose name begins with ``limit`` are grey.
    """
    colours = _colours([name for each in bars for name in each.values])
    width = max(_LEFT + sum(_slots(each)) + _RIGHT for each in bars)
    parts, top = [], 0
    for each in bars:
        parts.append(f'<g transform="translate(0,{top})">{_bar_chart(each, colours)}{_legend(each, colours)}</g>')
        top += _TOP + _HEIGHT + 2 * _BOTTOM + _LEGEND * -(-len(each.values) // _LEGEND_COLUMNS)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top}" width="{width}" height="{top}">',
            f"<style>{_STYLE}</style>",
            '<rect width="100%" height="100%" fill="#fff"/>',
            *parts,
            "</svg>",
            "",
        ]
    )


def _colours(names: Sequence[str]) -> dict[str, str]:
    limits = dict.fromkeys(name for name in names if name.startswith(_LIMIT))
    others = dict.fromkeys(name for name in names if name not in limits)
    return {name: _COLOURS[n % len(_COLOURS)] for n, name in enumerate(others)} | {
        name: _GREYS[n % len(_GREYS)] for n, name in enumerate(limits)
    }


def _of_group(bars: Bars, group: int) -> dict[str, float]:
    """Return the bars of a group, the contenders that have one."""
    found = ((name, values[group]) for name, values in bars.values.items())
    return {name: value for name, value in found if value is not None and value > 0}


def _slots(bars: Bars) -> list[int]:
    """Return the width of each group."""
    return [max(len(_of_group(bars, g)) * _BAR + _GAP, _SLOT) for g in range(len(bars.groups))]


def _legend(bars: Bars, colours: Mapping[str, str]) -> str:
    parts = []
    for n, name in enumerate(bars.values):
        line, place = divmod(n, _LEGEND_COLUMNS)
        x, y = _LEFT + place * 130, _TOP + _HEIGHT + _BOTTOM + 8 + line * _LEGEND
        parts.append(f'<rect x="{x}" y="{y}" width="12" height="12" fill="{colours[name]}"/>')
        parts.append(f'<text x="{x + 18}" y="{y + 10}">{escape(name)}</text>')
    return "".join(parts)


def _bar_chart(bars: Bars, colours: Mapping[str, str]) -> str:
    groups, slots = [_of_group(bars, g) for g in range(len(bars.groups))], _slots(bars)
    found = [value for group in groups for value in group.values()] or [1.0]
    low = math.floor(math.log10(min(found)))
    high = max(low + 1, math.ceil(math.log10(max(found))))
    base = _TOP + _HEIGHT

    def height_of(value: float) -> float:
        return _HEIGHT * (math.log10(value) - low) / (high - low)

    parts = [f'<text class="title" x="{_LEFT}" y="18">{escape(bars.name)}</text>']
    for power in range(low, high + 1):
        y = base - height_of(10.0**power)
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{_LEFT + sum(slots)}" y2="{y:.1f}"/>')
        said = f"{10.0**power:g} {escape(bars.unit)}"
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{said}</text>')
    left = _LEFT
    for name, group, slot in zip(bars.groups, groups, slots, strict=True):
        middle = left + slot // 2
        parts.append(f'<text x="{middle}" y="{base + 16}" text-anchor="middle">{escape(name)}</text>')
        for n, (who, value) in enumerate(group.items()):
            x, height = middle - len(group) * _BAR // 2 + n * _BAR, max(1.0, height_of(value))
            place = f'x="{x}" y="{base - height:.1f}" width="{_BAR - 2}" height="{height:.1f}"'
            parts.append(f'<rect {place} fill="{colours[who]}"/>')
            above = f'x="{x + _BAR // 2 - 1}" y="{base - height - 3:.1f}" text-anchor="middle"'
            parts.append(f'<text class="value" {above}>{_short(value)}</text>')
        left += slot
    return "".join(parts)


def _short(value: float) -> str:
    """Return two significant digits, which fit above a bar."""
    return f"{value:.2g}" if value < 10 else f"{value:,.0f}"
