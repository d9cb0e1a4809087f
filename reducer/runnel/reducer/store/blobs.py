"""What the reducer has as files: models, packages, states of optimizers, and payloads that wait for their round."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType
from typing import Protocol

import structlog

from runnel.common.blobs import BlobStore, Spares
from runnel.common.errors import NotFound
from runnel.common.protocol import BlobRef

log = structlog.get_logger()


class Blobs(Protocol):
    """Files that must last, wherever they last; an async context manager.

    They are made and worked on as local files: in ``files``, and payloads in a folder of the caller's. Before a
    transaction that names a file commits, :meth:`keep` or :meth:`keep_payload` makes it last. Who reads a blob does so
    within :meth:`held`.

    All coroutines raise :class:`~runnel.common.errors.Unreachable` when the place where files last does not answer.
    """

    @property
    def files(self) -> BlobStore:
        """Where new blobs are made and adopted; others that are here may be gone when they are not held."""

    async def __aenter__(self) -> Blobs: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def keep(self, *digests: str) -> None:
        """Make blobs last that were adopted by ``files``. Doing it again changes nothing.

        Raises:
            NotFound: one is gone: an equal one, of elsewhere, was deleted meanwhile.
        """

    def lasts(self, *digests: str) -> bool:
        """Tell whether blobs that were just kept have not been deleted since, as another's equal ones."""

    def held(self, ref: BlobRef) -> AbstractAsyncContextManager[Path]:
        """Give the file of a blob, which stays while the block runs and must not be changed.

        Raises:
            NotFound: there is no such blob.
            CorruptData: it is not what was stored.
            StorageFull: no room for it here.
        """

    async def find(self, sha256: str) -> BlobRef | None:
        """Return the blob with this digest, or None."""

    async def delete(self, sha256: str) -> bool:
        """Remove a blob for good; return whether it was there."""

    async def discard(self, sha256: str) -> None:
        """Remove a blob that was adopted by ``files`` and found to be of no use; what was kept stays."""

    async def total_bytes(self) -> int:
        """Return the sum of the lengths of all blobs that last."""

    async def keep_payload(self, file: Path) -> None:
        """Make a payload last; its name is its identity."""

    async def bring_payload(self, file: Path) -> None:
        """Make sure that a payload that was kept is at ``file``.

        Raises:
            NotFound: it was not kept.
            CorruptData: it is not what was stored.
        """

    async def drop_payloads(self, *files: Path) -> None:
        """Remove payloads that are not wanted any more. What can't be removed now is removed at the next start."""

    async def sweep_payloads(self, folder: Path, wanted: Collection[str]) -> None:
        """Remove all payloads but those with the names ``wanted``, as a reducer does at its start."""


class FolderBlobs:
    """See :class:`Blobs`: everything lasts where it is made, on the disk of the state folder.

    Args:
        files: all blobs.
        spares: what payloads become that are not wanted any more; None: they are removed.
    """

    def __init__(self, files: BlobStore, spares: Spares | None = None) -> None:
        self.files = files
        self._spares = spares

    async def __aenter__(self) -> FolderBlobs:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    async def keep(self, *digests: str) -> None:
        """Do nothing: what is adopted lasts."""

    def lasts(self, *digests: str) -> bool:
        """Tell whether the blobs are here."""
        return all(self.files.find(digest) is not None for digest in digests)

    @contextlib.asynccontextmanager
    async def held(self, ref: BlobRef) -> AsyncIterator[Path]:
        """Give the file of a blob."""
        yield self.files.path(ref)

    async def find(self, sha256: str) -> BlobRef | None:
        """Return the blob with this digest, or None."""
        return self.files.find(sha256)

    async def delete(self, sha256: str) -> bool:
        """Remove a blob; who has its file open reads on."""
        return await asyncio.to_thread(self.files.delete, sha256)

    async def discard(self, sha256: str) -> None:
        """Remove a blob of no use."""
        await asyncio.to_thread(self.files.delete, sha256)

    async def total_bytes(self) -> int:
        """Return the sum of the lengths of all blobs."""
        return await asyncio.to_thread(self.files.total_bytes)

    async def keep_payload(self, file: Path) -> None:
        """Do nothing: it was written to last."""

    async def bring_payload(self, file: Path) -> None:
        """Look that it is there."""
        if not file.exists():  # noqa: ASYNC240 - a look at one local file takes less than the way to a thread
            raise NotFound(
                f"The payload {file.name} that was kept for this round is gone.",
                hint="Resume the session: the round is trained again.",
            )

    async def drop_payloads(self, *files: Path) -> None:
        """Remove payloads that are not wanted any more, or let them be spares."""
        if self._spares is None:
            await asyncio.to_thread(unlink_all, files)
        else:
            await self._spares.spend(*files)

    async def sweep_payloads(self, folder: Path, wanted: Collection[str]) -> None:
        """Remove all payloads but those that are ``wanted``."""
        await asyncio.to_thread(unlink_others, folder, wanted)


def unlink_all(files: Collection[Path]) -> None:
    """Remove files; what can't be removed is logged and stays."""
    for file in files:
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            log.warning("file not removed", file=str(file), error=str(error))


def unlink_others(folder: Path, wanted: Collection[str]) -> None:
    """Remove what is in ``folder`` but not ``wanted``."""
    folder.mkdir(parents=True, exist_ok=True)
    unlink_all([file for file in folder.iterdir() if file.name not in wanted])
