"""What a benchmark found: named figures with their spread, as a table for people and as JSON for comparing."""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import structlog
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure.

    ``low`` and ``high`` are the 10th and 90th percentile of ``runs`` measurements (with fewer than ten of them: the
    smallest and the largest). ``target``: what ``median`` is to stay below, if there is such a promise. Less is better
    in every figure, except where ``more_is_better``.
    """

    name: str
    unit: str
    median: float
    low: float
    high: float
    runs: int
    target: float | None = None
    more_is_better: bool = False

    @property
    def verdict(self) -> str:
        """Tell whether the target is met; empty where there is none."""
        if self.target is None:
            return ""
        return "met" if self.median < self.target else "missed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A line across a chart, where ``axis`` has the value ``at``, with what it means."""

    axis: Literal["x", "y"]
    at: float
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A course to be drawn: ``y``, in ``unit``, over ``x``, which counts what ``along`` names.

    ``bottom`` and ``top``: of the vertical axis; None: the largest value.
    """

    name: str
    unit: str
    along: str
    x: Sequence[float]
    y: Sequence[float]
    bottom: float = 0.0
    top: float | None = None
    marks: Sequence[Mark] = ()

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> Series:
        """Make the series that ``dataclasses.asdict`` described."""
        return Series(**{**document, "marks": tuple(Mark(**mark) for mark in document.get("marks", ()))})


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """Figures side by side: ``values`` by contender, in ``unit``, one for each of ``groups``; None is no bar."""

    name: str
    unit: str
    groups: Sequence[str]
    values: Mapping[str, Sequence[float | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one benchmark found, and with which parameters."""

    benchmark: str
    parameters: Mapping[str, Any]
    figures: Sequence[Figure]
    notes: Sequence[str] = field(default_factory=tuple)
    series: Sequence[Series] = field(default_factory=tuple)
    bars: Sequence[Bars] = field(default_factory=tuple)

    def as_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping from which :meth:`from_json` makes an equal result."""
        return asdict(self)

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> Result:
        """Make the result that :meth:`as_json` described."""
        return Result(
            benchmark=document["benchmark"],
            parameters=document["parameters"],
            figures=tuple(Figure(**figure) for figure in document["figures"]),
            notes=tuple(document["notes"]),
            series=tuple(Series.from_json(series) for series in document.get("series", ())),
            bars=tuple(Bars(**bars) for bars in document.get("bars", ())),
        )


def figure(
    name: str, unit: str, values: Iterable[float], *, target: float | None = None, more_is_better: bool = False
) -> Figure:
    """Return the figure of some measurements, at least one.

    >>> figure("pause", "ms", [3.0, 1.0, 2.0])
    Figure(name='pause', unit='ms', median=2.0, low=1.0, high=3.0, runs=3, target=None, more_is_better=False)
    """
    found = sorted(values)
    low, high = found[0], found[-1]
    if len(found) >= 10:
        tenths = statistics.quantiles(found, n=10, method="inclusive")
        low, high = tenths[0], tenths[-1]
    return Figure(
        name=name,
        unit=unit,
        median=statistics.median(found),
        low=low,
        high=high,
        runs=len(found),
        target=target,
        more_is_better=more_is_better,
    )


def number(value: float) -> str:
    """Return three significant digits, without an exponent.

    >>> number(1234.5), number(12.345), number(0.012345), number(0.0)
    ('1,234', '12.3', '0.0123', '0')
    """
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    digits = 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3 if abs(value) >= 0.1 else 4
    return f"{value:.{digits}f}"


def show(result: Result, console: Console) -> None:
    """Print ``result`` as a table."""
    said = ", ".join(f"{key} {value}" for key, value in result.parameters.items())
    table = Table(title=f"{result.benchmark} ({said})", caption="\n".join(result.notes) or None, title_justify="left")
    for heading in ("figure", "median", "low … high", "unit", "runs", "target"):
        table.add_column(heading, justify="left" if heading in {"figure", "unit"} else "right", no_wrap=True)
    for each in result.figures:
        target = "" if each.target is None else f"< {number(each.target)} {each.verdict}"
        table.add_row(
            each.name,
            number(each.median),
            f"{number(each.low)} … {number(each.high)}",
            each.unit,
            str(each.runs),
            target,
        )
    console.print(table)


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of what every benchmark understands: ``quick`` and ``json``."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer and smaller runs: shows that it works")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


def quieten() -> None:
    """Let parts of Runnel that run in this process say only what is wrong, on standard error."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


async def run_alone(description: str | None, measure: Callable[[bool], Awaitable[Result]]) -> None:
    """Run one benchmark for its command line and print what it found."""
    arguments = parser_of(description).parse_args()
    quieten()
    tell(await measure(arguments.quick), as_json=arguments.json)


def tell(result: Result, *, as_json: bool) -> None:
    """Print ``result`` as one JSON document, or as a table."""
    if as_json:
        json.dump(result.as_json(), sys.stdout)
        print()
    else:
        show(result, Console(width=None if sys.stdout.isatty() else 120))
