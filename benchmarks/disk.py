"""Most bytes on disk at combiner and reducer during rounds, and what is left after them, by number of clients.

Reducer and combiner are real processes, the clients light (see ``light_clients.py``): all fetch the model and push one
prepared update, as fast as they are let. The files of both state folders, without the reducer's database, are looked at
fifty times a second, and once more when the session has ended and spent files, which are kept for half a minute, are
gone. Figures are in models, that is bytes by the bytes of a model.

What is expected, with three models kept (``keep_models``). *Combiner*: the three newest models, which it serves to
those below; updates that come, few where they come as fast as here, and some four that wait to be folded; and up to
four spent ones, over which the next are written. Its sum is in memory. *Reducer*: the seed, the three models and the
next one; the combiner's sum (float64: two models), and for a moment the spent one of the round before. With a rule that
needs every update (``median``) both hold all updates of a round until it is reduced. None of it grows with the number
of rounds. What is left: three models at the combiner, at the reducer those and the seed. (Of models of less than a
mebibyte a combiner keeps up to 256, and writes over none.)

    python -m benchmarks.disk [--quick] [--json]
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import Figure, Result, figure, run_alone
from benchmarks.light_rounds import light_network
from benchmarks.usage import MB, bounded_bytes

KEPT = 3
LOOK_S = 0.02
LEFT_S = 60.0

# What is expected above, with room for updates that come faster than they are folded.
TARGET_PEAK = {"combiner": 12.0, "reducer": 10.0}
TARGET_LEFT = {"combiner": 3.5, "reducer": KEPT + 1.5}
# Of the most clients to a few: these fill what is bounded.
FLAT = (4, 64)
TARGET_FLAT = 1.5
# The first third of so many rounds fills what is bounded.
LONG = 12
TARGET_ROUNDS = 1.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What is measured: models of ``megabytes``, so many clients and rounds; with ``gathers`` no sum but a median."""

    megabytes: int
    clients: int
    rounds: int
    gathers: bool = False

    @property
    def name(self) -> str:
        """For people."""
        return f"{'median, ' * self.gathers}{self.megabytes} MB, {self.clients} client{'s' if self.clients > 1 else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What was found, in bytes by role: each look during the rounds, and what was left, if that was waited for."""

    looks: Mapping[str, Sequence[int]]
    left: Mapping[str, int] | None


_QUICK = (Row(megabytes=2, clients=1, rounds=2), Row(megabytes=2, clients=4, rounds=12))
_FULL = (
    Row(megabytes=20, clients=1, rounds=6),
    Row(megabytes=20, clients=4, rounds=40),
    Row(megabytes=20, clients=16, rounds=6),
    Row(megabytes=20, clients=64, rounds=4),
    Row(megabytes=20, clients=16, rounds=6, gathers=True),
)


async def measure(quick: bool) -> Result:
    """Measure all rows, one after the other."""
    found = [(row, await _course(row, wait=not quick)) for row in (_QUICK if quick else _FULL)]
    figures = [each for row, course in found for each in _figures(row, course)]
    if not quick:
        figures += _flatness(found)
    return Result(
        benchmark="disk",
        parameters={"combiners": 1, "keep_models": KEPT, "clients_are": "light, in one process"},
        figures=figures,
        notes=("A model is float32. The reducer's database is not counted.",),
    )


async def _course(row: Row, *, wait: bool) -> Course:
    async with light_network(row.megabytes, row.clients) as network:
        model, package = await network.upload()
        async with _looking(network.folders) as looks:
            strategy = "median" if row.gathers else "fedavg"
            # Half the way each time, so that every round makes another model from the same updates.
            options = {"strategy": strategy, "strategy_options": {"learning_rate": 0.5}}
            await network.train(model, package, rounds=row.rounds, keep_models=KEPT, **options)
        return Course(looks=looks, left=await _left(network.folders) if wait else None)


@contextlib.asynccontextmanager
async def _looking(folders: Mapping[str, Path]) -> AsyncIterator[Mapping[str, list[int]]]:
    """Give the lists to which the bytes in ``folders`` are added while the block runs."""
    looks: dict[str, list[int]] = {role: [] for role in folders}
    over = threading.Event()

    def look() -> None:
        while not over.wait(LOOK_S):
            for role, folder in folders.items():
                looks[role].append(bounded_bytes(folder))

    looking = asyncio.create_task(asyncio.to_thread(look))
    try:
        yield looks
    finally:
        over.set()
        await looking


async def _left(folders: Mapping[str, Path]) -> Mapping[str, int]:
    """Return what is in ``folders`` when no spent file is there any more, or after a minute."""
    with contextlib.suppress(TimeoutError):  # then that is what is left
        async with asyncio.timeout(LEFT_S):
            while any(any(folder.rglob("*.spare")) for folder in folders.values()):  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.5)
    return {role: bounded_bytes(folder) for role, folder in folders.items()}


def _figures(row: Row, course: Course) -> list[Figure]:
    models = row.megabytes * MB
    figures = []
    for role, looks in course.looks.items():
        peak = None if row.gathers else TARGET_PEAK[role]
        figures.append(figure(f"{row.name}: {role} peak", "models", [max(looks) / models], target=peak))
        if course.left is not None:
            left = course.left[role] / models
            figures.append(figure(f"{row.name}: {role} left", "models", [left], target=TARGET_LEFT[role]))
        if row.rounds >= LONG:
            third = len(looks) // 3
            level, before = statistics.mean(looks[-third:]), statistics.mean(looks[-2 * third : -third])
            name = f"{row.name}: {role} on average, last third of {row.rounds} rounds times the one before"
            figures.append(figure(name, "x", [level / before], target=TARGET_ROUNDS))
    return figures


def _flatness(found: Sequence[tuple[Row, Course]]) -> list[Figure]:
    """Return by how much more clients take more disk."""
    sums = {row.clients: course for row, course in found if not row.gathers}
    few, many = FLAT
    return [
        figure(
            f"{role} peak, {many} clients times {few}",
            "x",
            [max(sums[many].looks[role]) / max(sums[few].looks[role])],
            target=TARGET_FLAT,
        )
        for role in TARGET_PEAK
    ]


if __name__ == "__main__":
    asyncio.run(run_alone(__doc__, measure))
