"""Attaching: who is let in, in which order things happen, and how each end is noticed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from runnel.common.errors import (
    CapacityExceeded,
    Conflict,
    DeadlineExceeded,
    Forbidden,
    IllegalState,
    InvalidInput,
    NotFound,
    RunnelError,
    Unauthenticated,
    Unreachable,
)
from runnel.common.protocol import (
    AssignmentKey,
    Close,
    Drain,
    Heartbeat,
    Hello,
    Member,
    NodeKind,
    Upward,
    Welcome,
    Work,
)
from runnel.common.protocol import Cancel as CancelOrder
from runnel.rpc.v1 import uplink_pb2 as pb
from runnel.rpc.v1 import uplink_pb2_grpc as pb_grpc
from runnel.transport import Child, open_channel, rpc_errors
from runnel.transport.identity import bearer_metadata
from runnel.transport.messages import downward_from_wire, upward_to_wire
from tests.doubles.uplink import BreakableProxy, SmallNetwork, attached, hello, progress
from tests.eventually import eventually, let_pass

pytestmark = pytest.mark.network


@pytest.fixture
async def network(tmp_path: Path) -> AsyncIterator[SmallNetwork]:
    async with SmallNetwork(tmp_path / "red") as network:
        yield network


class RawNode:
    """An attached node without any of the manners of a link."""

    def __init__(self, address: str, credential: str | None) -> None:
        self.channel = open_channel(address, tls=None)
        self.call: Any = pb_grpc.UplinkStub(self.channel).Attach(metadata=bearer_metadata(credential))

    async def __aenter__(self) -> RawNode:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.call.cancel()
        await self.channel.close()

    async def say(self, message: Upward) -> None:
        with suppress(asyncio.InvalidStateError):  # the server has ended the stream already; hearing tells why
            await self.call.write(upward_to_wire(message))

    async def hear(self) -> Any:
        with rpc_errors("the server"):
            async with asyncio.timeout(30):
                wire = await self.call.read()
        return downward_from_wire(wire) if isinstance(wire, pb.Downward) else None

    async def hear_out(self) -> None:
        while await self.hear() is not None:
            pass

    async def attach(self, message: Upward | None = None) -> Any:
        await self.say(message or hello())
        return await self.hear()


# ---- who is let in


async def test_the_welcome_comes_first_and_what_attached_sends_follows(network: SmallNetwork) -> None:
    network.handler.first = lambda child: child.send(Close(order_id="ord-1"))
    async with RawNode(network.address, network.credential()) as node:
        assert await node.attach() == Welcome(
            name="red", heartbeat_s=10.0, late_digests=True, blob_key=network.uplink.blob_key
        )
        assert await node.hear() == Close(order_id="ord-1")
        [said] = network.handler.said("attached")
        assert said == hello()
        [child] = network.uplink.children
        assert (child.identity.name, child.ended) == ("c1", False)
        assert abs(time.time() - child.attached_at) < 60


@pytest.mark.parametrize("case", ["none", "rubbish", "expired", "another network"])
async def test_without_a_good_credential_nobody_is_let_in(network: SmallNetwork, case: str) -> None:
    credential = {
        "none": None,
        "rubbish": "rubbish",
        "expired": network.credential(ttl_s=-60),
        "another network": network.credential(key=bytes(32)),
    }[case]
    ref = network.handler.put(network.folder, b"model")
    async with RawNode(network.address, credential) as node:
        with pytest.raises(Unauthenticated):
            await node.attach()
        stub = pb_grpc.UplinkStub(node.channel)
        blob = pb.BlobRef(sha256=bytes.fromhex(ref.sha256), size_bytes=5)
        fetch: Any = stub.Fetch(pb.FetchRequest(blob=blob), metadata=bearer_metadata(credential), timeout=60)
        with pytest.raises(Unauthenticated), rpc_errors("p"):
            await fetch.read()
        push: Any = stub.Push(metadata=bearer_metadata(credential), timeout=60)
        await push.write(pb.Chunk(blob=blob, order_id="ord-1", data=b"model"))
        with pytest.raises(Unauthenticated), rpc_errors("p"):
            await push
    assert network.handler.calls == []


@pytest.mark.parametrize(
    "member",
    [
        Member(name="c2", node_id="id-c1", kind=NodeKind.CLIENT),
        Member(name="c1", node_id="id-c2", kind=NodeKind.CLIENT),
        Member(name="c1", node_id="id-c1", kind=NodeKind.COMBINER),
    ],
)
async def test_a_node_speaks_only_for_itself(network: SmallNetwork, member: Member) -> None:
    async with RawNode(network.address, network.credential()) as node:
        with pytest.raises(Forbidden, match="The hello is of"):
            await node.attach(Hello(member=member))
    assert network.handler.calls == []


async def test_the_first_message_is_a_hello(network: SmallNetwork) -> None:
    async with RawNode(network.address, network.credential()) as node:
        with pytest.raises(InvalidInput, match="must be a hello, not Heartbeat"):
            await node.attach(Heartbeat())
    async with RawNode(network.address, network.credential()) as node:
        await node.call.done_writing()
        with pytest.raises(InvalidInput, match="before its hello"):
            await node.hear()


async def test_a_refused_node_sees_why_and_was_never_there(network: SmallNetwork) -> None:
    network.handler.refuse = CapacityExceeded("All 10 places are taken.", hint="Try another combiner.")
    async with RawNode(network.address, network.credential()) as node:
        with pytest.raises(CapacityExceeded, match="All 10 places") as caught:
            await node.attach()
        assert caught.value.hint == "Try another combiner."
    await eventually(lambda: not network.uplink.children)
    assert network.handler.said("detached") == []


# ---- messages


async def test_messages_are_handled_in_order_and_heartbeats_are_not_shown(network: SmallNetwork) -> None:
    async with RawNode(network.address, network.credential()) as node:
        await node.attach()
        for number in range(300):
            await node.say(progress(number))
            await node.say(Heartbeat())
        await eventually(lambda: len(network.handler.said("received")) == 300)
        assert network.handler.said("received") == [progress(number) for number in range(300)]


@pytest.mark.parametrize("who", ["handler", "hello", "wire"])
async def test_a_message_that_does_not_fit_ends_the_stream_with_the_reason(network: SmallNetwork, who: str) -> None:
    async with attached(network, "c2") as bystander, RawNode(network.address, network.credential()) as node:
        await node.attach()
        if who == "handler":
            network.handler.refuse_message = NotFound("No order ord-1.")
            await node.say(progress(1))
            with pytest.raises(NotFound, match="No order ord-1"):
                await node.hear()
        elif who == "hello":
            await node.say(hello())
            with pytest.raises(IllegalState, match="has had one"):
                await node.hear()
        else:
            await node.call.write(pb.Upward())
            with pytest.raises(InvalidInput, match="newer version"):
                await node.hear()
        await eventually(lambda: network.handler.said("detached", "c1") == ["refused"])
        assert bystander.attached


async def test_a_fault_of_the_handler_ends_one_stream_and_no_other(network: SmallNetwork) -> None:
    async with attached(network, "c2") as bystander, RawNode(network.address, network.credential()) as node:
        await node.attach()
        network.handler.refuse_message = ZeroDivisionError("a bug with a secret")
        await node.say(progress(1))
        with pytest.raises(RunnelError, match="incident") as caught:
            await node.hear()
        assert "secret" not in str(caught.value)
        network.handler.refuse_message = None
        assert bystander.send(progress(2, "c2"))
        await eventually(lambda: network.handler.said("received", "c2") == [progress(2, "c2")])


async def test_what_was_received_is_handled_though_the_stream_is_gone(network: SmallNetwork) -> None:
    network.handler.hold_received.clear()
    async with RawNode(network.address, network.credential()) as node:
        await node.attach()
        for number in range(5):
            await node.say(progress(number))
        [child] = network.uplink.children
        await eventually(lambda: len(child.inbox) == 4)
    await eventually(lambda: child.ended)
    assert network.handler.said("detached") == []
    network.handler.hold_received.set()
    await eventually(lambda: network.handler.said("detached") != [])
    assert len(network.handler.said("received")) == 5


# ---- the ends


async def end_by_half_close(node: RawNode) -> None:
    await node.call.done_writing()
    assert await node.hear() is None


async def end_by_cancel(node: RawNode) -> None:
    node.call.cancel()


async def end_by_close(node: RawNode) -> None:
    await node.channel.close()


@pytest.mark.parametrize("end", [end_by_half_close, end_by_cancel, end_by_close])
async def test_a_node_that_goes_is_noticed_at_once(network: SmallNetwork, end: Callable[[RawNode], Any]) -> None:
    async with RawNode(network.address, network.credential()) as node:
        await node.attach()
        await end(node)
        await eventually(lambda: network.handler.said("detached") == ["gone"])
        assert network.uplink.children == ()


async def test_a_connection_that_is_cut_is_noticed_at_once(network: SmallNetwork) -> None:
    async with BreakableProxy(network.address) as proxy, RawNode(proxy.address, network.credential()) as node:
        await node.attach()
        proxy.cut()
        await eventually(lambda: network.handler.said("detached") == ["gone"])
        with pytest.raises(Unreachable):
            await node.hear()


async def test_a_silent_node_is_sent_away_and_a_quiet_one_stays(tmp_path: Path) -> None:
    passed_s = 0.0
    async with SmallNetwork(tmp_path / "red", clock=lambda: time.monotonic() + passed_s) as network:
        network.handler.heartbeat_s = 0.1  # at which nodes speak; who is silent for 30 s is gone
        async with (
            attached(network, "quiet") as quiet,
            RawNode(network.address, network.credential("silent")) as silent,
        ):
            await silent.attach(hello("silent"))
            passed_s = 40.0
            quiet_child, heard_before = network.handler.children["quiet"], time.monotonic() + 30.0
            await eventually(lambda: quiet_child.heard_at > heard_before)
            let_pass(31.0)
            with pytest.raises(DeadlineExceeded, match="Nothing was heard from silent"):
                await silent.hear()
            await eventually(lambda: network.handler.said("detached", "silent") == ["silent"])
            assert quiet.attached
            assert network.handler.said("detached", "quiet") == []


async def test_a_slow_handler_makes_nobody_silent(tmp_path: Path) -> None:
    passed_s = 0.0
    async with SmallNetwork(tmp_path / "red", clock=lambda: time.monotonic() + passed_s) as network:
        network.handler.hold_received.clear()
        async with attached(network) as link:
            for number in range(200):  # more than the inbox takes, so that nothing is read any more
                link.send(progress(number))
            [child] = network.uplink.children
            await eventually(lambda: child._stuck)
            for _ in range(2):  # looks at how long it has been silent, of which the second would end it
                seen_at = child.heard_at
                passed_s += 31.0
                let_pass(31.0)
                await eventually(lambda: child.ended or child.heard_at > seen_at)  # noqa: B023 - called at once
            assert not child.ended
            assert link.attached
            network.handler.hold_received.set()
            await eventually(lambda: len(network.handler.said("received")) == 200)


async def test_a_node_that_attaches_again_supersedes_itself(network: SmallNetwork) -> None:
    order: list[str] = []
    async with (
        RawNode(network.address, network.credential()) as old,
        RawNode(network.address, network.credential()) as new,
    ):
        await old.attach()
        await new.attach()
        order = [call for call, _, _ in network.handler.calls]
        assert order == ["attached", "detached", "attached"]
        assert network.handler.said("detached") == ["superseded"]
        with pytest.raises(Conflict, match="attached again"):
            await old.hear()
        network.handler.children["c1"].send(Close(order_id="ord-2"))
        assert await new.hear() == Close(order_id="ord-2")
        assert len(network.uplink.children) == 1


async def test_the_old_attachment_is_let_go_before_the_new_one_is_taken_in(network: SmallNetwork) -> None:
    network.handler.hold_received.clear()
    async with (
        RawNode(network.address, network.credential()) as old,
        RawNode(network.address, network.credential()) as new,
    ):
        await old.attach()
        await old.say(progress(1))
        [child] = network.uplink.children
        await eventually(lambda: network.handler.receiving)  # what one connection brings may overtake the other
        await new.say(hello())
        await eventually(lambda: child.ended)
        assert network.uplink.children == (child,)
        assert len(network.handler.said("attached")) == 1
        network.handler.hold_received.set()
        assert await new.hear() == Welcome(
            name="red", heartbeat_s=10.0, late_digests=True, blob_key=network.uplink.blob_key
        )
        calls = [call for call, _, _ in network.handler.calls]
        assert calls == ["attached", "received", "detached", "attached"]


async def test_a_renamed_node_supersedes_itself_too(network: SmallNetwork) -> None:
    credential = network.credential("c1", node_id="same")
    renamed = network.credential("c9", node_id="same")
    async with RawNode(network.address, credential) as old, RawNode(network.address, renamed) as new:
        await old.attach(hello("c1", "same"))
        await new.attach(hello("c9", "same"))
        assert network.handler.said("detached", "c1") == ["superseded"]
        assert [child.identity.name for child in network.uplink.children] == ["c9"]


async def test_of_many_that_attach_as_one_node_one_is_left(network: SmallNetwork) -> None:
    nodes = [RawNode(network.address, network.credential()) for _ in range(10)]

    async def attach(node: RawNode) -> bool:
        try:
            return await node.attach() is not None
        except Conflict:
            return False

    try:
        await asyncio.gather(*(attach(node) for node in nodes))
        await eventually(lambda: len(network.handler.said("attached")) - len(network.handler.said("detached")) == 1)
        calls = [call for call, _, _ in network.handler.calls]
        assert calls[::2] == ["attached"] * len(calls[::2])  # never two at once
        assert calls[1::2] == ["detached"] * len(calls[1::2])
    finally:
        for node in nodes:
            await node.__aexit__()


async def test_a_node_that_goes_while_it_is_taken_in_is_let_go_afterwards(network: SmallNetwork) -> None:
    network.handler.hold_attached.clear()
    async with RawNode(network.address, network.credential()) as node:
        await node.say(hello())
        await eventually(lambda: network.uplink.children)
    await eventually(lambda: network.uplink.children[0].ended)
    assert network.handler.calls == []
    network.handler.hold_attached.set()
    await eventually(lambda: [call for call, _, _ in network.handler.calls] == ["attached", "detached"])


async def test_a_node_that_does_not_take_its_messages_is_sent_away(tmp_path: Path) -> None:
    async with (
        SmallNetwork(tmp_path / "red", mailbox_bytes=5 << 20) as network,
        BreakableProxy(network.address) as proxy,
        RawNode(proxy.address, network.credential()) as node,
    ):
        await node.attach()
        proxy.flowing.clear()
        child = network.handler.children["c1"]
        key = AssignmentKey(session_id="s", round=1, work=Work.TRAIN)
        for _ in range(100):
            child.send(CancelOrder(key=key, reason="x" * 100_000))
            await asyncio.sleep(0)
        await eventually(lambda: network.handler.said("detached") == ["overflow"])
        child.send(Close(order_id="goes nowhere"))
        proxy.flowing.set()
        with pytest.raises(CapacityExceeded, match="at most 5,242,880 bytes"):
            await node.hear_out()


async def test_nobody_stays_longer_than_the_newest_credential_is_good(tmp_path: Path) -> None:
    passed_s = 0.0
    async with (
        SmallNetwork(tmp_path / "red", wall_clock=lambda: time.time() + passed_s) as network,
        RawNode(network.address, network.credential()) as revoked,
        RawNode(network.address, network.credential("c2")) as renewed,
    ):
        await revoked.attach()
        await renewed.attach(hello("c2"))
        lasting = network.credential("c2", ttl_s=7200)
        await renewed.say(Heartbeat(credential=lasting))
        await eventually(lambda: network.handler.children["c2"]._credential == lasting)
        passed_s = 3600.0
        let_pass(31.0)  # whoever is attached is looked at each 30 s
        with pytest.raises(Unauthenticated, match="The credential of c1 expired"):
            await revoked.hear_out()
        assert [child.identity.name for child in network.uplink.children if not child.ended] == ["c2"]


async def test_a_node_renews_with_its_own_credential_only(network: SmallNetwork) -> None:
    async with RawNode(network.address, network.credential()) as node:
        await node.attach()
        await node.say(Heartbeat(credential=network.credential("c2")))
        with pytest.raises(Forbidden, match="credential of another node"):
            await node.hear_out()


@pytest.mark.parametrize("error", [None, Conflict("Moved away.")])
async def test_a_handler_can_end_a_stream(network: SmallNetwork, error: RunnelError | None) -> None:
    async with RawNode(network.address, network.credential()) as node:
        await node.attach()
        child = network.handler.children["c1"]
        child.send(Close(order_id="the last"))
        child.end(error)
        if error is None:
            assert await node.hear() == Close(order_id="the last")
            assert await node.hear() is None
        else:
            with pytest.raises(Conflict, match="Moved away"):
                await node.hear_out()
        await eventually(lambda: network.handler.said("detached") == ["ended"])


class EndsWhileWriting:
    """Of the context of a stream what its child uses: the stream is ended while its first message is written."""

    def __init__(self, child: Child, context: Any) -> None:
        self.child = child
        self.context = context
        self.send_initial_metadata = context.send_initial_metadata

    async def write(self, message: pb.Downward) -> None:
        self.child.end(Conflict("Moved away."))
        await self.context.write(message)


async def test_an_end_while_the_welcome_is_written_is_told(
    network: SmallNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    converse = Child.converse

    async def ended(child: Child, requests: AsyncIterator[pb.Upward], context: Any) -> None:
        await converse(child, requests, EndsWhileWriting(child, context))  # type: ignore[arg-type]

    monkeypatch.setattr(Child, "converse", ended)
    async with RawNode(network.address, network.credential()) as node:
        await node.say(hello())
        with pytest.raises(Conflict, match="Moved away"):
            await node.hear_out()
    await eventually(lambda: network.handler.said("detached") == ["ended"])


async def test_draining_tells_every_child(network: SmallNetwork) -> None:
    async with RawNode(network.address, network.credential()) as node:
        await node.attach()
        await network.uplink.drain_all("shutting down")
        assert await node.hear() == Drain(reason="shutting down")


async def test_closing_lets_go_of_every_child_and_takes_no_more(network: SmallNetwork) -> None:
    async with (
        RawNode(network.address, network.credential()) as node,
        RawNode(network.address, network.credential("c2")) as late,
    ):
        await node.attach()
        await network.uplink.close()
        assert network.handler.said("detached") == ["closing"]
        assert network.uplink.children == ()
        with pytest.raises(Unreachable, match="shuts down"):
            await node.hear()
        with pytest.raises(Unreachable, match="starts or shuts down"):
            await late.attach(hello("c2"))
        await network.uplink.close()


async def test_a_handler_that_hangs_is_cut_short_at_the_end(network: SmallNetwork) -> None:
    network.handler.hold_received.clear()
    async with RawNode(network.address, network.credential()) as node:
        await node.attach()
        await node.say(progress(1))
        await node.say(progress(2))
        [child] = network.uplink.children
        await eventually(lambda: len(child.inbox) == 1)
        await network.uplink.close(grace_s=0.05)
        assert network.handler.said("detached") == ["closing"]


async def test_two_hundred_children_at_once(network: SmallNetwork) -> None:
    count = 200
    links = [network.link(f"c{number}") for number in range(count)]
    began = time.monotonic()
    try:
        await asyncio.gather(*(link.__aenter__() for link in links))
        await eventually(lambda: len(network.uplink.children) == count, timeout_s=30)
        for number, link in enumerate(links):
            await eventually(lambda link=link: link.attached)  # type: ignore[misc]
            assert link.send(progress(number, link.name))
        await eventually(lambda: len(network.handler.said("received")) == count)
        assert {each for _, each, _ in network.handler.calls} == {link.name for link in links}
        for child in network.uplink.children:
            child.send(Close(order_id=child.identity.name))
        for link in links:
            events = aiter(link)
            await anext(events)
            received: Any = await anext(events)
            assert received.message == Close(order_id=link.name)
    finally:
        await asyncio.gather(*(link.__aexit__(None, None, None) for link in links))
    await eventually(lambda: len(network.handler.said("detached")) == count)
    assert time.monotonic() - began < 100
