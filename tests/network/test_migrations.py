"""A state that an earlier version wrote: all its rows are there afterwards, mean the same, and the store reads them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import JSON, Connection, MetaData, select, text
from sqlalchemy.ext.asyncio import create_async_engine

from runnel.common.protocol import AssignmentKey, Outcome, Work
from runnel.reducer.domain.values import Role, SessionConfig, SessionStatus
from runnel.reducer.store import access, catalogues, ledger, pytaskmanager, registry, run_lines, task_ledger, task_lists
from runnel.reducer.store.database import Database
from runnel.reducer.store.database_url import read_database_url
from runnel.reducer.store.journal import GENESIS, Journal, event_hash
from runnel.reducer.store.migrating import apply_migrations, known_revisions
from runnel.reducer.store.tables import Base

pytestmark = [pytest.mark.network, pytest.mark.timeout(120)]

Row = dict[str, Any]

# The first, those before a version that writes into rows or adds a column that must have a value, and the last but one.
BEGUN = ["0001", "0003", "0004", "0006", "0007", sorted(known_revisions())[-2]]

AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
DONE, GOING = "ses-done000000", "ses-going00000"
OLD, NEW = "a" * 64, "b" * 64  # packages
TRAIN = AssignmentKey(session_id=GOING, round=2, work=Work.TRAIN)


def model(name: str, number: int, **more: Any) -> Row:
    row = {
        "organisation_id": "north",
        "digest": hashlib.sha256(name.encode()).hexdigest(),
        "size_bytes": 1 << 40,
        "format": "npz",
        "n_params": 1 << 33,
        "tensors": 2,
        "parent_id": None,
        "session_id": None,
        "round": None,
        "package_digest": None,
        "strategy": None,
        "optimizer_state": None,
        "metrics": {},
        "created_at": AT + timedelta(minutes=number),
        "removed_at": None,
    }
    return {"id": name} | row | more


def session(name: str, package: str, model_id: str, phase: str, number: int, **more: Any) -> Row:
    config = ledger.config_to_json(SessionConfig(rounds=3, min_clients=2, client_settings={"rate": 0.1}))
    row = {
        "organisation_id": "north",
        "name": "Größe ☃",
        "package_digest": package,
        "seed_id": "mod-seed",
        "model_id": model_id,
        "config": config,
        "seed": (1 << 62) + 1,
        "phase": phase,
        "round": number,
        "reason": None,
        "created_at": AT,
        "finished_at": None,
    }
    return {"id": name} | row | more


def round_of(session_id: str, number: int, package: str, **more: Any) -> Row:
    row = {
        "status": "committed",
        "started_at": AT,
        "seconds": 1.5,
        "phases": {"training": 1.25},
        "model_id": f"mod-{session_id[4:8]}{number}",
        "metrics": {"accuracy": 0.5},
        "train_metrics": {"loss": 0.25},
        "client_settings": None,
        "server_state": None,
    }
    return {"session_id": session_id, "number": number, "package_digest": package} | row | more


def slot(session_id: str, number: int, client: str, state: str, work: str = "train", **more: Any) -> Row:
    counted = state == "counted"
    row = {
        "order_id": "ord-1" if counted else None,
        "counted_in": number if counted else None,
        "weight": 12.0 if counted else None,
        "metrics": {"loss": 0.5} if counted else {},
        "extra": {"k": [1, None]} if counted else {},
        "elapsed_s": {"run": 2.0},
        "error_code": None,
        "error": None,
        "log_tail": None,
    }
    return {"session_id": session_id, "round": number, "work": work, "client": client, "state": state} | row | more


def events(count: int) -> list[Row]:
    made, previous = [], GENESIS
    for seq in range(1, count + 1):
        data = {"number": seq, "text": "a\0b Ω", "part": 0.1 + 0.2}
        digest = event_hash(previous, seq, AT, "counted", "north", DONE, data)
        row = {"seq": seq, "organisation_id": "north", "session_id": DONE, "at": AT, "kind": "counted", "data": data}
        made.append(row | {"previous_hash": previous, "hash": digest})
        previous = digest
    return made


def package(digest: str) -> Row:
    row = {"name": "digits", "version": "1", "filename": "digits.tar.gz", "size_bytes": 10, "created_at": AT}
    more: Row = {"manifest": {"entry_points": {"train": "x"}}, "signatures": [], "uploaded_by": "", "retired_at": None}
    return {"organisation_id": "north", "digest": digest} | row | more


def token(number: int, secret: str, **more: Any) -> Row:
    row = {"organisation_id": "north", "role": "operator", "name": "Åsa", "created_at": AT, "expires_at": None}
    return {"id": f"tok-{number}", "secret_sha256": access.hash_secret(secret), "revoked_at": None} | row | more


def node(name: str, kind: str, address: str | None = None) -> Row:
    row = {"node_id": f"id-{name}", "organisation_id": "north", "version": "0.1.0", "platform": "Linux", "token_id": ""}
    return {"name": name, "kind": kind, "address": address, "first_seen_at": AT, "last_seen_at": AT} | row


def line(text: str) -> Row:
    return {"session_id": GOING, "round": 2, "work": "train", "client": "a", "at": AT, "stream": "stdout", "text": text}


def partial(order_id: str, clients: list[str] | None) -> Row:
    row = {"session_id": GOING, "round": 2, "counted_in": 2, "child": "m1", "kind": "weighted_sum", "weight": 12.0}
    return {"order_id": order_id, "filename": f"{order_id}.payload", "clients": clients} | row


TASK = {
    "id": "tsk-1",
    "organisation_id": "north",
    "name": "a count",
    "token_id": "tok-1",
    "asked_by": "Åsa",
    "spec": '{"executors": [{"image": "analysis:1"}]}',
    "status": "running",
    "parent_run": "",
    "created_at": AT,
    "expires_at": None,
    "finished_at": None,
}
RUN = {
    "id": "run-1",
    "task_id": "tsk-1",
    "organisation_id": "north",
    "client": "a",
    "state": "running",
    "detail": "",
    "created_at": AT,
    "started_at": AT,
    "finished_at": None,
    "exit_code": None,
    "error_code": None,
    "error": None,
    "log_tail": None,
    "image_digest": "",
    "attempt": 1,
    "elapsed_s": {},
    "released": None,
    "released_by": "",
    "released_why": "",
    "kept_until": None,
    "removed_at": None,
}
DATASET = {"client": "a", "id": "people", "title": "People", "creator": "", "description": "", "digest": OLD}

# What a state has, as the newest version keeps it; an earlier one keeps of it what it has columns for. What it has none
# for is as it is to be when its rows are taken over.
ROWS: dict[str, list[Row]] = {
    "organisation": [{"id": "north", "created_at": AT}, {"id": "south", "created_at": AT}],
    "token": [token(1, "rnl_one"), token(2, "rnl_two", revoked_at=AT, expires_at=AT)],
    "node": [node("a", "client"), node("b", "client"), node("m1", "combiner", "10.0.0.1:7500")],
    "package": [package(OLD), package(NEW)],
    "model": [
        model("mod-seed", 0),
        model("mod-done1", 1, parent_id="mod-seed", session_id=DONE, round=1, optimizer_state="c" * 64),
        model("mod-goin1", 2, parent_id="mod-seed", session_id=GOING, round=1, metrics={"accuracy": 0.5}),
    ],
    "session": [
        session(DONE, OLD, "mod-done1", "finished", 1, reason="all rounds", finished_at=AT),
        session(GOING, NEW, "mod-goin1", "training", 2),
    ],
    "round": [
        round_of(DONE, 1, OLD),
        round_of(GOING, 1, NEW),
        round_of(GOING, 2, NEW, status="training", model_id=None, seconds=None, metrics={}, train_metrics={}),
    ],
    "slot": [
        slot(DONE, 1, "a", "counted"),
        slot(DONE, 1, "b", "failed", error_code="exit_status", error="3", log_tail="Traceback"),
        slot(DONE, 1, "a", "counted", "validate"),
        slot(GOING, 1, "a", "counted"),
        slot(GOING, 1, "b", "late"),
        slot(GOING, 2, "a", "counted"),
        slot(GOING, 2, "b", "open"),
    ],
    "partial": [partial("ord-1", None)],
    "event": events(5),
    "log": [line("first"), line("Größe ☃")],
    "idempotency": [
        {"key": "k", "caller": "tok-1", "fingerprint": "f", "status": 201, "body": b"\0answer", "created_at": AT}
    ],
    "lease": [
        {"id": 1, "token": 7, "name": "before", "host": "h", "pid": 1, "since": AT, "expires_at": AT, "writes": 0}
    ],
    "removal": [{"digest": "d" * 64}],
    "task": [TASK],
    "task_tag": [{"task_id": "tsk-1", "key": "study", "value": "Ω"}],
    "task_input": [{"task_id": "tsk-1", "digest": OLD}],
    "task_blob": [
        {"organisation_id": "north", "digest": OLD, "size_bytes": 1 << 40, "created_at": AT, "kept_until": AT}
    ],
    "run": [RUN],
    "run_file": [{"run_id": "run-1", "digest": NEW, "size_bytes": 3, "name": None, "media_type": ""}],
    "run_line": [{"run_id": "run-1", "at": AT, "stream": "stdout", "text": "said"}],
    "ptm_site": [
        {"organisation_id": "north", "name": "a", "node": True, "token_id": "", "email": None, "institute": None}
        | {"country": None, "ip": "127.0.0.1", "last_seen": AT}
    ],
    "ptm_task": [
        {"organisation_id": "north", "site_id": 1, "run_id": "1", "image": "i", "input": "", "task_id": "tsk-1"}
        | {"ended": False, "created_at": AT}
    ],
    "ptm_result": [{"ptm_task_id": 1, "response": "r", "log": "", "created_at": AT}],
    "catalogue": [{"client": "a", "digest": OLD}],
    "dataset": [DATASET | {"document": "{}"}],
}


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'reducer.db'}"
    return str(request.getfixturevalue("cluster").new_database())


def tables_of(connection: Connection) -> MetaData:
    found = MetaData()
    found.reflect(connection)
    for table in found.tables.values():
        for column in table.columns:
            if isinstance(column.type, JSON):
                column.type = JSON(none_as_null=True)
    return found


def write_as(revision: str) -> Callable[[Connection], None]:
    """Return what writes the state of a version, as far as it has tables and columns for it."""

    def write(connection: Connection) -> None:
        apply_migrations(connection, revision)
        for table in tables_of(connection).sorted_tables:
            if table.name == "lease" and connection.dialect.name == "sqlite":
                continue  # it has no such rows
            for row in ROWS.get(table.name, []):
                connection.execute(table.insert().values({key: row[key] for key in row if key in table.columns}))

    return write


def all_rows(connection: Connection) -> dict[str, list[Row]]:
    """Return what is in each table that has rows, but for the numbers of rows and the lease, which was just taken."""
    found = {}
    for table in tables_of(connection).sorted_tables:
        rows = [dict(row) for row in connection.execute(select(table).order_by(*table.primary_key)).mappings()]
        if rows and table.name not in {"alembic_version", "lease"}:
            found[table.name] = [{key: plain(value) for key, value in row.items()} for row in rows]
    return found


def plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    return value


def same(found: list[Row], expected: list[Row]) -> None:
    def without_number(row: Row) -> Row:
        return row if isinstance(row.get("id"), str) else {key: row[key] for key in row if key != "id"}

    left = [without_number(row) for row in found]
    for row in expected:
        assert row in left
        left.remove(row)
    assert left == []


def test_there_is_a_row_for_each_table() -> None:
    assert set(ROWS) == set(Base.metadata.tables)


@pytest.mark.parametrize("begun", BEGUN)
async def test_every_row_of_any_version_is_there_and_means_the_same(url: str, begun: str) -> None:
    engine = create_async_engine(read_database_url(url))
    async with engine.begin() as connection:
        await connection.run_sync(write_as(begun))
        there = await connection.run_sync(all_rows)
    await engine.dispose()
    async with Database(url) as database:
        async with database.read() as tx:
            after = await (await tx.connection()).run_sync(all_rows)
        assert set(after) == set(there)
        for name, rows in after.items():
            same(rows, ROWS[name])
        if url.startswith("sqlite"):
            await require_references(database)
        await require_readable(database)
        if "task" in there:
            await require_readable_tasks(database)
        if "dataset" in there:
            await require_readable_sites(database)


async def test_a_copy_that_an_earlier_failure_left_is_in_nobodys_way(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'state.db'}"
    engine = create_async_engine(read_database_url(url))
    async with engine.begin() as connection:
        await connection.run_sync(write_as("0007"))
        await connection.execute(text("CREATE TABLE _alembic_tmp_package AS SELECT * FROM package"))
    await engine.dispose()
    async with Database(url) as database, database.read() as tx:
        names = (await tx.scalars(text("SELECT name FROM sqlite_master"))).all()
        assert [name for name in names if name.startswith("_alembic")] == []


async def require_references(database: Database) -> None:
    """See that all references lead to a row, and that SQLite looks at them again."""
    async with database.read() as tx:
        assert (await tx.execute(text("PRAGMA foreign_key_check"))).all() == []
        assert await tx.scalar(text("PRAGMA foreign_keys")) == 1


async def require_readable(database: Database) -> None:
    """Let the store read the state, and the session that was under way go on."""
    journal = Journal(database)
    assert await journal.verify() == 5
    async with database.read() as tx:
        done = await ledger.session_with_rounds(tx, await ledger.require_session(tx, DONE), clients=True)
        assert (done.status, done.reason, done.package, done.model) == ("finished", "all rounds", OLD, "mod-done1")
        (first,) = done.rounds
        assert (first.package, first.updates, first.failed, first.metrics) == (OLD, 1, 1, {"accuracy": 0.5})
        assert [(c.client, c.work, c.status) for c in first.clients] == [
            ("a", "train", "counted"),
            ("b", "train", "failed"),
            ("a", "validate", "counted"),
        ]
        assert await ledger.running_sessions(tx) == [GOING]
        (waiting,) = await ledger.partials(tx, GOING, 2)
        assert (waiting.order_id, waiting.child, waiting.weight) == ("ord-1", "m1", 12.0)
        assert await ledger.counting_round(tx, GOING) == 2
        assert [p.digest for p in (await registry.packages(tx, "north", None, 9)).items] == [NEW, OLD]
        assert (await registry.package_of_round(tx, "north", GOING, 1)).digest == NEW
        trail = await registry.find_model(tx, "north", "mod-goin1")
        assert [(c.client, c.status) for c in await registry.participants(tx, trail)] == [
            ("a", "counted"),
            ("b", "late"),
        ]
        await registry.require_file(tx, trail)
        lines = await ledger.logs(tx, GOING, None, None, None, 9)
        assert [each.text for each in lines.items] == ["first", "Größe ☃"]
        found = await access.find_token(tx, "rnl_one")
        assert found is not None
        assert (found.id, Role(found.role), found.name) == ("tok-1", Role.OPERATOR, "Åsa")
        assert [n.name for n in (await access.nodes(tx, None, None, 9))[0]] == ["a", "b", "m1"]
    async with journal.transaction() as changes:
        await ledger.note_outcomes(changes.session, TRAIN, "ord-2", [Outcome(client="b", weight=1.0)])
        await changes.record("counted", "north", GOING)
    async with database.read() as tx:
        now = await ledger.one_round(tx, GOING, 2)
        assert (now.updates, SessionStatus(now.status), now.package) == (2, SessionStatus.TRAINING, NEW)
    assert await journal.verify() == 6


async def require_readable_tasks(database: Database) -> None:
    async with database.read() as tx:
        (run,) = await task_ledger.open_runs(tx)
        assert (run.run_id, run.client) == ("run-1", "a")
        view = await task_lists.one_task(tx, await task_lists.find_task(tx, "north", "tsk-1"), described=True)
        assert (view.task, view.user, view.counts) == ("tsk-1", "Åsa", {"running": 1})
        assert [each.text for each in (await run_lines.lines_of(tx, "run-1", None, 9)).items] == ["said"]


async def require_readable_sites(database: Database) -> None:
    async with database.read() as tx:
        assert await catalogues.digests(tx) == {"a": OLD}
        (site,) = await pytaskmanager.sites(tx, "north")
        assert (await pytaskmanager.open_tasks(tx, site.id))[0].task_id == "tsk-1"
        assert [each.response for each in await pytaskmanager.results(tx, 1)] == ["r"]
