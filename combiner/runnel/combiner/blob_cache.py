"""Models and packages on their way down: fetched from above once, served to all below from the file."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from runnel.common.blobs import LEAST_SPARE_BYTES, BlobStore, Spares
from runnel.common.protocol import BlobRef

Fetch = Callable[[BlobRef, Path, Spares], Awaitable[None]]

_KEEP_BLOBS = 256  # of small models a great many would fit otherwise
_NEWER = 2  # of one size, after which a blob that nobody needs is written over


class BlobCache:
    """A blob store that fetches what it lacks, each blob only once however many ask at the same time.

    Args:
        store: where blobs are kept.
        fetch: brings a blob to a file, which may be written over a spare one, and verifies it, or raises.
        keep_bytes: blobs beyond this total, or beyond 256, are dropped, the least recently asked first.
        needed: whether living orders are about the blob with a digest. Of those that no order is about and nobody reads
            the newest few of one size are kept; an older one gives its file to the next: it is a model of a round that
            is over, or can be fetched again.
    """

    def __init__(
        self, store: BlobStore, fetch: Fetch, *, keep_bytes: int, needed: Callable[[str], bool] = lambda _: False
    ) -> None:
        self._store = store
        self._fetch = fetch
        self._keep_bytes = keep_bytes
        self._needed = needed
        self._spares = Spares(store.temporary().parent)
        self._held: Counter[str] = Counter()
        self._known: OrderedDict[str, BlobRef] = OrderedDict()
        self._under_way: dict[str, asyncio.Task[None]] = {}

    @asynccontextmanager
    async def held(self, ref: BlobRef) -> AsyncIterator[Path]:
        """Give the file of a blob, which stays as it is while the block runs; from above if need be.

        Raises:
            RunnelError: it can't be had.
        """
        self._held[ref.sha256] += 1
        try:
            await self.bring(ref)
            yield self._store.path(ref)
        finally:
            self._held[ref.sha256] -= 1
            if not self._held[ref.sha256]:
                del self._held[ref.sha256]

    async def bring(self, ref: BlobRef) -> None:
        """See that a blob is here.

        Raises:
            RunnelError: it can't be had.
        """
        if not self._store.has(ref):
            task = self._under_way.get(ref.sha256)
            if task is None:
                task = asyncio.create_task(self._bring(ref), name=f"fetch {ref.sha256[:8]}")
                self._under_way[ref.sha256] = task
                task.add_done_callback(lambda _: self._under_way.pop(ref.sha256, None))
            # One asker that gives up must not end the fetch of the others.
            await asyncio.shield(task)
        self._known[ref.sha256] = ref
        self._known.move_to_end(ref.sha256)

    async def _bring(self, ref: BlobRef) -> None:
        target = self._store.temporary()
        try:
            await self._spend_older(ref)
            await self._fetch(ref, target, self._spares)
            await asyncio.to_thread(self._store.adopt, target, ref)
        finally:
            await asyncio.to_thread(target.unlink, missing_ok=True)
        self._known[ref.sha256] = ref
        self._evict(keep=ref.sha256)

    async def _spend_older(self, than: BlobRef) -> None:
        if than.size_bytes < LEAST_SPARE_BYTES:
            return
        alike = [sha256 for sha256, ref in self._known.items() if ref.size_bytes == than.size_bytes]
        for sha256 in alike[:-_NEWER]:
            if not self._held[sha256] and not self._needed(sha256):
                spent = self._store.release(self._known.pop(sha256))
                await self._spares.spend(spent)
                return

    def _evict(self, keep: str) -> None:
        total = sum(ref.size_bytes for ref in self._known.values())
        for sha256 in list(self._known):
            if total <= self._keep_bytes and len(self._known) <= _KEEP_BLOBS:
                return
            if sha256 != keep:
                # A file that is being sent stays readable for its reader after it was deleted.
                self._store.delete(sha256)
                total -= self._known.pop(sha256).size_bytes

    async def close(self) -> None:
        """End what is under way."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
