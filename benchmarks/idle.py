"""What a network costs that has nothing to do: processor time and wake-ups of reducer, combiner and client at rest.

python -m benchmarks.idle [--quick] [--json]
"""

from __future__ import annotations

import asyncio

from benchmarks.figures import Figure, Result, figure, run_alone
from benchmarks.local_network import local_network
from benchmarks.usage import running_seconds, switches

TARGET_PERCENT = 0.5
_SETTLE_S = 3.0


async def measure(quick: bool) -> Result:
    """Measure some windows."""
    windows, window_s = (1, 2.0) if quick else (6, 10.0)
    percent: dict[str, list[float]] = {}
    wakeups: dict[str, list[float]] = {}
    async with local_network(combiners=1, clients=1) as network:
        await asyncio.sleep(0.5 if quick else _SETTLE_S)
        for _ in range(windows):
            before = {name: (running_seconds(pid), switches(pid)) for name, pid in network.pids.items()}
            await asyncio.sleep(window_s)
            for name, pid in network.pids.items():
                cpu_s, woken = before[name]
                role = name.partition("-")[0]
                percent.setdefault(role, []).append(100 * (running_seconds(pid) - cpu_s) / window_s)
                wakeups.setdefault(role, []).append((switches(pid) - woken) / window_s)
    figures: list[Figure] = []
    for role, values in percent.items():
        figures.append(figure(f"{role}: of one processor", "%", values, target=TARGET_PERCENT))
        figures.append(figure(f"{role}: wake-ups", "1/s", wakeups[role]))
    return Result(
        benchmark="idle",
        parameters={"combiners": 1, "clients": 1, "windows": windows, "window_s": window_s},
        figures=figures,
    )


if __name__ == "__main__":
    asyncio.run(run_alone(__doc__, measure))
