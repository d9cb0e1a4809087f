"""What a round costs beyond the scripts that it runs: real processes, six clients, a model of 4 KB.

The package's ``train.py`` adds a constant. Rounds and plain runs of the same scripts alternate: as many at once as
there are clients, with the same interpreter, variables and files. The overhead is the median round less the median of
those runs; its spread is that of the alternations. Once with clients as they are installed, which fork their runs from
a warm interpreter, beside scripts that are forked from one as well; and once with clients that start each run cold,
beside scripts that ``subprocess`` starts.

    python -m benchmarks.round_overhead [--quick] [--json]
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.figures import Figure, Result, figure, run_alone
from benchmarks.forked_scripts import forked_seconds
from benchmarks.local_network import LocalNetwork, local_network
from benchmarks.usage import total_cpu_seconds
from runnel.client.runtimes.variables import process_variables
from runnel.common.tensors import write_npz
from runnel.compute_package import pack
from runnel.demo.processes import ONE_THREAD
from runnel.sdk import Round

TARGET_MS = 100.0
PARAMS = 1_000
ROLES = ("reducer", "combiner", "client")

TRAIN = """
import json, sys
import numpy as np

with np.load(sys.argv[1]) as model:
    arrays = {name: model[name] + np.float32(1) for name in model.files}
np.savez(sys.argv[2], **arrays)
with open(sys.argv[2] + "-metadata", "w") as file:
    json.dump({"num_examples": 10}, file)
"""
VALIDATE = """
import json, sys
import numpy as np

with np.load(sys.argv[1]) as model:
    mean = float(np.mean([model[name].mean() for name in model.files]))
with open(sys.argv[2], "w") as file:
    json.dump({"mean": mean}, file)
"""
OUTPUT = {"train": "model_out.npz", "validate": "validation.json"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Some rounds, and the scripts of as many rounds run without a network right after; seconds."""

    rounds: Sequence[Round]
    scripts_s: Sequence[float]
    cpu_s: Mapping[str, float]

    @property
    def overhead_s(self) -> float:
        """Median round less median of the scripts."""
        return statistics.median(_seconds(self.rounds)) - statistics.median(self.scripts_s)


async def measure(quick: bool) -> Result:
    """Measure rounds without and with validation."""
    clients, combiners = (2, 1) if quick else (6, 2)
    blocks, rounds = (1, 2) if quick else (5, 8)
    figures: list[Figure] = []
    for start in ("warm",) if quick else ("warm", "cold"):
        figures += await _measure(start, clients=clients, combiners=combiners, blocks=blocks, rounds=rounds)
    return Result(
        benchmark="round_overhead",
        parameters={
            "clients": clients,
            "combiners": combiners,
            "rounds": blocks * rounds,
            "model_bytes": 4 * PARAMS,
        },
        figures=figures,
        notes=("Processor time is that of the components alone, without the scripts that clients run.",),
    )


async def _measure(start: str, *, clients: int, combiners: int, blocks: int, rounds: int) -> list[Figure]:
    """Measure with clients that start their runs ``warm`` or ``cold``."""
    figures: list[Figure] = []
    async with local_network(combiners=combiners, clients=clients, warm=start == "warm") as network:
        folder = network.work / "by-hand"
        seed, archive = await asyncio.to_thread(write_package, folder)
        package = (await network.ask(lambda http: http.packages.push(archive))).digest
        model = (await network.ask(lambda http: http.models.push(seed))).model
        # Brings package and seed to all clients and fills the caches.
        await _session(network, package, model, rounds=1, validate=True, clients=clients)
        for validate in (False, True):
            entry_points = ("train", "validate") if validate else ("train",)
            found = []
            for _ in range(blocks):
                before = {role: total_cpu_seconds(network.pids_of(role)) for role in ROLES}
                trained = await _session(network, package, model, rounds=rounds, validate=validate, clients=clients)
                cpu_s = {role: total_cpu_seconds(network.pids_of(role)) - before[role] for role in ROLES}
                alone = _forked_scripts if start == "warm" else _started_scripts
                scripts_s = await alone(seed, rounds, entry_points, clients)
                found.append(Block(rounds=trained, scripts_s=scripts_s, cpu_s=cpu_s))
            what = f"{start}, {'with validation' if validate else 'training only'}"
            figures += _figures(found, what, target_ms=None if validate else TARGET_MS)
    return figures


