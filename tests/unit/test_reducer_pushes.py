"""Pushes to the reducer that their round or run did not wait for: nothing stays while their node is attached."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest

from runnel.common.errors import IllegalState
from runnel.common.protocol import (
    BlobRef,
    Cancel,
    Downward,
    Hello,
    Member,
    NodeKind,
    RunState,
    TaskNews,
    TaskOrder,
    TaskSettled,
)
from runnel.common.tasks import TaskSpec
from runnel.reducer.rpc.gateway import Gateway
from runnel.reducer.store.task_ledger import Submission
from runnel.rpc.v1 import uplink_pb2 as pb
from runnel.transport import Child
from runnel.transport.messages import downward_to_wire
from tests.doubles.engine_net import Net, child_named, net_in, ok
from tests.eventually import eventually

pytestmark = pytest.mark.unit

DATA = b"update" * 10
REF = BlobRef(sha256=hashlib.sha256(DATA).hexdigest(), size_bytes=len(DATA))


@pytest.fixture
async def net(tmp_path: Path, each_database: None) -> AsyncIterator[Net]:
    async with net_in(tmp_path) as made:
        yield made


async def attach(net: Net, gateway: Gateway, name: str) -> Child:
    """Attach a client, which takes runs too, to the gateway."""
    sent = net.sent[name] = []

    def tell(message: Downward) -> pb.Downward:
        sent.append(message)
        return downward_to_wire(message)

    def send_each(messages: Iterable[Downward], number: int) -> None:
        for message in messages:  # nobody takes what waits, so nothing would be made in its turn
            child.send(message)

    child = child_named(name, encode=tell)
    child.send_each = send_each  # type: ignore[method-assign]
    member = Member(name=name, node_id=child.identity.node_id, kind=NodeKind.CLIENT, task_slots=1)
    await net.join(member)
    await gateway.attached(child, Hello(member=member))
    return child


async def push(gateway: Gateway, child: Child, order_id: str, *, whole: bool = False) -> None:
    """Push, and lose the connection in the middle of it unless it is to be ``whole``."""
    file = await gateway.open_push(child.identity, order_id, REF)
    assert file is not None
    file.write(0, DATA if whole else DATA[:9])
    if whole:
        await gateway.pushed(child.identity, order_id, REF, file.finish())
    else:
        file.close()


def pushed(net: Net) -> int:
    """How many files of what was pushed are here, in part or whole."""
    return sum(len(list(net.folder.joinpath(each).iterdir())) for each in ("spool", "run-spool", "partials"))


@pytest.mark.parametrize("whole", [False, True], ids=["in part", "whole"])
async def test_a_late_push_goes_with_its_round(net: Net, whole: bool) -> None:
    gateway = net.new_gateway()
    await attach(net, gateway, "a")
    late = await attach(net, gateway, "b")
    await net.start(min_clients=1, buffer=1)
    a, b = await net.order("a"), await net.order("b")
    await push(gateway, late, b.order_id, whole=whole)
    assert pushed(net) == 1
    await net.report("a", a, *ok("a"))
    await net.ended()
    assert len(net.got("b", Cancel)) == 1
    assert pushed(net) == 0
    assert gateway._children["b"] is late


@pytest.mark.parametrize("whole", [False, True], ids=["in part", "whole"])
async def test_a_late_push_of_which_no_news_went_down_goes_with_the_next_push(net: Net, whole: bool) -> None:
    gateway = net.new_gateway()
    late = await attach(net, gateway, "a")
    await net.start(min_clients=1, rounds=2)
    first = await net.order("a")
    await push(gateway, late, first.order_id, whole=whole)
    (net.engine._ways["a"], way) = (late, net.engine._ways["a"])
    await net.report("a", first, *ok("a"))
    second = await net.order("a", 2)
    net.engine._ways["a"] = way
    await eventually(lambda: list(net.partials.glob(f"{first.order_id}.payload")) == [])
    assert pushed(net) == 1
    await push(gateway, late, second.order_id)
    assert [file.read_bytes() for file in (net.folder / "spool").iterdir()] == [DATA[:9]]
    assert pushed(net) == 1


async def test_a_push_whose_order_ends_while_its_place_is_made_is_refused(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = net.new_gateway()
    child = await attach(net, gateway, "a")
    await net.start()
    order = await net.order("a")
    exchange = net.engine.require_order(order.order_id, "a")

    def fence(kind: NodeKind) -> int:
        exchange.fence()
        return 0

    monkeypatch.setattr(exchange, "decoding_bytes", fence)
    with pytest.raises(IllegalState):
        await gateway.open_push(child.identity, order.order_id, REF)
    assert gateway._spool._begun == {}


async def start_run(net: Net, client: str) -> TaskOrder:
    spec = TaskSpec.model_validate({"executors": [{"image": "analysis:1"}]})
    wanted = Submission(
        task_id=f"tsk-{client}",
        organisation="default",
        token_id="",
        user="",
        spec=spec,
        sites=(client,),
        expires_at=None,
    )
    await net.engine.tasks.start(wanted)
    (order,) = await eventually(lambda: net.got(client, TaskOrder))
    await net.engine.received(client, TaskNews(run_id=order.run_id, client=client, state=RunState.RUNNING))
    return order


async def test_a_file_in_part_goes_with_its_run(net: Net) -> None:
    gateway = net.new_gateway()
    child = await attach(net, gateway, "a")
    order = await start_run(net, "a")
    await push(gateway, child, order.run_id)
    assert pushed(net) == 1
    net.engine.send("a", TaskSettled(run_id="run-other", client="a"))
    assert pushed(net) == 1
    await net.engine.tasks.cancel("tsk-a", "not wanted any more")
    await eventually(lambda: net.got("a", TaskSettled))
    assert pushed(net) == 0


async def test_a_file_in_part_of_a_run_whose_end_nobody_here_was_told_goes_with_the_next_push(net: Net) -> None:
    gateway = net.new_gateway()
    children = [await attach(net, gateway, name) for name in ("a", "b")]
    first, second = [await start_run(net, name) for name in ("a", "b")]
    await push(gateway, children[0], first.run_id)
    net.engine.tasks.book.moved(first.run_id, RunState.CANCELLED)
    await push(gateway, children[1], second.run_id)
    assert pushed(net) == 1
    assert gateway._run_files._begun == {"a": set(), "b": {second.run_id}}


async def test_a_run_that_ends_while_the_place_of_its_file_is_made_takes_none(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = net.new_gateway()
    child = await attach(net, gateway, "a")
    order = await start_run(net, "a")
    files = gateway._run_files
    opened = files._spool.open

    def ends(key: str, ref: BlobRef) -> object:
        net.engine.tasks.book.moved(order.run_id, RunState.CANCELLED)
        return opened(key, ref)

    monkeypatch.setattr(files._spool, "open", ends)
    with pytest.raises(IllegalState):
        await gateway.open_push(child.identity, order.run_id, REF)
    assert files._spool._begun == {}
