"""Where a reducer's files last: in its folder or in a bucket, the same for all users; and what only a bucket can do."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from runnel.common.errors import BadSettings, CorruptData, NotFound, Unreachable
from runnel.common.protocol import BlobRef
from runnel.reducer.store.blob_place import opened_blobs
from runnel.reducer.store.blobs import Blobs
from runnel.reducer.store.object_storage import PART_BYTES
from runnel.reducer.store.shared_blobs import SharedBlobs
from tests.bucket_server import CREDENTIALS, KEY, SECRET, BucketServer, running_bucket_server

pytestmark = [pytest.mark.network, pytest.mark.timeout(60)]


@pytest.fixture(scope="module")
def server() -> Iterator[BucketServer]:
    with running_bucket_server() as running:
        yield running


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, server: BucketServer) -> str | None:
    return None if request.param == "folder" else server.new_bucket()


@contextlib.asynccontextmanager
async def opened(place: str | None, state: Path, **options: Any) -> AsyncIterator[Blobs]:
    wanted = {"cache_bytes": 1 << 30, "allow_plaintext": False} | options
    async with opened_blobs(place, state, **wanted) as blobs:
        yield blobs


def ref_of(data: bytes) -> BlobRef:
    return BlobRef(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))


async def kept(blobs: Blobs, data: bytes) -> BlobRef:
    file = blobs.files.temporary()
    file.write_bytes(data)
    ref = blobs.files.adopt(file)
    await blobs.keep(ref.sha256)
    return ref


async def content(blobs: Blobs, ref: BlobRef) -> bytes:
    async with blobs.held(ref) as file:
        return file.read_bytes()


def cached(state: Path) -> set[str]:
    return {file.name for file in (state / "blob-cache").glob("??/*")}


# ---- the same on both


@pytest.mark.parametrize("size", [0, 1, PART_BYTES, 2 * PART_BYTES + 1])
async def test_what_is_kept_is_there_after_a_restart(place: str | None, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    async with opened(place, tmp_path) as blobs:
        ref = await kept(blobs, data)
        assert ref == ref_of(data)
        assert await content(blobs, ref) == data
    async with opened(place, tmp_path) as blobs:
        assert await blobs.find(ref.sha256) == ref
        assert await blobs.total_bytes() == size
        assert await content(blobs, ref) == data


async def test_keeping_twice_changes_nothing(place: str | None, tmp_path: Path) -> None:
    async with opened(place, tmp_path) as blobs:
        ref = await kept(blobs, b"model")
        assert await kept(blobs, b"model") == ref
        await blobs.keep(ref.sha256, ref.sha256)
        assert blobs.lasts(ref.sha256)
        assert await blobs.total_bytes() == 5
        assert list(blobs.files.root.glob("tmp/*")) == []


async def test_a_stream_is_stored_and_kept(place: str | None, tmp_path: Path) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"mo"
        yield b"del"

    async with opened(place, tmp_path) as blobs:
        ref = await blobs.files.put_stream(chunks(), limit_bytes=5)
        assert await content(blobs, ref) == b"model"
        await blobs.keep(ref.sha256)
        assert await content(blobs, ref) == b"model"


async def test_what_is_not_there_is_named(place: str | None, tmp_path: Path) -> None:
    missing = ref_of(b"never stored")
    async with opened(place, tmp_path) as blobs:
        assert await blobs.find(missing.sha256) is None
        assert not await blobs.delete(missing.sha256)
        with pytest.raises(NotFound, match=missing.sha256):
            await content(blobs, missing)


async def test_a_deleted_blob_is_gone_for_good(place: str | None, tmp_path: Path) -> None:
    async with opened(place, tmp_path) as blobs:
        ref, other = await kept(blobs, b"model"), await kept(blobs, b"another")
        assert await blobs.delete(ref.sha256)
        assert not blobs.lasts(ref.sha256)
        assert blobs.lasts(other.sha256)
        assert await blobs.find(ref.sha256) is None
        assert await blobs.total_bytes() == 7
        with pytest.raises(NotFound):
            await content(blobs, ref)
        assert await kept(blobs, b"model") == ref  # and can come again
        assert await content(blobs, ref) == b"model"


async def test_what_was_refused_is_discarded_and_what_was_kept_stays(place: str | None, tmp_path: Path) -> None:
    async with opened(place, tmp_path) as blobs:
        file = blobs.files.temporary()
        file.write_bytes(b"no model")
        ref = blobs.files.adopt(file)
        await blobs.discard(ref.sha256)
        assert await blobs.find(ref.sha256) is None
        await blobs.discard(ref_of(b"never stored").sha256)


async def test_payloads_that_are_wanted_outlive_a_restart(place: str | None, tmp_path: Path) -> None:
    folder = tmp_path / "partials"
    names = ["ord-1.payload", "ord-2.payload", "ord-3.payload"]
    async with opened(place, tmp_path) as blobs:
        await blobs.sweep_payloads(folder, set())
        for name in names:
            (folder / name).write_bytes(name.encode())
            await blobs.keep_payload(folder / name)
        await blobs.drop_payloads(folder / names[1], folder / "never there")
    async with opened(place, tmp_path) as blobs:
        await blobs.sweep_payloads(folder, {names[0]})
        assert [file.name for file in folder.iterdir()] == names[:1]
        await blobs.bring_payload(folder / names[0])
        assert (folder / names[0]).read_bytes() == names[0].encode()


# ---- in a bucket


async def test_the_bucket_has_all_that_another_machine_needs(server: BucketServer, tmp_path: Path) -> None:
    url, here, there = server.new_bucket(), tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    async with opened(url, here) as blobs:
        await blobs.sweep_payloads(here / "partials", set())
        ref = await kept(blobs, b"model")
        for name in ("wanted", "not wanted"):
            (here / "partials" / name).write_bytes(b"payload")
            await blobs.keep_payload(here / "partials" / name)
    assert server.keys(url) == {
        "runnel.txt",
        f"blobs/{ref.sha256[:2]}/{ref.sha256}",
        "partials/wanted",
        "partials/not wanted",
    }
    async with opened(url, there) as blobs:
        await blobs.sweep_payloads(there / "partials", {"wanted"})
        assert "partials/not wanted" not in server.keys(url)
        await blobs.bring_payload(there / "partials" / "wanted")
        assert (there / "partials" / "wanted").read_bytes() == b"payload"
        assert await content(blobs, ref) == b"model"


async def test_a_payload_that_is_only_here_is_stored_at_the_start(server: BucketServer, tmp_path: Path) -> None:
    url = server.new_bucket()
    (tmp_path / "partials").mkdir()
    (tmp_path / "partials" / "wanted").write_bytes(b"payload")
    async with opened(url, tmp_path) as blobs:
        await blobs.sweep_payloads(tmp_path / "partials", {"wanted"})
    assert "partials/wanted" in server.keys(url)


async def test_what_was_changed_in_the_bucket_is_found(server: BucketServer, tmp_path: Path) -> None:
    url, folder = server.new_bucket(), tmp_path / "partials"
    async with opened(url, tmp_path) as blobs:
        await blobs.sweep_payloads(folder, set())
        ref = await kept(blobs, b"model")
        (folder / "payload").write_bytes(b"payload")
        await blobs.keep_payload(folder / "payload")
    server.put(url, f"blobs/{ref.sha256[:2]}/{ref.sha256}", b"MODEL")
    async with opened(url, tmp_path) as blobs:
        with pytest.raises(CorruptData, match=r"has the digest .*; " + ref.sha256):
            await content(blobs, ref)
        assert cached(tmp_path) == set()
        assert list((tmp_path / "blob-cache" / "tmp").iterdir()) == []


async def test_files_are_kept_within_the_limit_but_none_that_is_in_use(server: BucketServer, tmp_path: Path) -> None:
    async with opened(server.new_bucket(), tmp_path, cache_bytes=1000) as blobs:
        refs = [await kept(blobs, bytes([n]) * 400) for n in range(4)]
        assert cached(tmp_path) == {refs[2].sha256, refs[3].sha256}
        async with blobs.held(refs[0]) as first, blobs.held(refs[1]) as second, blobs.held(refs[2]) as third:
            assert cached(tmp_path) == {ref.sha256 for ref in refs[:3]}
            assert [file.read_bytes()[0] for file in (first, second, third)] == [0, 1, 2]
        assert len(cached(tmp_path)) == 2
        await content(blobs, refs[3])
        assert refs[3].sha256 in cached(tmp_path)
        assert await blobs.total_bytes() == 1600


async def test_without_room_for_one_each_is_there_while_it_is_used(server: BucketServer, tmp_path: Path) -> None:
    async with opened(server.new_bucket(), tmp_path, cache_bytes=0) as blobs:
        ref = await kept(blobs, b"model")
        assert blobs.lasts(ref.sha256)
        assert cached(tmp_path) == set()
        async with blobs.held(ref) as file:
            assert file.read_bytes() == b"model"
        assert cached(tmp_path) == set()


async def test_what_is_deleted_while_it_is_read_stays_to_the_end(server: BucketServer, tmp_path: Path) -> None:
    url = server.new_bucket()
    async with opened(url, tmp_path) as blobs:
        ref = await kept(blobs, b"model")
        async with blobs.held(ref) as file:
            assert await blobs.delete(ref.sha256)
            assert server.keys(url) == {"runnel.txt"}
            assert file.read_bytes() == b"model"
        assert cached(tmp_path) == set()


async def test_what_many_ask_for_is_brought_once(server: BucketServer, tmp_path: Path) -> None:
    url = server.new_bucket()
    async with opened(url, tmp_path) as blobs:
        ref = await kept(blobs, b"model")
    async with opened(url, tmp_path) as blobs:
        server.requests.clear()
        assert set(await asyncio.gather(*(content(blobs, ref) for _ in range(10)))) == {b"model"}
        assert len([line for line in server.requests if line.startswith("GET")]) == 1


async def test_what_lay_in_the_state_folder_is_copied_once(server: BucketServer, tmp_path: Path) -> None:
    url = server.new_bucket()
    async with opened(None, tmp_path) as blobs:
        ref = await kept(blobs, b"model")
    async with opened(url, tmp_path) as blobs:
        assert await blobs.total_bytes() == 5
        assert await content(blobs, ref) == b"model"
        assert await blobs.delete(ref.sha256)
    async with opened(url, tmp_path) as blobs:
        assert await blobs.find(ref.sha256) is None


async def test_a_state_whose_blobs_are_in_a_bucket_is_not_run_without_it(server: BucketServer, tmp_path: Path) -> None:
    url = server.new_bucket()
    async with opened(url, tmp_path):
        pass
    with pytest.raises(BadSettings, match=r"are in s3://bucket-\w+/some/prefix at http.*is not given"):
        async with opened(None, tmp_path):
            pass


async def test_a_state_with_its_blobs_in_a_bucket_is_not_run_with_another(server: BucketServer, tmp_path: Path) -> None:
    url, other = server.new_bucket(), server.new_bucket()
    async with opened(url, tmp_path):
        pass
    with pytest.raises(BadSettings, match=r"are in s3://.*, and the setting blobs names s3://") as caught:
        async with opened(other, tmp_path):
            pass
    assert f"remove {tmp_path / 'blobs.place'}" in caught.value.hint
    async with opened(url, tmp_path):
        pass
    (tmp_path / "blobs.place").unlink()
    async with opened(other, tmp_path):
        pass


async def test_what_was_kept_last_is_known_to_last(server: BucketServer, tmp_path: Path) -> None:
    async with opened(server.new_bucket(), tmp_path) as blobs:
        assert isinstance(blobs, SharedBlobs)
        first = await kept(blobs, b"model")
        blobs._kept |= dict.fromkeys(map(str, range(999)))
        await blobs.keep(first.sha256)
        other = await kept(blobs, b"another")
        assert blobs.lasts(first.sha256, other.sha256)


# ---- what is wrong


async def refused(url: str, state: Path, **options: Any) -> str:
    with pytest.raises((BadSettings, Unreachable)) as caught:
        async with opened(url, state, **options):
            pass
    assert not (state / "blobs.place").exists()
    assert SECRET not in str(caught.value)
    assert KEY not in str(caught.value)
    return f"{caught.value.code}: {caught.value}"


async def test_a_bucket_that_is_not_there(server: BucketServer, tmp_path: Path) -> None:
    told = await refused(f"s3://no-such-bucket?endpoint={server.endpoint}", tmp_path)
    assert told.startswith("bad_settings: The setting blobs names s3://no-such-bucket at http://127.0.0.1:")
    assert "no such bucket" in told


async def test_credentials_that_are_wrong(server: BucketServer, tmp_path: Path) -> None:
    url = server.new_bucket()
    with server.checking_credentials():
        told = await refused(url, tmp_path)
    assert told.startswith("bad_settings: The credentials for s3://bucket-")
    assert "(InvalidAccessKeyId)" in told


async def test_no_credentials_at_all(
    server: BucketServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int
) -> None:
    for name in CREDENTIALS:
        monkeypatch.delenv(name)
    # Where the role of a machine is asked for; here is none.
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", f"http://127.0.0.1:{unused_tcp_port}")
    told = await refused(server.new_bucket(patience_s=0.3), tmp_path)
    assert told.startswith("bad_settings: The credentials for s3://bucket-")


async def test_a_store_that_does_not_answer_at_the_start(tmp_path: Path, unused_tcp_port: int) -> None:
    told = await refused(f"s3://some-bucket?endpoint=http://127.0.0.1:{unused_tcp_port}&patience_s=0.3", tmp_path)
    assert told.startswith("unreachable: The blob store s3://some-bucket at http://127.0.0.1:")


async def test_plaintext_beyond_the_loopback_is_asked_for(tmp_path: Path) -> None:
    told = await refused("s3://some-bucket?endpoint=http://192.0.2.1:9000", tmp_path)
    assert "--allow-plaintext" in told


@pytest.mark.restarts
async def test_a_store_that_is_away_is_waited_for(server: BucketServer, tmp_path: Path) -> None:
    async with opened(server.new_bucket(patience_s=20), tmp_path) as blobs:
        server.stop()
        keeping = asyncio.create_task(kept(blobs, b"model"))
        try:
            await asyncio.sleep(0.3)  # the outage
            assert not keeping.done()
        finally:
            server.start()
        ref = await keeping
        assert await blobs.find(ref.sha256) == ref


@pytest.mark.restarts
async def test_a_store_that_stays_away_is_unreachable_and_nothing_is_lost(server: BucketServer, tmp_path: Path) -> None:
    url, folder = server.new_bucket(patience_s=0.3), tmp_path / "partials"
    async with opened(url, tmp_path) as blobs:
        await blobs.sweep_payloads(folder, set())
        ref = await kept(blobs, b"model")
        (folder / "payload").write_bytes(b"payload")
        await blobs.keep_payload(folder / "payload")
        server.stop()
        try:
            assert await content(blobs, ref) == b"model"  # it is here
            for asked in (kept(blobs, b"new"), blobs.find(ref_of(b"x").sha256), content(blobs, ref_of(b"x"))):
                with pytest.raises(Unreachable, match=r"The blob store s3://bucket-\w+/some/prefix at .* asked:"):
                    await asked
            with pytest.raises(Unreachable):
                await blobs.delete(ref.sha256)
            await blobs.drop_payloads(folder / "payload")  # at the next start
        finally:
            server.start()
        assert (await kept(blobs, b"new")).size_bytes == 3
        assert await blobs.delete(ref.sha256)
    assert "partials/payload" in server.keys(url)
    async with opened(url, tmp_path) as blobs:
        await blobs.sweep_payloads(folder, set())
    assert "partials/payload" not in server.keys(url)


async def test_credentials_that_expire_are_waited_for_as_if_it_were_away(server: BucketServer, tmp_path: Path) -> None:
    async with opened(server.new_bucket(), tmp_path) as blobs:
        told = r"asked: (InvalidAccessKeyId|HTTP status 403)"
        with server.checking_credentials(), pytest.raises(Unreachable, match=told):
            await kept(blobs, b"model")
        await kept(blobs, b"model")