async def _forked_scripts(seed: Path, rounds: int, entry_points: Sequence[str], clients: int) -> list[float]:
    scripts = [seed.parent / "package" / f"{each}.py" for each in entry_points]
    environ = process_variables(os.environ) | ONE_THREAD
    each_s = [await forked_seconds(one, seed, clients=clients, rounds=rounds, environ=environ) for one in scripts]
    return [sum(of_round) for of_round in zip(*each_s, strict=True)]


async def _started_scripts(seed: Path, rounds: int, entry_points: Sequence[str], clients: int) -> list[float]:
    return await asyncio.to_thread(scripts_by_hand, seed, rounds, entry_points, clients)


def write_package(folder: Path) -> tuple[Path, Path]:
    """Write package, seed and the files of runs by hand."""
    source = folder / "package"
    source.mkdir(parents=True)
    (source / "train.py").write_text(TRAIN)
    (source / "validate.py").write_text(VALIDATE)
    seed = folder / "seed.npz"
    write_npz(seed, {"w": np.zeros(PARAMS, np.float32)})
    return seed, pack(source, folder / "package.tar.gz").path


async def _session(
    network: LocalNetwork, package: str, seed: str, *, rounds: int, validate: bool, clients: int
) -> Sequence[Round]:
    session = await network.train(
        timeout_s=60.0 + 10.0 * rounds,
        look_s=0.2 * rounds,
        package=package,
        seed=seed,
        rounds=rounds,
        min_clients=clients,
        validate_every=int(validate),
        retries=0,
    )
    return session.rounds


def scripts_by_hand(seed: Path, rounds: int, entry_points: Sequence[str], clients: int) -> list[float]:
    """Run the scripts of ``rounds`` rounds; return the seconds of each.

    ``seed``: a model, with the scripts in ``package/`` beside it.
    """
    environ = process_variables(os.environ) | ONE_THREAD
    times = []
    with tempfile.TemporaryDirectory(prefix="runnel-by-hand-") as work:
        folders = [Path(work) / str(n) for n in range(clients)]
        for each in folders:
            each.mkdir()
            (each / "model_in.npz").write_bytes(seed.read_bytes())
        for _ in range(rounds):
            began = time.perf_counter()
            for entry_point in entry_points:
                running = [
                    subprocess.Popen(
                        [sys.executable, f"{entry_point}.py", each / "model_in.npz", each / OUTPUT[entry_point]],
                        cwd=seed.parent / "package",
                        env=environ,
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        start_new_session=True,  # as the client does: the scheduler shares out by session
                    )
                    for each in folders
                ]
                status = [process.wait() for process in running]
                if any(status):
                    raise RuntimeError(f"{entry_point}.py ended with {status}")
            times.append(time.perf_counter() - began)
        return times


def _seconds(rounds: Iterable[Round]) -> list[float]:
    return [each.seconds for each in rounds if each.seconds is not None]


def _figures(blocks: Sequence[Block], what: str, *, target_ms: float | None) -> list[Figure]:
    rounds = [each for block in blocks for each in block.rounds]
    scripts_s = [seconds for block in blocks for seconds in block.scripts_s]
    overheads = figure(f"{what}: overhead of a round", "ms", [1e3 * block.overhead_s for block in blocks])
    median = 1e3 * (statistics.median(_seconds(rounds)) - statistics.median(scripts_s))
    figures = [
        Figure(
            name=overheads.name,
            unit="ms",
            median=median,
            low=min(overheads.low, median),
            high=max(overheads.high, median),
            runs=len(rounds),
            target=target_ms,
        ),
        figure(f"{what}: round", "ms", [1e3 * s for s in _seconds(rounds)]),
        figure(f"{what}: the scripts alone", "ms", [1e3 * s for s in scripts_s]),
    ]
    figures += [
        figure(f"{what}: phase {phase}", "ms", [1e3 * each.phases[phase] for each in rounds if phase in each.phases])
        for phase in dict.fromkeys(phase for each in rounds for phase in each.phases)
    ]
    figures += _stages(rounds, what)
    for role in ROLES:
        per_round = [1e3 * block.cpu_s[role] / len(block.rounds) for block in blocks]
        figures.append(figure(f"{what}: processor time of {role}s", "ms", per_round))
    return figures


def _stages(rounds: Sequence[Round], what: str) -> list[Figure]:
    """Return how long clients took for each stage of their work."""
    took: dict[str, list[float]] = {}
    for part in (part for each in rounds for part in each.clients):
        for stage, seconds in part.elapsed_s.items():
            took.setdefault(f"{what}: client, {part.work}, {stage}", []).append(1e3 * seconds)
    return [figure(name, "ms", values) for name, values in took.items()]


if __name__ == "__main__":
    asyncio.run(run_alone(__doc__, measure))
