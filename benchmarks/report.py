"""Results of a whole run as files: JSON to compare with, Markdown to read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.bar_charts import bar_charts
from benchmarks.charts import charts
from benchmarks.figures import Figure, Result, number

_BAR = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All results of one run. ``day``: ISO date; ``quick``: too small to be quoted."""

    day: str
    quick: bool
    machine: Mapping[str, Any]
    results: Sequence[Result]

    def as_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return {
            "day": self.day,
            "quick": self.quick,
            "machine": dict(self.machine),
            "results": [result.as_json() for result in self.results],
        }

    @staticmethod
    def read(path: Path) -> Report:
        """Read what :func:`write` wrote as JSON.

        Raises:
            OSError: there is no such file.
            ValueError: it is something else.
        """
        try:
            return Report.from_json(json.loads(path.read_text()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no result of `make bench` in JSON") from error

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> Report:
        """Make the report that :meth:`as_json` described."""
        return Report(
            day=document["day"],
            quick=document["quick"],
            machine=document["machine"],
            results=tuple(Result.from_json(each) for each in document["results"]),
        )


def write(report: Report, path: Path) -> tuple[Path, Path]:
    """Write ``path`` with the endings ``.json`` and ``.md``; return both. Pictures lie beside them, as SVG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    as_json, as_markdown = path.with_name(f"{path.name}.json"), path.with_name(f"{path.name}.md")
    drawn = {each.benchmark: f"{path.name}-{each.benchmark}.svg" for each in report.results if each.series or each.bars}
    for each in report.results:
        if each.benchmark in drawn:
            picture = charts(each.series) if each.series else bar_charts(each.bars)
            path.with_name(drawn[each.benchmark]).write_text(picture)
    as_json.write_text(json.dumps(report.as_json(), indent=1, ensure_ascii=False) + "\n")
    as_markdown.write_text(markdown(report, drawn))
    return as_json, as_markdown


def markdown(report: Report, drawn: Mapping[str, str] | None = None) -> str:
    """Return the report for people; ``drawn``: names of pictures by benchmark."""
    machine = ", ".join(f"{key} {value}" for key, value in report.machine.items())
    lines = [f"# Benchmarks of {report.day}", "", f"Machine: {machine}.", ""]
    if report.quick:
        lines += ["A quick run: it shows that everything works; the figures are too few to be quoted.", ""]
    promises = [(result, each) for result in report.results for each in result.figures if each.target is not None]
    if promises:
        lines += ["## Targets", "", "| figure | median | target | |", "|---|---:|---:|---|"]
        lines += [
            f"| {result.benchmark}: {each.name} | {number(each.median)} {each.unit} |"
            f" < {number(each.target or 0.0)} | {each.verdict} |"
            for result, each in promises
        ]
        lines.append("")
    for result in report.results:
        lines += _section(result)
        if drawn and result.benchmark in drawn:
            lines += [f"![{result.benchmark}]({drawn[result.benchmark]})", ""]
    return "\n".join(lines)


def _section(result: Result) -> list[str]:
    said = ", ".join(f"{key} {value}" for key, value in result.parameters.items())
    lines = [f"## {result.benchmark}", "", f"{said}. Low and high are the 10th and 90th percentile.", ""]
    lines += [f"{note}\n" for note in result.notes]
    lines += ["| figure | median | low | high | unit | runs | |", "|---|---:|---:|---:|---|---:|---|"]
    largest: dict[str, float] = {}
    for each in result.figures:
        largest[each.unit] = max(largest.get(each.unit, 0.0), each.median)
    lines += [
        f"| {each.name} | {number(each.median)} | {number(each.low)} | {number(each.high)} | {each.unit} |"
        f" {each.runs} | {_bar(each, largest[each.unit])} |"
        for each in result.figures
    ]
    return [*lines, ""]


def _bar(each: Figure, largest: float) -> str:
    return "█" * round(_BAR * max(0.0, each.median) / largest) if largest > 0 else ""
