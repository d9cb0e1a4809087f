"""Staying attached: losing those above, being sent away, fresh credentials, ends that are final."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import structlog.testing

from runnel.common.errors import (
    BadSettings,
    CapacityExceeded,
    Conflict,
    Forbidden,
    InvalidInput,
    RunnelError,
    Unauthenticated,
    Unreachable,
)
from runnel.common.protocol import Close, Heartbeat, NodeKind, Progress, Stage, Welcome
from runnel.transport import (
    Attached,
    Detached,
    Received,
    RetryPolicy,
    RpcServer,
    UplinkLink,
    UplinkServer,
    attachment,
    uplink_link,
)
from runnel.transport.credentials import CredentialVerifier
from tests.doubles.uplink import (
    TOKEN,
    BreakableProxy,
    RecordingHandler,
    SmallNetwork,
    attached,
    hello,
    progress,
)
from tests.eventually import eventually
from tests.lasting_port import lasting_port

pytestmark = pytest.mark.network


@pytest.fixture
async def network(tmp_path: Path) -> AsyncIterator[SmallNetwork]:
    async with SmallNetwork(tmp_path / "red") as network:
        yield network


class Combiner:
    """Another node to attach to."""

    def __init__(self, folder: Path, network: SmallNetwork, name: str) -> None:
        self.handler = RecordingHandler(folder / name, name=name)
        self.uplink = UplinkServer(self.handler, CredentialVerifier(network.issuer.public_key))
        self.server = RpcServer("127.0.0.1:0", services=[self.uplink.service])
        self.name = name
        self.network = network

    async def __aenter__(self) -> Combiner:
        await self.server.__aenter__()
        await self.uplink.__aenter__()
        self.network.directory.places[self.name] = self.server.address
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        await self.uplink.close()
        await self.server.stop(0)


async def next_event(link: UplinkLink) -> Any:
    async with asyncio.timeout(30):
        return await anext(aiter(link))


# ---- the events


async def test_the_events_tell_the_whole_story(network: SmallNetwork) -> None:
    network.handler.first = lambda child: child.send(Close(order_id="ord-1"))
    async with network.link() as link:
        assert not link.attached
        assert await next_event(link) == Attached(
            welcome=Welcome(name="red", heartbeat_s=10.0, late_digests=True, blob_key=network.uplink.blob_key),
            via="red",
            address=network.address,
        )
        assert (link.attached, link.via, link.name) == (True, "red", "c1")
        assert await next_event(link) == Received(message=Close(order_id="ord-1"))
        assert link.send(progress(1))
        await eventually(lambda: network.handler.said("received") == [progress(1)])
        link.leave()
        assert await next_event(link) == Detached(reason="left")
        assert isinstance(await next_event(link), Attached)
    assert not link.attached
    assert not link.send(progress(2))
    assert [event async for event in link] == []


async def test_what_was_sent_before_the_end_arrives(network: SmallNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attachment, "_FAREWELL_S", 30.0)
    monkeypatch.setattr(uplink_link, "_STOP_S", 60.0)
    async with attached(network) as link:
        for number in range(100):
            link.send(progress(number))
    await eventually(lambda: len(network.handler.said("received")) == 100)


async def test_what_is_the_same_of_many_clients_is_told_together_and_in_order(
    network: SmallNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attachment, "_FAREWELL_S", 30.0)
    monkeypatch.setattr(uplink_link, "_STOP_S", 60.0)

    def of(client: str, stage: Stage = Stage.COUNTED, detail: str = "") -> Progress:
        return dataclasses.replace(progress(1, client), stage=stage, detail=detail)

    def heard() -> list[Progress]:
        return [message for message in network.handler.said("received") if isinstance(message, Progress)]

    told = [of(f"c{n}") for n in range(1_500)]
    told[1_200:1_200] = [of("x", Stage.FAILED), dataclasses.replace(of("y"), order_id="ord-2")]
    told[300:300] = [of("z", detail="a word")]
    async with attached(network, kind=NodeKind.COMBINER) as link:
        for message in told:
            link.send(message)
    await eventually(lambda: sum(len(message.clients) for message in heard()) == len(told))
    singly = [
        dataclasses.replace(message, client=client, others=()) for message in heard() for client in message.clients
    ]
    assert singly == told
    assert len(heard()) <= 8
    assert max(len(message.others) for message in heard()) <= 1_000


async def test_a_lost_connection_is_replaced_within_moments(network: SmallNetwork) -> None:
    async with BreakableProxy(network.address) as proxy:
        network.directory.places = {"red": proxy.address}
        async with attached(network) as link:
            began = time.monotonic()
            proxy.cut()
            event = await next_event(link)
            assert (event.reason, type(event.error)) == ("lost", Unreachable)
            assert isinstance(await next_event(link), Attached)
            assert time.monotonic() - began < 20  # less than the heartbeats take to tell


async def test_a_lost_combiner_is_avoided_once(network: SmallNetwork, tmp_path: Path) -> None:
    network.directory.places = {}
    combiners = Combiner(tmp_path, network, "com-1"), Combiner(tmp_path, network, "com-2")
    async with combiners[0] as first, combiners[1] as second, network.link() as link:
        assert (await next_event(link)).via == "com-1"
        await first.stop()
        assert isinstance(await next_event(link), Detached)
        assert (await next_event(link)).via == "com-2"
        assert network.directory.asks[-1].avoid == ("com-1",)
        assert second.handler.said("attached") == [hello()]


async def test_places_where_nobody_answers_are_avoided(network: SmallNetwork, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        network.directory.places = dict.fromkeys(("gone", "gone-too"), f"127.0.0.1:{free.getsockname()[1]}")
        async with Combiner(tmp_path, network, "com-2"), network.link() as link:
            assert (await next_event(link)).via == "com-2"
    assert [ask.avoid for ask in network.directory.asks] == [(), ("gone",), ("gone", "gone-too")]


async def test_places_where_nobody_answered_are_tried_again(network: SmallNetwork) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        network.directory.places = dict.fromkeys(("one", "two"), f"127.0.0.1:{free.getsockname()[1]}")
        async with network.link():
            await eventually(lambda: len(network.directory.asks) >= 4)
    assert [ask.avoid for ask in network.directory.asks][:4] == [(), ("one",), ("one", "two"), ("one",)]


async def test_a_node_that_is_sent_away_goes_elsewhere(network: SmallNetwork, tmp_path: Path) -> None:
    network.directory.places = {}
    combiners = Combiner(tmp_path, network, "com-1"), Combiner(tmp_path, network, "com-2")
    async with combiners[0] as first, combiners[1], network.link() as link:
        await next_event(link)
        link.send(progress(1))
        await first.uplink.drain_all("maintenance")
        assert await next_event(link) == Detached(reason="drained")
        assert (await next_event(link)).via == "com-2"
        await eventually(lambda: first.handler.said("detached") == ["gone"])
        assert first.handler.said("received") == [progress(1)]


async def test_a_node_that_is_attached_elsewhere_holds_no_connection_to_the_directory(
    network: SmallNetwork, tmp_path: Path
) -> None:
    """Not even after it has renewed its credential there: thousands of nodes would hold one each."""
    network.directory.places = {}
    network.directory.ttl_s = 1.0
    port = int(network.address.rpartition(":")[2])
    async with Combiner(tmp_path, network, "com-1"), network.link() as link:
        await next_event(link)
        await eventually(lambda: not connections_to(port))
        asked = len(network.directory.asks)
        await eventually(lambda: len(network.directory.asks) > asked and not connections_to(port))
        assert link.attached


def connections_to(port: int) -> list[Any]:
    own = psutil.Process().net_connections("tcp")
    return [each for each in own if each.status == "ESTABLISHED" and each.raddr and each.raddr.port == port]


async def test_a_refused_attachment_is_tried_again(network: SmallNetwork) -> None:
    network.handler.refuse = CapacityExceeded("Full.")
    async with network.link() as link:
        await eventually(lambda: len(network.directory.asks) >= 3)
        assert not link.attached
        network.handler.refuse = None
        assert isinstance(await next_event(link), Attached)


def waits(logs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [each for each in logs if each["event"].startswith("not attached")]


async def test_a_network_that_starts_later_is_found(tmp_path: Path) -> None:
    network = SmallNetwork(tmp_path / "red")
    address = f"127.0.0.1:{lasting_port()}"
    with structlog.testing.capture_logs() as logs:
        async with network.link(network=address, clock=lambda: 0.0) as link:
            await eventually(lambda: waits(logs))
            await network.start(address)
            assert isinstance(await next_event(link), Attached)
    await network.__aexit__()
    assert address in waits(logs)[0]["detail"]
    assert len(waits(logs)) == 1, "it should speak of an outage at growing intervals"


async def test_a_long_outage_is_spoken_of_at_growing_intervals(network: SmallNetwork) -> None:
    network.directory.fault = Unreachable("Not today.")
    with structlog.testing.capture_logs() as logs:
        retry, asks = RetryPolicy(initial_s=0.005, max_s=0.01), network.directory.asks
        async with network.link(retry=retry, clock=lambda: float(len(asks))):  # each takes a second
            await eventually(lambda: len(asks) >= 20)
    assert [each["waited_s"] for each in waits(logs)][:5] == [1, 2, 4, 8, 16]


async def test_a_restarted_network_is_found_again(tmp_path: Path) -> None:
    first = SmallNetwork(tmp_path / "red")
    await first.start(f"127.0.0.1:{lasting_port()}")
    async with first.link() as link:
        await next_event(link)
        address = first.address
        await first.__aexit__()
        assert isinstance(await next_event(link), Detached)
        second = SmallNetwork(tmp_path / "red")
        await second.start(address)
        try:
            assert isinstance(await next_event(link), Attached)
            assert link.send(progress(1))
            await eventually(lambda: second.handler.said("received") == [progress(1)])
        finally:
            await second.__aexit__()


# ---- what is final


@pytest.mark.parametrize(
    ("name", "token", "kind"),
    [
        ("c1", "wrong", Unauthenticated),
        ("c1", None, Unauthenticated),
        ("taken", TOKEN, Conflict),
        ("viewer", TOKEN, Forbidden),
        ("a bad name", TOKEN, InvalidInput),
    ],
)
async def test_what_can_not_be_mended_is_raised(
    network: SmallNetwork, tmp_path: Path, name: str, token: str | None, kind: type[RunnelError]
) -> None:
    async with network.link(name, token=token) as link:
        with pytest.raises(kind):
            await next_event(link)
        with pytest.raises(kind):
            await link.fetch(network.handler.put(tmp_path, b"x"), tmp_path / "x", deadline_s=60)
    assert len(network.directory.asks) <= 1


async def test_a_revoked_token_ends_the_link(network: SmallNetwork) -> None:
    async with attached(network) as link:
        network.directory.fault = Unauthenticated("The token was revoked.")
        link.leave()
        assert await next_event(link) == Detached(reason="left")
        with pytest.raises(Unauthenticated, match="revoked"):
            await next_event(link)


async def test_a_name_that_is_taken_later_is_waited_for(network: SmallNetwork) -> None:
    async with attached(network) as link:
        network.directory.fault = Conflict("Another node has this name.")
        link.leave()
        assert await next_event(link) == Detached(reason="left")
        asked = len(network.directory.asks)
        await eventually(lambda: len(network.directory.asks) > asked + 1)
        network.directory.fault = None
        assert isinstance(await next_event(link), Attached)


async def test_plain_text_to_another_machine_is_refused_at_once() -> None:
    link = UplinkLink("network.example.org:7400", name="c1", node_id="n", kind=NodeKind.CLIENT, token=None, hello=hello)
    async with link:
        with pytest.raises(BadSettings, match="without TLS"):
            await next_event(link)


async def test_a_directory_can_not_talk_a_node_into_plain_text(network: SmallNetwork) -> None:
    network.directory.places = {"com-1": "combiner.example.org:7410"}
    async with network.link() as link:
        with pytest.raises(BadSettings, match=r"combiner\.example\.org:7410 without TLS"):
            await next_event(link)


@pytest.mark.parametrize("address", ["combiner.example.org:7410", "no address at all"])
async def test_a_place_that_can_not_be_called_is_avoided(network: SmallNetwork, address: str) -> None:
    network.directory.places = {"com-1": address, "red": ""}
    async with network.link() as link:
        assert isinstance(await next_event(link), Attached)
        assert link.via == "red"
        network.directory.places = {"com-1": address}
        link.leave()
        assert isinstance(await next_event(link), Detached)
        asks = len(network.directory.asks)
        await eventually(lambda: len(network.directory.asks) > asks + 2)
        network.directory.places = {"red": ""}
        assert isinstance(await next_event(link), Attached)


async def test_a_fault_in_the_hello_is_not_hidden(network: SmallNetwork) -> None:
    link = UplinkLink(
        network.address,
        name="c1",
        node_id="n",
        kind=NodeKind.CLIENT,
        token=TOKEN,
        hello=lambda: 1 / 0,  # type: ignore
    )
    async with link:
        with pytest.raises(ZeroDivisionError):
            await next_event(link)


# ---- limits and credentials


async def test_a_node_above_that_does_not_listen_is_left(network: SmallNetwork) -> None:
    async with BreakableProxy(network.address) as proxy:
        network.directory.places = {"red": proxy.address}
        async with network.link(mailbox_bytes=20 << 10) as link:
            await next_event(link)
            proxy.flowing.clear()
            sent = 0
            while link.send(progress(sent)) and sent < 1000:
                sent += 1
            assert sent < 1000
            assert not link.attached
            event = await next_event(link)
            assert (event.reason, type(event.error)) == ("overflow", CapacityExceeded)
            proxy.flowing.set()
            assert isinstance(await next_event(link), Attached)


async def test_a_credential_is_renewed_before_it_expires(network: SmallNetwork, tmp_path: Path) -> None:
    network.directory.ttl_s = 0.25
    async with attached(network) as link:
        await eventually(lambda: len(network.directory.asks) >= 3)
        assert [ask.attached_to for ask in network.directory.asks[:3]] == ["", "red", "red"]
        await link.fetch(network.handler.put(tmp_path, b"x"), tmp_path / "x", deadline_s=60)
        assert len(network.handler.said("attached")) == 1
        assert link._attachment is not None
        assert link._attachment.credential != link._attachment.place.credential
        network.directory.fault = Unreachable("For a moment.")
        asked = len(network.directory.asks)
        await eventually(lambda: len(network.directory.asks) > asked + 1)
        network.directory.fault = None
        assert link.attached


async def test_a_credential_that_is_refused_is_replaced(network: SmallNetwork, tmp_path: Path) -> None:
    ref = network.handler.put(tmp_path, b"the model")
    async with attached(network) as link:
        assert link._attachment is not None
        link._attachment.credential = network.credential(ttl_s=-60)
        await link.fetch(ref, tmp_path / "target", deadline_s=60)
        event = await next_event(link)
        assert (event.reason, type(event.error)) == ("credential refused", Unauthenticated)
    assert (tmp_path / "target").read_bytes() == b"the model"


async def test_a_quiet_node_is_heard_all_the_same(tmp_path: Path) -> None:
    async with SmallNetwork(tmp_path / "red") as network:
        network.handler.heartbeat_s = 0.05  # at which the node speaks
        async with attached(network) as link:
            [child] = network.uplink.children
            first = child.heard_at
            await eventually(lambda: child.heard_at > first + 0.2)
            assert link.attached
            assert network.handler.said("received") == []


# ---- leaving


async def test_the_block_can_be_left_at_any_time(network: SmallNetwork) -> None:
    async with network.link():
        pass
    network.directory.fault = Unreachable("Never.")
    async with network.link():
        await eventually(lambda: len(network.directory.asks) >= 1)


async def test_leaving_does_not_wait_for_a_dead_peer(network: SmallNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uplink_link, "_STOP_S", 60.0)  # the link itself would be waited for so long
    async with BreakableProxy(network.address) as proxy:
        network.directory.places = {"red": proxy.address}
        async with attached(network) as link:
            link.send(Heartbeat())
            proxy.flowing.clear()
            began = time.monotonic()
        assert time.monotonic() - began < 30


async def test_a_cancelled_owner_leaves_in_order(network: SmallNetwork) -> None:
    inside = asyncio.Event()

    async def owner() -> None:
        async with network.link() as link:
            async for _ in link:
                inside.set()

    task = asyncio.create_task(owner())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(lambda: network.handler.said("detached") == ["gone"])


async def test_waiting_transfers_end_with_the_link(network: SmallNetwork, tmp_path: Path) -> None:
    network.directory.fault = Unreachable("Never.")
    ref = network.handler.put(tmp_path, b"x")
    async with network.link() as link:
        fetch = asyncio.create_task(link.fetch(ref, tmp_path / "x", deadline_s=60))
        await eventually(lambda: network.directory.asks)
    with pytest.raises(RunnelError, match="leaves the network"):
        await fetch
