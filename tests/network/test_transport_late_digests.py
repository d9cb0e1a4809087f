"""Pushes whose digest is found meanwhile, and told at the end."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from runnel.common.blobs import Spool
from runnel.common.blobs.early_sync import EarlySync
from runnel.common.errors import CorruptData, IllegalState, InvalidInput, RunnelError, StorageFull, Unreachable
from runnel.common.protocol import BlobRef, Welcome
from runnel.rpc.v1 import uplink_pb2 as pb
from runnel.rpc.v1 import uplink_pb2_grpc as pb_grpc
from runnel.transport import Place, open_channel, rpc_errors
from runnel.transport.attachment import Attachment
from runnel.transport.chunks import CHUNK_BYTES
from runnel.transport.identity import bearer_metadata
from runnel.transport.transfers import push_named
from tests.doubles.uplink import BreakableProxy, SmallNetwork, attached
from tests.eventually import eventually

pytestmark = pytest.mark.network

UPDATE = b"update"


@pytest.fixture
async def network(tmp_path: Path) -> AsyncIterator[SmallNetwork]:
    async with SmallNetwork(tmp_path / "red") as network:
        yield network


def ref_of(data: bytes) -> BlobRef:
    return BlobRef(blake3=blake3(data).hexdigest(), size_bytes=len(data))


def unnamed(data: bytes) -> BlobRef:
    return BlobRef(size_bytes=len(data))


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3_000_000])
@pytest.mark.parametrize("in_memory", [False, True])
async def test_what_is_pushed_arrives_and_has_its_name(
    network: SmallNetwork, tmp_path: Path, size: int, in_memory: bool
) -> None:
    data = os.urandom(size)
    file = tmp_path / "payload"
    file.write_bytes(data)
    async with attached(network) as link:
        ref = await link.push("ord-1", memoryview(data) if in_memory else file, None, deadline_s=60)
    assert ref == ref_of(data)
    assert network.handler.payloads == {("ord-1", "c1"): data}
    assert network.handler.opened == [unnamed(data) if size > CHUNK_BYTES else ref]


async def test_a_repeated_push_is_handed_over_once(network: SmallNetwork) -> None:
    data = os.urandom(3_000_000)
    async with attached(network) as link:
        ref = await link.push("ord-1", memoryview(data), None, deadline_s=60)
        await link.push("ord-1", memoryview(data), ref, deadline_s=60)
    assert network.handler.said("pushed") == ["ord-1"]


async def test_who_does_not_take_it_at_the_end_is_told_before(network: SmallNetwork) -> None:
    data = os.urandom(3_000_000)
    place = Place(address="", tls=False, attach_to="red", credential=network.credential("c1"), ttl_s=600.0)
    async with open_channel(network.address, tls=None) as channel:
        older = Attachment(channel, place, peer="red", mailbox_bytes=1, address=network.address, tls=None)
        older.welcome = Welcome(name="red", heartbeat_s=10.0)
        ref = await push_named(older, "ord-1", memoryview(data), None, lambda: iter(()), first=False)
    assert ref == ref_of(data)
    assert set(network.handler.opened) == {ref}
    assert network.handler.payloads == {("ord-1", "c1"): data}


async def test_after_a_lost_attachment_it_is_told_first_until_one_arrived(network: SmallNetwork) -> None:
    data = os.urandom(8 << 20)
    async with BreakableProxy(network.address) as proxy:
        network.directory.places = {"red": proxy.address}
        async with network.link() as link:
            await anext(aiter(link))
            for _ in range(2):
                await eventually(lambda: link.attached)
                proxy.cut_up_after = 3 << 20
                with pytest.raises(Unreachable):
                    await link.push("ord-1", memoryview(data), None, deadline_s=60)
            await eventually(lambda: link.attached)
            before = proxy.up_bytes
            assert await link.push("ord-1", memoryview(data), None, deadline_s=60) == ref_of(data)
            assert proxy.up_bytes - before < 8 << 20, "it began anew"
            await link.push("ord-2", memoryview(data), None, deadline_s=60)
    opened = network.handler.opened
    assert (opened[0], opened[-1]) == (unnamed(data), unnamed(data))
    assert set(opened[1:-1]) == {ref_of(data)}
    assert network.handler.payloads == {("ord-1", "c1"): data, ("ord-2", "c1"): data}


async def test_what_was_begun_and_is_another_one_now_arrives_all_the_same(network: SmallNetwork) -> None:
    begun, data = os.urandom(4 << 20), os.urandom(4 << 20)
    async with BreakableProxy(network.address) as proxy:
        network.directory.places = {"red": proxy.address}
        async with network.link() as link:
            await anext(aiter(link))
            proxy.cut_up_after = 3 << 20
            with pytest.raises(Unreachable):
                await link.push("ord-1", memoryview(begun), None, deadline_s=60)
            await eventually(lambda: link.attached)
            assert await link.push("ord-1", memoryview(data), None, deadline_s=60) == ref_of(data)
    assert network.handler.payloads == {("ord-1", "c1"): data}


class RawPush:
    """A push chunk by chunk."""

    def __init__(self, channel: Any, network: SmallNetwork) -> None:
        self.call: Any = pb_grpc.UplinkStub(channel).Push(
            metadata=bearer_metadata(network.credential("c1")), timeout=60
        )

    async def answer(self, *chunks: pb.Chunk) -> tuple[int, bool]:
        with rpc_errors("the server"):
            for chunk in chunks:
                await self.call.write(chunk)
            await self.call.done_writing()
            receipt = await self.call
        return receipt.held_bytes, receipt.complete


def begin(data: bytes = b"", order_id: str = "ord-1", size_bytes: int = 6) -> pb.Chunk:
    return pb.Chunk(blob=pb.BlobRef(size_bytes=size_bytes), order_id=order_id, data=data)


def name(of: bytes = UPDATE, **more: Any) -> pb.Chunk:
    return pb.Chunk(blob=pb.BlobRef(blake3=blake3(of).digest(), size_bytes=len(of)), **more)


def name_before(of: bytes = UPDATE, **more: Any) -> pb.Chunk:
    """Name it as nodes of an earlier version do."""
    return pb.Chunk(blob=pb.BlobRef(sha256=hashlib.sha256(of).digest(), size_bytes=len(of)), **more)


@pytest.mark.parametrize("named", [name, name_before])
@pytest.mark.parametrize("came", [b"upd", UPDATE])
async def test_what_has_no_name_yet_is_gone_on_with_under_it(
    network: SmallNetwork, came: bytes, named: Callable[..., pb.Chunk]
) -> None:
    async with open_channel(network.address, tls=None) as channel:
        assert await RawPush(channel, network).answer(begin(came)) == (len(came), False)
        assert network.handler.said("pushed") == []
        if came != UPDATE:
            asked = await RawPush(channel, network).answer(named(order_id="ord-1"))
            assert asked == (len(came), False)
        rest = named(order_id="ord-1", offset=len(came), data=UPDATE[len(came) :])
        assert await RawPush(channel, network).answer(rest) == (6, True)
    assert network.handler.payloads == {("ord-1", "c1"): UPDATE}


async def test_what_a_lost_node_pushed_is_set_aside_when_nobody_writes_it_any_more(
    network: SmallNetwork, tmp_path: Path
) -> None:
    size = 2 << 20
    spool = network.handler.spool = Spool(tmp_path / "spool", reuse=True)
    spent = spool.root / "spent"
    spent.write_bytes(os.urandom(size))
    await spool.spares.spend(spent)

    def sizes() -> list[int]:
        return [file.stat().st_size for file in spool.root.glob("*.part")]

    seen = []
    network.handler.last = lambda _: seen.extend(sizes())
    async with open_channel(network.address, tls=None) as channel:
        push = RawPush(channel, network)
        async with attached(network):
            await push.call.write(begin(UPDATE, size_bytes=size))
            await eventually(lambda: sizes() == [size])  # it is written over what was spent
        with pytest.raises(Unreachable, match="not attached any more"):
            await push.answer()
    await eventually(lambda: seen == [len(UPDATE)])


async def test_a_node_is_let_go_of_while_what_it_pushed_is_still_handed_over(network: SmallNetwork) -> None:
    network.handler.hold_pushed.clear()
    async with open_channel(network.address, tls=None) as channel:
        async with attached(network):
            push = asyncio.create_task(RawPush(channel, network).answer(begin(UPDATE), name()))
            await eventually(lambda: list(network.handler.spool.root.glob("*.whole")))
        await eventually(lambda: network.handler.said("detached"))
        network.handler.hold_pushed.set()
        assert await push == (6, True)
    assert network.handler.payloads == {("ord-1", "c1"): UPDATE}


async def test_a_disk_that_is_found_full_while_it_is_written_is_told_as_full(
    network: SmallNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failed(sync: EarlySync, *_: object) -> None:
        sync._path.unlink(missing_ok=True)
        sync._error = OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(EarlySync, "appended", failed)
    async with open_channel(network.address, tls=None) as channel:
        push = RawPush(channel, network)
        with pytest.raises(StorageFull):
            await push.answer(begin(UPDATE[:3]), pb.Chunk(data=UPDATE[3:]), name())


async def test_who_pushes_for_an_order_that_ends_meanwhile_is_told_that(network: SmallNetwork) -> None:
    spool = network.handler.spool
    async with open_channel(network.address, tls=None) as channel:
        push = RawPush(channel, network)
        await push.call.write(begin(b"upd"))
        await eventually(lambda: spool.begun("ord-1 c1") is not None)
        spool.forget("ord-1 c1")
        with pytest.raises(IllegalState, match="ord-1 ended while c1 pushed"):
            await push.answer(pb.Chunk(data=b"ate"), name())


@pytest.mark.parametrize(
    ("chunks", "error", "match"),
    [
        ((begin(b"UPDATE"), name()), CorruptData, "has the digest"),
        ((begin(b"UPDATE"), name_before()), CorruptData, "has the digest"),
        ((begin(b"upd"), name(b"updat")), CorruptData, "of 5 bytes"),
        ((begin(UPDATE), name(), name(b"UPDATE")), CorruptData, "then named"),
        ((begin(UPDATE), pb.Chunk(blob=pb.BlobRef(size_bytes=6))), InvalidInput, "sha256"),
        ((begin(UPDATE, "run-0123456789"), name()), InvalidInput, "sha256"),
        ((begin(),), InvalidInput, "sha256"),
        ((begin(UPDATE + b"more"), name()), CorruptData, "Expected bytes from 0 up to 6"),
    ],
    ids=[
        "another digest",
        "another SHA-256",
        "another length",
        "two names",
        "none at the end",
        "a file of a run",
        "a question",
        "more",
    ],
)
async def test_what_does_not_fit_is_refused(
    network: SmallNetwork, chunks: tuple[pb.Chunk, ...], error: type[RunnelError], match: str
) -> None:
    async with open_channel(network.address, tls=None) as channel:
        with pytest.raises(error, match=match):
            await RawPush(channel, network).answer(*chunks)
    assert network.handler.said("pushed") == []
