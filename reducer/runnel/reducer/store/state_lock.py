"""One reducer for one state folder and for one SQLite file."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO

from runnel.common.errors import Conflict


class StateLock:
    """Holds a lock file for as long as the process lives, however it ends; a context manager.

    The file tells people who holds it; what counts is the lock of the operating system, not the content.

    Args:
        state: the folder in which the lock lies.
        name: of the lock file.
        what: is locked, for the message; None: the state folder.

    Raises:
        Conflict: another process has it; host, process and time are named.
    """

    def __init__(self, state: Path, *, name: str = "lock", what: str | None = None) -> None:
        self._path = state / name
        self._what = what or f"the state folder {state}"
        self._file: IO[str] | None = None

    def __enter__(self) -> StateLock:
        # Not emptied when it is opened: it may be another's.
        file = self._path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            file.seek(0)
            holder = _described(file.read(1000))
            file.close()
            raise Conflict(
                f"Another reducer{holder} serves {self._what}.",
                hint="Stop it first, or give this one another --state.",
            ) from err
        self._file = file
        since = datetime.now(UTC).isoformat(timespec="seconds")
        # A full disk must not keep a reducer from starting: who holds the lock is only said for people.
        with contextlib.suppress(OSError):
            file.truncate(0)
            file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": since}))
            file.flush()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _described(text: str) -> str:
    try:
        holder = json.loads(text)
        return f" (process {holder['pid']} on {holder['host']}, since {holder['since']})"
    except (ValueError, KeyError, TypeError):
        return ""  # it was locked a moment ago and is about to be written
