"""Runs all benchmarks and writes what they found to ``benchmarks/results/<date>-<machine>.json`` and ``.md``.

python -m benchmarks.run [--quick] [--peers] [--only NAME …] [--output PATH_WITHOUT_ENDING]
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import traceback
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from rich.console import Console

from benchmarks import (
    attached,
    compression,
    disk,
    fedavg_paper,
    fold_bandwidth,
    growth,
    idle,
    machine,
    memory,
    robust_memory,
    round_overhead,
    rounds,
    startup,
    task_start,
    tasks,
    transfer_profile,
    warm_runs,
)
from benchmarks.figures import Result, quieten, show
from benchmarks.mnist import NoMnist
from benchmarks.report import Report, write
from runnel.common.errors import NoEngine
from runnel.common.lifetime import report as failed

RESULTS = Path(__file__).parent / "results"


BENCHMARKS: dict[str, Callable[[bool], Awaitable[Result]]] = {
    "rounds": rounds.measure,
    "startup": startup.measure,
    "idle": idle.measure,
    "round_overhead": round_overhead.measure,
    "warm_runs": warm_runs.measure,
    "memory": memory.measure,
    "disk": disk.measure,
    "robust_memory": robust_memory.measure,
    "transfer_profile": transfer_profile.measure,
    "fold_bandwidth": fold_bandwidth.measure,
    "growth": growth.measure,
    "attached": attached.measure,
    "tasks": tasks.measure,
    "task_start": task_start.measure,
    "compression": compression.measure,
    "fedavg_paper": fedavg_paper.measure,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run them one after the other and print; each is written as it is found, and one that fails stops no other."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer and smaller runs: shows that it works")
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--peers", action="store_true", help="rounds: also Flower and NVFlare, which uv installs")
    parser.add_argument("--environments", type=Path, help="where those are kept; default: in the user's cache")
    parser.add_argument("--output", type=Path, help="path without ending; default: benchmarks/results/DATE-MACHINE")
    arguments = parser.parse_args(argv)
    quieten()
    benchmarks = BENCHMARKS | {
        "rounds": partial(rounds.measure, peers=arguments.peers, environments=arguments.environments)
    }
    console = Console(width=None if sys.stdout.isatty() else 120)
    described = machine.describe()
    day = datetime.now(UTC).date().isoformat()
    name_of_all = f"{day}-{machine.short_name(described)}{'-quick' if arguments.quick else ''}"
    results: list[Result] = []
    broken = []
    for name in arguments.only or BENCHMARKS:
        console.print(f"[dim]{name} …[/dim]")
        try:
            results.append(asyncio.run(_of(benchmarks[name], quick=arguments.quick)))
        except (NoMnist, NoEngine) as error:
            if arguments.only:
                sys.exit(failed(error))
            console.print(f"{name} is left out. {error}")
        except Exception:  # noqa: BLE001 - whatever it is, what the others find is wanted
            traceback.print_exc()
            broken.append(name)
        else:
            show(results[-1], console)
            report = Report(day=day, quick=arguments.quick, machine=described, results=results)
            for path in write(report, arguments.output or RESULTS / name_of_all):
                console.print(f"written: {path}")
    if broken:
        sys.exit(f"failed: {', '.join(broken)}")


async def _of(measure: Callable[[bool], Awaitable[Result]], *, quick: bool) -> Result:
    return await measure(quick)


if __name__ == "__main__":
    main()
