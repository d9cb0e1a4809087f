"""What a round leaves behind in the processes: nothing. The long run is ``benchmarks/growth.py``."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from benchmarks.light_clients import light_clients
from runnel.common.aggregation import WeightedSum
from runnel.common.blobs import digest_file
from runnel.common.tensors import NpzModel, write_npz
from runnel.reducer.engine.runner import SessionRunner
from runnel.transport import SMALL_BYTES, TransferQueue
from tests.eventually import eventually, eventually_blocking
from tests.network.local_network import network, write_package

pytestmark = [pytest.mark.network, pytest.mark.timeout(90)]

ROUNDS = 60
SETTLED = 20  # by then every worker thread and connection is there
MIDDLE = (SETTLED + ROUNDS) // 2


class Held:
    """What this process, with all tiers in it, holds in the middle of rounds."""

    def __init__(self) -> None:
        self.descriptors: list[int] = []
        self.threads: list[int] = []
        self.tasks: list[int] = []

    def look(self) -> None:
        self.descriptors.append(psutil.Process().num_fds())
        self.threads.append(threading.active_count())
        self.tasks.append(len(asyncio.all_tasks()))

    def most(self) -> tuple[int, int, int]:
        return max(self.descriptors), max(self.threads), max(self.tasks)


class Steps:
    """How many steps SQLite's machine has made on connections that are opened meanwhile."""

    def __init__(self) -> None:
        self.count = 0

    @contextmanager
    def counted(self) -> Iterator[None]:
        event.listen(Engine, "connect", self._watch)
        try:
            yield
        finally:
            event.remove(Engine, "connect", self._watch)

    def _watch(self, connection: Any, _record: object) -> None:
        connection.run_async(lambda driver: driver.set_progress_handler(self._step, 1))

    def _step(self) -> int:
        self.count += 1
        return 0


def is_empty(folder: Path) -> bool:
    return not any(folder.iterdir())


async def test_sixty_rounds_leave_no_descriptors_threads_tasks_or_files_and_no_more_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, at = Steps(), list[int]()  # how many there had been when the clients of each round were asked
    train = SessionRunner._train

    async def counting(self: SessionRunner) -> None:
        at.append(steps.count)
        await train(self)

    monkeypatch.setattr(SessionRunner, "_train", counting)
    with steps.counted():
        await a_session_of_sixty_rounds(tmp_path)
    assert len(at) == ROUNDS
    # By the median: what is done now and then, whatever the round, is more work in some.
    taken = [later - earlier for earlier, later in pairwise(at)]
    first, second = median(taken[SETTLED:MIDDLE]), median(taken[MIDDLE:])
    # Looking at what all earlier rounds left adds a step or more for each of them, to each round.
    assert second < first + (MIDDLE - SETTLED) / 2, f"steps of the database in a round: {first:.0f}, then {second:.0f}"


async def a_session_of_sixty_rounds(tmp_path: Path) -> None:
    async with network(tmp_path, clients=0) as net:
        update = tmp_path / "update.npz"
        write_npz(update, {"w": np.full(10, 2.0, np.float32)})
        address = net.reducer.rpc_address
        async with light_clients(2, address, update=update, ref=digest_file(update), folder=tmp_path):
            await eventually(lambda: len(net.reducer.engine.roster.clients()) == 2, timeout_s=20)
            package = await net.push_package(write_package(tmp_path / "package"))
            seed = await net.push_model({"w": np.ones(10, np.float32)})
            session = await net.start_session(
                package,
                seed,
                rounds=ROUNDS,
                min_clients=2,
                validate_every=0,
                keep_models=2,
                strategy="fedavgm",
                strategy_options={"learning_rate": 1e-3},
            )
            early, late = Held(), Held()
            engine = net.reducer.engine
            while engine.running:
                runner = engine._runners.get(session)
                if runner is not None and runner.position.round >= SETTLED:
                    (early if runner.position.round < MIDDLE else late).look()
                await asyncio.sleep(0.01)  # rounds are sampled, none is waited for
            assert (await net.session(session))["status"] == "finished"
            # A connection of the executor or of HTTP may be there or not; what each round leaves would be dozens.
            for first, second, what in zip(early.most(), late.most(), ("descriptors", "threads", "tasks"), strict=True):
                assert second <= first + 4, f"{what}: {first}, then {second}"
            assert engine._orders == {}
            assert len(list((tmp_path / "reducer" / "blobs").glob("??/*"))) == 5  # package, seed, models, one state
            for folder in (
                tmp_path / "reducer" / "partials",
                tmp_path / "reducer" / "spool",
                tmp_path / "c1" / "spool",
            ):
                await eventually(partial(is_empty, folder))


async def test_updates_wait_at_their_clients_while_those_that_came_are_folded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts, add = list[int](), WeightedSum.add  # of the updates that lie at the combiner when one is folded

    def lie() -> int:
        return len(list((tmp_path / "c1" / "spool").glob("*.whole")))

    def late(total: WeightedSum, opened: NpzModel, weight: float) -> None:
        if not counts:
            eventually_blocking(lambda: lie() >= 4, timeout_s=30)
            time.sleep(0.5)  # more than the others would take, were they let in
        counts.append(lie())
        add(total, opened, weight)

    monkeypatch.setattr(WeightedSum, "add", late)
    monkeypatch.setattr(TransferQueue, "_judge", lambda *_: None)  # nor lets a busy machine in more at once
    params = SMALL_BYTES // 2
    async with network(tmp_path, clients=0) as net:
        update = tmp_path / "update.npz"
        write_npz(update, {"w": np.full(params, 2.0, np.float32)})
        address = net.reducer.rpc_address
        async with light_clients(12, address, update=update, ref=digest_file(update), folder=tmp_path):
            await eventually(lambda: len(net.reducer.engine.roster.clients()) == 12, timeout_s=20)
            package = await net.push_package(write_package(tmp_path / "package"))
            seed = await net.push_model({"w": np.ones(params, np.float32)})
            session = await net.start_session(package, seed, rounds=1, min_clients=12, validate_every=0)
            assert (await net.until_ended(session))["status"] == "finished"
    assert len(counts) == 12
    # Four that wait, and those whose push had begun by then.
    assert max(counts) <= 7, counts
