"""The engine between the nodes and the durable state, with nodes that are lists of what was sent to them."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from runnel.common.blobs import digest_file
from runnel.common.errors import IllegalState
from runnel.common.protocol import (
    Assignment,
    BlobRef,
    Cancel,
    Close,
    Downward,
    Drain,
    Failure,
    Hello,
    Member,
    NodeKind,
    Outcome,
    PayloadKind,
    Progress,
    Released,
    Report,
    Roster,
    Settled,
    Settlement,
    Stage,
)
from runnel.common.tensors import write_npz
from runnel.reducer.domain.collection import SlotState
from runnel.reducer.engine import exchange as exchange_module
from runnel.reducer.engine import runner as runner_module
from runnel.reducer.operations import wait_for
from runnel.reducer.store import ledger
from runnel.rpc.v1 import uplink_pb2 as pb
from runnel.transport import Child, JoinAsk
from runnel.transport.messages import downward_to_wire
from tests.doubles.engine_net import (
    CALLER,
    SESSION,
    TRAIN,
    Net,
    child_named,
    net_in,
    ok,
    operations,
    settlements,
)
from tests.doubles.faulty_blobs import FaultyBlobs
from tests.doubles.reducer_state import database_in
from tests.eventually import eventually, let_pass

pytestmark = pytest.mark.unit


@pytest.fixture
async def net(tmp_path: Path, each_database: None) -> AsyncIterator[Net]:
    async with net_in(tmp_path) as made:
        yield made


class RoundClock:
    """Tells sessions the time: a round is over when its test says so, however slow the machine is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._passed_s = 0.0
        for module in (exchange_module, runner_module):
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + self._passed_s))

    def let_pass(self, seconds: float) -> None:
        self._passed_s += seconds
        let_pass(seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> RoundClock:
    return RoundClock(monkeypatch)


# ---- a round


async def test_a_round_counts_what_comes_by_all_ways_and_tells_everybody(net: Net) -> None:
    await net.attach("m1", "a", "b")
    await net.attach("c")
    await net.start(min_clients=3)
    m1, c = await net.order("m1"), await net.order("c")
    assert (m1.key, m1.clients, c.clients) == (TRAIN, ("a", "b"), ("c",))
    assert m1.remaining_s is not None
    assert 590 < m1.remaining_s <= 600
    await net.report("c", c, *ok("c"))
    await net.report("m1", m1, Outcome(client="a", weight=3.0), Outcome(client="b", weight=2.0))
    row = await net.ended()
    assert (row.phase, row.round) == ("finished", 1)
    assert settlements(net, "m1") == [(("a", "b"), Settlement.COUNTED)]
    assert settlements(net, "c") == [(("c",), Settlement.COUNTED)]
    assert await net.states() == {"a": "counted", "b": "counted", "c": "counted"}
    async with net.database.read() as tx:
        view = await ledger.one_round(tx, SESSION, 1)
        assert await ledger.all_partial_files(tx) == set()
    assert view.updates == 3
    assert list(net.partials.iterdir()) == []
    assert net.journal._passing == {}
    assert await net.journal.verify() > 0


async def test_payloads_of_a_round_are_removed_while_the_next_one_waits_for_its_clients(net: Net) -> None:
    await net.attach("a")
    await net.start(rounds=2)
    await net.report("a", await net.order("a"), *ok("a"))
    second = await net.order("a", 2)
    assert second.key.round == 2
    await eventually(lambda: not list(net.partials.iterdir()))
    await net.report("a", second, *ok("a"))
    assert (await net.ended()).phase == "finished"
    assert list(net.partials.iterdir()) == []


async def test_a_client_that_moves_is_asked_where_it_is_and_its_old_way_is_fenced(net: Net) -> None:
    await net.attach("m1", "a")
    await net.attach("m2", "")
    await net.start()
    old = await net.order("m1")
    await net.engine.received("m1", Roster(left=("a",)))
    await net.engine.received("m1", Released(order_id=old.order_id, clients=("a",)))
    await net.engine.received("m2", Roster(joined=(net.client("a", (TRAIN,)),)))
    new = await net.order("m2")
    assert new.order_id != old.order_id
    await net.report("m1", old, *ok("a"))
    assert await net.states() == {"a": "open"}
    await net.report("m2", new, *ok("a"))
    assert (await net.ended()).phase == "finished"
    assert settlements(net, "m2") == [(("a",), Settlement.COUNTED)]


async def test_the_model_that_a_round_made_can_be_checked_by_the_faster_digest(net: Net) -> None:
    await net.attach("a")
    await net.start(rounds=2)
    first = await net.order("a")
    await net.report("a", first, *ok("a"))
    second = await net.order("a", 2)
    assert (first.model.blake3, len(second.model.blake3)) == ("", 64)


async def test_a_node_that_detaches_takes_its_orders_along(net: Net) -> None:
    await net.attach("a")
    await net.start()
    old = await net.order("a")
    await net.engine.detached("a")
    with pytest.raises(IllegalState, match="closed or was given to somebody else"):
        net.engine.require_order(old.order_id, "a")
    await net.attach("a", holding=(TRAIN,))
    new = await net.order("a")
    assert net.engine.require_order(new.order_id, "a").position.model.size_bytes > 0
    await net.report("a", new, *ok("a"))
    assert (await net.ended()).phase == "finished"


# ---- reports that can't be used


async def test_a_report_of_strangers_is_refused_and_its_clients_fail_instead_of_being_asked_for_ever(net: Net) -> None:
    await net.attach("m1", "a", "b")
    await net.attach("c")
    await net.start(min_clients=1)
    m1 = await net.order("m1")
    await net.report("m1", m1, *ok("a", "c"))
    assert await net.states() == {"a": "open", "b": "open", "c": "open"}
    await net.report("c", await net.order("c"), *ok("c"))
    assert (await net.ended()).phase == "finished"
    assert len(net.got("m1", Assignment)) == 1
    assert await net.states() == {"a": "late", "b": "late", "c": "counted"}
    assert list(net.partials.iterdir()) == []


async def test_a_node_can_not_count_whom_it_has_released(net: Net) -> None:
    await net.attach("m1", "a", "b")
    await net.attach("m2", "")
    await net.start(min_clients=1)
    m1 = await net.order("m1")
    await net.engine.received("m2", Roster(joined=(net.client("a"),)))
    await net.engine.received("m1", Released(order_id=m1.order_id, clients=("a",)))
    m2 = await net.order("m2")
    await net.report("m1", m1, *ok("a", "b"))
    assert await net.states() == {"a": "open", "b": "open"}
    await net.report("m2", m2, *ok("a"))
    assert (await net.ended()).phase == "finished"
    assert await net.states() == {"a": "counted", "b": "late"}


async def test_nobody_speaks_for_an_order_of_somebody_else(net: Net) -> None:
    await net.attach("m1", "a")
    await net.attach("evil", "")
    await net.start(min_clients=1)
    m1 = await net.order("m1")
    told = Progress(key=TRAIN, order_id=m1.order_id, client="a", stage=Stage.FAILED)
    await net.engine.received("evil", told)
    await net.engine.received("evil", Released(order_id=m1.order_id, clients=("a",)))
    await net.report("evil", m1, *ok("a"))
    collection = net.engine._runners[SESSION].collects(TRAIN)
    assert collection is not None
    assert collection.slots["a"].state is SlotState.ASKED
    await net.report("m1", m1, *ok("a"))
    assert (await net.ended()).phase == "finished"
    assert await net.states() == {"a": "counted"}
    assert len(net.got("m1", Assignment)) == 1


async def test_a_bad_update_fails_its_client_and_the_reason_is_kept(net: Net) -> None:
    await net.attach("a")
    await net.attach("b")
    await net.start(min_clients=1)
    a, b = await net.order("a"), await net.order("b")
    bad = net.partials / f"{a.order_id}.payload"
    write_npz(bad, {"w": np.full(4, np.nan, np.float32)})
    report = Report(
        key=TRAIN,
        order_id=a.order_id,
        outcomes=tuple(ok("a")),
        payload_kind=PayloadKind.UPDATE,
        payload=digest_file(bad),
        weight=1.0,
    )
    await net.engine.received("a", report, bad)
    assert not bad.exists()
    await net.report("b", b, *ok("b"))
    assert (await net.ended()).phase == "finished"
    assert await net.states() == {"a": "failed", "b": "counted"}
    assert settlements(net, "a") == [(("a",), Settlement.DISCARDED)]
    assert list(net.partials.iterdir()) == []


async def test_what_is_pushed_again_does_not_touch_what_is_being_checked_or_counts(net: Net) -> None:
    await net.attach("a")
    await net.attach("b")
    await net.start()
    order = await net.order("a")
    gateway, child = net.new_gateway(), child_named("a")
    file = net.folder / "pushed.npz"
    write_npz(file, {"w": np.ones(4, np.float32)})
    ref, data = digest_file(file), file.read_bytes()
    seen = []

    async def push(_base: BlobRef) -> None:
        """Push the very same once more, when the check is about to begin, to decode the first in its place."""
        (counted,) = net.partials.iterdir()
        counted.write_bytes(data + b"decoded")
        file.write_bytes(data)
        await gateway.pushed(child.identity, order.order_id, ref, file)
        seen.append(counted.read_bytes() == data + b"decoded")
        counted.write_bytes(data)

    await gateway.pushed(child.identity, order.order_id, ref, file)
    net.lasting.before_held = push
    report = Report(key=TRAIN, order_id=order.order_id, outcomes=tuple(ok("a")), payload=ref, weight=1.0)
    await gateway.received(child, dataclasses.replace(report, payload_kind=PayloadKind.UPDATE))
    net.lasting.before_held = FaultyBlobs(net.blobs).before_held
    assert seen == [True]
    assert await net.states() == {"a": "counted", "b": "open"}
    await gateway.detached(child, "it leaves")
    assert [path.read_bytes() for path in net.partials.iterdir()] == [data]
    await net.report("b", await net.order("b"), *ok("b"))
    assert (await net.ended()).phase == "finished"


@pytest.mark.parametrize("when", ["before it joins", "on its way", "attached"])
async def test_a_client_moves_on_once_there_is_a_combiner(net: Net, when: str) -> None:
    gateway, told = net.new_gateway(), list[Downward]()
    combiner = child_named("m1", kind=NodeKind.COMBINER)

    def tell(message: Downward) -> pb.Downward:
        told.append(message)
        return downward_to_wire(message)

    client = child_named("a", encode=tell)

    async def attach(child: Child) -> None:
        member = Member(name=child.identity.name, node_id=child.identity.node_id, kind=child.identity.kind)
        await gateway.attached(child, Hello(member=dataclasses.replace(member, address="127.0.0.1:1")))

    async def join(child: Child) -> str:
        who = child.identity
        return (await gateway.join(JoinAsk(name=who.name, node_id=who.node_id, kind=who.kind), None)).attach_to

    await join(combiner)
    if when == "before it joins":
        await attach(combiner)
        assert await join(client) == "m1"
        await attach(client)  # the combiner did not take it
        assert told == []
        return
    assert await join(client) == "top"
    first, second = (combiner, client) if when == "on its way" else (client, combiner)
    await attach(first)
    await attach(second)
    assert told == [Drain(reason="a combiner is there")]


# ---- the end of a phase


async def test_clients_are_told_to_forget_only_when_the_end_is_durable(net: Net) -> None:
    await net.attach("a")
    await net.attach("m1", "b")
    await net.start(min_clients=1, buffer=1)
    a, m1 = await net.order("a"), await net.order("m1")
    told_before: list[list[Cancel]] = []

    async def look() -> None:
        told_before.append([message for child in net.sent for message in net.got(child, Cancel)])

    net.journal.before_commit = look
    await net.report("a", a, *ok("a"))
    await eventually(lambda: net.got("m1", Close))
    await net.report("m1", m1)
    await eventually(lambda: net.got("m1", Cancel))
    assert len(told_before) >= 3, "two reports and the end of the phase"
    assert told_before[:3] == [[], [], []]
    assert [message.key for message in net.got("m1", Cancel)] == [TRAIN]
    assert net.got("a", Cancel) == []
    assert (await net.ended()).phase == "finished"
    assert await net.states() == {"a": "counted", "b": "late"}


async def test_what_comes_after_the_round_is_refused(net: Net, clock: RoundClock) -> None:
    await net.attach("a")
    await net.attach("b")
    await net.start(min_clients=1, round_timeout_s=600)
    await net.report("a", await net.order("a"), *ok("a"))
    b = await net.order("b")
    clock.let_pass(600)
    assert (await net.ended()).phase == "finished"
    await net.report("b", b, *ok("b"))
    assert await net.states() == {"a": "counted", "b": "late"}
    assert list(net.partials.iterdir()) == []


async def test_a_round_that_is_open_again_gives_those_left_the_time_after_its_end(net: Net, clock: RoundClock) -> None:
    for name, client in (("m1", "a"), ("m2", "b"), ("m3", "c")):
        await net.attach(name, client)
    await net.start(min_clients=2, sample=2, over_select=1.5, round_timeout_s=600)
    m1, m2, m3 = [await net.order(name) for name in ("m1", "m2", "m3")]
    for name, order, client in (("m1", m1, "a"), ("m2", m2, "b")):
        told = Progress(key=TRAIN, order_id=order.order_id, client=client, stage=Stage.COUNTED)
        await net.engine.received(name, told)
    await eventually(lambda: net.got("m3", Close))
    await net.engine.detached("m2")
    await net.engine.received("m3", Roster(joined=(net.client("b"),)))
    again = await net.order("m3", 2)
    clock.let_pass(600)
    await eventually(lambda: Close(order_id=again.order_id) in net.got("m3", Close))
    await net.report("m1", m1, *ok("a"))
    await net.report("m3", again, *ok("b"))
    await net.report("m3", m3)
    row = await net.ended()
    assert (row.phase, row.reason) == ("finished", None)
    assert await net.states() == {"a": "counted", "b": "counted", "c": "late"}


# ---- stopping


async def test_a_session_that_was_just_started_can_be_stopped(net: Net) -> None:
    await net.attach("a")
    await net.start()
    async with asyncio.timeout(30):
        await wait_for(net.engine.stop(SESSION))
    row = await net.row()
    assert (row.phase, row.reason) == ("stopped", "stopped on request")
    assert net.engine.stop(SESSION) is None


async def test_stopping_calls_the_work_off(net: Net) -> None:
    await net.attach("m1", "a")
    await net.start()
    m1 = await net.order("m1")
    async with asyncio.timeout(30):
        await wait_for(net.engine.stop(SESSION))
    cancels = net.got("m1", Cancel)
    assert [(c.order_id, c.key, c.clients) for c in cancels] == [(m1.order_id, None, ()), ("", TRAIN, ("a",))]
    await net.report("m1", m1, *ok("a"))
    assert await net.states() == {"a": "late"}


@pytest.mark.parametrize("end", ["stopped", "failed"])
async def test_what_came_for_a_round_that_ends_without_a_model_goes_and_is_asked_for_anew(net: Net, end: str) -> None:
    await net.attach("a")
    await net.attach("b")
    await net.start(min_clients=2)
    b = await net.order("b")
    await net.report("a", await net.order("a"), *ok("a"))
    assert len(list(net.partials.iterdir())) == 1
    if end == "stopped":
        await wait_for(net.engine.stop(SESSION))
    else:
        await net.report("b", b, Outcome(client="b", failure=Failure(code="exit_status", message="3")))
    assert (await net.ended()).phase == end
    assert list(net.partials.iterdir()) == []
    async with net.database.read() as tx:
        assert await ledger.all_partial_files(tx) == set()
    await operations(net).resume_session(CALLER, SESSION)
    for client in ("a", "b"):
        await net.report(client, await net.order(client, 2), *ok(client))
    assert (await net.ended()).phase == "finished"


async def test_stopping_again_does_not_stop_what_is_started_afterwards(net: Net) -> None:
    await net.attach("a")
    await net.start()
    async with asyncio.timeout(30):
        net.engine.stop(SESSION)
        await wait_for(net.engine.stop(SESSION))
    async with net.database.write() as tx:
        row = await ledger.require_session(tx, SESSION)
        row.phase, row.round, row.reason = "seeded", 0, None
        await ledger.forget_round(tx, SESSION, 1)
    net.engine.launch(SESSION)
    await net.report("a", await net.order("a", len(net.got("a", Assignment)) + 1), *ok("a"))
    assert (await net.ended()).phase == "finished"


# ---- what somebody is told who holds work


async def test_who_comes_back_is_told_what_became_of_its_work(net: Net) -> None:
    await net.attach("a")
    await net.attach("b")
    await net.start(min_clients=1)
    await net.report("a", await net.order("a"), *ok("a"))
    await net.order("b")
    other = dataclasses.replace(TRAIN, session_id="ses-unknown")
    for name in ("a", "b"):
        await net.engine.detached(name)
        await net.attach(name, holding=(TRAIN, other))
    assert [(m.key, m.settlement) for m in net.got("a", Settled)] == [
        (TRAIN, Settlement.COUNTED),
        (other, Settlement.LATE),
    ]
    assert [m.key for m in net.got("b", Settled)] == [other], "its work is still wanted"
    await net.report("b", await net.order("b"), *ok("b"))
    await net.ended()
    await net.engine.detached("a")
    await net.attach("a", holding=(TRAIN,))
    assert settlements(net, "a") == [(("a",), Settlement.COUNTED)]


async def test_a_failure_that_is_durable_is_forgotten_and_a_late_report_is_kept_for_another_attempt(net: Net) -> None:
    await net.attach("m1", "a", "b")
    await net.attach("c")
    await net.start(min_clients=3)
    failure = Failure(code="exit_status", message="3")
    await net.report("m1", await net.order("m1"), Outcome(client="a", failure=failure))
    await net.engine.detached("m1")
    await net.attach("m1", "a", "b", holding=(TRAIN,))
    assert settlements(net, "m1") == [(("a",), Settlement.DISCARDED)]


@pytest.mark.usefixtures("each_database")
async def test_after_a_restart_what_is_durable_stands_and_the_rest_is_asked_again(tmp_path: Path) -> None:
    async with database_in(tmp_path) as database:
        net = Net(tmp_path, database)
        async with net.engine:
            await net.attach("a")
            await net.attach("b")
            await net.start(min_clients=2)
            await net.report("a", await net.order("a"), *ok("a"))
            await net.order("b")
            (net.partials / "left over").touch()
        assert (await net.row()).phase == "training"
        net.engine = net.new_engine()
        async with net.engine:
            assert [path.suffix for path in net.partials.iterdir()] == [".payload"]
            await net.attach("a", holding=(TRAIN,))
            await net.attach("b", holding=(TRAIN,))
            assert settlements(net, "a") == [(("a",), Settlement.COUNTED)]
            await net.report("b", await net.order("b"), *ok("b"))
            row = await net.ended()
            assert row.phase == "finished"
            assert net.got("a", Assignment) == []
            assert settlements(net, "b") == [(("b",), Settlement.COUNTED)]


async def test_single_orders_with_large_settings_are_made_one_by_one(net: Net) -> None:
    """20 MB of orders: all at once they would be more than may wait for a combiner, each time that it attaches."""
    clients = [f"c{number:03d}" for number in range(200)]
    child = child_named("m1", NodeKind.COMBINER)
    await net.attach("m1", *clients, way=child)
    await net.start(strategy="fedbuff", buffer=1, client_settings={"text": "x" * 100_000})
    asked = [await child._outgoing.get() for _ in clients]
    assert not child.ended
    assert sorted(name for each in asked for name in each.assignment.clients) == clients
    assert len({each.assignment.order_id for each in asked}) == 200
    assert all(len(each.assignment.client_settings) > 100_000 for each in asked)
