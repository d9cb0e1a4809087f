"""Peak memory of reducer and combiner, and seconds per round, by size of the model and number of clients.

Reducer and combiner are real processes, started anew for each row. The clients are light: in this process, on the real
transport, each fetches the model and pushes one prepared update (see ``light_clients.py``), so that the network is
measured and not the machine's room for training. Memory is resident memory (``VmHWM``) above what the same process
needed when it was idle, with all clients attached and before the seed model was uploaded. The limit of a round is what
plain grpc.aio takes for the bytes that cross the combiner plus what numpy takes to fold them, measured in the same run.

    python -m benchmarks.memory [--quick] [--json]
"""

from __future__ import annotations

import asyncio
import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.figures import Figure, Result, figure, run_alone
from benchmarks.light_clients import light_clients
from benchmarks.limits import fold_seconds, transfer_seconds
from benchmarks.local_network import local_network
from benchmarks.usage import MB, forget_peak, peak_bytes, resident_bytes, total_cpu_seconds
from runnel.common.blobs import digest_file
from runnel.common.tensors import write_npz
from runnel.compute_package import pack

TARGET_MODELS = 3.0
# Of smaller ones, what Python itself needs meanwhile is the larger part.
TARGET_FROM_MB = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One size and number of clients. ``peaks``: bytes above base by role; ``cpu_s``: of reducer and combiner."""

    megabytes: int
    clients: int
    peaks: dict[str, int]
    bases: dict[str, int]
    rounds_s: list[float]
    cpu_s: float

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.megabytes} MB, {self.clients} client{'s' if self.clients > 1 else ''}"


async def measure(quick: bool) -> Result:
    """Measure all rows."""
    sizes, counts, rounds = ((1,), (2,), 1) if quick else ((1, 10, 100), (1, 4, 16), 3)
    figures: list[Figure] = []
    for megabytes in sizes:
        size_bytes = megabytes * 1_000_000
        # The limits first and last: the machine may be busy with something else for a while.
        transfers = await transfer_seconds(size_bytes, 3)
        folds = await asyncio.to_thread(fold_seconds, size_bytes, 3)
        rows = [await _row(megabytes, clients, rounds) for clients in counts]
        transfers += await transfer_seconds(size_bytes, 3)
        folds += await asyncio.to_thread(fold_seconds, size_bytes, 3)
        transfer_s, fold_s = statistics.median(transfers), statistics.median(folds)
        figures.append(figure(f"{megabytes} MB: grpc.aio alone", "s", transfers))
        figures.append(figure(f"{megabytes} MB: numpy folding alone", "s", folds))
        for row in rows:
            figures += _figures(row, _limit_s(row.clients, transfer_s, fold_s))
    return Result(
        benchmark="memory",
        parameters={"combiners": 1, "rounds": rounds, "clients_are": "light, in one process"},
        figures=figures,
        notes=("A model is float32; base is the idle process.",),
    )


def _limit_s(clients: int, transfer_s: float, fold_s: float) -> float:
    """Through the combiner go the model once down and to each client, each update, and the sum, twice as large."""
    return (1 + 2 * clients + 2) * transfer_s + clients * fold_s


async def _row(megabytes: int, clients: int, rounds: int) -> Row:
    async with local_network(combiners=1) as network:
        seed, update, archive = await asyncio.to_thread(_prepare, network.work, megabytes)
        ref = await asyncio.to_thread(digest_file, update)
        async with light_clients(clients, network.rpc, update=update, ref=ref, folder=network.work):
            await network.until_attached(clients=clients)
            pids = {"reducer": network.pids["reducer"], "combiner": network.pids["combiner-1"]}
            for pid in pids.values():
                forget_peak(pid)
            bases = {role: resident_bytes(pid) for role, pid in pids.items()}
            model = (await network.ask(lambda http: http.models.push(seed))).model
            package = (await network.ask(lambda http: http.packages.push(archive))).digest
            before = total_cpu_seconds(pids.values())
            session = await network.train(
                timeout_s=900.0,
                package=package,
                seed=model,
                rounds=rounds,
                min_clients=clients,
                validate_every=0,
                retries=0,
            )
            return Row(
                megabytes=megabytes,
                clients=clients,
                peaks={role: peak_bytes(pid) - bases[role] for role, pid in pids.items()},
                bases=bases,
                rounds_s=[each.seconds for each in session.rounds if each.seconds is not None],
                cpu_s=(total_cpu_seconds(pids.values()) - before) / rounds,
            )


def _prepare(folder: Path, megabytes: int) -> tuple[Path, Path, Path]:
    """Write the seed, the update of all clients, and a package that nobody runs."""
    params = megabytes * 1_000_000 // 4
    seed, update, source = folder / "seed.npz", folder / "update.npz", folder / "package"
    write_npz(seed, {"w": np.zeros(params, np.float32)})
    write_npz(update, {"w": np.random.default_rng(0).standard_normal(params, np.float32)})
    source.mkdir()
    for name in ("train.py", "validate.py"):
        (source / name).write_text("raise SystemExit('light clients run nothing')\n")
    return seed, update, pack(source, folder / "package.tar.gz").path


def _figures(row: Row, limit_s: float) -> list[Figure]:
    target = TARGET_MODELS if row.megabytes >= TARGET_FROM_MB else None
    figures = []
    for role, peak in row.peaks.items():
        models = peak / (row.megabytes * 1_000_000)
        figures.append(figure(f"{row.name}: {role} peak above base", "models", [models], target=target))
        figures.append(figure(f"{row.name}: {role} base", "MB", [row.bases[role] / MB]))
    figures.append(figure(f"{row.name}: round", "s", row.rounds_s))
    figures.append(figure(f"{row.name}: round, times its limit", "x", [each / limit_s for each in row.rounds_s]))
    figures.append(figure(f"{row.name}: processor time of reducer and combiner", "s", [row.cpu_s]))
    return figures


if __name__ == "__main__":
    asyncio.run(run_alone(__doc__, measure))
