"""Global models at the client: the last few, each fetched once."""

from __future__ import annotations

import asyncio
import shutil
from collections import OrderedDict
from pathlib import Path

from runnel.client.package_cache import Fetch
from runnel.common.blobs import BlobStore
from runnel.common.protocol import BlobRef

_MODELS_KEPT = 2


class ModelCache:
    """The models that were used last; validating one round and training the next use the same file.

    Args:
        root: of their files; what an earlier process left there is removed, as nobody else ever would.
        fetch: brings a blob to a file and verifies it.
    """

    def __init__(self, root: Path, fetch: Fetch) -> None:
        shutil.rmtree(root, ignore_errors=True)
        self._models = BlobStore(root, durable=False)
        self._fetch = fetch
        self._used: OrderedDict[str, None] = OrderedDict()

    def has(self, ref: BlobRef) -> bool:
        """Whether :meth:`get` has nothing to fetch."""
        return self._models.has(ref)

    async def get(self, ref: BlobRef) -> Path:
        """Return a model's file.

        Raises:
            Unreachable, DeadlineExceeded, StorageFull: it could not be fetched.
        """
        if not self._models.has(ref):
            # Before, not after: the new one then comes into memory that the system has just got back, and does not wait
            # until that is cleared or, in a virtual machine, brought by its host.
            await self._drop_down_to(_MODELS_KEPT - 1)
            target = self._models.temporary()
            try:
                await self._fetch(ref, target)
                # Here and not in a thread: it renames a file, which takes less than the way to a thread and back.
                self._models.adopt(target, ref)
            except BaseException:
                await asyncio.to_thread(target.unlink, missing_ok=True)
                raise
        self._used[ref.sha256] = None
        self._used.move_to_end(ref.sha256)
        path = self._models.path(ref)
        await self._drop_down_to(_MODELS_KEPT)
        return path

    async def _drop_down_to(self, count: int) -> None:
        while len(self._used) > count:
            await asyncio.to_thread(self._models.delete, self._used.popitem(last=False)[0])
