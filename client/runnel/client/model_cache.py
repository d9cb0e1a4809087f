"""Global models at the client: the last few, each fetched once."""

from __future__ import annotations

import asyncio
import shutil
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from runnel.common.blobs import LEAST_SPARE_BYTES, BlobStore, Readers, Spares, by_size
from runnel.common.protocol import BlobRef

Fetch = Callable[[BlobRef, Path, Spares], Awaitable[None]]

_MODELS_KEPT = 2


class ModelCache:
    """The models that were used last; validating one round and training the next use the same file.

    Args:
        root: of their files; what an earlier process left there is removed, as nobody else ever would.
        fetch: brings a blob to a file, which may be written over a spare one, and verifies it.
    """

    def __init__(self, root: Path, fetch: Fetch) -> None:
        shutil.rmtree(root, ignore_errors=True)
        self._models = BlobStore(root, durable=False)
        self._fetch = fetch
        self._used: OrderedDict[str, BlobRef] = OrderedDict()
        self._readers = Readers()
        self._spares = Spares(self._models.temporary().parent)

    def has(self, ref: BlobRef) -> bool:
        """Whether :meth:`get` has nothing to fetch."""
        return self._models.has(ref)

    @contextmanager
    def reading(self, ref: BlobRef) -> Iterator[None]:
        """While the block runs, the file that :meth:`get` gives may be dropped, and is not written over."""
        with self._readers.reading(ref):
            yield

    async def get(self, ref: BlobRef) -> Path:
        """Return a model's file.

        Raises:
            Unreachable, DeadlineExceeded, StorageFull: it could not be fetched.
        """
        if not self._models.has(ref):
            # Before, not after: the new one is then written over the oldest.
            await self._drop_down_to(_MODELS_KEPT - 1)
            target = self._models.temporary()
            try:
                await self._fetch(ref, target, self._spares)
                # Here and not in a thread: it renames a file, which takes less than the way to a thread and back.
                self._models.adopt(target, ref)
            except BaseException:
                await asyncio.to_thread(target.unlink, missing_ok=True)
                raise
        self._used[ref.sha256] = ref
        self._used.move_to_end(ref.sha256)
        path = self._models.path(ref)
        await self._drop_down_to(_MODELS_KEPT)
        return path

    async def _drop_down_to(self, count: int) -> None:
        while len(self._used) > count:
            sha256, ref = self._used.popitem(last=False)
            if ref.size_bytes >= LEAST_SPARE_BYTES and self._models.has(ref) and sha256 not in self._readers:
                await self._spares.spend(self._models.release(ref))
            else:
                await by_size(ref.size_bytes, self._models.delete, sha256)
