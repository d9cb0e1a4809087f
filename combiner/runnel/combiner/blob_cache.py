"""Models and packages on their way down: fetched from above once, served to all below from the file meanwhile."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from runnel.common.blobs import LEAST_SPARE_BYTES, BlobStore, Readers, Relay, RelayedBlob, Spares
from runnel.common.errors import Unreachable
from runnel.common.protocol import BlobRef

Fetch = Callable[[BlobRef, Path, Spares, Relay], Awaitable[None]]

_KEEP_BLOBS = 256  # of small models a great many would fit otherwise
_NEWER = 2  # of one size, after which a blob that nobody needs is written over


class BlobCache:
    """A blob store that fetches what it lacks, each blob only once however many ask at the same time.

    Args:
        store: where blobs are kept.
        fetch: brings a blob to a file, which may be written over a spare one, and verifies it, or raises; tells the
            relay what came meanwhile.
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
        self._readers = Readers()
        self._known: OrderedDict[str, BlobRef] = OrderedDict()
        self._under_way: dict[BlobRef, tuple[asyncio.Task[None], Relay]] = {}

    @asynccontextmanager
    async def held(self, ref: BlobRef) -> AsyncIterator[Path]:
        """Give the file of a blob, which stays as it is while the block runs; from above if need be.

        Raises:
            RunnelError: it can't be had.
        """
        with self._readers.reading(ref):
            await self.bring(ref)
            yield self._store.path(ref)

    @contextmanager
    def served(self, ref: BlobRef) -> Iterator[Path | RelayedBlob]:
        """Give the file of a blob, as :meth:`held` does; while it is fetched, what is here of it."""
        with self._readers.reading(ref):
            if self._store.has(ref):
                self._use(ref)
                yield self._store.path(ref)
            else:
                _, relay = self._fetching(ref)
                with relay.blob.used() as blob:
                    yield blob

    async def bring(self, ref: BlobRef) -> None:
        """See that a blob is here.

        Raises:
            RunnelError: it can't be had.
        """
        if not self._store.has(ref):
            task, _ = self._fetching(ref)
            # One asker that gives up must not end the fetch of the others.
            await asyncio.shield(task)
        self._use(ref)

    def _use(self, ref: BlobRef) -> None:
        self._known[ref.sha256] = ref
        self._known.move_to_end(ref.sha256)

    def _fetching(self, ref: BlobRef) -> tuple[asyncio.Task[None], Relay]:
        """Return the fetch of a blob that is not here, begun if it is not under way."""
        if ref not in self._under_way:
            task = asyncio.create_task(self._bring(ref, relay := Relay(ref)), name=f"fetch {ref.sha256[:8]}")
            self._under_way[ref] = task, relay
            task.add_done_callback(lambda task: self._fetched(ref, task))
        return self._under_way[ref]

    def _fetched(self, ref: BlobRef, task: asyncio.Task[None]) -> None:
        _, relay = self._under_way.pop(ref)
        error = Unreachable("This node shuts down.", hint="Join again.") if task.cancelled() else task.exception()
        if error is not None:
            relay.fail(error)

    async def _bring(self, ref: BlobRef, relay: Relay) -> None:
        target = self._store.temporary()
        try:
            await self._spend_older(ref)
            await self._fetch(ref, target, self._spares, relay)
            await asyncio.to_thread(self._store.adopt, target, ref)
            relay.finish(self._store.path(ref))
        finally:
            await asyncio.to_thread(target.unlink, missing_ok=True)
        self._use(ref)
        self._evict(keep=ref.sha256)

    async def _spend_older(self, than: BlobRef) -> None:
        if than.size_bytes < LEAST_SPARE_BYTES:
            return
        alike = [sha256 for sha256, ref in self._known.items() if ref.size_bytes == than.size_bytes]
        for sha256 in alike[:-_NEWER]:
            if sha256 not in self._readers and not self._needed(sha256):
                spent = self._store.release(self._known.pop(sha256))
                await self._spares.spend(spent)
                return

    def _evict(self, keep: str) -> None:
        total = sum(ref.size_bytes for ref in self._known.values())
        for sha256 in list(self._known):
            if total <= self._keep_bytes and len(self._known) <= _KEEP_BLOBS:
                return
            if sha256 != keep and sha256 not in self._readers:
                self._store.delete(sha256)
                total -= self._known.pop(sha256).size_bytes

    async def close(self) -> None:
        """End what is under way."""
        tasks = [task for task, _ in self._under_way.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
