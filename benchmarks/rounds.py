"""Seconds per round and memory of the servers, by number of clients and size of the model; of Runnel, limits and peers.

The network is a reducer, one combiner and real clients, each a process as people start it; ``train.py`` of the package
adds one to each number of a model of eight arrays. The first round brings package, seed and interpreters and is not
measured; nor is that of the peers. After the last one the model is checked: it tells that each update was counted once.

Limits are measured in the same run: plain grpc.aio for the bytes that cross the network, numpy for the folds, and the
scripts alone. With ``--peers`` so are Flower and NVFlare (``benchmarks/peers``), the newest version of each in an
environment of its own, made once by uv in ``--environments``.

    python -m benchmarks.rounds [--quick] [--json] [--peers] [--environments FOLDER] [--rows N …]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from rich.console import Console

from benchmarks.addition import ARRAYS, Row, WrongModel, check_model, write_seed
from benchmarks.figures import Bars, Figure, Result, figure, quieten, show
from benchmarks.forked_scripts import forked_seconds
from benchmarks.limits import fold_seconds, transfer_seconds, transfers_of_round
from benchmarks.local_network import LocalNetwork, local_network
from benchmarks.peers import flower_network, nvflare_network
from benchmarks.peers.environments import PeerUnavailable, default_folder
from benchmarks.peers.measured import PeerRounds
from benchmarks.process_trees import ProcessEnded
from benchmarks.round_overhead import ROLES, TRAIN, scripts_by_hand
from benchmarks.usage import peak_bytes, total_cpu_seconds
from runnel.compute_package import pack
from runnel.demo.processes import ONE_THREAD
from runnel.sdk import Session

GB = 1e9
TARGETS_S = {(8, 4): 0.10, (8, 10_000): 0.6, (4, 100_000): 2.5, (8, 100_000): 5.0}
COLD_TARGETS_S = {(8, 4): 0.8}
PEAK_TARGETS_GB = {"reducer": 0.25, "combiner": 0.35}
PEAK_TARGETS_AT_KB = 100_000
PEERS: Mapping[str, Callable[[Row, Path, Path, Path], Awaitable[PeerRounds]]] = {
    flower_network.NAME: flower_network.measure,
    nvflare_network.NAME: nvflare_network.measure,
}

_QUICK = (Row(clients=2, kilobytes=4, rounds=2, peer_rounds=2),)
_FULL = (
    Row(clients=8, kilobytes=4, rounds=30, peer_rounds=5, cold=True),
    Row(clients=8, kilobytes=10_000, rounds=10, peer_rounds=5),
    Row(clients=4, kilobytes=100_000, rounds=7, peer_rounds=5),
    Row(clients=8, kilobytes=100_000, rounds=5, peer_rounds=5),
)
_QUOTED = (
    "FEDn 0.33, quoted, not measured here (its server needs MongoDB and MinIO; a quiet machine of two cores):"
    " 8 clients, 4 KB 1.6 s; 4 clients, 10 MB 4.7 s, 0.29 GB; 4 clients, 100 MB 28.8 s, 0.9 GB;"
    " 8 clients, 100 MB about 55 s (busy machine), 1.2 GB."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """``seconds``: of each round; ``peaks``: most resident bytes by role; ``cpu_s``: per round by role."""

    seconds: Sequence[float]
    peaks: Mapping[str, int]
    cpu_s: Mapping[str, float]


@dataclass(slots=True, kw_only=True)
class Table:
    """What has been found so far: figures, medians to draw, reasons for what is missing."""

    groups: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)
    peaks: dict[str, dict[str, float]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def add(
        self,
        row: Row,
        contender: str,
        seconds: Sequence[float],
        *,
        target: float | None = None,
        drawn: bool = True,
    ) -> None:
        """Note rounds."""
        found = figure(f"{row.name}: {contender}, round", "s", seconds, target=target)
        self.figures.append(found)
        if drawn:
            self.seconds.setdefault(contender, {})[row.name] = found.median

    def add_peaks(
        self, row: Row, contender: str, peaks: Mapping[str, int], targets: Mapping[str, float] | None = None
    ) -> None:
        """Note the peaks of each server process, and their sum for drawing."""
        for role, peak in sorted(peaks.items()):
            name = f"{row.name}: {contender}, {role} peak memory"
            self.figures.append(figure(name, "GB", [peak / GB], target=(targets or {}).get(role)))
        self.peaks.setdefault(contender, {})[row.name] = sum(peaks.values()) / GB

    def bars(self) -> Iterator[Bars]:
        """Yield what is to be drawn."""
        drawn = {"seconds per round": ("s", self.seconds), "peak memory of all server processes": ("GB", self.peaks)}
        for name, (unit, values) in drawn.items():
            columns = {who: [found.get(group) for group in self.groups] for who, found in values.items()}
            yield Bars(name=name, unit=unit, groups=self.groups, values=columns)


async def measure(
    quick: bool, *, peers: bool = False, environments: Path | None = None, rows: Sequence[int] = ()
) -> Result:
    """Measure the rows (``rows``: only those of these numbers, from 1)."""
    every = _QUICK if quick else _FULL
    if missing := [n for n in rows if n > len(every)]:
        raise ValueError(f"There is no row {missing[0]}; there are {len(every)}{' with --quick' if quick else ''}.")
    table = Table()
    for row in [every[n - 1] for n in rows] or every:
        table.groups.append(row.name)
        with tempfile.TemporaryDirectory(prefix="runnel-rounds-") as work:
            folder = Path(work)
            seed = await asyncio.to_thread(_prepare, row, folder)
            limit_s = await _limits(row, seed, table)
            await _runnel(row, seed, table, limit_s)
            for name in PEERS if peers else ():
                try:
                    await _peer(name, row, seed, environments or default_folder(os.environ), table)
                except (PeerUnavailable, ProcessEnded, WrongModel, ValueError) as error:
                    table.missing[f"{name}, {row.name}"] = str(error)
    return Result(
        benchmark="rounds",
        parameters={"combiners": 1, "arrays": ARRAYS, "peers": "yes" if peers else "no", **table.versions},
        figures=table.figures,
        notes=(
            "The first round of each is not measured.",
            _QUOTED,
            *(f"Not measured: {what}: {reason}" for what, reason in table.missing.items()),
        ),
        bars=tuple(table.bars()),
    )


def _prepare(row: Row, folder: Path) -> Path:
    """Write package and seed where scripts by hand look for them."""
    (folder / "package").mkdir()
    (folder / "package/train.py").write_text(TRAIN)
    seed = folder / "seed.npz"
    write_seed(row, seed)
    return seed


async def _limits(row: Row, seed: Path, table: Table) -> float:
    """Measure what the parts take without a network; return the seconds of grpc.aio, one transfer after another."""
    runs = 5 if row.rounds > 2 else 2
    count = transfers_of_round(row.clients)
    transfers = [count * each for each in await transfer_seconds(row.size_bytes, runs)]
    table.add(row, "limit grpc.aio", transfers)
    folds = await asyncio.to_thread(fold_seconds, row.size_bytes, runs)
    table.add(row, "limit numpy", [row.clients * each for each in folds], drawn=False)
    train = seed.parent / "package/train.py"
    forked = await forked_seconds(train, seed, clients=row.clients, rounds=runs, environ=dict(os.environ) | ONE_THREAD)
    table.add(row, "limit scripts", forked)
    if row.cold:
        started = await asyncio.to_thread(scripts_by_hand, seed, runs, ("train",), row.clients)
        table.add(row, "limit scripts cold", started)
    return statistics.median(transfers)


async def _runnel(row: Row, seed: Path, table: Table, limit_s: float) -> None:
    key = (row.clients, row.kilobytes)
    warm = await _rounds(row, seed, warm=True)
    table.add(row, "Runnel", warm.seconds, target=TARGETS_S.get(key))
    name = f"{row.name}: Runnel, round, times grpc.aio"
    table.figures.append(figure(name, "x", [each / limit_s for each in warm.seconds]))
    targets = PEAK_TARGETS_GB if row.kilobytes >= PEAK_TARGETS_AT_KB else None
    table.add_peaks(row, "Runnel", warm.peaks, targets)
    for role, seconds in warm.cpu_s.items():
        table.figures.append(figure(f"{row.name}: Runnel, processor time of {role}s", "s", [seconds]))
    if row.cold:
        cold = await _rounds(row, seed, warm=False)
        table.add(row, "Runnel cold", cold.seconds, target=COLD_TARGETS_S.get(key))


async def _rounds(row: Row, seed: Path, *, warm: bool) -> Measured:
    """Run a session of one round, then one of those that are measured."""
    async with local_network(combiners=1, clients=row.clients, warm=warm) as network:
        archive = (await asyncio.to_thread(pack, seed.parent / "package", network.work / "package.tar.gz")).path
        package = (await network.ask(lambda http: http.packages.push(archive))).digest
        model = (await network.ask(lambda http: http.models.push(seed))).model
        await _train(network, row, package, model, rounds=1)
        before = {role: total_cpu_seconds(network.pids_of(role)) for role in ROLES}
        session = await _train(network, row, package, model, rounds=row.rounds)
        cpu_s = {role: (total_cpu_seconds(network.pids_of(role)) - before[role]) / row.rounds for role in ROLES}
        peaks = {role: sum(map(_peak_of_tree, network.pids_of(role))) for role in ("reducer", "combiner")}
        trained = network.work / "trained.npz"
        await network.ask(lambda http: http.models.get(session.model, trained))
        await asyncio.to_thread(check_model, seed, trained, row.rounds)
        seconds = [each.seconds for each in session.rounds if each.seconds is not None]
        return Measured(seconds=seconds, peaks=peaks, cpu_s=cpu_s)


async def _train(network: LocalNetwork, row: Row, package: str, model: str, *, rounds: int) -> Session:
    return await network.train(
        timeout_s=120.0 + 60.0 * rounds,
        look_s=min(0.2 * rounds, 2.0),
        package=package,
        seed=model,
        rounds=rounds,
        min_clients=row.clients,
        validate_every=0,
        retries=0,
    )


def _peak_of_tree(pid: int) -> int:
    children = psutil.Process(pid).children(recursive=True)
    return sum(peak_bytes(each) for each in [pid, *(child.pid for child in children)])


async def _peer(name: str, row: Row, seed: Path, environments: Path, table: Table) -> None:
    """Measure one peer in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="peer-", dir=seed.parent) as work:
        found = await PEERS[name](row, seed, Path(work), environments)
    table.add(row, name, found.seconds)
    table.add_peaks(row, name, found.peaks)
    table.versions[name] = found.version


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer and smaller runs: shows that it works")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--peers", action="store_true", help="also Flower and NVFlare, which uv installs")
    parser.add_argument("--environments", type=Path, help=f"where they are kept; default: {default_folder({})}")
    numbered = ", ".join(f"{n}: {row.name}" for n, row in enumerate(_FULL, 1))
    parser.add_argument("--rows", type=int, nargs="+", default=(), choices=range(1, 1 + len(_FULL)), help=numbered)
    return parser.parse_args(argv)


async def _main(arguments: argparse.Namespace) -> None:
    quieten()
    result = await measure(
        arguments.quick, peers=arguments.peers, environments=arguments.environments, rows=arguments.rows
    )
    if arguments.json:
        json.dump(result.as_json(), sys.stdout)
        print()
    else:
        show(result, Console(width=None if sys.stdout.isatty() else 120))


if __name__ == "__main__":
    asyncio.run(_main(_arguments(None)))
