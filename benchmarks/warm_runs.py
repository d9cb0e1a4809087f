"""What it saves to fork runs from an interpreter that has imported numpy: single runs, and rounds of a network.

Single runs of the package of ``round_overhead`` alternate between a runtime that starts each cold and one that forks
it. Then two networks of eight clients, one of each kind, train with the same package and a model of 4 KB.

    python -m benchmarks.warm_runs [--quick] [--json]
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from benchmarks.figures import Figure, Result, figure, run_alone
from benchmarks.local_network import local_network
from benchmarks.round_overhead import PARAMS, TRAIN, write_package
from runnel.client.runtimes import Call, PackageFiles, ProcessRuntime
from runnel.compute_package import read_manifest
from runnel.demo.processes import ONE_THREAD

BESIDE_TARGET_MS = 15.0
ROUND_TARGETS_MS = {"cold": 800.0, "warm": 100.0}
_IMPORTS = "import numpy as np\n"
_CLOCK = "import time\nbegan = time.perf_counter()\n"


async def measure(quick: bool) -> Result:
    """Measure single runs and rounds."""
    clients, rounds, runs = (2, 2, 3) if quick else (8, 30, 40)
    figures = await _single_runs(runs)
    for start in ("cold", "warm"):
        seconds = await _rounds(clients, rounds, warm=start == "warm")
        name = f"{start}: round of {clients} clients"
        figures.append(figure(name, "ms", [1e3 * each for each in seconds], target=ROUND_TARGETS_MS[start]))
    return Result(
        benchmark="warm_runs",
        parameters={"clients": clients, "rounds": rounds, "model_bytes": 4 * PARAMS},
        figures=figures,
    )


async def _single_runs(runs: int) -> list[Figure]:
    """Run the script cold and warm in turn, after once each."""
    before, after = TRAIN.split(_IMPORTS)
    with tempfile.TemporaryDirectory(prefix="runnel-bench-") as work:
        folder = Path(work)
        seed, _ = await asyncio.to_thread(write_package, folder)
        root = seed.parent / "package"
        # Says what its own statements took.
        timed = f"{before}{_IMPORTS}{_CLOCK}{after}print(time.perf_counter() - began)\n"
        (root / "train.py").write_text(timed)
        package = PackageFiles(digest="0" * 64, root=root, manifest=read_manifest(root))
        took: dict[str, list[float]] = {"cold": [], "warm": []}
        scripts: dict[str, list[float]] = {"cold": [], "warm": []}
        async with (
            ProcessRuntime(environments=folder / "e", environ=os.environ) as cold,
            ProcessRuntime(environments=folder / "e", environ=os.environ, warm=True) as warm,
        ):
            for _ in range(runs + 1):
                for name, runtime in (("cold", cold), ("warm", warm)):
                    whole, script = await _run(runtime, package, seed, folder)
                    took[name].append(1e3 * whole)
                    scripts[name].append(1e3 * script)
            zygote = max(psutil.Process().children(), key=lambda child: child.memory_info().rss)
            private_mb = zygote.memory_full_info().uss / 1e6
    return [*_told(took, scripts), figure("a zygote's memory", "MB", [private_mb])]


def _told(took: dict[str, list[float]], scripts: dict[str, list[float]]) -> list[Figure]:
    figures = []
    for name in took:
        beside = [whole - script for whole, script in zip(took[name][1:], scripts[name][1:], strict=True)]
        target = BESIDE_TARGET_MS if name == "warm" else None
        figures += [
            figure(f"{name}: first run", "ms", took[name][:1]),
            figure(f"{name}: a run", "ms", took[name][1:]),
            figure(f"{name}: the script in it", "ms", scripts[name][1:]),
            figure(f"{name}: beside the script", "ms", beside, target=target),
        ]
    return figures


async def _run(runtime: ProcessRuntime, package: PackageFiles, seed: Path, folder: Path) -> tuple[float, float]:
    """Return the seconds of one run, and those of its script."""
    said: list[str] = []
    call = Call(
        entry_point="train", arguments=(str(seed), str(folder / "out.npz")), workdir=folder, env=dict(ONE_THREAD)
    )
    prepared = await runtime.prepare(package, lambda _, text: said.append(text))
    began = time.perf_counter()
    await runtime.run(prepared, call, lambda _, text: said.append(text))
    return time.perf_counter() - began, float(said[-1])


async def _rounds(clients: int, rounds: int, *, warm: bool) -> Sequence[float]:
    """Return the seconds of each round of a network's second session; the first brings package, seed and zygotes."""
    async with local_network(combiners=1, clients=clients, warm=warm) as network:
        seed, archive = await asyncio.to_thread(write_package, network.work / "by-hand")
        package = (await network.ask(lambda http: http.packages.push(archive))).digest
        model = (await network.ask(lambda http: http.models.push(seed))).model
        for count in (1, rounds):
            session = await network.train(
                timeout_s=60.0 + 10.0 * count,
                look_s=0.2 * count,
                package=package,
                seed=model,
                rounds=count,
                min_clients=clients,
                validate_every=0,
                retries=0,
            )
        return [each.seconds for each in session.rounds if each.seconds is not None]


if __name__ == "__main__":
    asyncio.run(run_alone(__doc__, measure))
