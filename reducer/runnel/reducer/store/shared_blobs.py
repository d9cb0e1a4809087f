"""Blobs and payloads in an S3-compatible store, with the files that are worked on in a local folder."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import structlog

from runnel.common.blobs import BlobStore, digest_file, in_thread
from runnel.common.errors import NotFound, Unreachable
from runnel.common.protocol import BlobRef
from runnel.reducer.store.blobs import unlink_all, unlink_others
from runnel.reducer.store.object_storage import ObjectStorage

log = structlog.get_logger()

_BLOBS = "blobs"
_PAYLOADS = "partials"
_REMEMBERED = 1000


@dataclass(slots=True)
class _Hold:
    """Who is at work with a blob; the lock lets one of them bring it."""

    count: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class SharedBlobs:
    """See :class:`runnel.reducer.store.blobs.Blobs`. Keys are as paths in a state folder are: ``blobs/ab/abcdef…`` and
    ``partials/name``, so that either can be copied to the other.

    Args:
        storage: where it lasts. No other network may use its prefix: payloads that this one's database does not name
            are removed at the start.
        files: a cache, emptied at the start (``durable=False``). What was just adopted is in it and nowhere else.
        cache_bytes: blobs beyond this total are removed from ``files``, the least recently used first; never one that
            is held or not yet kept.
        first_from: a folder of blobs from before the store was used; what the store lacks is copied there.
    """

    def __init__(
        self, storage: ObjectStorage, files: BlobStore, *, cache_bytes: int, first_from: BlobStore | None = None
    ) -> None:
        self.files = files
        self._storage = storage
        self._cache_bytes = cache_bytes
        self._first_from = first_from
        self._cached: OrderedDict[str, int] = OrderedDict()  # lengths by digest: here and in the store
        self._kept: OrderedDict[str, None] = OrderedDict()  # the last ones
        self._holds: dict[str, _Hold] = {}
        self._deleted: set[str] = set()  # while they were held
        self._payloads: set[str] = set()  # names in the store
        self._stored_bytes = 0

    async def __aenter__(self) -> SharedBlobs:
        await self._storage.require_usable()
        found = {}
        async for each in self._storage.list(_BLOBS):
            found[each.key.rpartition("/")[2]] = each.size_bytes
        self._stored_bytes = sum(found.values())
        if self._first_from is not None:
            for file in await in_thread(_blobs_in, self._first_from):
                ref = await in_thread(digest_file, file)
                if ref.sha256 not in found:
                    await self._put(ref, file)
        log.info("blob store", place=str(self._storage.url), blobs=len(found), size_bytes=self._stored_bytes)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    # ---- blobs

    async def keep(self, *digests: str) -> None:
        """Store blobs that were adopted by ``files``.

        Raises:
            NotFound: one is neither here nor there.
        """
        for digest in digests:
            with self._holding(digest) as hold:
                async with hold.lock:
                    await self._keep(digest)
                    self._kept[digest] = None
                    self._kept.move_to_end(digest)
        while len(self._kept) > _REMEMBERED:
            self._kept.popitem(last=False)
        await self._make_room()

    def lasts(self, *digests: str) -> bool:
        """Tell whether blobs that were just kept have not been deleted since."""
        return all(digest in self._kept for digest in digests)

    async def _keep(self, digest: str) -> None:
        if digest in self._cached:
            return
        ref = self.files.find(digest)
        if ref is None:
            if await self._storage.find(_key(digest)) is None:
                raise NotFound(f"There is no blob {digest} to keep.", sha256=digest)
            return
        self._deleted.discard(digest)
        if await self._storage.find(_key(digest)) is None:
            await self._put(ref, self.files.path(ref))
        self._cached[digest] = ref.size_bytes

    async def _put(self, ref: BlobRef, file: Path) -> None:
        await self._storage.put(_key(ref.sha256), file, sha256=ref.sha256)
        self._stored_bytes += ref.size_bytes

    @contextlib.asynccontextmanager
    async def held(self, ref: BlobRef) -> AsyncIterator[Path]:
        """Give the file of a blob, brought here if need be; once, however many ask for it."""
        with self._holding(ref.sha256) as hold:
            async with hold.lock:
                if not self.files.has(ref):
                    await self._bring(ref)
            if ref.sha256 in self._cached:
                self._cached.move_to_end(ref.sha256)
            yield self.files.path(ref)
        await self._make_room()

    async def _bring(self, ref: BlobRef) -> None:
        await self._make_room(ref.size_bytes)
        target = self.files.temporary()
        try:
            await self._storage.get(_key(ref.sha256), target, sha256=ref.sha256)
            await in_thread(self.files.adopt, target, ref)
        finally:
            await in_thread(target.unlink, missing_ok=True)
        self._cached[ref.sha256] = ref.size_bytes

    @contextlib.contextmanager
    def _holding(self, digest: str) -> Iterator[_Hold]:
        hold = self._holds.setdefault(digest, _Hold())
        hold.count += 1
        try:
            yield hold
        finally:
            hold.count -= 1
            if not hold.count:
                del self._holds[digest]

    async def _make_room(self, need_bytes: int = 0) -> None:
        """Remove what was least recently used and nobody holds, until the cache is within its limit."""
        gone = {digest for digest in self._deleted if digest not in self._holds}
        self._deleted -= gone
        doomed = [self._out_of_the_way(digest) for digest in gone]
        total = sum(self._cached.values()) + need_bytes
        for digest, size in list(self._cached.items()):
            if total <= self._cache_bytes:
                break
            if digest not in self._holds:
                del self._cached[digest]
                total -= size
                doomed.append(self._out_of_the_way(digest))
        await in_thread(unlink_all, [file for file in doomed if file is not None])

    def _out_of_the_way(self, digest: str) -> Path | None:
        """Give the file of a blob a name that nobody asks for. At once, so that nobody is given it meanwhile."""
        ref = self.files.find(digest)
        if ref is None:
            return None
        doomed = self.files.temporary()
        self.files.path(ref).replace(doomed)
        return doomed

    async def find(self, sha256: str) -> BlobRef | None:
        """Return the blob with this digest, or None."""
        here = self.files.find(sha256)
        if here is not None:
            return here
        found = await self._storage.find(_key(sha256))
        return None if found is None else BlobRef(sha256=sha256, size_bytes=found.size_bytes)

    async def delete(self, sha256: str) -> bool:
        """Remove a blob, there at once, and here when nobody holds it any more."""
        with self._holding(sha256) as hold:
            async with hold.lock:
                found = await self._storage.find(_key(sha256))
                if found is not None:
                    await self._storage.delete(_key(sha256))
                    self._stored_bytes -= found.size_bytes
                self._cached.pop(sha256, None)
                self._kept.pop(sha256, None)
                self._deleted.add(sha256)
        await self._make_room()
        return found is not None

    async def discard(self, sha256: str) -> None:
        """Remove a blob of no use; what was kept stays."""
        if sha256 not in self._cached and sha256 not in self._holds:
            doomed = self._out_of_the_way(sha256)
            if doomed is not None:
                await in_thread(unlink_all, [doomed])

    async def total_bytes(self) -> int:
        """Return the sum of the lengths of all blobs in the store, as counted at the start and since."""
        return self._stored_bytes

    # ---- payloads

    async def keep_payload(self, file: Path) -> None:
        """Store a payload under its name, with its digest."""
        ref = await in_thread(digest_file, file)
        await self._storage.put(f"{_PAYLOADS}/{file.name}", file, sha256=ref.sha256)
        self._payloads.add(file.name)

    async def bring_payload(self, file: Path) -> None:
        """Bring a payload to ``file``, unless it is there, as it is where it arrived."""
        if await in_thread(file.exists):
            return
        target = self.files.temporary()
        try:
            await self._storage.get(f"{_PAYLOADS}/{file.name}", target)
            await in_thread(target.replace, file)
        finally:
            await in_thread(target.unlink, missing_ok=True)

    async def drop_payloads(self, *files: Path) -> None:
        """Remove payloads, here and there."""
        await in_thread(unlink_all, files)
        for name in [file.name for file in files if file.name in self._payloads]:
            try:
                await self._storage.delete(f"{_PAYLOADS}/{name}")
            except Unreachable as error:
                # It is named by nobody any more, so the next start removes it.
                log.warning("payload not removed", name=name, error=str(error))
                return
            self._payloads.discard(name)

    async def sweep_payloads(self, folder: Path, wanted: Collection[str]) -> None:
        """Remove all payloads but those that are ``wanted``, here and there; store those that are only here."""
        await in_thread(unlink_others, folder, wanted)
        names = {each.key.rpartition("/")[2] async for each in self._storage.list(_PAYLOADS)}
        self._payloads = names
        await self.drop_payloads(*(folder / name for name in names - set(wanted)))
        for name in sorted(set(wanted) - names):
            if await in_thread((folder / name).exists):
                await self.keep_payload(folder / name)


def _key(sha256: str) -> str:
    return f"{_BLOBS}/{sha256[:2]}/{sha256}"


def _blobs_in(store: BlobStore) -> list[Path]:
    return sorted(store.root.glob("??/*"))
