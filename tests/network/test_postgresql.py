"""PostgreSQL as the reducer's state: its schema, whole sessions, one reducer at a time, and outages."""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from runnel.common.errors import BadSettings, Conflict, InvalidInput, Unreachable
from runnel.reducer.store.database import Database
from runnel.reducer.store.database_url import read_database_url
from runnel.reducer.store.migrating import apply_migrations
from runnel.reducer.store.tables import Base, LeaseRow, OrganisationRow
from tests.eventually import eventually, let_pass
from tests.network.local_network import ADD_CONSTANT, LocalNetwork, network, write_package
from tests.postgresql import Cluster, running_cluster
from tests.schema_shape import schema_shape

pytestmark = [pytest.mark.network, pytest.mark.timeout(120)]

NOW = datetime(2026, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)
SEED: dict[str, np.ndarray[Any, Any]] = {"w": np.zeros((20, 3), np.float32), "b": np.zeros(4, np.float64)}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Run one of its own, as it is stopped and started here."""
    with running_cluster() as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'reducer.db'}"
    return str(request.getfixturevalue("cluster").new_database())


@contextlib.asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[Database]:
    async with Database(url, **options) as database:
        yield database


# ---- the schema of both; the store's tests in tests/unit run on both


async def test_a_database_of_any_version_becomes_what_the_tables_say(
    url: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    def differences(connection: Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, Base.metadata))

    shapes = []
    for begun in ("empty", "0001", "head"):
        if begun != "empty":
            again = f"sqlite:///{tmp_path / begun}.db"
            url = again if url.startswith("sqlite") else str(request.getfixturevalue("cluster").new_database())
            engine = create_async_engine(read_database_url(url))
            async with engine.begin() as connection:
                await connection.run_sync(apply_migrations, begun)
            await engine.dispose()
        for _ in range(2):
            async with opened(url) as database, database.read() as tx:
                opened_one = await tx.connection()
                assert await opened_one.run_sync(differences) == []
                shapes.append(await opened_one.run_sync(schema_shape))
    assert all(shape == shapes[0] for shape in shapes)


async def test_a_state_of_a_newer_version_is_refused(url: str) -> None:
    async with opened(url) as database, database.write() as tx:
        await tx.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(BadSettings, match=r"schema 9999.*newer version"):
        async with opened(url):
            pass


async def test_what_does_not_fit_its_column_is_bad_input(cluster: Cluster) -> None:
    async with opened(cluster.new_database()) as database:
        with pytest.raises(InvalidInput, match="too long"):
            async with database.write() as tx:
                tx.add(OrganisationRow(id="a" * 65, created_at=NOW))
        with pytest.raises(InvalidInput, match="NUL"):
            async with database.read() as tx:
                await tx.get(OrganisationRow, "a\0b")
        assert await names_in(database) == set()


# ---- the lease


async def test_a_second_reducer_is_refused_and_told_who_is_there(cluster: Cluster) -> None:
    url = cluster.new_database()
    async with opened(url, name="north") as database:
        with pytest.raises(Conflict, match=r"The reducer north on \S+ \(process \d+\) acts on the database") as caught:
            async with opened(url, name="south"):
                pass
        assert "correct" not in str(caught.value)
        async with database.write() as tx:  # the first is not disturbed
            tx.add(OrganisationRow(id="a", created_at=NOW))
    async with opened(url, name="south") as database, database.read() as tx:
        lease = (await tx.scalars(select(LeaseRow))).one()
        assert (lease.name, lease.token) == ("south", 2)


def expire(cluster: Cluster, url: str) -> None:
    """Do what time does while a holder is stopped: nobody has renewed the lease."""
    cluster.query(url.rpartition("/")[2], "UPDATE lease SET expires_at = now() - interval '1 second'")


async def names_in(database: Database) -> set[str]:
    async with database.read() as tx:
        return {row.id for row in await tx.scalars(select(OrganisationRow))}


class Holder:
    """A reducer's database in a task of its own, as in a process of its own, that writes when it is told to."""

    def __init__(self, url: str, **options: Any) -> None:
        self._url, self._options = url, options
        self._ready, self.go = asyncio.Event(), asyncio.Event()
        self.task = asyncio.create_task(self._run())

    async def ready(self) -> Holder:
        await self._ready.wait()
        return self

    async def _run(self) -> None:
        async with opened(self._url, name="first", **self._options) as database:
            async with database.write() as tx:
                tx.add(OrganisationRow(id="before", created_at=NOW))
            self._ready.set()
            await self.go.wait()
            with contextlib.suppress(Unreachable):  # or the loss of the lease cancels this task before it is told here
                async with database.write() as tx:
                    tx.add(OrganisationRow(id="after", created_at=NOW))
            with pytest.raises(Unreachable, match="no longer has the lease"):
                async with database.read():
                    pass
            await asyncio.Event().wait()  # until the loss of the lease ends this task


