"""Compares two runs: what has changed by more than the spread of either.

    python -m benchmarks.compare BEFORE.json AFTER.json [--all]

The exit status is 1 when a figure has got worse by more than the spread, or a target is missed that was met; 2 when a
file is no result. Limits and peers that were measured beside are shown and nobody's to make worse.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.figures import Figure, number
from benchmarks.report import Report

_BESIDE = ("limit ", "Flower", "NVFlare")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One figure, before and after."""

    benchmark: str
    before: Figure
    after: Figure

    @property
    def clear(self) -> bool:
        """Whether the spreads of before and after do not touch; that of a single measurement is taken as 10 %."""
        before, after = _spread(self.before), _spread(self.after)
        return before[1] < after[0] or after[1] < before[0]

    @property
    def beside(self) -> bool:
        """Whether it is of a limit or of a peer."""
        name = self.after.name
        return name.endswith(" alone") or any(part.startswith(_BESIDE) for part in name.split(": "))

    @property
    def worse(self) -> bool:
        """Whether it is ours and has clearly got worse, or a target is missed that was met."""
        if self.beside:
            return False
        up = self.after.median > self.before.median
        return (self.clear and up is not self.after.more_is_better) or (
            self.before.verdict == "met" and self.after.verdict == "missed"
        )

    @property
    def percent(self) -> float:
        """By how much the median has changed; 0 if it was 0."""
        return 100 * (self.after.median / self.before.median - 1) if self.before.median else 0.0


def changes(before: Report, after: Report) -> Iterator[Change]:
    """Yield all figures that both have, in the order of ``after``."""
    known = {(result.benchmark, each.name): each for result in before.results for each in result.figures}
    for result in after.results:
        for each in result.figures:
            earlier = known.get((result.benchmark, each.name))
            if earlier is not None and earlier.unit == each.unit:
                yield Change(benchmark=result.benchmark, before=earlier, after=each)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the changes; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--all", action="store_true", help="also what has not changed")
    arguments = parser.parse_args(argv)
    try:
        before, after = Report.read(arguments.before), Report.read(arguments.after)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    console = Console(width=None if sys.stdout.isatty() else 140)
    differing = [
        f"{key}: {before.machine.get(key)} then {value}"
        for key, value in after.machine.items()
        if before.machine.get(key) != value
    ]
    found = list(changes(before, after))
    table = Table(title=f"{before.day} and {after.day}", caption="\n".join(differing) or None)
    for heading in ("figure", "before", "after", "unit", "change", ""):
        table.add_column(heading, justify="left" if heading in {"figure", "unit", ""} else "right")
    for each in found:
        if each.clear or each.worse or arguments.all:
            table.add_row(
                f"{each.benchmark}: {each.after.name}",
                number(each.before.median),
                number(each.after.median),
                each.after.unit,
                f"{each.percent:+.0f} %",
                "worse" if each.worse else "same" if not each.clear else "beside" if each.beside else "better",
            )
    console.print(table)
    console.print(f"{len(found)} figures compared, {sum(each.worse for each in found)} worse.")
    return int(any(each.worse for each in found))


def _spread(each: Figure) -> tuple[float, float]:
    slack = abs(each.median) / 10 if each.runs == 1 else 0.0
    return each.low - slack, each.high + slack


if __name__ == "__main__":
    sys.exit(main())
