"""What grows with the number of rounds: memory, descriptors, threads and disk of each role, over 4,000 rounds.

Reducer, combiner and client are real processes. Two light clients (see ``light_clients.py``) give 4,000 rounds of a
model of 4 KB; after that one real client runs 1,000 rounds of a script that does nothing. Each twentieth of the rounds
all is looked at from outside: resident memory, open descriptors and threads by the kernel's count, bytes in state
folders, pages of the reducer's database. Models are kept as ``keep_models`` says, so that only what is meant to grow
does: the trail, the ledger and the log of events, which are rows, and the client's audit log, which is never shortened
and told by itself.

Memory is told as the slope of a straight line through the second half of the rounds: in the first, what has a bound
fills, and Python enlarges its table of interned strings, through which each path of a new name passes, once and by
2 MB. Descriptors and threads are told as what the second half's least is above that of the first: a run under way has
some of its own, and a look may find any part of one. The database and the audit log are told as bytes per round.

    python -m benchmarks.growth [--quick] [--json]
"""

from __future__ import annotations

import asyncio
import operator
import sqlite3
import statistics
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.figures import Figure, Result, Series, figure, run_alone
from benchmarks.light_clients import light_clients
from benchmarks.local_network import LocalNetwork, local_network
from benchmarks.usage import MB, bounded_bytes, file_bytes, open_descriptors, resident_bytes, threads
from runnel.client.audit import AUDIT_FILE
from runnel.common.blobs import digest_file
from runnel.common.tensors import write_npz
from runnel.compute_package import pack

LOOKS = 20
PARAMS = 1000
KEPT = 3
LOOK_S = 0.05
TIMEOUT_S = 1800.0

# What a straight line through noise of a megabyte or so may show, and far below what one lost model would.
TARGET_MEMORY_BYTES = 1000.0
# One more or less: a connection or a worker that comes and goes.
TARGET_MORE = 2.0
TARGET_FILES_BYTES = 50.0
# Pages are filled as they come.
TARGET_RATIO = 1.1