async def test_the_lease_of_one_that_hangs_goes_to_the_next_and_the_first_is_fenced(cluster: Cluster) -> None:
    url = cluster.new_database()
    first = await Holder(url, lease_s=60).ready()
    expire(cluster, url)
    async with opened(url, name="second") as second:
        first.go.set()
        with pytest.RaisesGroup(pytest.RaisesExc(Unreachable, match=r"no longer has the lease .*: second on")):
            await first.task
        assert await names_in(second) == {"before"}


async def test_one_that_does_nothing_ends_too_when_its_lease_is_taken(cluster: Cluster) -> None:
    url = cluster.new_database()
    first = await Holder(url, lease_s=1.5).ready()
    async with contextlib.AsyncExitStack() as stack:

        async def taken() -> bool:
            expire(cluster, url)
            with contextlib.suppress(Conflict):  # the first has renewed it just then
                await stack.enter_async_context(opened(url, name="second"))
                return True
            return False

        await eventually(taken)
        with pytest.RaisesGroup(pytest.RaisesExc(Unreachable, match="no longer has the lease")):
            await asyncio.wait_for(first.task, 60)


async def test_what_is_being_committed_while_the_lease_is_taken_is_seen_by_the_next(cluster: Cluster) -> None:
    url = cluster.new_database()

    async def take_over() -> set[str]:
        async with opened(url, name="second") as second:
            return await names_in(second)

    async with opened(url, name="first", lease_s=60) as first:
        expire(cluster, url)
        async with first.write() as tx:
            second = asyncio.create_task(take_over())
            await eventually(lambda: waiting_for_locks(cluster, url))
            tx.add(OrganisationRow(id="in time", created_at=NOW))
        assert await asyncio.wait_for(second, 60) == {"in time"}


def waiting_for_locks(cluster: Cluster, url: str) -> bool:
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    return cluster.query(url.rpartition("/")[2], query) != [(0,)]


