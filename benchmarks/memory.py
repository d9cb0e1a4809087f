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
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.figures import Bars, Figure, Result, figure, run_alone
from benchmarks.light_rounds import LightRounds, light_rounds
from benchmarks.limits import fold_seconds, transfer_seconds, transfers_of_round
from benchmarks.usage import MB

TARGET_MODELS = 3.0
# Of smaller ones, what Python itself needs meanwhile is the larger part.
TARGET_FROM_MB = 100
# Of the most clients to one: a client that transfers at that moment has up to 1 MiB of gRPC's buffers.
TARGET_FLAT = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One size and number of clients, and what was measured."""

    megabytes: int
    clients: int
    measured: LightRounds

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.megabytes} MB, {self.clients} client{'s' if self.clients > 1 else ''}"


# Clients by size of the model, and rounds: of more than 2 GB that cross the combiner one round is enough.
_QUICK = {1: {2: 1}}
_FULL = {
    1: {1: 3, 4: 3, 16: 3},
    10: {1: 3, 4: 3, 16: 3},
    100: {1: 3, 4: 3, 16: 2, 64: 1},
    500: {1: 1},
    2000: {1: 1},
}


async def measure(quick: bool) -> Result:
    """Measure all rows."""
    figures: list[Figure] = []
    measured: list[Row] = []
    for megabytes, wanted in (_QUICK if quick else _FULL).items():
        size_bytes, runs = megabytes * 1_000_000, 3 if megabytes <= TARGET_FROM_MB else 1
        # The limits first and last: the machine may be busy with something else for a while.
        transfers = await transfer_seconds(size_bytes, runs)
        folds = await asyncio.to_thread(fold_seconds, size_bytes, runs)
        rows = [await _row(megabytes, clients, rounds) for clients, rounds in wanted.items()]
        transfers += await transfer_seconds(size_bytes, runs)
        folds += await asyncio.to_thread(fold_seconds, size_bytes, runs)
        transfer_s, fold_s = statistics.median(transfers), statistics.median(folds)
        figures.append(figure(f"{megabytes} MB: grpc.aio alone", "s", transfers))
        figures.append(figure(f"{megabytes} MB: numpy folding alone", "s", folds))
        for row in rows:
            figures += _figures(row, _limit_s(row.clients, transfer_s, fold_s))
        if megabytes >= TARGET_FROM_MB and len(rows) > 1:
            figures += _flatness(rows[0], rows[-1])
        measured += rows
    return Result(
        benchmark="memory",
        parameters={"combiners": 1, "clients_are": "light, in one process"},
        figures=figures,
        notes=("A model is float32; base is the idle process.",),
        bars=(_bars(measured),),
    )


def _bars(rows: Sequence[Row]) -> Bars:
    """Draw the peaks beside what they are to stay below."""
    values: dict[str, list[float | None]] = {f"limit {TARGET_MODELS:g} models": []}
    for row in rows:
        promised = row.megabytes >= TARGET_FROM_MB
        values[f"limit {TARGET_MODELS:g} models"].append(TARGET_MODELS * row.megabytes if promised else None)
        for role, peak in row.measured.peaks.items():
            values.setdefault(role, []).append(peak / MB)
    return Bars(name="peak memory above the idle process", unit="MB", groups=[row.name for row in rows], values=values)


def _limit_s(clients: int, transfer_s: float, fold_s: float) -> float:
    return transfers_of_round(clients) * transfer_s + clients * fold_s


async def _row(megabytes: int, clients: int, rounds: int) -> Row:
    return Row(megabytes=megabytes, clients=clients, measured=await light_rounds(megabytes, clients, rounds))


def _flatness(few: Row, many: Row) -> list[Figure]:
    """Return by how much more clients take more memory."""
    return [
        figure(
            f"{many.megabytes} MB: {role} peak, {many.clients} clients times {few.clients}",
            "x",
            [many.measured.peaks[role] / few.measured.peaks[role]],
            target=TARGET_FLAT,
        )
        for role in many.measured.peaks
    ]


def _figures(row: Row, limit_s: float) -> list[Figure]:
    target = TARGET_MODELS if row.megabytes >= TARGET_FROM_MB else None
    measured = row.measured
    figures = []
    for role, peak in measured.peaks.items():
        models = peak / (row.megabytes * 1_000_000)
        figures.append(figure(f"{row.name}: {role} peak above base", "models", [models], target=target))
        figures.append(figure(f"{row.name}: {role} base", "MB", [measured.bases[role] / MB]))
    figures.append(figure(f"{row.name}: round", "s", measured.rounds_s))
    figures.append(figure(f"{row.name}: round, times its limit", "x", [each / limit_s for each in measured.rounds_s]))
    figures.append(figure(f"{row.name}: processor time of reducer and combiner", "s", [measured.cpu_s]))
    return figures


if __name__ == "__main__":
    asyncio.run(run_alone(__doc__, measure))
