"""What the containers of a run print: kept as bytes in two files, bounded, and told line by line."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from runnel.client.runtimes.log_capture import LogCapture
from runnel.client.tasks.contract import STDERR, STDOUT

_CUT = "\n… (what was printed beyond {most:,} bytes was not kept)\n"


class PrintedFiles:
    """The files ``stdout`` and ``stderr`` of one container; a context manager that has them open.

    A container prints as fast as it likes; what is read is written here at once and on the event loop, which for the
    few kilobytes that a pipe holds costs less than a thread would. Beyond ``most_bytes`` nothing is written any more.

    Args:
        folder: where they are made.
        most_bytes: of each.
    """

    def __init__(self, folder: Path, *, most_bytes: int) -> None:
        self._folder = folder
        self._most = most_bytes
        self._files: dict[str, BinaryIO] = {}
        self._left = {STDOUT: most_bytes, STDERR: most_bytes}

    def __enter__(self) -> Self:
        for name in self._left:
            self._files[name] = (self._folder / name).open("wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, file in self._files.items():
            if self._left[name] < 0:
                file.write(_CUT.format(most=self._most).encode())
            file.close()

    def write(self, stream: str, data: bytes) -> None:
        """Keep the next bytes of ``stream``."""
        left = self._left[stream]
        if left > 0:
            self._files[stream].write(data[:left])
        self._left[stream] = max(-1, left - len(data))


class TaskCapture:
    """Takes what one container prints; see :class:`runnel.client.runtimes.docker_container.Capture`.

    Args:
        files: of the same container; they have more than the lines that are told.
        lines: takes the same.
    """

    def __init__(self, files: PrintedFiles, lines: LogCapture) -> None:
        self._files = files
        self._lines = lines

    @property
    def tail(self) -> str:
        """The last lines."""
        return self._lines.tail

    def feed(self, stream: str, data: bytes) -> None:
        """Take the next bytes of ``stream``."""
        self._files.write(stream, data)
        self._lines.feed(stream, data)

    def close(self) -> None:
        """Nothing more comes."""
        self._lines.close()
