"""Writing a model while the next of its blocks is computed."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from numpy.typing import NDArray

from runnel.common.tensors.npz_writer import NpzWriter

_BLOCKS_BEHIND = 8
_SMALL_BYTES = 64 << 10  # written in less time than the thread takes to wake


class BackgroundWriter:
    """Appends to a writer in a thread of its own, some blocks behind; use as a context manager inside the writer's.

    Checksums, digest and the copy into the page cache take about as long as the arithmetic of a reduction, and none of
    them needs the interpreter.

    Args:
        writer: nobody else uses it until :meth:`finish` or the end of the context.
        blocks_behind: how many blocks may wait.
    """

    def __init__(self, writer: NpzWriter, *, blocks_behind: int = _BLOCKS_BEHIND) -> None:
        self._writer = writer
        self._blocks_behind = blocks_behind
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="write")
        self._under_way: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=kind is not None)

    def append(self, block: NDArray[Any]) -> None:
        """Write the next elements soon; see :meth:`NpzWriter.append`.

        Args:
            block: must not be changed any more.

        Raises:
            StorageFull, InvalidInput: writing an earlier block failed.
        """
        if block.nbytes <= _SMALL_BYTES and not self._under_way:
            self._writer.append(block)
            return
        self._under_way.append(self._thread.submit(self._writer.append, block))
        while len(self._under_way) > self._blocks_behind:
            self._under_way.popleft().result()

    def finish(self) -> None:
        """Wait until all is written.

        Raises:
            StorageFull, InvalidInput: writing a block failed.
        """
        while self._under_way:
            self._under_way.popleft().result()
