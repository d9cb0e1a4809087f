"""What pushes hold in memory: a server while they wait for what comes next, and either end when they are over."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import hashlib
import os
import tracemalloc
import weakref
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from runnel.common.errors import IllegalState, RunnelError
from runnel.common.protocol import BlobRef
from runnel.rpc.v1 import uplink_pb2 as pb
from runnel.transport import open_channel
from runnel.transport.chunk_wire import BlobCalls
from runnel.transport.chunks import CHUNK_BYTES, QUEUED_BYTES
from runnel.transport.identity import bearer_metadata
from runnel.transport.transfer_queue import TransferQueue
from runnel.transport.transfers import push_once
from runnel.transport.wire_values import blob_to_wire
from tests.doubles.uplink import BreakableProxy, SmallNetwork, attached, before
from tests.eventually import eventually
from tests.needs import needs

pytestmark = pytest.mark.network

PUSHES = 24


async def test_pushes_over_slow_lines_hold_no_chunk_that_was_written(tmp_path: Path) -> None:
    ref = BlobRef(sha256="5e" * 32, size_bytes=4 * CHUNK_BYTES)
    chunk = os.urandom(CHUNK_BYTES)
    async with (
        SmallNetwork(tmp_path / "red", queue=TransferQueue(at_once=PUSHES)) as network,
        open_channel(network.address, tls=None) as channel,
    ):

        def written() -> int:
            return sum(file.stat().st_size for file in network.folder.rglob("*") if file.is_file())

        def held() -> int:
            gc.collect()
            return tracemalloc.get_traced_memory()[0]

        async def push_half(name: str) -> Any:
            call = BlobCalls(channel).push(metadata=bearer_metadata(network.credential(name)), timeout=110)
            await call.write(pb.Chunk(blob=blob_to_wire(ref), order_id="ord-1", data=chunk).SerializeToString())
            await call.write(pb.Chunk(data=chunk).SerializeToString())
            return call

        tracemalloc.start()
        try:
            calls = await asyncio.gather(*(push_half(f"c{number}") for number in range(PUSHES)))
            await eventually(lambda: written() == PUSHES * 2 * CHUNK_BYTES)
            # Who has written still has its chunk for a moment.
            await eventually(lambda: held() < PUSHES * CHUNK_BYTES / 4)
        finally:
            tracemalloc.stop()
        for call in calls:
            call.cancel()


class _Mallinfo(ctypes.Structure):
    """``struct mallinfo2`` of glibc."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def allocated_bytes() -> int:
    """Return the bytes that are allocated in this process now, by gRPC's own code as well."""
    gc.collect()
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = _Mallinfo
    found = mallinfo()
    return int(found.uordblks + found.hblkhd)


async def test_a_connection_keeps_no_chunk_of_what_came_over_it(tmp_path: Path) -> None:
    needs(hasattr(ctypes.CDLL(None), "mallinfo2"), "glibc 2.33")
    async with SmallNetwork(tmp_path / "red") as network, AsyncExitStack() as stack:
        names = [f"c{number}" for number in range(PUSHES)]
        channels = [await stack.enter_async_context(open_channel(network.address, tls=None)) for _ in names]

        async def push(name: str, channel: grpc.aio.Channel, order_id: str, data: bytes) -> None:
            ref = BlobRef(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
            credential = network.credential(name)
            _, complete = await push_once(
                BlobCalls(channel), order_id, memoryview(data), ref, offset=0, credential=credential, peer="the server"
            )
            assert complete

        async def push_all(order_id: str, data: bytes) -> None:
            await asyncio.gather(
                *(push(name, channel, order_id, data) for name, channel in zip(names, channels, strict=True))
            )
            network.handler.payloads.clear()

        await push_all("ord-1", b"little")
        before = allocated_bytes()
        await push_all("ord-2", os.urandom(4 * CHUNK_BYTES))
        await eventually(lambda: allocated_bytes() - before < PUSHES * CHUNK_BYTES / 4)


async def test_a_push_sends_no_more_than_its_first_chunk_before_it_is_its_turn(tmp_path: Path) -> None:
    data = os.urandom(4 * CHUNK_BYTES)
    ref = BlobRef(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
    queue = TransferQueue(at_once=1, busy_bytes_per_s=0.0)
    async with (
        SmallNetwork(tmp_path / "red", queue=queue) as network,
        open_channel(network.address, tls=None) as channel,
    ):
        taken: list[int] = []
        calls = BlobCalls(channel)

        class Counting:
            """The call, which counts what it is given."""

            def __init__(self, call: Any) -> None:
                self._call = call

            def __getattr__(self, name: str) -> Any:
                return getattr(self._call, name)

            def __await__(self) -> Any:
                return self._call.__await__()

            async def write(self, message: bytes) -> None:
                taken.append(len(message))
                await self._call.write(message)

        push = calls.push
        calls.push = lambda **more: Counting(push(**more))
        async with asyncio.TaskGroup() as group:
            async with queue.place(len(data)):
                credential = network.credential("c1")
                waiting = group.create_task(
                    push_once(calls, "ord-1", memoryview(data), ref, offset=0, credential=credential, peer="the server")
                )
                await eventually(lambda: queue.waiting == 1)
                assert len(taken) == 1
                assert taken[0] < 2 * QUEUED_BYTES
            assert await waiting == (len(data), True)
        assert sum(taken) > len(data)


def cut(proxies: list[BreakableProxy]) -> None:
    for proxy in proxies:
        proxy.cut()


def cut_attachment_last(proxies: list[BreakableProxy]) -> None:
    cut(proxies[::-1])


@pytest.mark.parametrize("end", [cut, cut_attachment_last, None])
@pytest.mark.parametrize("blobs", [True, False])
async def test_what_a_push_that_failed_has_read_is_free_at_once(
    tmp_path: Path, end: Callable[[list[BreakableProxy]], None] | None, *, blobs: bool
) -> None:
    """A combiner has a sum to push again by then; the one before must not stay until Python looks for cycles."""
    values = np.ones(4 << 20)
    alive, source = weakref.ref(values), values.data.cast("B")
    del values
    async with SmallNetwork(tmp_path / "red", blobs=blobs) as network, before(network) as proxies:
        if end is None:
            network.handler.refuse_push = IllegalState("Not now.")
        proxies[-1].stop_up_after = 5 << 20
        async with attached(network) as link:
            gc.disable()
            try:
                push = asyncio.create_task(link.push("ord-1", source, None, deadline_s=60))
                del source
                if end is not None:
                    await eventually(lambda: not proxies[-1].flowing.is_set())
                    end(proxies)
                await asyncio.wait((push,))
                assert isinstance(push.exception(), RunnelError)
                del push
                await eventually(lambda: alive() is None, timeout_s=10)
            finally:
                gc.enable()
