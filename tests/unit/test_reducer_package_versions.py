"""Sessions that are given another package: no round runs two, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from sqlalchemy import select

from runnel.common.errors import Conflict, NotFound
from runnel.common.protocol import Assignment, AssignmentKey, Failure, Outcome, PayloadKind, Report, Settlement, Work
from runnel.reducer.domain.values import DEFAULT_ORGANISATION
from runnel.reducer.operations import wait_for
from runnel.reducer.package_versions import PackageVersions
from runnel.reducer.store import ledger, registry
from runnel.reducer.store.tables import ModelRow, RoundRow
from tests.doubles.engine_net import CALLER, SESSION, Net, net_in, ok, operations, settlements
from tests.doubles.reducer_state import package_row
from tests.eventually import eventually

pytestmark = pytest.mark.unit

VERSIONS = ["a" * 64, "b" * 64, "c" * 64]


@pytest.fixture
async def net(tmp_path: Path, each_database: None) -> AsyncIterator[Net]:
    async with net_in(tmp_path) as made:
        yield made


async def begin(net: Net, *clients: str, **config: Any) -> str:
    """Start a session with two more packages beside its own; return the digest of the first."""
    for client in clients:
        await net.attach(client)
    await net.start(**config)
    async with net.database.write() as tx:
        tx.add_all(package_row(digest) for digest in VERSIONS)
    return (await net.row()).package_digest


async def update(net: Net, digest: str) -> None:
    assert await PackageVersions(net.journal).update_session(CALLER, SESSION, digest) == SESSION


async def packages(net: Net, table: type[RoundRow] | type[ModelRow]) -> dict[int, str]:
    """Return the packages of the rounds, by the rounds or by the models of the trail."""
    number = RoundRow.number if table is RoundRow else ModelRow.round
    query = select(number, table.package_digest).where(table.session_id == SESSION)
    async with net.database.read() as tx:
        return {row[0] or 0: row[1] or "" for row in await tx.execute(query)}


async def events(net: Net, kind: str) -> list[Any]:
    return [event.data for event in await net.journal.events(SESSION, 0, 1000) if event.kind == kind]


async def test_a_round_under_way_keeps_its_package_and_the_next_has_the_new_one(net: Net) -> None:
    first = await begin(net, "a", rounds=3, retries=1)
    order = await net.order("a")
    await update(net, VERSIONS[0])
    await net.report("a", order, Outcome(client="a", failure=Failure(code="entry_point_failed", message="no")))
    again = await net.order("a", 2)
    assert [each.package.sha256 for each in (order, again)] == [first, first]  # a retry keeps it, too
    await net.report("a", again, *ok("a"))
    third = await net.order("a", 3)
    assert (third.key.round, third.package.sha256) == (2, VERSIONS[0])
    await update(net, VERSIONS[1])
    await update(net, VERSIONS[1])  # of no effect
    await net.report("a", third, *ok("a"))
    await net.report("a", await net.order("a", 4), *ok("a"))
    assert (await net.ended()).phase == "finished"
    wanted = {1: first, 2: VERSIONS[0], 3: VERSIONS[1]}
    assert await packages(net, RoundRow) == await packages(net, ModelRow) == wanted
    assert await events(net, "session.updated") == [
        {"package": VERSIONS[0], "previous": first, "from_round": 2, "by": ""},
        {"package": VERSIONS[1], "previous": VERSIONS[0], "from_round": 3, "by": ""},
    ]


async def test_with_a_buffer_orders_have_the_package_of_the_round_in_which_they_are_given(net: Net) -> None:
    first = await begin(net, "a", "b", rounds=3, strategy="fedbuff", buffer=1)
    one, other = await net.order("a"), await net.order("b")
    await update(net, VERSIONS[0])
    await net.report("a", one, *ok("a"))
    second = await net.order("a", 2)
    assert [each.package.sha256 for each in (one, other, second)] == [first, first, VERSIONS[0]]
    await net.report("b", other, *ok("b"))  # of round 1, and part of the model of round 2
    third = await net.order("b", 2)
    assert (third.key.round, third.package.sha256) == (3, VERSIONS[0])
    await net.report("a", second, *ok("a"))
    assert (await net.ended()).phase == "finished"
    assert await packages(net, ModelRow) == {1: first, 2: VERSIONS[0], 3: VERSIONS[0]}


async def test_a_failed_round_is_given_up_when_the_session_goes_on_with_another_package(net: Net) -> None:
    first = await begin(net, "a", "b", rounds=2, min_clients=2)
    orders = [await net.order(client) for client in ("a", "b")]
    await net.report("a", orders[0], *ok("a"))
    await net.engine.detached("b")  # and works on
    await net.attach("c")
    await net.engine.detached("c")
    await wait_for(net.engine.stop(SESSION))
    await update(net, VERSIONS[0])
    assert (await events(net, "session.updated"))[-1]["from_round"] == 2
    await operations(net).resume_session(CALLER, SESSION)
    # Who comes back with what the earlier package made must not have it counted.
    await net.attach("b", holding=(orders[1].key,))
    assert settlements(net, "b") == [(("b",), Settlement.LATE)]
    for number in (2, 3):
        for client in ("a", "b"):

            def asked(client: str = client, number: int = number) -> Assignment | None:
                return next((each for each in net.got(client, Assignment) if each.key.round == number), None)

            order = await eventually(asked)
            assert order is not None
            assert order.package.sha256 == VERSIONS[0]
            await net.report(client, order, *ok(client))
    row = await net.ended()
    assert (row.phase, row.round, row.config["rounds"]) == ("finished", 3, 3)
    assert await packages(net, RoundRow) == {1: first, 2: VERSIONS[0], 3: VERSIONS[0]}
    assert await packages(net, ModelRow) == {2: VERSIONS[0], 3: VERSIONS[0]}
    async with net.database.read() as tx:
        given_up = await ledger.one_round(tx, SESSION, 1)
    assert (given_up.status, given_up.updates, given_up.model) == ("stopped", 0, None)


async def test_a_round_that_is_given_up_is_given_up_once_and_begun_anew_with_its_own_package(net: Net) -> None:
    first = await begin(net, "a", rounds=1)
    await net.order("a")
    await wait_for(net.engine.stop(SESSION))
    await update(net, VERSIONS[0])
    await update(net, first)  # back again: the number may be used once more
    assert [each["from_round"] for each in await events(net, "session.updated")] == [2, 1]
    await update(net, VERSIONS[0])
    await net.engine.detached("a")
    for _ in range(3):
        await operations(net).resume_session(CALLER, SESSION)
        await eventually(lambda: SESSION in net.engine._runners)
        await wait_for(net.engine.stop(SESSION))
    row = await net.row()
    assert (row.round, row.config["rounds"]) == (2, 2)
    await net.attach("a", holding=(AssignmentKey(session_id=SESSION, round=1, work=Work.TRAIN),))
    await operations(net).resume_session(CALLER, SESSION)

    def second() -> Assignment | None:
        return next((each for each in net.got("a", Assignment) if each.key.round == 2), None)

    order = await eventually(second)
    assert order is not None
    await net.report("a", order, *ok("a"))
    assert (await net.ended()).phase == "finished"
    assert await packages(net, ModelRow) == {2: VERSIONS[0]}


@pytest.mark.parametrize("another", [False, True])
async def test_payloads_that_an_earlier_version_kept_go_when_the_session_goes_on(net: Net, another: bool) -> None:
    await begin(net, "a", rounds=1)
    order = await net.order("a")
    await wait_for(net.engine.stop(SESSION))
    kept = Report(key=order.key, order_id=order.order_id, outcomes=tuple(ok("a")), payload_kind=PayloadKind.UPDATE)
    async with net.database.write() as tx:
        await ledger.add_partial(tx, kept, "a", "kept.payload")
    (net.partials / "kept.payload").touch()
    if another:
        await update(net, VERSIONS[0])
    await operations(net).resume_session(CALLER, SESSION)
    assert list(net.partials.iterdir()) == []
    async with net.database.read() as tx:
        assert await ledger.all_partial_files(tx) == set()


async def test_a_retired_package_is_given_to_nobody_and_those_that_have_it_go_on(net: Net) -> None:
    first = await begin(net, "a", rounds=2)
    versions = PackageVersions(net.journal)
    for _ in range(2):
        assert (await versions.retire(CALLER, first[:9], undo=False)).retired_at is not None
        await versions.retire(CALLER, VERSIONS[0], undo=False)
    with pytest.raises(Conflict, match="was retired"):
        await update(net, VERSIONS[0])
    with pytest.raises(NotFound):
        await update(net, "f" * 64)
    await net.report("a", await net.order("a"), *ok("a"))
    assert (await net.order("a", 2)).package.sha256 == first
    view = await versions.retire(CALLER, first, undo=True)
    assert (view.retired_at, view.sessions, view.running_sessions) == (None, 1, (SESSION,))
    async with net.database.read() as tx:
        listed = await registry.packages(tx, DEFAULT_ORGANISATION, None, 10)
    assert {each.digest for each in listed.items if each.retired_at is not None} == {VERSIONS[0]}
    kinds = [event.kind for event in await net.journal.events(None, 0, 1000) if event.kind.startswith("package.")]
    assert kinds == ["package.retired", "package.retired", "package.restored"]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.usefixtures("each_database")
async def test_whatever_happens_and_whenever_each_round_has_one_package(tmp_path: Path, seed: int) -> None:
    """Updates, restarts, failures and moves at random moments; each order of a round has that round's package."""
    random = Random(seed)
    rounds = 5
    clients = ["a", "b"]
    strategy: dict[str, Any] = random.choice(({}, {"strategy": "fedbuff", "buffer": 1}))
    given: dict[int, set[str]] = {}
    async with net_in(tmp_path) as net:
        await begin(net, rounds=rounds, retries=50, **strategy)
        async with asyncio.timeout(90):
            while (await net.row()).phase != "finished":
                await play(net, random, clients, given)
        trail, begun = await packages(net, ModelRow), await packages(net, RoundRow)
    assert set(trail) == set(range(1, rounds + 1))
    assert trail == begun
    assert {number: seen for number, seen in given.items() if len(seen) != 1} == {}
    assert {number: min(seen) for number, seen in given.items()} == {number: begun[number] for number in given}


async def play(net: Net, random: Random, clients: list[str], given: dict[int, set[str]]) -> None:
    """Do something that may happen."""
    client = random.choice(clients)
    here = client in net.engine.roster.clients()
    for order in [order for each in net.sent for order in net.got(each, Assignment)]:
        given.setdefault(order.key.round, set()).add(order.package.sha256)
    match random.choice(("report", "report", "report", "attach", "update", "restart")):
        case "update":
            await update(net, random.choice(VERSIONS))
        case "attach":
            if here:
                await net.engine.detached(client)
            await net.attach(client)
        case "restart":
            # The runner ends wherever it is, as it would with its process; another goes on from what is stored.
            task = net.engine._tasks.get(SESSION)
            if task is not None:
                task.cancel()
                await asyncio.wait((task,))
            net.engine.launch(SESSION)
        case _ if here:
            living = [each for each in net.got(client, Assignment) if net.engine.has_order(each.order_id)]
            if living:
                await net.report(client, living[-1], *ok(client))
