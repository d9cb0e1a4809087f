"""How soon the command answers and components serve: ``runnel --help``, and from the start of a process to *ready*.

There is also how much of a processor a start takes, of combiners and clients until they are attached.

python -m benchmarks.startup [--quick] [--json]
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.figures import Figure, Result, figure, run_alone
from benchmarks.local_network import LocalNetwork, local_network
from benchmarks.usage import MB, cpu_seconds, resident_bytes

TARGET_HELP_S = 0.3


async def measure(quick: bool) -> Result:
    """Measure the command and the components, both warm: files are in the page cache, bytecode is compiled."""
    runs, networks = (1, 1) if quick else (10, 5)
    bare = [sys.executable, "-c", "pass"]
    runnel = [str(Path(sys.executable).with_name("runnel"))]
    figures: list[Figure] = [
        figure("python -c pass", "s", await asyncio.to_thread(_timed, bare, runs)),
        figure("runnel --help", "s", await asyncio.to_thread(_timed, [*runnel, "--help"], runs), target=TARGET_HELP_S),
        figure("runnel session --help", "s", await asyncio.to_thread(_timed, [*runnel, "session", "--help"], runs)),
    ]
    took: dict[str, list[float]] = {}
    used: dict[str, list[float]] = {}
    resident: dict[str, list[float]] = {}
    for _ in range(networks):
        async with local_network() as network:
            _note(used, network, "reducer")
            await network.start_combiners(1)
            _note(used, network, "combiner")
            await network.start_clients(1)
            _note(used, network, "client")
            for name, seconds in network.starting_s.items():
                role = name.partition("-")[0]
                took.setdefault(role, []).append(seconds)
                resident.setdefault(role, []).append(resident_bytes(network.pids[name]) / MB)
    figures += [figure(f"{role}: start to ready", "s", values) for role, values in took.items()]
    figures += [figure(f"{role}: processor time of a start", "s", values) for role, values in used.items()]
    figures += [figure(f"{role}: resident memory", "MB", values) for role, values in resident.items()]
    return Result(benchmark="startup", parameters={"runs": runs, "networks": networks}, figures=figures)


def _note(used: dict[str, list[float]], network: LocalNetwork, role: str) -> None:
    used.setdefault(role, []).extend(cpu_seconds(pid) for pid in network.pids_of(role))


def _timed(command: Sequence[str], runs: int) -> list[float]:
    times = []
    with tempfile.TemporaryDirectory(prefix="runnel-bench-") as folder:
        for _ in range(runs + 1):
            began = time.perf_counter()
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=folder)
            times.append(time.perf_counter() - began)
    return times[1:]  # the first one warms up


if __name__ == "__main__":
    asyncio.run(run_alone(__doc__, measure))
