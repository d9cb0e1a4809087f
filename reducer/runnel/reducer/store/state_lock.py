"""One reducer for one state folder."""

from __future__ import annotations

import fcntl
from pathlib import Path
from types import TracebackType
from typing import IO

from runnel.common.errors import Conflict


class StateLock:
    """Holds a lock on the state folder for as long as the process lives, however it ends; a context manager.

    Raises:
        Conflict: another process has it.
    """

    def __init__(self, state: Path) -> None:
        self._path = state / "lock"
        self._file: IO[str] | None = None

    def __enter__(self) -> StateLock:
        file = self._path.open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            file.close()
            raise Conflict(
                f"Another reducer serves the state folder {self._path.parent}.",
                hint="Stop it first, or give this one another --state.",
            ) from err
        self._file = file
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
