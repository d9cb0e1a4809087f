"""Spent files that the next ones are written over."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from runnel.client.model_cache import ModelCache
from runnel.combiner.blob_cache import BlobCache
from runnel.common.blobs import LEAST_SPARE_BYTES, BlobStore, Relay, RelayedBlob, Spares, Spool, SpoolFile
from runnel.common.errors import StorageFull
from runnel.common.protocol import BlobRef
from runnel.common.storage import require_room
from tests.eventually import eventually
from tests.small_disk import small_disk

pytestmark = pytest.mark.unit

SIZE = LEAST_SPARE_BYTES


def payload(number: int, size: int = SIZE) -> bytes:
    return bytes([number]) * size


def ref_of(data: bytes) -> BlobRef:
    return BlobRef(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))


def inode(path: Path) -> int:
    return path.stat().st_ino


def spool_at(folder: Path) -> Spool:
    spool = Spool(folder, durable=False, reuse=True)
    spool.wipe()
    return spool


def received(spool: Spool, key: str, data: bytes) -> Path:
    file = spool.open(key, ref_of(data))
    file.write(0, data)
    return file.finish()


@pytest.mark.parametrize("size", [SIZE, SIZE // 2 * 3, SIZE * 2])
async def test_a_payload_is_written_over_a_spent_one(tmp_path: Path, size: int) -> None:
    spool = spool_at(tmp_path)
    first = received(spool, "one", payload(1, SIZE // 2 * 3))
    was = inode(first)
    await spool.spares.spend(first)
    assert not first.exists()
    second = received(spool, "two", payload(2, size))
    assert inode(second) == was
    assert second.read_bytes() == payload(2, size)


async def test_a_push_that_was_cut_goes_on_with_what_came_and_nothing_of_what_was_there(tmp_path: Path) -> None:
    spool = spool_at(tmp_path)
    await spool.spares.spend(received(spool, "one", payload(1)))
    data = payload(2)
    file = spool.open("two", ref_of(data))
    file.write(0, data[:1000])
    assert file.partial.stat().st_size == SIZE
    file.close()
    assert file.partial.read_bytes() == data[:1000]
    again = spool.open("two", ref_of(data))
    assert again.held == 1000
    again.write(1000, data[1000:])
    assert again.finish().read_bytes() == data


async def test_what_somebody_else_has_linked_is_not_written_over(tmp_path: Path) -> None:
    spool = spool_at(tmp_path / "spool")
    first = received(spool, "one", payload(1))
    backup = tmp_path / "backup"
    os.link(first, backup)
    await spool.spares.spend(first)
    second = received(spool, "two", payload(2))
    assert backup.read_bytes() == payload(1)
    assert inode(second) != inode(backup)


async def test_small_files_and_missing_ones_are_no_spares(tmp_path: Path) -> None:
    spares = Spares(tmp_path)
    small = tmp_path / "small"
    small.write_bytes(payload(1, SIZE - 1))
    await spares.spend(small, tmp_path / "missing")
    assert list(tmp_path.iterdir()) == []
    assert not spares.take(tmp_path / "target", SIZE)


async def test_few_are_kept_and_for_no_longer_than_they_are_of_use(tmp_path: Path) -> None:
    spares = Spares(tmp_path, idle_s=0.05)
    files = [tmp_path / f"{n}" for n in range(6)]
    for file in files:
        file.write_bytes(payload(1))
    await spares.spend(*files)
    assert len(list(tmp_path.iterdir())) == 4
    await eventually(lambda: not list(tmp_path.iterdir()))


def test_room_is_made_of_them_when_it_is_needed(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 16 * SIZE):
        spares = Spares(tmp_path / "disk")
        spent = tmp_path / "disk/spent"
        spent.write_bytes(payload(1))
        assert spares.keep(spent)
        free = shutil.disk_usage(tmp_path / "disk").free
        require_room(tmp_path / "disk/next", free + SIZE // 2)
        assert list((tmp_path / "disk").glob("*.spare")) == []
        with pytest.raises(StorageFull):
            require_room(tmp_path / "disk/next", free + 2 * SIZE)


def test_a_disk_that_fills_up_has_no_spares(tmp_path: Path) -> None:
    spares = Spares(tmp_path)
    spent = tmp_path / "spent"
    with spent.open("wb") as file:
        file.truncate(shutil.disk_usage(tmp_path).free // 2)
    assert not spares.keep(spent)
    assert list(tmp_path.iterdir()) == []


class Above:
    """Has models, and brings them as a link does."""

    def __init__(self, *models: bytes) -> None:
        self.models = {ref_of(data): data for data in models}

    async def fetch(self, ref: BlobRef, target: Path, spares: Spares, relay: Relay | None = None) -> None:
        partial = target.with_name(f"{target.name}.part")
        file = SpoolFile(partial=partial, whole=target, ref=ref, durable=False, spares=spares)
        file.write(0, self.models[ref])
        file.finish()


MODELS = [payload(n) for n in range(5)]
REFS = [ref_of(data) for data in MODELS]


async def test_the_oldest_model_of_a_client_is_written_over(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path, Above(*MODELS).fetch)
    first = inode(await cache.get(REFS[0]))
    await cache.get(REFS[1])
    third = await cache.get(REFS[2])
    assert inode(third) == first
    assert third.read_bytes() == MODELS[2]


async def test_a_model_that_is_read_is_dropped_and_not_written_over(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path, Above(*MODELS).fetch)
    with cache.reading(REFS[0]), (await cache.get(REFS[0])).open("rb") as file:
        await cache.get(REFS[1])
        await cache.get(REFS[2])
        assert not cache.has(REFS[0])
        assert file.read() == MODELS[0]


def blob_cache(folder: Path, needed: BlobRef | None = None) -> BlobCache:
    return BlobCache(
        BlobStore(folder, durable=False),
        Above(*MODELS).fetch,
        keep_bytes=1 << 30,
        needed=lambda sha256: needed is not None and sha256 == needed.sha256,
    )


async def inode_of(cache: BlobCache, ref: BlobRef) -> int:
    async with cache.held(ref) as path:
        return inode(path)


async def test_a_model_of_rounds_ago_is_written_over_at_the_combiner(tmp_path: Path) -> None:
    cache = blob_cache(tmp_path)
    inodes = [await inode_of(cache, ref) for ref in REFS[:4]]
    assert inodes[3] == inodes[0]
    async with cache.held(REFS[3]) as path:
        assert path.read_bytes() == MODELS[3]
    async with cache.held(REFS[0]) as path:  # fetched once more
        assert path.read_bytes() == MODELS[0]


async def test_a_model_that_an_order_is_about_is_not_written_over(tmp_path: Path) -> None:
    cache = blob_cache(tmp_path, needed=REFS[0])
    inodes = [await inode_of(cache, ref) for ref in REFS[:4]]
    assert len(set(inodes)) == 4
    assert await inode_of(cache, REFS[0]) == inodes[0]


async def test_a_model_that_is_served_is_not_written_over(tmp_path: Path) -> None:
    cache = blob_cache(tmp_path)
    async with cache.held(REFS[0]) as path:
        for ref in REFS[1:4]:
            await cache.bring(ref)
        assert path.read_bytes() == MODELS[0]
    await cache.bring(REFS[4])
    assert not path.exists()


async def test_a_model_that_is_served_since_it_was_fetched_is_not_written_over(tmp_path: Path) -> None:
    cache = blob_cache(tmp_path)
    with cache.served(REFS[0]) as blob:
        for ref in REFS:
            await cache.bring(ref)
        assert isinstance(blob, RelayedBlob)
        assert await blob.reached(0) == SIZE
        assert os.pread(blob.handle, SIZE, 0) == MODELS[0]
