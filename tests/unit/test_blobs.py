"""Blobs on disk: digests, the store, the spool."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from runnel.common.blobs import (
    EMPTY,
    BlobStore,
    Spool,
    SpoolFile,
    digest_file,
    in_thread,
    require_room,
    storage_errors,
    to_its_end,
)
from runnel.common.errors import CorruptData, IllegalState, InvalidInput, NotFound, StorageFull, TooLarge
from runnel.common.protocol import BlobRef
from tests.needs import needs

pytestmark = pytest.mark.unit


def ref_of(data: bytes) -> BlobRef:
    return BlobRef(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))


def file_with(folder: Path, data: bytes, name: str = "file") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


# ---- digests


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3_000_000])
def test_a_digest_covers_all_blocks(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    assert digest_file(file_with(tmp_path, data)) == ref_of(data)


def test_the_empty_blob_has_a_name(tmp_path: Path) -> None:
    assert digest_file(file_with(tmp_path, b"")) == EMPTY


# ---- the store


def test_an_adopted_file_is_found_under_its_digest_and_gone_from_where_it_was(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "store")
    file = file_with(tmp_path, b"model")
    ref = store.adopt(file)
    assert ref == ref_of(b"model")
    assert not file.exists()
    assert store.has(ref)
    assert store.find(ref.sha256) == ref
    assert store.path(ref).read_bytes() == b"model"
    assert store.path(ref) == tmp_path / "store" / ref.sha256[:2] / ref.sha256
    assert store.total_bytes() == 5


def test_adopting_twice_changes_nothing(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "store")
    first = store.adopt(file_with(tmp_path, b"model"))
    assert store.adopt(file_with(tmp_path, b"model"), first) == first
    assert list(tmp_path.iterdir()) == [tmp_path / "store"]
    assert store.total_bytes() == 5


def test_a_wrong_length_is_not_adopted(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "store")
    file = file_with(tmp_path, b"model")
    with pytest.raises(CorruptData, match="4 bytes and has 5"):
        store.adopt(file, BlobRef(sha256=ref_of(b"model").sha256, size_bytes=4))
    assert file.read_bytes() == b"model"
    assert store.total_bytes() == 0


def test_a_file_of_another_file_system_is_adopted_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = BlobStore(tmp_path / "store")
    file = file_with(tmp_path, b"model")
    replace = Path.replace

    def refusing(self: Path, target: Path) -> Path:
        if self == file:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refusing)
    ref = store.adopt(file)
    assert store.path(ref).read_bytes() == b"model"
    assert not file.exists()
    assert list((store.root / "tmp").iterdir()) == []


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    missing = ref_of(b"never stored")
    assert store.find(missing.sha256) is None
    assert not store.has(missing)
    assert not store.delete(missing.sha256)
    with pytest.raises(NotFound, match=missing.sha256):
        store.path(missing)


def test_a_deleted_blob_is_gone(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "store")
    ref = store.adopt(file_with(tmp_path, b"model"))
    assert store.delete(ref.sha256)
    assert not store.has(ref)


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "A" * 64, "a" * 63, "a" * 64 + "\n", "a" * 65])
def test_only_a_digest_names_a_file(tmp_path: Path, digest: str) -> None:
    with pytest.raises(InvalidInput, match="64 lower-case hex"):
        BlobStore(tmp_path).find(digest)


def test_unfinished_files_of_an_earlier_process_are_removed(tmp_path: Path) -> None:
    left = BlobStore(tmp_path).temporary()
    left.write_bytes(b"half")
    ref = BlobStore(tmp_path).adopt(file_with(tmp_path, b"whole"))
    assert not left.exists()
    assert BlobStore(tmp_path).has(ref)


async def chunks_of(*chunks: bytes, then: BaseException | None = None) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk
    if then is not None:
        raise then


async def test_a_stream_is_stored_under_its_digest(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    ref = await store.put_stream(chunks_of(b"mo", b"", b"del"), limit_bytes=5)
    assert ref == ref_of(b"model")
    assert store.path(ref).read_bytes() == b"model"


async def test_an_empty_stream_is_the_empty_blob(tmp_path: Path) -> None:
    assert await BlobStore(tmp_path).put_stream(chunks_of(), limit_bytes=0) == EMPTY


async def test_a_stream_beyond_the_limit_leaves_nothing(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    with pytest.raises(TooLarge, match="More than 4 bytes"):
        await store.put_stream(chunks_of(b"mo", b"del", then=AssertionError("asked on")), limit_bytes=4)
    assert list((tmp_path / "tmp").iterdir()) == []
    assert store.total_bytes() == 0


async def test_a_stream_that_breaks_leaves_nothing(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    with pytest.raises(ConnectionResetError):
        await store.put_stream(chunks_of(b"mo", then=ConnectionResetError()), limit_bytes=5)
    assert list((tmp_path / "tmp").iterdir()) == []


async def test_a_cancelled_stream_leaves_nothing(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    waiting = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield b"mo"
        waiting.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(store.put_stream(endless(), limit_bytes=5))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named(tmp_path: Path, code: int) -> None:
    with pytest.raises(StorageFull, match="7 bytes are needed") as caught, storage_errors(tmp_path, need_bytes=7):
        raise OSError(code, os.strerror(code))
    assert str(tmp_path) in str(caught.value)
    assert caught.value.fields["free_bytes"] > 0


def test_other_errors_of_the_disk_pass(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), storage_errors(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied")


def test_room_is_looked_for_before_it_is_taken(tmp_path: Path) -> None:
    require_room(tmp_path, 1)
    require_room(tmp_path / "new", 1)
    with pytest.raises(StorageFull, match="1,152,921,504,606,846,976 bytes are needed") as caught:
        require_room(tmp_path / "new", 1 << 60)
    assert caught.value.fields["folder"] == str(tmp_path)


def test_a_payload_whose_rest_does_not_fit_leaves_its_room_to_others(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    fits, large = (
        spool.open(key, BlobRef(sha256="0" * 64, size_bytes=size)) for key, size in (("a", 20), ("b", 1 << 60))
    )
    for file in (fits, large):
        file.write(0, b"0123456789")
    fits.require_room()
    assert fits.partial.read_bytes() == b"0123456789"
    with pytest.raises(StorageFull, match="1,152,921,504,606,846,966 bytes are needed"):
        large.require_room()
    assert not large.partial.exists()
    fits.close()


def test_a_full_disk_while_spooling_keeps_what_is_there(tmp_path: Path) -> None:
    needs(Path("/dev/full").exists(), "/dev/full")
    partial = tmp_path / "partial"
    partial.symlink_to("/dev/full")
    file = SpoolFile(partial=partial, whole=tmp_path / "whole", ref=ref_of(b"model"))
    with pytest.raises(StorageFull, match="5 bytes are needed"):
        file.write(0, b"model")
    assert file.held == 0
    file.drop()


# ---- threads


async def test_a_cancelled_caller_waits_for_its_thread() -> None:
    begun, may_end = threading.Event(), threading.Event()
    ended = False

    def work() -> None:
        nonlocal ended
        begun.set()
        may_end.wait(10)
        ended = True

    task = asyncio.create_task(in_thread(work))
    await asyncio.to_thread(begun.wait)
    task.cancel()
    _, pending = await asyncio.wait((task,), timeout=0.02)
    assert pending, "it returned while its thread was at work"
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended


async def test_a_cancelled_caller_gets_the_cancellation_not_the_error() -> None:
    gate = asyncio.Event()

    async def work() -> None:
        await gate.wait()
        raise ValueError("seen and dropped")

    task = asyncio.create_task(to_its_end(work()))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_results_and_errors_come_through() -> None:
    assert await in_thread(int, "7") == 7
    with pytest.raises(ValueError, match="invalid literal"):
        await in_thread(int, "seven")


# ---- the spool


def test_a_payload_is_verified_before_it_gets_its_name(tmp_path: Path) -> None:
    file = Spool(tmp_path).open("order client", ref_of(b"payload"))
    file.write(0, b"pay")
    assert file.held == 3
    assert not file.whole.exists()
    file.write(3, b"load")
    assert file.finish() == file.whole
    assert file.whole.read_bytes() == b"payload"
    assert not file.partial.exists()
    assert file.finish() == file.whole


@given(data=st.binary(max_size=60), cuts=st.lists(st.integers(0, 60), max_size=5))
def test_a_payload_in_any_pieces_over_any_restarts_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, cuts: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("spool")
    ref = ref_of(data)
    for stop in sorted(min(cut, len(data)) for cut in cuts):
        file = Spool(folder).open("key", ref)  # as after a kill: nothing but the folder is left
        file.write(file.held, data[file.held : stop])
        file.close()
    file = Spool(folder).open("key", ref)
    file.write(file.held, data[file.held :])
    assert file.finish().read_bytes() == data


def test_a_damaged_start_is_found_after_a_restart(tmp_path: Path) -> None:
    file = Spool(tmp_path).open("key", ref_of(b"payload"))
    file.write(0, b"pay")
    file.close()
    file.partial.write_bytes(b"pax")
    again = Spool(tmp_path).open("key", ref_of(b"payload"))
    again.write(3, b"load")
    with pytest.raises(CorruptData, match="has the digest"):
        again.finish()
    assert list(tmp_path.iterdir()) == []
    assert again.held == 0


def test_a_wrong_digest_drops_the_file_and_it_can_come_again(tmp_path: Path) -> None:
    file = Spool(tmp_path).open("key", ref_of(b"payload"))
    file.write(0, b"PAYLOAD")
    with pytest.raises(CorruptData, match=ref_of(b"payload").sha256):
        file.finish()
    assert file.held == 0
    file.write(0, b"payload")
    assert file.finish().read_bytes() == b"payload"


@pytest.mark.parametrize("came", [b"model", b"MODEL"])
def test_a_model_that_has_both_digests_is_checked_by_the_faster_and_kept_by_its_name(
    tmp_path: Path, came: bytes
) -> None:
    ref = BlobRef(sha256="0" * 64, blake3=blake3(b"model").hexdigest(), size_bytes=5)
    file = Spool(tmp_path / "spool").open("key", ref)
    file.write(0, came)
    if came != b"model":
        with pytest.raises(CorruptData, match=ref.blake3):
            file.finish()
        return
    store = BlobStore(tmp_path / "store")
    assert store.adopt(file.finish(), ref) == ref
    assert store.has(BlobRef(sha256=ref.sha256, size_bytes=5))


def test_a_short_payload_is_no_payload(tmp_path: Path) -> None:
    file = Spool(tmp_path).open("key", ref_of(b"payload"))
    file.write(0, b"pay")
    with pytest.raises(CorruptData, match="7 bytes and ended after 3"):
        file.finish()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("offset", "data"), [(2, b"x"), (4, b"x"), (0, b"payload"), (3, b"loads")])
def test_bytes_that_do_not_follow_are_refused(tmp_path: Path, offset: int, data: bytes) -> None:
    file = Spool(tmp_path).open("key", ref_of(b"payload"))
    file.write(0, b"pay")
    with pytest.raises(CorruptData, match="Expected bytes from 3"):
        file.write(offset, data)
    assert file.held == 3
    file.drop()


def test_a_part_of_another_blob_under_the_same_key_is_dropped(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    file = spool.open("key", ref_of(b"payload"))
    file.write(0, b"pay")
    file.close()
    other = Spool(tmp_path).open("key", ref_of(b"another"))
    assert other.held == 0
    assert list(tmp_path.iterdir()) == []


def test_equal_bytes_under_two_keys_do_not_touch_each_other(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    first, second = spool.open("a", ref_of(b"payload")), spool.open("b", ref_of(b"payload"))
    first.write(0, b"pay")
    second.write(0, b"p")
    first.write(3, b"load")
    assert first.finish() != second.whole
    assert second.held == 1
    second.drop()
    assert first.whole.read_bytes() == b"payload"


def test_a_verified_payload_is_known_after_a_restart(tmp_path: Path) -> None:
    file = Spool(tmp_path).open("key", ref_of(b"payload"))
    file.write(0, b"payload")
    file.finish()
    again = Spool(tmp_path).open("key", ref_of(b"payload"))
    assert again.verified
    assert again.held == 7
    assert again.finish().read_bytes() == b"payload"


def test_keys_are_never_paths(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    file = spool.open("../../outside/\0", ref_of(b"x"))
    file.write(0, b"x")
    assert file.finish().parent == tmp_path / "spool"


def test_forgetting_and_wiping_leave_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for key in ("a", "b"):
        file = spool.open(key, ref_of(b"payload"))
        file.write(0, b"pay")
        file.close()
    spool.forget("a")
    assert len(list(tmp_path.iterdir())) == 1
    spool.wipe()
    assert list(tmp_path.iterdir()) == []
    assert spool.open("b", ref_of(b"payload")).held == 0


def test_what_is_forgotten_before_it_begins_is_not_begun(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    file = spool.open("a", ref_of(b"payload"))
    spool.forget("a")
    with pytest.raises(IllegalState, match="not wanted any more"):
        file.write(0, b"pay")
    assert list(tmp_path.iterdir()) == []
    again = spool.open("a", ref_of(b"payload"))
    again.write(0, b"payload")
    assert again.finish().read_bytes() == b"payload"


def test_what_is_forgotten_while_it_is_written_leaves_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    file = spool.open("a", ref_of(b"payload"))
    file.write(0, b"pay")
    spool.forget("a")
    file.write(3, b"load")
    with pytest.raises(CorruptData, match="ended after 0"):
        file.finish()
    assert list(tmp_path.iterdir()) == []