async def test_a_holder_whose_connection_broke_is_still_the_holder(cluster: Cluster) -> None:
    url = cluster.new_database()
    end_all = (
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted"

    async with opened(url, name="first", lease_s=60) as first:
        name = url.rpartition("/")[2]
        assert cluster.query(name, locks) == [(1,)]
        assert cluster.query(name, end_all) != [(0,)]
        async with first.write() as tx:  # over a new connection, and nobody notices
            tx.add(OrganisationRow(id="a", created_at=NOW))
        let_pass(21)  # it is renewed each 20 s
        await eventually(lambda: cluster.query(name, locks) == [(1,)])
        with pytest.raises(Conflict, match="The reducer first"):
            async with opened(url, name="second"):
                pass
        assert await names_in(first) == {"a"}


# ---- outages


async def test_a_transaction_waits_for_a_server_that_is_away_for_some_seconds(cluster: Cluster) -> None:
    async with opened(cluster.new_database()) as database:
        await asyncio.to_thread(cluster.stop)
        writing = asyncio.create_task(add(database, "a"))
        reading = asyncio.create_task(names_in(database))
        await asyncio.sleep(1)  # the outage
        assert not writing.done()
        assert not reading.done()
        await asyncio.to_thread(cluster.start)
        await writing
        await reading
        assert await names_in(database) == {"a"}


async def test_an_outage_without_an_end_is_said_without_the_password(cluster: Cluster) -> None:
    url = cluster.new_database()
    async with opened(url, patience_s=0.5) as database:
        await asyncio.to_thread(cluster.stop, "immediate")
        try:
            with pytest.raises(Unreachable, match=r"database test_\w+ at 127.0.0.1:\d+ does not answer: .+") as written:
                await add(database, "a")
            with pytest.raises(Unreachable, match="does not answer") as read:
                await names_in(database)
            with pytest.raises(Unreachable, match="does not answer") as begun:
                async with opened(url, patience_s=0.5):
                    pass
        finally:
            await asyncio.to_thread(cluster.start)
        shown = "".join("".join(traceback.format_exception(caught.value)) for caught in (written, read, begun))
        assert "correct" not in shown
        assert "battery" not in shown
        await add(database, "b")
        assert await names_in(database) == {"b"}


async def test_a_wrong_password_is_not_shown(cluster: Cluster) -> None:
    wrong = cluster.url("postgres", "-".join(("hush", "hush")))
    with pytest.raises(Unreachable, match="password authentication failed") as caught:
        async with opened(wrong, patience_s=0.1):
            pass
    assert "hush-hush" not in "".join(traceback.format_exception(caught.value))


class LostAnswer:
    """Ends the connection at the next commit: when the server has done it, or just before it can."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, committed: bool) -> None:
        self._commit, self._committed, self.times = AsyncSession.commit, committed, 1
        lost = self

        async def commit(session: AsyncSession) -> None:
            await lost.commit(session)

        monkeypatch.setattr(AsyncSession, "commit", commit)

    async def commit(self, session: AsyncSession) -> None:
        if self.times == 0:
            await self._commit(session)
            return
        self.times -= 1
        connection = await session.connection()
        if self._committed:
            await self._commit(session)
        else:
            await session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
        assert connection.sync_connection is not None
        raise OperationalError("COMMIT", {}, ConnectionError("the connection was lost"), connection_invalidated=True)


async def test_a_commit_whose_answer_is_lost_counts(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(cluster.new_database()) as database:
        fault = LostAnswer(monkeypatch, committed=True)
        await add(database, "a")
        assert fault.times == 0
        assert await names_in(database) == {"a"}


async def test_a_commit_that_never_was_is_an_error(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(cluster.new_database()) as database:
        fault = LostAnswer(monkeypatch, committed=False)
        with pytest.raises(Unreachable):
            await add(database, "a")
        assert fault.times == 0
        assert await names_in(database) == set()
        await add(database, "a")
        assert await names_in(database) == {"a"}


async def add(database: Database, name: str) -> None:
    async with database.write() as tx:
        tx.add(OrganisationRow(id=name, created_at=NOW))


# ---- whole sessions

WAIT = (
    "import os, time, pathlib\n"
    "while not pathlib.Path(os.environ['RUNNEL_DATA'] + '.go').exists(): time.sleep(0.02)\n"
    "with open(os.environ['RUNNEL_DATA'] + '.runs', 'a') as f: f.write('x')\n"
)


async def test_sessions_end_in_the_mean_and_go_on_after_a_restart(url: str, tmp_path: Path) -> None:
    async with network(tmp_path, combiners=2, clients=3, database=url) as net:
        package = await net.push_package(write_package(tmp_path / "package"))
        seed = await net.push_model(SEED)
        options = {"strategy": "fedadam", "strategy_options": {"learning_rate": 0.1}}
        one = await net.start_session(package, seed, rounds=2, min_clients=3)
        two = await net.start_session(package, seed, rounds=2, min_clients=3, **options)
        view = await net.until_ended(one)
        assert [r["metrics"]["mean"] for r in view["rounds"]] == [2.0, 4.0]  # the mean of 1, 2, 3, twice
        assert (await net.until_ended(two))["status"] == "finished"
        await net.stop("reducer")
        await net.start_reducer()
        await net.until_attached("site-1", "site-2", "site-3")
        await net.http.post(f"/sessions/{one[:8]}/extend", json={"rounds": 1})
        view = await net.until_ended(one)
        assert [r["metrics"]["mean"] for r in view["rounds"]] == [2.0, 4.0, 6.0]
        assert all((array == 6).all() for array in (await net.model(view["model"])).values())
        trail = (await net.http.get(f"/models/{view['model']}")).json()
        assert sorted(p["client"] for p in trail["participants"]) == ["site-1", "site-2", "site-3"]
        listed = (await net.http.get("/sessions", params={"limit": 1})).json()
        assert [s["session"] for s in listed["items"]] == [two]
        rest = (await net.http.get("/sessions", params={"cursor": listed["next"]})).json()
        assert [s["session"] for s in rest["items"]] == [one]
        nodes = [n["name"] for n in (await net.http.get("/nodes")).json()["items"]]
        assert nodes == ["c1", "c2", "site-1", "site-2", "site-3"]
        assert await net.reducer.engine._journal.verify() > 0


async def test_a_session_has_another_package_from_the_next_round_on_also_after_a_restart(
    url: str, tmp_path: Path
) -> None:
    async with network(tmp_path, combiners=1, clients=2, database=url) as net:
        one = await net.push_package(write_package(tmp_path / "one"))
        ten_times = ADD_CONSTANT.replace("+ step)", "+ 10 * step)")
        two = await net.push_package(write_package(tmp_path / "two", train=ten_times))
        session = await net.start_session(one, await net.push_model(SEED), rounds=1000, min_clients=2)
        await net.until_round(session, 1)
        (await net.http.post(f"/sessions/{session}/update", json={"package": two})).raise_for_status()
        await net.stop("reducer")
        await net.start_reducer()
        await net.until_attached("site-1", "site-2")

        async def with_both() -> bool:
            rounds = (await net.session(session))["rounds"]
            return {one, two} == {each["package"] for each in rounds if each["seconds"] is not None}

        await eventually(with_both, timeout_s=30)
        (await net.http.post(f"/sessions/{session}/stop")).raise_for_status()
        rounds = [each for each in (await until_ended(net, session))["rounds"] if each["seconds"] is not None]
        packages = [each["package"] for each in rounds]
        assert packages == [one] * packages.count(one) + [two] * packages.count(two), "never back again"
        mean = 0.0
        for each in rounds:
            mean += 15.0 if each["package"] == two else 1.5
            assert each["metrics"]["mean"] == mean


async def until_ended(net: LocalNetwork, session: str, timeout_s: float = 80.0) -> dict[str, Any]:
    """Ask until the session has ended, also while the answer is that the database is away."""
    async with asyncio.timeout(timeout_s):
        while True:
            answer = await net.http.get(f"/sessions/{session}")
            assert answer.status_code in {200, 503}, answer.text
            if answer.status_code == 200 and answer.json()["status"] != "running":
                return dict(answer.json())
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("mode", "seconds"), [("fast", 2.0), ("immediate", 2.0), ("fast", 12.0)], ids=["restart", "crash", "long"]
)
async def test_a_session_outlives_an_outage(cluster: Cluster, tmp_path: Path, mode: str, seconds: float) -> None:
    """The database goes while clients train, and comes back after their reports have come: nobody trains twice."""
    async with network(tmp_path, combiners=1, clients=3, database=cluster.new_database()) as net:
        package = await net.push_package(write_package(tmp_path / "package", train=WAIT + ADD_CONSTANT))
        seed = await net.push_model(SEED)
        session = await net.start_session(package, seed, rounds=3, min_clients=3, validate_every=3)
        (tmp_path / "site-1.txt.go").touch()
        await eventually(lambda: (tmp_path / "site-1.txt.runs").exists(), timeout_s=30)
        await asyncio.to_thread(cluster.stop, mode)
        (tmp_path / "site-2.txt.go").touch()
        (tmp_path / "site-3.txt.go").touch()
        await asyncio.sleep(seconds)  # the outage
        await asyncio.to_thread(cluster.start)
        view = await until_ended(net, session)
        assert view["status"] == "finished", view["reason"]
        assert [(r["updates"], r["failed"], r["late"]) for r in view["rounds"]] == [(3, 0, 0)] * 3
        assert all((array == 6).all() for array in (await net.model(view["model"])).values())
        for number in (1, 2, 3):
            assert (tmp_path / f"site-{number}.txt.runs").read_text() == "xxx"  # once in each round
        assert await net.reducer.engine._journal.verify() > 0


async def test_outages_at_any_moment_lose_nothing(cluster: Cluster, tmp_path: Path) -> None:
    async with network(tmp_path, combiners=1, clients=2, database=cluster.new_database()) as net:
        package = await net.push_package(write_package(tmp_path / "package"))
        session = await net.start_session(package, await net.push_model(SEED), rounds=12, min_clients=2)
        for number in range(4):
            await net.until_round(session, 1 + 2 * number)
            await asyncio.to_thread(cluster.stop, ("fast", "immediate")[number % 2])
            await asyncio.to_thread(cluster.start)
        view = await until_ended(net, session)
        assert view["status"] == "finished", view["reason"]
        assert [r["updates"] for r in view["rounds"]] == [2] * 12
        assert [r["metrics"]["mean"] for r in view["rounds"]] == [1.5 * (n + 1) for n in range(12)]
        assert await net.reducer.engine._journal.verify() > 0
