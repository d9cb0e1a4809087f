"""Blobs that a node serves to those below while it still fetches them from above."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from runnel.combiner.blob_cache import BlobCache
from runnel.common.blobs import (
    KEPT_BACK_BYTES,
    BlobStore,
    Relay,
    RelayedBlob,
    Spares,
    SpoolFile,
    begins_anew,
)
from runnel.common.errors import CorruptData, NotFound, Unreachable
from runnel.common.protocol import BlobRef
from runnel.transport import NodeIdentity, UplinkLink, open_channel
from runnel.transport.chunk_wire import BlobCalls
from runnel.transport.transfer_queue import TransferQueue
from runnel.transport.transfers import fetch_once
from tests.doubles.uplink import BreakableProxy, SmallNetwork, attached
from tests.eventually import eventually

pytestmark = pytest.mark.network

MB = 1 << 20
DATA = os.urandom(8 * MB)
REF = BlobRef(sha256=hashlib.sha256(DATA).hexdigest(), size_bytes=len(DATA))


class Top:
    """A node that has the model only as far as the test lets it."""

    def __init__(self, folder: Path) -> None:
        self.network = SmallNetwork(folder / "top")
        self.network.handler.blob_file = self.blob_file  # type: ignore[method-assign,assignment]
        self.asked = 0
        self.damaged = 0  # so many fetches bring something else
        self.relay = Relay(REF)
        self.whole = False
        self._good = folder / "good"
        self._good.write_bytes(DATA)
        self._bad = folder / "bad"
        self._bad.write_bytes(bytes(8 * MB))

    def has(self, size: int, *, damaged: bool = False) -> None:
        """Have so many bytes."""
        self.relay.grow(self._bad if damaged else self._good, size)

    def has_all(self) -> None:
        self.whole = True
        self.relay.finish(self._good)

    @asynccontextmanager
    async def blob_file(self, ref: BlobRef, identity: NodeIdentity) -> AsyncIterator[Path | RelayedBlob]:
        assert ref == REF
        self.asked += 1
        if self.damaged:
            self.damaged -= 1
            yield self._bad
        elif self.whole:
            yield self._good
        else:
            with self.relay.blob.used() as blob:
                yield blob


class Middle:
    """A node that serves what it fetches."""

    def __init__(self, folder: Path, name: str = "middle", queue: TransferQueue | None = None) -> None:
        self.network = SmallNetwork(folder / name, queue=queue)
        self.network.handler.blob_file = self.blob_file  # type: ignore[method-assign,assignment]
        self.store = BlobStore(folder / name / "cache", durable=False)
        self.cache = BlobCache(self.store, self._fetch, keep_bytes=1 << 30)
        self.link: UplinkLink | None = None
        self.asked: list[str] = []
        self.serving = 0

    async def _fetch(self, ref: BlobRef, target: Path, spares: Spares, relay: Relay) -> None:
        assert self.link is not None
        await self.link.fetch(ref, target, deadline_s=30, spares=spares, relay=relay)

    @asynccontextmanager
    async def blob_file(self, ref: BlobRef, identity: NodeIdentity) -> AsyncIterator[Path | RelayedBlob]:
        self.asked.append(identity.name)
        with self._counted(), self.cache.served(ref) as source:
            yield source

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self.serving += 1
        try:
            yield
        finally:
            self.serving -= 1

    @asynccontextmanager
    async def below(self, network: SmallNetwork) -> AsyncIterator[Middle]:
        """Serve, attached to what is above."""
        async with attached(network, "middle") as self.link, self.network:
            try:
                yield self
            finally:
                await self.cache.close()


@pytest.fixture
async def top(tmp_path: Path) -> AsyncIterator[Top]:
    top = Top(tmp_path)
    async with top.network:
        yield top
        if not top.whole:
            top.relay.fail(Unreachable("The test is over."))


@pytest.fixture
async def middle(tmp_path: Path, top: Top) -> AsyncIterator[Middle]:
    async with Middle(tmp_path).below(top.network) as middle:
        yield middle


@asynccontextmanager
async def client(middle: Middle, folder: Path, name: str = "c1") -> AsyncIterator[tuple[asyncio.Task[None], Path]]:
    """A client that fetches the model; to its end if nobody cancels it."""
    target = folder / name
    async with attached(middle.network, name) as link:
        fetch = asyncio.create_task(link.fetch(REF, target, deadline_s=30))
        try:
            yield fetch, target
        finally:
            fetch.cancel()
            await asyncio.wait((fetch,))


def came(target: Path) -> int:
    """How much of a blob is here that is not whole."""
    return sum(path.stat().st_size for path in target.parent.glob(f"{target.name}.*.part"))


async def raw(middle: Middle, file: SpoolFile) -> None:
    async with open_channel(middle.network.address, tls=None) as channel:
        await fetch_once(BlobCalls(channel), file, credential=middle.network.credential(), peer="middle")


def spool_file(folder: Path) -> SpoolFile:
    return SpoolFile(partial=folder / "raw.part", whole=folder / "raw", ref=REF, durable=False)


async def test_what_has_come_is_served_while_the_rest_is_fetched(top: Top, middle: Middle, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(client(middle, tmp_path, f"c{n}")) for n in range(3)]
        for size in (3 * MB, 5 * MB):
            top.has(size)
            for _, target in clients:
                await eventually(lambda: came(target) == size)  # noqa: B023 - called at once
        assert not middle.store.has(REF)
        top.has_all()
        await asyncio.gather(*(fetch for fetch, _ in clients))
        assert [target.read_bytes() == DATA for _, target in clients] == [True] * 3
    assert middle.store.path(REF).read_bytes() == DATA
    assert (top.asked, len(middle.asked)) == (1, 3)


async def test_nobody_gets_the_end_of_what_is_not_verified(top: Top, middle: Middle, tmp_path: Path) -> None:
    top.damaged = 1
    with pytest.raises(Unreachable, match="was damaged") as caught:
        await raw(middle, file := spool_file(tmp_path))
    assert begins_anew(caught.value)
    assert 0 < file.held <= 8 * MB - KEPT_BACK_BYTES
    file.close()


async def test_damage_above_takes_none_of_the_patience_below(top: Top, middle: Middle, tmp_path: Path) -> None:
    async with client(middle, tmp_path) as (fetch, target):
        for _ in range(5):  # found wrong once more, one would have given up
            top.has(3 * MB, damaged=True)
            await eventually(lambda: came(target) == 3 * MB)
            top.relay.begin_anew()
            await eventually(lambda: came(target) == 0)
        top.has_all()
        await fetch
        assert target.read_bytes() == DATA
    assert (top.asked, len(middle.asked)) == (6, 6)


async def test_what_stays_damaged_above_is_an_error_below(top: Top, middle: Middle, tmp_path: Path) -> None:
    async with client(middle, tmp_path) as (fetch, target):
        for _ in range(9):
            top.has(3 * MB, damaged=True)
            await eventually(lambda: came(target) == 3 * MB)
            top.relay.begin_anew()
            await eventually(lambda: came(target) == 0)
        top.has(3 * MB, damaged=True)
        await eventually(lambda: fetch.done() or came(target) > 0)
        top.relay.begin_anew()
        with pytest.raises(CorruptData, match="was damaged"):
            await fetch
        assert not target.exists()
    assert not middle.store.has(REF)


async def test_a_fetch_that_fails_midway_tells_those_below_why(top: Top, middle: Middle, tmp_path: Path) -> None:
    async with client(middle, tmp_path) as (fetch, target):
        top.has(3 * MB)
        await eventually(lambda: came(target) == 3 * MB)
        top.relay.fail(NotFound("It was deleted."))
        with pytest.raises(NotFound, match="It was deleted"):
            await fetch
        assert came(target) == 0


async def test_those_below_do_not_notice_a_cut_above(top: Top, tmp_path: Path) -> None:
    async with BreakableProxy(top.network.address) as proxy:
        top.network.directory.places = {"red": proxy.address}
        async with Middle(tmp_path).below(top.network) as middle, client(middle, tmp_path) as (fetch, target):
            top.has(3 * MB)
            await eventually(lambda: came(target) == 3 * MB)
            proxy.cut()
            await eventually(lambda: top.asked == 2)
            top.has_all()
            await fetch
            assert target.read_bytes() == DATA
            assert middle.asked == ["c1"]


async def test_a_cut_below_is_gone_on_with_while_the_fetch_goes_on(top: Top, middle: Middle, tmp_path: Path) -> None:
    async with BreakableProxy(middle.network.address) as proxy:
        middle.network.directory.places = {"red": proxy.address}
        async with client(middle, tmp_path) as (fetch, target):
            top.has(3 * MB)
            await eventually(lambda: came(target) == 3 * MB)
            proxy.cut()
            await eventually(lambda: len(middle.asked) == 2)
            top.has_all()
            await fetch
            assert target.read_bytes() == DATA
        assert proxy.down_bytes < 9 * MB, "it began anew"
    assert top.asked == 1


async def test_who_goes_away_ends_nothing_for_the_others(top: Top, middle: Middle, tmp_path: Path) -> None:
    async with client(middle, tmp_path, "stays") as (fetch, target):
        async with client(middle, tmp_path, "goes") as (_, other):
            top.has(3 * MB)
            await eventually(lambda: came(other) == came(target) == 3 * MB)
        await eventually(lambda: middle.serving == 1)
        top.has_all()
        await fetch
        assert target.read_bytes() == DATA
    assert top.asked == 1


async def test_the_fetch_goes_on_when_nobody_waits_for_it(top: Top, middle: Middle, tmp_path: Path) -> None:
    async with client(middle, tmp_path) as (_, target):
        top.has(3 * MB)
        await eventually(lambda: came(target) == 3 * MB)
    await eventually(lambda: middle.serving == 0)
    top.has_all()
    await eventually(lambda: middle.store.has(REF))
    assert top.asked == 1


async def test_who_waits_for_bytes_that_have_not_come_takes_no_turn(top: Top, tmp_path: Path) -> None:
    one_at_a_time = TransferQueue(look_s=3600)
    top.has(3 * MB)
    file = spool_file(tmp_path)
    file.write(0, DATA[: 4 * MB])
    async with Middle(tmp_path, queue=one_at_a_time).below(top.network) as middle:
        waits = asyncio.create_task(raw(middle, file))
        await eventually(lambda: middle.serving == 1)
        async with client(middle, tmp_path) as (fetch, target):
            await eventually(lambda: came(target) == 3 * MB)
            top.has_all()
            await asyncio.gather(waits, fetch)
    assert file.finish().read_bytes() == DATA


async def test_a_node_that_stops_leaves_nobody_waiting(top: Top, middle: Middle, tmp_path: Path) -> None:
    top.has(3 * MB)
    reading = asyncio.create_task(raw(middle, file := spool_file(tmp_path)))
    await eventually(lambda: file.held == 3 * MB)
    await middle.cache.close()
    with pytest.raises(Unreachable, match="shuts down"):
        await reading


async def test_a_tree_passes_on_what_has_come_and_what_was_damaged(top: Top, middle: Middle, tmp_path: Path) -> None:
    top.damaged = 2
    top.has(3 * MB)
    async with Middle(tmp_path, "lower").below(middle.network) as lower, client(lower, tmp_path) as (fetch, target):
        await eventually(lambda: top.asked == 3 and came(target) == 3 * MB)
        top.has_all()
        await fetch
        assert target.read_bytes() == DATA
        assert lower.store.path(REF).read_bytes() == DATA
