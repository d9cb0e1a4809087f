"""Blobs in a folder, with what may happen to those in a bucket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from runnel.common.blobs import BlobStore
from runnel.common.errors import NotFound
from runnel.common.protocol import BlobRef
from runnel.reducer.store.blobs import FolderBlobs


class FaultyBlobs(FolderBlobs):
    """Of the next ``vanishing`` blobs that are to be kept each is gone, as if an equal one was just deleted; calls
    ``before_held`` with each that somebody is to work with.
    """

    def __init__(self, files: BlobStore) -> None:
        super().__init__(files)
        self.vanishing = 0
        self.before_held: Callable[[BlobRef], Awaitable[None]] = _nothing

    async def keep(self, *digests: str) -> None:
        for digest in digests:
            if self.vanishing:
                self.vanishing -= 1
                self.files.delete(digest)
                raise NotFound(f"There is no blob {digest} to keep.", sha256=digest)
        await super().keep(*digests)

    @asynccontextmanager
    async def held(self, ref: BlobRef) -> AsyncIterator[Path]:
        await self.before_held(ref)
        async with super().held(ref) as file:
            yield file


async def _nothing(_ref: BlobRef) -> None:
    """Do nothing."""
