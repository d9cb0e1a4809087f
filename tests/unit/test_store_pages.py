"""Listings by cursor: everything once, also while rows are added; and cursors that are none."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.common.errors import InvalidInput
from runnel.common.protocol import AssignmentKey, LogLine, LogLines, Work
from runnel.reducer.domain.values import Role
from runnel.reducer.store import access, ledger, registry
from runnel.reducer.store.pages import decode_cursor, encode_cursor
from runnel.reducer.store.tables import NodeRow
from tests.doubles.reducer_state import START, add_session, database_in, model_row, package_row

pytestmark = pytest.mark.unit

KEY = AssignmentKey(session_id="ses-1", round=1, work=Work.TRAIN)


@given(st.lists(st.one_of(st.text(), st.integers(), st.none()), min_size=1))
def test_a_cursor_is_read_as_it_was_made(parts: list[object]) -> None:
    cursor = encode_cursor(*parts)
    assert decode_cursor(cursor) == parts
    assert cursor.isascii()
    assert not set(cursor) & set("=+/ &?#")


def test_a_time_in_a_cursor_keeps_its_microseconds_and_zone() -> None:
    assert datetime.fromisoformat(decode_cursor(encode_cursor(START, "x"))[0]) == START


@pytest.mark.parametrize("cursor", ["", "x", "!!", "bm8", base64.urlsafe_b64encode(b"[]").decode(), "\x00", "é", "e30"])
def test_what_is_no_cursor_is_refused(cursor: str) -> None:
    with pytest.raises(InvalidInput, match="no cursor of this listing"):
        decode_cursor(cursor)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.usefixtures("each_database")
async def test_a_listing_gives_everything_once_while_rows_are_added(tmp_path: Path, seed: int) -> None:
    random = Random(seed)
    async with database_in(tmp_path) as database:
        async with database.write() as tx:
            await access.ensure_organisation(tx, "default")
            # Several of the same time, as from one transaction.
            times = [random.randrange(8) for _ in range(40)]
            old = [f"mod-{n:03}" for n in range(40)]
            tx.add_all(model_row(name, after_s=at) for name, at in zip(old, times, strict=True))
        seen: list[str] = []
        cursor, limit = None, random.choice((1, 3, 7, 40))
        while True:
            async with database.read() as tx:
                page = await registry.models(tx, "default", None, cursor, limit)
            assert len(page.items) <= limit
            seen += [model.model for model in page.items]
            cursor = page.next_cursor
            if cursor is None:
                break
            async with database.write() as tx:
                tx.add(model_row(f"new-{len(seen):03}", after_s=100 + len(seen)))
        assert sorted(seen) == old
        order = dict(zip(old, times, strict=True))
        assert seen == sorted(seen, key=lambda name: (order[name], name), reverse=True), "newest first"


@pytest.mark.usefixtures("each_database")
async def test_the_last_page_has_no_cursor(tmp_path: Path) -> None:
    async with database_in(tmp_path) as database, database.write() as tx:
        await access.ensure_organisation(tx, "default")
        tx.add_all(package_row(f"{n:064}", after_s=n) for n in range(4))
        await tx.flush()
        assert (await registry.packages(tx, "default", None, 4)).next_cursor is None
        first = await registry.packages(tx, "default", None, 3)
        assert first.next_cursor is not None
        rest = await registry.packages(tx, "default", first.next_cursor, 3)
        assert ([p.digest for p in rest.items], rest.next_cursor) == ([f"{0:064}"], None)
        assert (await registry.packages(tx, "elsewhere", None, 3)).items == ()


@pytest.mark.usefixtures("each_database")
async def test_sessions_and_tokens_are_listed_alike(tmp_path: Path) -> None:
    async with database_in(tmp_path) as database, database.write() as tx:
        for number in range(5):
            await add_session(tx, f"ses-{number:010}", after_s=number)
            await access.add_token(tx, f"tok-{number}", f"secret-{number}", "default", Role.VIEWER, "n", None)
            await tx.flush()
        seen: list[str] = []
        cursor = None
        while cursor is not None or not seen:
            page = await ledger.sessions(tx, "default", cursor, 2)
            seen += [view.session for view in page.items]
            cursor = page.next_cursor
        assert seen == [f"ses-{number:010}" for number in (4, 3, 2, 1, 0)]
        tokens = await access.tokens(tx, None, None, 3)
        more = await access.tokens(tx, None, tokens.next_cursor, 3)
        assert [t.id for t in (*tokens.items, *more.items)] == [f"tok-{n}" for n in (4, 3, 2, 1, 0)]


@pytest.mark.usefixtures("each_database")
async def test_nodes_are_listed_by_name(tmp_path: Path) -> None:
    async with database_in(tmp_path) as database, database.write() as tx:
        for name, organisation in (("c", "north"), ("a", "north"), ("b", "south")):
            await access.note_joined(tx, name, f"id-{name}", "client", organisation, "", attached=False)
        await tx.flush()
        rows, cursor = await access.nodes(tx, None, None, 2)
        assert [row.name for row in rows] == ["a", "b"]
        rows, cursor = await access.nodes(tx, None, cursor, 2)
        assert ([row.name for row in rows], cursor) == (["c"], None)
        rows, _ = await access.nodes(tx, "north", None, 5)
        assert [row.name for row in rows] == ["a", "c"]
        assert all(isinstance(row, NodeRow) for row in rows)


@pytest.mark.usefixtures("each_database")
async def test_logs_are_listed_oldest_first(tmp_path: Path) -> None:
    async with database_in(tmp_path) as database, database.write() as tx:
        for client in ("a", "b"):
            lines = tuple(LogLine(at_ms=1000 * n, stream="stdout", text=f"{client}{n}") for n in range(3))
            await ledger.add_log(tx, LogLines(key=KEY, client=client, lines=lines))
            await tx.flush()
        page = await ledger.logs(tx, "ses-1", None, None, None, 4)
        rest = await ledger.logs(tx, "ses-1", None, None, page.next_cursor, 4)
        assert [line.text for line in (*page.items, *rest.items)] == ["a0", "a1", "a2", "b0", "b1", "b2"]
        assert rest.next_cursor is None
        assert page.items[1].at == datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)
        only = await ledger.logs(tx, "ses-1", 1, "b", None, 9)
        assert [line.text for line in only.items] == ["b0", "b1", "b2"]
        assert (await ledger.logs(tx, "ses-1", 2, None, None, 9)).items == ()


def cursor_of(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode()


@pytest.mark.parametrize(
    "value", [["2026-01-01T00:00:00", "x"], ["yesterday", "x"], [None, "x"], [1, 2], ["2026-01-01T00:00:00+00:00"]]
)
@pytest.mark.usefixtures("each_database")
async def test_a_cursor_of_another_listing_is_refused(tmp_path: Path, value: object) -> None:
    async with database_in(tmp_path) as database, database.read() as tx:
        with pytest.raises(InvalidInput, match="no cursor of this listing"):
            await registry.models(tx, "default", None, cursor_of(value), 5)


@pytest.mark.parametrize("value", [["x"], [None], [1.5], [-1], [1 << 70], [[1]]])
@pytest.mark.usefixtures("each_database")
async def test_a_cursor_that_is_no_line_of_a_log_is_refused(tmp_path: Path, value: object) -> None:
    async with database_in(tmp_path) as database, database.read() as tx:
        with pytest.raises(InvalidInput, match="no cursor of this listing"):
            await ledger.logs(tx, "ses-1", None, None, cursor_of(value), 5)