TRAIN = "import shutil, sys\nshutil.copyfile(sys.argv[1], sys.argv[2])\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a role held after ``round`` rounds.

    ``files_bytes``: of its state folder, without the database and the audit log; ``audit_bytes``: of the latter.
    """

    round: int
    resident_bytes: int
    descriptors: int
    threads: int
    files_bytes: int
    audit_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """All looks of a run by role, bytes of the database at each, and the seconds of all rounds."""

    looks: Mapping[str, list[Look]]
    database_bytes: list[int]
    rounds_s: list[float]


async def measure(quick: bool) -> Result:
    """Measure both runs."""
    light, real = await _light(60 if quick else 4000), await _real(10 if quick else 1000)
    figures = [
        *_figures(light, ("reducer", "combiner"), quick=quick),
        *_database_figures(light, quick=quick),
        *_figures(real, ("client",), quick=quick),
        figure("client: audit log", "B/round", [slope(_late(real.looks["client"]), lambda look: look.audit_bytes)]),
    ]
    return Result(
        benchmark="growth",
        parameters={"rounds": len(light.rounds_s), "rounds of the client": len(real.rounds_s), "keep_models": KEPT},
        figures=figures,
        notes=("Slopes are those of the second half of the rounds.",),
        series=[*_series(light, ("reducer", "combiner")), _database_series(light), *_series(real, ("client",))],
    )


async def _light(rounds: int) -> Course:
    async with local_network(combiners=1) as network:
        seed, archive = await asyncio.to_thread(_prepare, network.work)
        update = network.work / "update.npz"
        await asyncio.to_thread(write_npz, update, {"w": np.full(PARAMS, 2.0, np.float32)})
        ref = await asyncio.to_thread(digest_file, update)
        async with light_clients(2, network.rpc, update=update, ref=ref, folder=network.work):
            await network.until_attached(clients=2)
            roles = {"reducer": "reducer", "combiner": "combiner-1"}
            return await _run(network, roles, seed, archive, rounds=rounds, min_clients=2)


async def _real(rounds: int) -> Course:
    async with local_network(clients=1) as network:
        seed, archive = await asyncio.to_thread(_prepare, network.work)
        return await _run(network, {"client": "client-1"}, seed, archive, rounds=rounds, min_clients=1)


async def _run(
    network: LocalNetwork, roles: Mapping[str, str], seed: Path, archive: Path, *, rounds: int, min_clients: int
) -> Course:
    """Run a session and look at ``roles`` (names of processes by role) meanwhile."""
    looks: dict[str, list[Look]] = {role: [] for role in roles}
    database_bytes: list[int] = []
    with closing(_opened(network.work / "reducer" / "reducer.db")) as database:
        model = (await network.ask(lambda http: http.models.push(seed))).model
        package = (await network.ask(lambda http: http.packages.push(archive))).digest
        started = await network.ask(
            lambda http: http.sessions.start(
                package=package,
                seed=model,
                rounds=rounds,
                min_clients=min_clients,
                validate_every=0,
                retries=0,
                keep_models=KEPT,
                # Each round moves the model a little, so that each makes two files: a model and the optimizer's state.
                strategy="fedavgm",
                strategy_options={"learning_rate": 1e-4},
            )
        )
        async with asyncio.timeout(TIMEOUT_S):
            async for number in _rounds(database, started.session, rounds, step=max(1, rounds // LOOKS)):
                database_bytes.append(await asyncio.to_thread(_size_of, database))
                for role, name in roles.items():
                    looks[role].append(await asyncio.to_thread(_look, number, network.pids[name], network.work / name))
        seconds = database.execute("SELECT seconds FROM round WHERE seconds IS NOT NULL ORDER BY number").fetchall()
    ended = await network.ask(lambda http: http.sessions.show(started))
    if len(seconds) != rounds:
        raise AssertionError(f"{len(seconds)} of {rounds} rounds: {ended.status}, {ended.reason}")
    return Course(looks=looks, database_bytes=database_bytes, rounds_s=[each for (each,) in seconds])


async def _rounds(database: sqlite3.Connection, session: str, rounds: int, *, step: int) -> AsyncIterator[int]:
    """Yield the number of committed rounds each ``step`` rounds, until all are.

    Asked is the database itself: what the reducer answers about a session grows with its rounds.
    """
    query = "SELECT count(*) FROM round WHERE session_id = ? AND seconds IS NOT NULL"
    ended = "SELECT finished_at IS NOT NULL FROM session WHERE id = ?"
    due = step
    while True:
        over = bool(database.execute(ended, (session,)).fetchone()[0])
        done = int(database.execute(query, (session,)).fetchone()[0])
        if done >= due or over:
            yield done
            due = done - done % step + step
        if over or done >= rounds:
            return
        await asyncio.sleep(LOOK_S)


def _opened(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=30.0, check_same_thread=False)


def _size_of(database: sqlite3.Connection) -> int:
    """Return the bytes of all pages, wherever they are: in the database or in its log."""
    ((pages,),), ((page_size,),) = (
        database.execute(f"PRAGMA {name}").fetchall() for name in ("page_count", "page_size")
    )
    return int(pages) * int(page_size)


def _look(number: int, pid: int, state: Path) -> Look:
    return Look(
        round=number,
        resident_bytes=resident_bytes(pid),
        descriptors=open_descriptors(pid),
        threads=threads(pid),
        files_bytes=bounded_bytes(state),
        audit_bytes=file_bytes(state / AUDIT_FILE),
    )


def _prepare(folder: Path) -> tuple[Path, Path]:
    """Write the seed and a package."""
    seed, source = folder / "seed.npz", folder / "package"
    write_npz(seed, {"w": np.ones(PARAMS, np.float32)})
    source.mkdir()
    for name in ("train.py", "validate.py"):
        (source / name).write_text(TRAIN)
    return seed, pack(source, folder / "package.tar.gz").path


# ---- figures


def _figures(course: Course, roles: tuple[str, ...], *, quick: bool) -> list[Figure]:
    """Return the figures of roles; few rounds, in which all is still being filled, have no target."""
    figures = []
    for role in roles:
        looks = course.looks[role]
        late = _late(looks)
        memory = slope(late, lambda look: look.resident_bytes)
        files = slope(late, lambda look: look.files_bytes)
        figures.append(
            figure(f"{role}: memory", "B/round", [max(0.0, memory)], target=None if quick else TARGET_MEMORY_BYTES)
        )
        figures.append(figure(f"{role}: memory at the end", "MB", [late[-1].resident_bytes / MB]))
        for what in ("descriptors", "threads"):
            figures.append(
                figure(
                    f"{role}: {what}, more in the second half",
                    "",
                    [more(looks, operator.attrgetter(what))],
                    target=None if quick else TARGET_MORE,
                )
            )
        figures.append(
            figure(f"{role}: files", "B/round", [max(0.0, files)], target=None if quick else TARGET_FILES_BYTES)
        )
    return figures


def _database_figures(course: Course, *, quick: bool) -> list[Figure]:
    looks, sizes = course.looks["reducer"], course.database_bytes
    half = len(sizes) // 2
    per_round = [
        statistics.linear_regression([look.round for look in looks[part]], sizes[part]).slope
        for part in (slice(0, half), slice(half, None))
    ]
    tenth = max(1, len(course.rounds_s) // 10)
    first, last = (statistics.median(part) for part in (course.rounds_s[:tenth], course.rounds_s[-tenth:]))
    return [
        figure("database", "B/round", [per_round[1]]),
        figure(
            "database, second half times first",
            "x",
            [per_round[1] / per_round[0]],
            target=None if quick else TARGET_RATIO,
        ),
        figure("round", "ms", [1e3 * each for each in course.rounds_s]),
        figure("round, last tenth times first", "x", [last / first]),
    ]


def more(looks: list[Look], of: Callable[[Look], int]) -> int:
    """Return by how much the least of what ``of`` tells is more in the second half of ``looks`` than in the first.

    >>> def look(number, descriptors):
    ...     return Look(round=number, resident_bytes=1, descriptors=descriptors, threads=1, files_bytes=0)
    >>> more([look(n, 18 + extra) for n, extra in enumerate((0, 3, 0, 1, 0, 7))], lambda look: look.descriptors)
    0
    >>> more([look(n, 18 + n) for n in range(6)], lambda look: look.descriptors)
    3
    """
    half = len(looks) // 2
    return max(0, min(map(of, looks[half:])) - min(map(of, looks[:half])))


def _late(looks: list[Look]) -> list[Look]:
    return looks[len(looks) // 2 :]


def slope(looks: list[Look], of: Callable[[Look], int]) -> float:
    """Return by how much a round changes what ``of`` tells: the slope of a straight line.

    >>> looks = [Look(round=n, resident_bytes=5000 + 7 * n, descriptors=1, threads=1, files_bytes=0) for n in (1, 5, 9)]
    >>> round(slope(looks, lambda look: look.resident_bytes), 6)
    7.0
    """
    return statistics.linear_regression([look.round for look in looks], [of(look) for look in looks]).slope


def _series(course: Course, roles: tuple[str, ...]) -> list[Series]:
    return [
        Series(
            name=f"{role}: {name}",
            unit=unit,
            along="round",
            x=[look.round for look in course.looks[role]],
            y=[of(look) for look in course.looks[role]],
        )
        for role in roles
        for name, unit, of in _WHAT
    ]


def _database_series(course: Course) -> Series:
    return Series(
        name="database",
        unit="MB",
        along="round",
        x=[look.round for look in course.looks["reducer"]],
        y=[each / MB for each in course.database_bytes],
    )


_WHAT: tuple[tuple[str, str, Callable[[Look], float]], ...] = (
    ("memory", "MB", lambda look: look.resident_bytes / MB),
    ("descriptors", "", lambda look: look.descriptors),
    ("threads", "", lambda look: look.threads),
    ("files", "kB", lambda look: look.files_bytes / 1000),
)


if __name__ == "__main__":
    asyncio.run(run_alone(__doc__, measure))
