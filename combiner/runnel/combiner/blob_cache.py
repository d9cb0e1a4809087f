"""Models and packages on their way down: fetched from above once, served to all below from the file."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from pathlib import Path

from runnel.common.blobs import BlobStore
from runnel.common.protocol import BlobRef

Fetch = Callable[[BlobRef, Path], Awaitable[None]]

_KEEP_BLOBS = 256  # of small models a great many would fit otherwise


class BlobCache:
    """A blob store that fetches what it lacks, each blob only once however many ask at the same time.

    Args:
        store: where blobs are kept.
        fetch: brings a blob to a file and verifies it, or raises.
        keep_bytes: blobs beyond this total, or beyond 256, are dropped, the least recently asked first.
    """

    def __init__(self, store: BlobStore, fetch: Fetch, *, keep_bytes: int) -> None:
        self._store = store
        self._fetch = fetch
        self._keep_bytes = keep_bytes
        self._known: OrderedDict[str, BlobRef] = OrderedDict()
        self._under_way: dict[str, asyncio.Task[None]] = {}

    async def path(self, ref: BlobRef) -> Path:
        """Return the file of a blob, from above if need be.

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
        return self._store.path(ref)

    async def _bring(self, ref: BlobRef) -> None:
        target = self._store.temporary()
        try:
            await self._fetch(ref, target)
            await asyncio.to_thread(self._store.adopt, target, ref)
        finally:
            await asyncio.to_thread(target.unlink, missing_ok=True)
        self._known[ref.sha256] = ref
        self._evict(keep=ref.sha256)

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
