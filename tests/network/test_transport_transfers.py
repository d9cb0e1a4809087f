"""Fetching and pushing blobs over connections that break."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from runnel.client.model_cache import ModelCache
from runnel.common.blobs import Relay, RelayedBlob, SpoolFile
from runnel.common.errors import (
    CorruptData,
    DeadlineExceeded,
    IllegalState,
    InvalidInput,
    NotFound,
    RunnelError,
    StorageFull,
    TooLarge,
    Unreachable,
)
from runnel.common.protocol import BlobRef
from runnel.rpc.v1 import uplink_pb2 as pb
from runnel.rpc.v1 import uplink_pb2_grpc as pb_grpc
from runnel.transport import NodeIdentity, RpcServer, UplinkLink, open_channel, rpc_errors
from runnel.transport.chunk_wire import UPLINK_SERVICE, BlobCalls, split_chunk
from runnel.transport.chunks import CHUNK_BYTES, QUEUED_BYTES
from runnel.transport.identity import bearer_metadata
from runnel.transport.transfer_queue import SMALL_BYTES, TransferQueue
from runnel.transport.transfers import push_once
from tests.doubles.uplink import BreakableProxy, SmallNetwork, attached
from tests.eventually import eventually

pytestmark = pytest.mark.network

SIZES = [0, 1, 65_536, 65_537, 512 << 10, (512 << 10) + 1, 3_000_000]


@pytest.fixture(params=[False, True], ids=["over-grpc", "over-the-blob-port"])
async def network(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[SmallNetwork]:
    async with SmallNetwork(tmp_path / "red", blobs=request.param) as network:
        yield network


@pytest.fixture
async def grpc_network(tmp_path: Path) -> AsyncIterator[SmallNetwork]:
    """For those that look at what goes through the one port: :mod:`test_transport_blob_port` does at the other."""
    async with SmallNetwork(tmp_path / "red") as network:
        yield network


def ref_of(data: bytes) -> BlobRef:
    return BlobRef(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))


def file_with(folder: Path, data: bytes, name: str = "payload") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def wire_ref(ref: BlobRef) -> pb.BlobRef:
    return pb.BlobRef(sha256=bytes.fromhex(ref.sha256), size_bytes=ref.size_bytes)


# ---- fetch


@pytest.mark.parametrize("size", SIZES)
async def test_what_is_fetched_is_what_is_there(network: SmallNetwork, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    ref = network.handler.put(tmp_path, data)
    async with attached(network) as link:
        await link.fetch(ref, tmp_path / "target", deadline_s=60)
    assert (tmp_path / "target").read_bytes() == data
    assert {path.name for path in tmp_path.iterdir()} == {"red", "target"}


async def test_a_fetch_goes_on_where_the_connection_broke(grpc_network: SmallNetwork, tmp_path: Path) -> None:
    data = os.urandom(8 << 20)
    ref = grpc_network.handler.put(tmp_path, data)
    async with BreakableProxy(grpc_network.address) as proxy:
        grpc_network.directory.places = {"red": proxy.address}
        async with attached(grpc_network) as link:
            proxy.cut_down_after = 5 << 20
            await link.fetch(ref, tmp_path / "target", deadline_s=60)
    assert (tmp_path / "target").read_bytes() == data
    assert proxy.cuts == 1
    assert len(grpc_network.handler.said("attached")) == 2
    assert proxy.down_bytes < (8 << 20) + (4 << 20), "it began anew"


async def test_a_fetch_that_is_called_off_leaves_nothing(grpc_network: SmallNetwork, tmp_path: Path) -> None:
    data = os.urandom(8 << 20)
    ref = grpc_network.handler.put(tmp_path, data)
    async with BreakableProxy(grpc_network.address) as proxy:
        grpc_network.directory.places = {"red": proxy.address}
        async with attached(grpc_network) as link:
            proxy.stop_down_after = 6 << 20
            fetch = asyncio.create_task(link.fetch(ref, tmp_path / "target", deadline_s=60))
            await eventually(lambda: not proxy.flowing.is_set())
            await eventually(lambda: [path.stat().st_size > 2 << 20 for path in tmp_path.glob("*.part")] == [True])
            fetch.cancel()
            with pytest.raises(asyncio.CancelledError):
                await fetch
            assert {path.name for path in tmp_path.iterdir()} == {"red"}
            assert link._fetched_bytes > 2 << 20
            proxy.flowing.set()
            await link.fetch(ref, tmp_path / "target", deadline_s=60)
    assert (tmp_path / "target").read_bytes() == data


async def test_a_fetch_that_takes_too_long_says_so_and_leaves_nothing(
    grpc_network: SmallNetwork, tmp_path: Path
) -> None:
    data = os.urandom(2 << 20)
    ref = grpc_network.handler.put(tmp_path, data)
    async with BreakableProxy(grpc_network.address) as proxy:
        grpc_network.directory.places = {"red": proxy.address}
        async with attached(grpc_network) as link:
            proxy.stop_down_after = 1 << 20
            with pytest.raises(DeadlineExceeded, match=r"took longer than 0\.3 s"):
                await link.fetch(ref, tmp_path / "target", deadline_s=0.3)
            assert {path.name for path in tmp_path.iterdir()} == {"red"}
            proxy.flowing.set()
            await link.fetch(ref, tmp_path / "target", deadline_s=60)
    assert (tmp_path / "target").read_bytes() == data


async def test_late_rounds_leave_nothing_in_a_cache_of_models(
    network: SmallNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refs = [network.handler.put(tmp_path, os.urandom(2 << 20)) for _ in range(4)]
    whole = network.handler.blob_file

    @asynccontextmanager
    async def half_of_the_late(ref: BlobRef, identity: NodeIdentity) -> AsyncIterator[Path | RelayedBlob]:
        async with whole(ref, identity) as path:
            relay = Relay(ref)
            relay.grow(path, ref.size_bytes // 2)
            yield relay.blob if ref in refs[2:] else path
            relay.fail(Unreachable("It is over."))

    def files(kind: str) -> list[Path]:
        return [path for path in (tmp_path / "models").rglob(kind) if path.is_file()]

    monkeypatch.setattr(network.handler, "blob_file", half_of_the_late)
    async with attached(network) as link:
        cache = ModelCache(
            tmp_path / "models", lambda ref, target, spares: link.fetch(ref, target, deadline_s=60, spares=spares)
        )
        for ref in refs[:2]:
            await cache.get(ref)
        for ref in refs[2:]:  # the first is written over the oldest of those that are kept
            late = asyncio.create_task(cache.get(ref))
            await eventually(lambda: bool(files("*.part")))
            late.cancel()
            await asyncio.wait([late])
            assert [path.name for path in files("*")] == [refs[1].sha256]


async def test_a_blob_that_is_not_there_is_not_found(network: SmallNetwork, tmp_path: Path) -> None:
    async with attached(network) as link:
        with pytest.raises(NotFound):
            await link.fetch(ref_of(b"nowhere"), tmp_path / "target", deadline_s=60)
    assert {path.name for path in tmp_path.iterdir()} == {"red"}


async def test_a_blob_that_is_damaged_above_is_refused_here(network: SmallNetwork, tmp_path: Path) -> None:
    ref = network.handler.put(tmp_path, b"the model")
    network.handler.store.path(ref).write_bytes(b"THE MODEL")
    async with attached(network) as link:
        with pytest.raises(CorruptData, match="has the digest"):
            await link.fetch(ref, tmp_path / "target", deadline_s=60)
    assert {path.name for path in tmp_path.iterdir()} == {"red"}


async def test_a_blob_that_was_damaged_once_is_fetched_again(
    network: SmallNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = network.handler.put(tmp_path, b"the model")
    bad = file_with(tmp_path, b"THE MODEL", "bad")
    files = [bad]

    @asynccontextmanager
    async def once_bad(ref: BlobRef, identity: NodeIdentity) -> AsyncIterator[Path]:
        yield files.pop() if files else network.handler.store.path(ref)

    monkeypatch.setattr(network.handler, "blob_file", once_bad)
    async with attached(network) as link:
        await link.fetch(ref, tmp_path / "target", deadline_s=60)
    assert (tmp_path / "target").read_bytes() == b"the model"


async def test_a_fetch_waits_for_an_attachment(network: SmallNetwork, tmp_path: Path) -> None:
    ref = network.handler.put(tmp_path, b"the model")
    network.directory.fault = Unreachable("Not yet.")
    async with network.link() as link:
        fetch = asyncio.create_task(link.fetch(ref, tmp_path / "target", deadline_s=60))
        await eventually(lambda: len(network.directory.asks) >= 2)
        assert not fetch.done()
        network.directory.fault = None
        await fetch
    assert (tmp_path / "target").read_bytes() == b"the model"


async def test_a_full_disk_here_is_named_and_the_part_removed(
    network: SmallNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = network.handler.put(tmp_path, os.urandom(2 << 20))
    write = SpoolFile.write

    def full(self: SpoolFile, offset: int, data: bytes | memoryview) -> None:
        if offset:
            raise StorageFull("No room in here.")
        write(self, offset, data)

    monkeypatch.setattr(SpoolFile, "write", full)
    async with attached(network) as link:
        with pytest.raises(StorageFull):
            await link.fetch(ref, tmp_path / "target", deadline_s=60)
        assert link.attached
    assert {path.name for path in tmp_path.iterdir()} == {"red"}


@pytest.mark.parametrize("field", ["offset", "sha256"])
async def test_a_fetch_that_makes_no_sense_is_refused(network: SmallNetwork, field: str) -> None:
    blob = pb.BlobRef(sha256=bytes(32), size_bytes=5) if field == "offset" else pb.BlobRef(sha256=b"x")
    async with open_channel(network.address, tls=None) as channel:
        call: Any = pb_grpc.UplinkStub(channel).Fetch(
            pb.FetchRequest(blob=blob, offset=6), metadata=bearer_metadata(network.credential()), timeout=60
        )
        with pytest.raises(InvalidInput, match=field), rpc_errors("p"):
            await call.read()


# ---- push


@pytest.mark.parametrize("size", SIZES)
async def test_what_is_pushed_arrives(network: SmallNetwork, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    source = file_with(tmp_path, data)
    async with attached(network) as link:
        await link.push("ord-1", source, ref_of(data), deadline_s=60)
    assert network.handler.payloads == {("ord-1", "c1"): data}


async def test_a_repeated_push_is_handed_over_once(network: SmallNetwork, tmp_path: Path) -> None:
    source = file_with(tmp_path, b"update")
    async with attached(network) as link:
        for _ in range(3):
            await link.push("ord-1", source, ref_of(b"update"), deadline_s=60)
        await link.push("ord-2", source, ref_of(b"update"), deadline_s=60)
    assert network.handler.said("pushed") == ["ord-1", "ord-2"]


async def test_the_handler_may_say_that_all_is_there(
    network: SmallNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def have_it(identity: NodeIdentity, order_id: str, ref: BlobRef) -> None:
        return None

    monkeypatch.setattr(network.handler, "open_push", have_it)
    async with attached(network) as link:
        await link.push("ord-1", file_with(tmp_path, b"x" * 2_000_000), ref_of(b"x" * 2_000_000), deadline_s=60)
    assert network.handler.said("pushed") == []


async def test_a_large_payload_that_is_there_already_is_not_sent_again(
    grpc_network: SmallNetwork, tmp_path: Path
) -> None:
    data = os.urandom(8 << 20)
    source = file_with(tmp_path, data)
    async with BreakableProxy(grpc_network.address) as proxy:
        grpc_network.directory.places = {"red": proxy.address}
        async with attached(grpc_network) as link:
            await link.push("ord-1", source, ref_of(data), deadline_s=60)
            before = proxy.up_bytes
            await link.push("ord-1", source, ref_of(data), deadline_s=60)
            assert proxy.up_bytes - before < 10_000


async def test_a_push_goes_on_where_the_connection_broke(grpc_network: SmallNetwork, tmp_path: Path) -> None:
    data = os.urandom(8 << 20)
    source = file_with(tmp_path, data)
    async with BreakableProxy(grpc_network.address) as proxy:
        grpc_network.directory.places = {"red": proxy.address}
        async with grpc_network.link() as link:
            events = aiter(link)
            await anext(events)
            proxy.cut_up_after = 5 << 20
            with pytest.raises(Unreachable):
                await link.push("ord-1", source, ref_of(data), deadline_s=60)
            assert grpc_network.handler.said("pushed") == []
            await eventually(lambda: link.attached)
            await link.push("ord-1", source, ref_of(data), deadline_s=60)
    assert grpc_network.handler.payloads == {("ord-1", "c1"): data}
    assert proxy.up_bytes < (8 << 20) + (4 << 20), "it began anew"


async def test_a_killed_server_goes_on_with_what_it_has(tmp_path: Path) -> None:
    """The spool is all that is left of the first server; the second takes it up."""
    data = os.urandom(4 << 20)
    source = file_with(tmp_path, data)
    async with SmallNetwork(tmp_path / "red") as first:
        file = first.handler.spool.open("ord-1 c1", ref_of(data))
        file.write(0, data[: 3 << 20])
        file.close()
    async with SmallNetwork(tmp_path / "red") as second, BreakableProxy(second.address) as proxy:
        second.directory.places = {"red": proxy.address}
        async with attached(second) as link:
            await link.push("ord-1", source, ref_of(data), deadline_s=60)
        assert second.handler.payloads == {("ord-1", "c1"): data}
        assert proxy.up_bytes < (3 << 20), "it sent again what was held"


async def test_a_crash_before_the_handing_over_hands_over_once_more(tmp_path: Path) -> None:
    source = file_with(tmp_path, b"update")
    async with SmallNetwork(tmp_path / "red") as network:
        file = network.handler.spool.open("ord-1 c1", ref_of(b"update"))
        file.write(0, b"update")
        file.finish()
        async with attached(network) as link:
            await link.push("ord-1", source, ref_of(b"update"), deadline_s=60)
        assert network.handler.payloads == {("ord-1", "c1"): b"update"}


async def test_a_payload_with_another_digest_is_refused_and_can_come_again(
    network: SmallNetwork, tmp_path: Path
) -> None:
    ref = ref_of(b"update")
    async with attached(network) as link:
        with pytest.raises(CorruptData, match=ref.sha256):
            await link.push("ord-1", file_with(tmp_path, b"UPDATE"), ref, deadline_s=60)
        assert network.handler.said("pushed") == []
        assert list(network.handler.spool.root.iterdir()) == []
        await link.push("ord-1", file_with(tmp_path, b"update"), ref, deadline_s=60)
    assert network.handler.payloads == {("ord-1", "c1"): b"update"}


async def test_a_source_that_is_too_short_is_noticed_here(network: SmallNetwork, tmp_path: Path) -> None:
    async with attached(network) as link:
        with pytest.raises(CorruptData, match="ends at byte 3"):
            await link.push("ord-1", file_with(tmp_path, b"upd"), ref_of(b"update"), deadline_s=60)
        assert link.attached


@pytest.mark.parametrize("error", [IllegalState("Order ord-1 is closed."), TooLarge("At most 5 bytes.")])
async def test_what_the_handler_says_of_a_push_is_raised(
    network: SmallNetwork, tmp_path: Path, error: RunnelError
) -> None:
    network.handler.refuse_push = error
    data = os.urandom(3_000_000)
    async with attached(network) as link:
        with pytest.raises(type(error), match=error.message):
            await link.push("ord-1", file_with(tmp_path, data), ref_of(data), deadline_s=60)
        assert link.attached


async def test_equal_payloads_of_two_nodes_do_not_disturb_each_other(network: SmallNetwork, tmp_path: Path) -> None:
    data = os.urandom(4 << 20)
    source = file_with(tmp_path, data)
    async with attached(network, "c1") as first, attached(network, "c2") as second:
        await asyncio.gather(*(link.push("ord-1", source, ref_of(data), deadline_s=60) for link in (first, second)))
    assert network.handler.payloads == {("ord-1", "c1"): data, ("ord-1", "c2"): data}


async def test_a_push_without_attachment_fails_at_once(network: SmallNetwork, tmp_path: Path) -> None:
    network.directory.fault = Unreachable("Not today.")
    async with network.link() as link:
        with pytest.raises(Unreachable, match="Not attached"):
            await link.push("ord-1", file_with(tmp_path, b"x"), ref_of(b"x"), deadline_s=60)


async def test_a_push_ends_with_its_attachment(network: SmallNetwork, tmp_path: Path) -> None:
    network.handler.hold_pushed.clear()
    async with attached(network) as link:
        push = asyncio.create_task(link.push("ord-1", file_with(tmp_path, b"x"), ref_of(b"x"), deadline_s=60))
        await eventually(lambda: list(network.handler.spool.root.glob("*.whole")))
        link.leave()
        with pytest.raises(Unreachable, match="was lost"):
            await push
        network.handler.hold_pushed.set()
        # The handing over was not torn: it is done although nobody waits for it any more.
        await eventually(lambda: network.handler.said("pushed") == ["ord-1"])


async def test_a_push_that_takes_too_long_says_so(network: SmallNetwork, tmp_path: Path) -> None:
    network.handler.hold_pushed.clear()
    async with attached(network) as link:
        with pytest.raises(DeadlineExceeded, match=r"longer than 0\.2 s"):
            await link.push("ord-1", file_with(tmp_path, b"x"), ref_of(b"x"), deadline_s=0.2)
        network.handler.hold_pushed.set()
        await link.push("ord-1", file_with(tmp_path, b"x"), ref_of(b"x"), deadline_s=60)
    assert network.handler.said("pushed") == ["ord-1"]


class RawPush:
    """A push chunk by chunk."""

    def __init__(self, channel: Any, network: SmallNetwork, name: str = "c1") -> None:
        self.call: Any = pb_grpc.UplinkStub(channel).Push(
            metadata=bearer_metadata(network.credential(name)), timeout=60
        )

    async def say(self, **fields: Any) -> None:
        await self.call.write(pb.Chunk(**fields))

    async def answer(self, *, end: bool = True) -> tuple[int, bool]:
        with rpc_errors("the server"):
            if end:
                await self.call.done_writing()
            receipt = await self.call
        return receipt.held_bytes, receipt.complete


async def test_a_header_alone_asks_how_much_is_held(network: SmallNetwork) -> None:
    header = {"blob": wire_ref(ref_of(b"update")), "order_id": "ord-1"}
    async with open_channel(network.address, tls=None) as channel:
        probe = RawPush(channel, network)
        await probe.say(**header)
        assert await probe.answer() == (0, False)
        part = RawPush(channel, network)
        await part.say(**header, data=b"upd")
        assert await part.answer() == (3, False)
        probe = RawPush(channel, network)
        await probe.say(**header)
        assert await probe.answer() == (3, False)
        elsewhere = RawPush(channel, network)
        await elsewhere.say(**header, data=b"update", offset=0)
        assert await elsewhere.answer(end=False) == (3, False)
        rest = RawPush(channel, network)
        await rest.say(**header, data=b"at", offset=3)
        await rest.say(data=b"e")
        assert await rest.answer() == (6, True)
    assert network.handler.payloads == {("ord-1", "c1"): b"update"}


@pytest.mark.parametrize(
    ("match", "fields"),
    [
        ("must name the blob", {"order_id": "o"}),
        ("order_id", {"blob": pb.BlobRef(sha256=bytes(32))}),
        ("sha256", {"blob": pb.BlobRef(sha256=b"x"), "order_id": "o"}),
        (
            "at most 1048576 bytes",
            {"blob": wire_ref(ref_of(bytes(1 << 22))), "order_id": "o", "data": bytes(1 << 21) + b"x"},
        ),
    ],
)
async def test_a_push_that_makes_no_sense_is_refused(network: SmallNetwork, match: str, fields: dict[str, Any]) -> None:
    async with open_channel(network.address, tls=None) as channel:
        push = RawPush(channel, network)
        await push.say(**fields)
        with pytest.raises(InvalidInput, match=match):
            await push.answer(end=False)


async def test_more_than_was_announced_is_refused(network: SmallNetwork) -> None:
    async with open_channel(network.address, tls=None) as channel:
        push = RawPush(channel, network)
        await push.say(blob=wire_ref(ref_of(b"update")), order_id="ord-1", data=b"update and more")
        with pytest.raises(CorruptData, match="Expected bytes from 0 up to 6"):
            await push.answer(end=False)


async def test_a_push_begins_anew_when_what_is_there_is_wrong_from_its_start_to_its_end(
    network: SmallNetwork, tmp_path: Path
) -> None:
    data = os.urandom(2 * CHUNK_BYTES)
    ref = ref_of(data)
    wrong = network.handler.spool.open("ord-1 c1", ref)
    wrong.write(0, bytes(len(data)))
    wrong.close()
    async with attached(network) as link:
        await link.push("ord-1", file_with(tmp_path, data), ref, deadline_s=60)
    assert network.handler.payloads == {("ord-1", "c1"): data}


async def test_a_later_push_ends_an_earlier_one_of_the_same_payload(network: SmallNetwork) -> None:
    header = {"blob": wire_ref(ref_of(b"update")), "order_id": "ord-1"}
    async with open_channel(network.address, tls=None) as channel:
        stuck = RawPush(channel, network)
        await stuck.say(**header, data=b"upd")
        await eventually(lambda: [path.stat().st_size for path in network.handler.spool.root.iterdir()] == [3])
        other = RawPush(channel, network, "c2")
        await other.say(**header, data=b"update")
        assert await other.answer() == (6, True)
        later = RawPush(channel, network)
        await later.say(**header, data=b"ate", offset=3)
        assert await later.answer() == (6, True)
        with pytest.raises(RunnelError, match="by another call"):
            await stuck.answer(end=False)
    assert network.handler.payloads[("ord-1", "c1")] == b"update"


async def test_many_transfers_at_once_keep_apart(network: SmallNetwork, tmp_path: Path) -> None:
    payloads = {f"ord-{number}": os.urandom(200_000 + number) for number in range(30)}

    async def there_and_back(link: UplinkLink, order_id: str, data: bytes) -> None:
        await link.push(order_id, file_with(tmp_path, data, order_id), ref_of(data), deadline_s=30)
        ref = network.handler.put(tmp_path, data)
        await link.fetch(ref, tmp_path / f"{order_id}.back", deadline_s=30)
        assert (tmp_path / f"{order_id}.back").read_bytes() == data

    async with attached(network) as link, asyncio.TaskGroup() as group:
        for order_id, data in payloads.items():
            group.create_task(there_and_back(link, order_id, data))
    assert {order_id: data for (order_id, _), data in network.handler.payloads.items()} == payloads


async def test_large_transfers_wait_for_one_another_and_small_ones_for_none(tmp_path: Path) -> None:
    queue = TransferQueue(look_s=60)
    data, little = os.urandom(SMALL_BYTES + 1), b"little"
    source, small = file_with(tmp_path, data), file_with(tmp_path, little, "small")
    async with SmallNetwork(tmp_path / "red", queue=queue) as network, attached(network) as link:
        ref, little_ref = network.handler.put(tmp_path, data), network.handler.put(tmp_path, little)
        async with asyncio.TaskGroup() as group, queue.place(SMALL_BYTES + 1):
            group.create_task(link.fetch(ref, tmp_path / "fetched", deadline_s=30))
            await eventually(lambda: queue.waiting == 1)
            group.create_task(link.push("ord-1", source, ref_of(data), deadline_s=30))
            await eventually(lambda: queue.waiting == 2)
            await link.push("ord-2", small, ref_of(little), deadline_s=30)
            await link.fetch(little_ref, tmp_path / "small back", deadline_s=30)
            assert queue.waiting == 2
    assert (tmp_path / "fetched").read_bytes() == data
    assert network.handler.payloads == {("ord-1", "c1"): data, ("ord-2", "c1"): little}


class ChunkSizes:
    """Takes pushes and remembers how many bytes came in each chunk."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    async def push(self, messages: AsyncIterator[bytes], context: Any) -> pb.Receipt:
        async for message in messages:
            self.seen.append(len(split_chunk(message)[1]))
            if len(self.seen) == 1:
                await context.send_initial_metadata(())
        return pb.Receipt(held_bytes=sum(self.seen), complete=True)

    def register(self, server: grpc.aio.Server) -> None:
        push: Any = grpc.stream_unary_rpc_method_handler(self.push, response_serializer=pb.Receipt.SerializeToString)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(UPLINK_SERVICE, {"Push": push}),))


@pytest.mark.parametrize(
    ("size", "sizes"),
    [
        (CHUNK_BYTES, [CHUNK_BYTES]),
        (2 * CHUNK_BYTES, [QUEUED_BYTES, CHUNK_BYTES, CHUNK_BYTES - QUEUED_BYTES]),
    ],
)
async def test_the_first_chunk_of_a_large_push_is_small_as_it_is_held_while_others_have_their_turn(
    size: int, sizes: list[int]
) -> None:
    taker, data = ChunkSizes(), os.urandom(size)
    async with (
        RpcServer("127.0.0.1:0", services=[(UPLINK_SERVICE, taker.register)]) as server,
        open_channel(server.address, tls=None) as channel,
    ):
        answer = await push_once(
            BlobCalls(channel), "ord-1", memoryview(data), ref_of(data), offset=0, credential="any", peer="the taker"
        )
    assert answer == (size, True)
    assert taker.seen == sizes
