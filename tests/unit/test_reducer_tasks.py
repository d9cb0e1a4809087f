"""Runs between the ledger and nodes that are lists of what was sent to them."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from runnel.common.protocol import Hello, Member, NodeKind, RunState, TaskNews, TaskOrder, TaskSettled
from runnel.common.tasks import TaskSpec
from runnel.reducer.domain.pace import Pace
from runnel.reducer.store.task_ledger import Submission
from tests.doubles.engine_net import ListedWay, Net, net_in
from tests.eventually import eventually

pytestmark = pytest.mark.unit

CLIENTS = tuple(f"site-{number}" for number in range(12))


@pytest.fixture
async def net(tmp_path: Path, each_database: None) -> AsyncIterator[Net]:
    async with net_in(tmp_path) as made:
        yield made


def site(name: str, *runs: str) -> Member:
    return Member(name=name, node_id=f"id-{name}", kind=NodeKind.CLIENT, runs=runs, task_slots=2)


async def attach(net: Net, *below: Member) -> ListedWay:
    """Attach the combiner m1 with clients that take tasks."""
    member = Member(name="m1", node_id="id-m1", kind=NodeKind.COMBINER)
    await net.join(member, *below)
    net.sent["m1"] = []
    await net.engine.attached(Hello(member=member, below=below), way := net.way("m1"))
    return way


async def start(net: Net, *sites: str, spec: TaskSpec | None = None) -> None:
    described = spec or TaskSpec.model_validate({"executors": [{"image": "analysis:1"}]})
    number = len(net.engine.tasks.book)
    wanted = Submission(
        task_id=f"tsk-{number:04d}",
        organisation="default",
        token_id="",
        user="",
        spec=described,
        sites=sites,
        expires_at=None,
    )
    await net.engine.tasks.start(wanted)


async def test_large_orders_go_out_only_as_fast_as_they_are_heard_of(net: Net) -> None:
    """All at once they would be more than may wait for a combiner, which would be sent away, again and again."""
    await attach(net, *(site(name) for name in CLIENTS))
    content = {"data": base64.b64encode(bytes(64 << 10)).decode()}
    files = [{"path": f"/in/{number}", "content": content} for number in range(11)]
    await start(net, *CLIENTS, spec=TaskSpec.model_validate({"executors": [{"image": "a:1"}], "inputs": files}))
    with pytest.raises(AssertionError, match="not within"):
        await eventually(lambda: len(net.got("m1", TaskOrder)) > 6, timeout_s=1)
    heard: list[TaskOrder] = []

    def unheard() -> list[TaskOrder]:
        return net.got("m1", TaskOrder)[len(heard) :]

    while len(heard) < len(CLIENTS):
        for order in await eventually(unheard):
            heard.append(order)
            await net.engine.received("m1", TaskNews(run_id=order.run_id, client=order.client, state=RunState.ASSIGNED))
    assert {order.client for order in heard} == set(CLIENTS)


async def test_small_orders_count_for_more_than_their_spec(net: Net) -> None:
    """Of thousands of them that is what waits for a combiner."""
    net.engine.tasks._pace = Pace(2_000)
    sites = [f"s{number}" for number in range(9)]
    await attach(net, *(site(name) for name in sites))
    await start(net, *sites)
    await eventually(lambda: len(net.got("m1", TaskOrder)) == 4)
    with pytest.raises(AssertionError, match="not within"):
        await eventually(lambda: len(net.got("m1", TaskOrder)) > 4, timeout_s=1)
    assert [9 * len(order.spec) < 2_000 for order in net.got("m1", TaskOrder)] == [True] * 4


async def test_a_client_that_comes_back_gets_what_it_lost_and_forgets_what_is_over(net: Net) -> None:
    await attach(net, site("a"))
    await start(net, "a")
    (order,) = await eventually(lambda: net.got("m1", TaskOrder))
    await net.engine.received("m1", TaskNews(run_id=order.run_id, client="a", state=RunState.RUNNING))
    await eventually(lambda: net.engine.tasks.book.of_client("a")[0].state is RunState.RUNNING)
    await net.engine.detached("m1")
    await attach(net, site("a", order.run_id, "run-unknown"))
    (settled,) = await eventually(lambda: net.got("m1", TaskSettled))
    assert (settled.run_id, settled.cancelled) == ("run-unknown", False)
    assert net.got("m1", TaskOrder) == []
    await net.engine.detached("m1")
    await attach(net, site("a"))
    (again,) = await eventually(lambda: net.got("m1", TaskOrder))
    assert again == order


async def test_news_that_a_full_disk_did_not_take_are_entered_later(net: Net) -> None:
    await attach(net, site("a"))
    await start(net, "a")
    (order,) = await eventually(lambda: net.got("m1", TaskOrder))
    net.journal.failing = 1
    await net.engine.received("m1", TaskNews(run_id=order.run_id, client="a", state=RunState.PREPARING))
    await eventually(lambda: net.engine.tasks.book.of_client("a")[0].state is RunState.PREPARING)
    assert net.journal.failing == 0


async def test_the_end_of_a_task_and_what_clients_hold_are_told_of_many_at_once(net: Net) -> None:
    """One by one, thousands would be more than may wait for a combiner."""
    sites = [f"s{number:02d}" for number in range(40)]
    way = await attach(net, *(site(name) for name in sites))
    await start(net, *sites)
    await eventually(lambda: len(net.got("m1", TaskOrder)) == 40)
    await net.engine.tasks.cancel("tsk-0000", "not needed")
    assert way.series == [40]
    assert [each.client for each in net.got("m1", TaskSettled)] == sites
    await net.engine.detached("m1")
    way = await attach(net, *(site(name, f"run-of-{name}") for name in sites))
    await eventually(lambda: len(net.got("m1", TaskSettled)) == 40)
    assert way.series == [40]
