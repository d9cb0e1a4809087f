"""A blob that goes through a node: read from its file while that is still fetched."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from pathlib import Path

from runnel.common.errors import RunnelError, Unreachable
from runnel.common.protocol import BlobRef

KEPT_BACK_BYTES = 64 << 10
"""The end of a blob, which nobody gets before all of it is verified."""

_ANEW = "begin_anew"


class RelayedBlob:
    """What is here of a blob since its fetch began, or began anew last. For the event loop only.

    Nobody gets its end before all of it is verified, so nobody takes for whole what the fetch brought wrong.
    """

    def __init__(self, ref: BlobRef) -> None:
        self._ref = ref
        self._held = 0
        self._whole = False
        self._error: BaseException | None = None
        self._handle: int | None = None
        self._users = 0
        self._changed = asyncio.Event()

    @contextmanager
    def used(self) -> Iterator[RelayedBlob]:
        """While the block runs the file stays open, whatever becomes of its name."""
        self._users += 1
        try:
            yield self
        finally:
            self._users -= 1
            if not self._users and self._handle is not None:
                os.close(self._handle)
                self._handle = None

    @property
    def handle(self) -> int:
        """The open file, to be read up to where :meth:`reached` says, which has returned before."""
        assert self._handle is not None
        return self._handle

    async def reached(self, offset: int) -> int:
        """Wait until there is something to read from ``offset`` on, or all of it; return up to where.

        Raises:
            Unreachable: it is not whole and does not grow any more. If it begins anew :func:`begins_anew` tells so of
                the error: what was read is to be dropped.
            RunnelError: why it can't be had.
        """
        while True:
            if self._error is not None:
                raise copy(self._error)  # each reader's own: it keeps what those it goes through hold
            if self._whole:
                return self._ref.size_bytes
            readable = min(self._held, self._ref.size_bytes - KEPT_BACK_BYTES)
            if offset < readable:
                return readable
            await self._changed.wait()

    def grow(self, file: Path, held: int) -> None:
        """So many bytes are in ``file``."""
        if self._handle is None:
            self._handle = os.open(file, os.O_RDONLY)
        self._held = held
        self._wake()

    def end(self, error: BaseException | None) -> None:
        """It is whole and verified, or will never be."""
        self._whole, self._error = error is None, error
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


class Relay:
    """Told by who fetches a blob; gives it to those who read it meanwhile. For the event loop only.

    Args:
        ref: the blob.
    """

    def __init__(self, ref: BlobRef) -> None:
        self._ref = ref
        self._begin()

    @property
    def blob(self) -> RelayedBlob:
        """What is here now."""
        return self._blob

    def grow(self, file: Path, held: int) -> None:
        """So many bytes, from the start of the blob on, are in ``file``, to which the next ones are appended."""
        self._blob.grow(file, held)

    def begin_anew(self) -> None:
        """What came is dropped, and those who read it are told to do so too; what comes next is the start again."""
        self._end(
            Unreachable(
                f"What came of blob {self._ref.sha256[:12]}… was damaged; it is fetched again.",
                hint="Drop what is here of it and ask for it again, from its start.",
                **{_ANEW: True},
            )
        )
        self._begin()

    def finish(self, file: Path) -> None:
        """All of the blob is in ``file``, verified."""
        self._blob.grow(file, self._ref.size_bytes)
        self._end(None)

    def fail(self, error: BaseException) -> None:
        """It can't be had."""
        self._end(error)

    def _begin(self) -> None:
        self._blob = RelayedBlob(self._ref)
        self._use = self._blob.used()
        self._use.__enter__()

    def _end(self, error: BaseException | None) -> None:
        self._blob.end(error)
        self._use.__exit__(None, None, None)


def begins_anew(error: RunnelError) -> bool:
    """Whether what is here of a blob that was being fetched is to be dropped: it was damaged before it came there."""
    return error.fields.get(_ANEW) is True
