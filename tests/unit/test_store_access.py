"""Tokens, nodes and idempotency keys."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select, text, update

from runnel.common.errors import Conflict, NotFound
from runnel.common.protocol import Member, NodeKind
from runnel.reducer.domain.values import Role
from runnel.reducer.store import access, registry
from runnel.reducer.store.database import Database
from runnel.reducer.store.tables import IdempotencyRow, NodeRow
from tests.doubles.reducer_state import add_session, database_in, model_row

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("each_database")]


# ---- tokens


async def test_a_token_that_is_not_good_is_refused_in_words_that_name_the_clock(tmp_path: Path) -> None:
    async with database_in(tmp_path) as database, database.write() as tx:
        await access.add_token(tx, "tok-1", "rnl_secret", "north", Role.CLIENT, "a site", 60.0)
        row = await access.find_token(tx, "rnl_secret")
        assert row is not None
        row.expires_at = datetime(2026, 5, 4, 3, 2, 1, 700_000, UTC)
        now = datetime(2026, 5, 5, 3, 2, 1, tzinfo=UTC)
        assert access.why_not(None, now) == "unknown"
        said = access.why_not(row, now)
        assert said == (
            "expired: it was good until 2026-05-04 03:02:01+00:00,"
            " and the reducer's clock says 2026-05-05 03:02:01+00:00"
        )
        row.revoked_at = now
        assert access.why_not(row, now) == "revoked"


async def test_a_token_is_found_by_its_secret_which_is_not_stored(tmp_path: Path) -> None:
    async with database_in(tmp_path) as database:
        async with database.write() as tx:
            made = await access.add_token(tx, "tok-1", "rnl_secret", "north", Role.CLIENT, "a site", 60.0)
        assert made.token == "rnl_secret"
        assert made.expires_at is not None
        assert made.expires_at - made.created_at == timedelta(seconds=60)
        async with database.read() as tx:
            row = await access.find_token(tx, "rnl_secret")
            assert row is not None
            view = access.token_view(row)
            assert (view.id, view.role, view.organisation, view.token) == ("tok-1", Role.CLIENT, "north", None)
            assert await access.find_token(tx, "rnl_other") is None
            assert await access.find_token(tx, row.secret_sha256) is None
            stored = (await tx.execute(text("SELECT * FROM token"))).one()
            assert "rnl_secret" not in str(stored)
    assert b"rnl_secret" not in b"".join(file.read_bytes() for file in tmp_path.iterdir())


async def test_a_token_is_revoked_once(tmp_path: Path) -> None:
    async with database_in(tmp_path) as database:
        async with database.write() as tx:
            await access.add_token(tx, "tok-1", "s", "default", Role.VIEWER, "", None)
        async with database.write() as tx:
            first = await access.revoke_token(tx, "default", "tok-1")
        async with database.write() as tx:
            again = await access.revoke_token(tx, "default", "tok-1")
            for organisation, token in (("default", "tok-2"), ("north", "tok-1")):
                with pytest.raises(NotFound, match=token):
                    await access.revoke_token(tx, organisation, token)
            assert (await access.revoke_token(tx, None, "tok-1")).revoked_at == first.revoked_at
        assert first.revoked_at is not None
        assert again.revoked_at == first.revoked_at
        assert (first.expires_at, first.token) == (None, None)


# ---- nodes


async def join(tmp_path: Path, *nodes: tuple[str, str, str, str, bool]) -> None:
    async with database_in(tmp_path) as database:
        await join_at(database, *nodes)


async def join_at(database: Database, *nodes: tuple[str, str, str, str, bool]) -> None:
    for name, node_id, kind, organisation, attached in nodes:
        async with database.write() as tx:
            await access.note_joined(tx, name, node_id, kind, organisation, "tok-1", attached=attached)


async def test_a_node_that_comes_back_is_the_same(tmp_path: Path) -> None:
    await join(tmp_path, ("a", "n1", "client", "default", False), ("a", "n1", "client", "default", True))
    async with database_in(tmp_path) as database, database.read() as tx:
        (row,) = list(await tx.scalars(select(NodeRow)))
        assert (row.name, row.node_id, row.token_id) == ("a", "n1", "tok-1")
        assert row.first_seen_at <= row.last_seen_at


async def test_a_name_is_free_again_when_its_node_is_away(tmp_path: Path) -> None:
    await join(tmp_path, ("a", "n1", "client", "default", False), ("a", "n2", "client", "default", False))
    async with database_in(tmp_path) as database, database.read() as tx:
        assert (await tx.get_one(NodeRow, "a")).node_id == "n2"


@pytest.mark.parametrize(
    ("second", "text"),
    [
        (("a", "n2", "client", "default", True), "attached now"),
        (("a", "n1", "combiner", "default", False), "belongs to a client"),
        (("a", "n1", "client", "north", False), "another owner"),
    ],
)
async def test_a_name_that_is_taken_is_refused(
    tmp_path: Path, second: tuple[str, str, str, str, bool], text: str
) -> None:
    async with database_in(tmp_path) as database:
        await join_at(database, ("a", "n1", "client", "default", False))
        with pytest.raises(Conflict, match=text) as caught:
            await join_at(database, second)
    assert caught.value.fields == {"name": "a"}


async def test_what_nodes_say_of_themselves_is_kept_within_limits(tmp_path: Path) -> None:
    await join(tmp_path, ("a", "n1", "client", "default", False))
    member = Member(name="a", node_id="n1", kind=NodeKind.CLIENT, version="v" * 900, platform="p" * 900)
    stranger = Member(name="x", node_id="n9", kind=NodeKind.CLIENT)
    async with database_in(tmp_path) as database:
        async with database.write() as tx:
            await access.note_attached(tx, [member, stranger])
            await access.note_seen(tx, ["a", "x"])
        async with database.read() as tx:
            (row,) = list(await tx.scalars(select(NodeRow)))
            assert (len(row.version), len(row.platform), row.address) == (64, 200, None)


# ---- idempotency


async def test_the_answer_to_a_key_is_given_again(tmp_path: Path) -> None:
    async with database_in(tmp_path) as database, database.write() as tx:
        assert await access.recall(tx, "key", "tok-1", "f1") is None
        await access.remember(tx, "key", "tok-1", "f1", 201, b"\x00answer")
        assert await access.recall(tx, "key", "tok-1", "f1") == (201, b"\x00answer")
        assert await access.recall(tx, "key", "tok-2", "f1") is None, "of somebody else"
        with pytest.raises(Conflict, match="another request"):
            await access.recall(tx, "key", "tok-1", "f2")


async def test_a_key_is_forgotten_after_a_day(tmp_path: Path) -> None:
    async with database_in(tmp_path) as database, database.write() as tx:
        await access.remember(tx, "old", "tok-1", "f1", 201, b"")
        old = datetime.now(UTC) - access.IDEMPOTENCY_KEPT - timedelta(seconds=1)
        await tx.execute(update(IdempotencyRow).values(created_at=old))
        tx.expire_all()
        assert await access.recall(tx, "old", "tok-1", "f2") is None
        await access.remember(tx, "new", "tok-1", "f1", 201, b"")
        assert list(await tx.scalars(select(IdempotencyRow.key))) == ["new"]
        await access.remember(tx, "new", "tok-1", "f3", 200, b"2")
        assert await access.recall(tx, "new", "tok-1", "f3") == (200, b"2")


# ---- packages and models


async def test_a_package_is_added_once(tmp_path: Path) -> None:
    async with database_in(tmp_path) as database, database.write() as tx:
        await access.ensure_organisation(tx, "default")
        await access.ensure_organisation(tx, "default")
        given = {
            "organisation": "default",
            "digest": "ab" * 32,
            "filename": "x.tar.gz",
            "size_bytes": 5,
            "name": "digits",
            "version": "2",
        }
        row, new = await registry.add_package(tx, **given, manifest={"a": 1})  # type: ignore[arg-type]
        assert new
        again, new = await registry.add_package(tx, **given | {"name": "other"}, manifest={})  # type: ignore[arg-type]
        assert (again, new) == (row, False)
        assert registry.package_view(again).name == "digits"
        await tx.flush()
        assert await registry.is_package(tx, "default", "ab" * 32)
        assert not await registry.is_package(tx, "default", "cd" * 32)
        assert not await registry.is_package(tx, "north", "ab" * 32)


async def test_a_model_is_found_by_its_file(tmp_path: Path) -> None:
    async with database_in(tmp_path) as database, database.write() as tx:
        await add_session(tx, model=model_row("mod-1", digest="e" * 64))
        assert await registry.is_used(tx, "e" * 64)
        assert not await registry.is_used(tx, "f" * 64)
        view = registry.model_view(await registry.find_model(tx, "default", "mod-1"))
        assert (view.model, view.size_bytes, view.n_params, view.parent, view.session) == (
            "mod-1",
            1 << 40,
            1 << 33,
            None,
            None,
        )
        assert await registry.participants(tx, await registry.find_model(tx, "default", "mod-1")) == ()
