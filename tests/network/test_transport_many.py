"""Thousands of messages at once, and more than may wait together: they arrive, and nobody is sent away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runnel.combiner.domain import Membership
from runnel.combiner.partials import Partials
from runnel.combiner.runs import Runs
from runnel.common.errors import StorageFull
from runnel.common.protocol import (
    AssignmentKey,
    Close,
    Downward,
    Failure,
    Member,
    NodeKind,
    Outcome,
    Progress,
    RunResult,
    RunState,
    Stage,
    TaskNews,
    TaskSettled,
    Work,
)
from runnel.common.protocol import Cancel as CancelOrder
from runnel.rpc.v1 import uplink_pb2 as pb
from runnel.transport import Attached, Place, Received, UplinkLink, open_channel
from runnel.transport.attachment import Attachment
from tests.doubles.uplink import BreakableProxy, SmallNetwork
from tests.eventually import eventually

pytestmark = pytest.mark.network

KEY = AssignmentKey(session_id="s", round=1, work=Work.TRAIN)
MANY = 5_000


@pytest.fixture
async def network(tmp_path: Path) -> AsyncIterator[SmallNetwork]:
    async with SmallNetwork(tmp_path / "red") as network:
        yield network


def failed(number: int, log_tail: str = "", detail: str = "") -> TaskNews:
    result = RunResult(failure=Failure(code="entry_point_failed", message="No.", log_tail=log_tail), attempt=1)
    run_id, client = f"run-{number}", f"site-{number}"
    return TaskNews(run_id=run_id, client=client, state=RunState.FAILED, result=result, detail=detail)


def runs_of_many(link: UplinkLink, folder: Path, many: int = MANY, log_tail: str = "") -> Runs:
    """The runs of a combiner, of which each of many clients below has one that ended while there was no way up."""
    membership = Membership("m")
    runs = Runs("m", membership=membership, link=link, send_down=lambda *_: None, folder=folder, keep_s=1.0)
    for number in range(many):
        name = f"site-{number}"
        member = Member(name=name, node_id=f"id-{name}", kind=NodeKind.CLIENT)
        membership.attach(member, [])
        runs.news(name, failed(number, log_tail))
    return runs


@pytest.mark.parametrize(
    ("many", "log_tail"), [(MANY, ""), (1_500, "x" * 16_000)], ids=["thousands of small ones", "24 MB"]
)
async def test_a_combiner_says_the_news_of_many_runs_and_stays_attached(
    network: SmallNetwork, tmp_path: Path, many: int, log_tail: str
) -> None:
    link = network.link("m", kind=NodeKind.COMBINER)
    runs = runs_of_many(link, tmp_path / "runs", many, log_tail)
    async with link:
        assert isinstance(await anext(aiter(link)), Attached)
        runs.attached()
        last = failed(0, detail="said after them")
        runs.news("site-0", last)
        received = network.handler.said
        await eventually(lambda: received("received")[-1:] == [last] or received("detached"), timeout_s=120)
        assert link.attached
        assert received("detached") == []
        assert received("received") == [*(failed(number, log_tail) for number in range(many)), last]


async def test_news_of_a_run_that_is_over_by_then_are_not_said(network: SmallNetwork, tmp_path: Path) -> None:
    link = network.link("m", kind=NodeKind.COMBINER)
    runs = runs_of_many(link, tmp_path / "runs", 10)
    async with link:
        assert isinstance(await anext(aiter(link)), Attached)
        runs.attached()
        runs.down(TaskSettled(run_id="run-7", client="site-7"))
        await eventually(lambda: len(network.handler.said("received")) == 9)
    assert failed(7) not in network.handler.said("received")


def large(number: int) -> CancelOrder:
    return CancelOrder(key=KEY, reason=f"{number} " + "x" * 100_000)


@pytest.mark.parametrize("how", ["thousands of small ones", "a series of 30 MB"])
async def test_a_child_that_listens_gets_all_that_is_sent_at_once(network: SmallNetwork, how: str) -> None:
    heard: list[Downward] = []

    async def listen(link: UplinkLink) -> None:
        async for event in link:
            if isinstance(event, Received):
                heard.append(event.message)

    async with network.link("c1") as link:
        assert isinstance(await anext(aiter(link)), Attached)
        child = network.handler.children["c1"]
        wanted: list[Downward] = []
        if how == "a series of 30 MB":
            child.send_each((large(number) for number in range(300)), 300)
            wanted += (large(number) for number in range(300))
        else:
            for number in range(MANY):
                wanted.append(Close(order_id=f"ord-{number}"))
                child.send(wanted[-1])
        wanted.append(Close(order_id="the last"))
        child.send(wanted[-1])
        listening = asyncio.create_task(listen(link))
        await eventually(lambda: len(heard) == len(wanted) or network.handler.said("detached"), timeout_s=120)
        assert heard == wanted
        assert network.handler.said("detached") == []
        listening.cancel()


async def test_a_child_that_does_not_listen_is_sent_away_while_a_series_waits(tmp_path: Path) -> None:
    made: list[int] = []

    def series() -> Any:
        for number in range(1_000):
            made.append(number)
            yield large(number)

    async with (
        SmallNetwork(tmp_path / "red") as network,
        BreakableProxy(network.address) as proxy,
    ):
        network.directory.places = {"red": proxy.address}
        async with network.link("c1") as link:
            assert isinstance(await anext(aiter(link)), Attached)
            proxy.flowing.clear()
            child = network.handler.children["c1"]
            child.send_each(series(), 1_000)
            for number in range(500):
                child.send(large(number))
                await asyncio.sleep(0)
            await eventually(lambda: network.handler.said("detached") == ["overflow"])
            assert len(made) < 500, "it was made though nobody took it"
            proxy.flowing.set()


async def test_what_is_the_same_of_many_clients_is_one_message(network: SmallNetwork) -> None:
    place = Place(address="", tls=False, attach_to="red", credential=network.credential("c1"), ttl_s=600.0)
    async with open_channel(network.address, tls=None) as channel:
        way = Attachment(channel, place, peer="red", mailbox_bytes=1 << 20, address=network.address, tls=None)
        for detail in ("no room", "no disk", ""):
            for number in range(1_500):
                told = Progress(key=KEY, order_id="o", client=f"c{number}", stage=Stage.COUNTED, detail=detail)
                assert way.send(told)
        way.end("left")
        waiting = [each.progress async for each in way._outgoing]
    assert [(each.detail, 1 + len(each.others)) for each in waiting] == [
        (detail, number) for detail in ("no room", "no disk", "") for number in (1_001, 499)
    ]


async def test_names_that_join_a_message_count(network: SmallNetwork) -> None:
    place = Place(address="", tls=False, attach_to="red", credential=network.credential("c1"), ttl_s=600.0)
    async with open_channel(network.address, tls=None) as channel:
        way = Attachment(channel, place, peer="red", mailbox_bytes=1 << 20, address=network.address, tls=None)
        told = 0
        while told < 100_000 and way.send(
            Progress(key=KEY, order_id="o", client="c" * 100, stage=Stage.COUNTED, detail=f"{told // 1_000}")
        ):
            told += 1
    assert 5_000 < told < 10_000
    assert way.reason == "overflow"


async def test_thousands_are_told_in_few_messages_that_there_is_no_room(network: SmallNetwork, tmp_path: Path) -> None:
    place = Place(address="", tls=False, attach_to="red", credential=network.credential("m"), ttl_s=600.0)
    async with open_channel(network.address, tls=None) as channel:
        way = Attachment(channel, place, peer="red", mailbox_bytes=1 << 20, address=network.address, tls=None)
        failure = Failure(code="entry_point_failed", message="No.")
        told = [Outcome(client=f"c{number}", failure=failure if number % 2 else None) for number in range(MANY)]
        outcomes = {outcome.client: outcome for outcome in told}
        order = SimpleNamespace(outcomes=outcomes, assignment=SimpleNamespace(key=KEY))
        partials: Any = SimpleNamespace(_book=SimpleNamespace(orders={"o": order}), _link=way)
        Partials._tell_no_room(partials, "o", StorageFull("The disk is full."))
        way.end("left")
        waiting = [each.progress async for each in way._outgoing]
    assert [(each.stage, 1 + len(each.others)) for each in waiting] == [
        (stage, number) for stage in (pb.STAGE_COUNTED, pb.STAGE_FAILED) for number in (1_001, 1_001, 498)
    ]
