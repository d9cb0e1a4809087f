"""Opening files that strangers left behind."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from pathlib import Path
from typing import BinaryIO


class IrregularFile(ValueError):
    """There is a folder, pipe, socket or device where a file should be."""


def open_bytes(data: bytes) -> BinaryIO:
    """Return ``data`` as an open file that has no name: in memory, where the system has such files."""
    file: BinaryIO
    if hasattr(os, "memfd_create"):
        file = os.fdopen(os.memfd_create("model", os.MFD_CLOEXEC), "w+b")
    else:
        file = tempfile.TemporaryFile()  # noqa: SIM115 (the caller closes it)
    file.write(data)
    file.seek(0)
    return file


def open_regular(path: Path) -> BinaryIO:
    """Open ``path`` for reading, only if it is a regular file; a pipe of that name can't hold the caller up.

    Raises:
        IrregularFile: it is something else.
        OSError: it is not there or not readable.
    """
    try:
        # A blocking open of a pipe would wait for somebody to write to it.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as e:
        if e.errno != errno.ENXIO:  # what opening a socket gives
            raise
        raise IrregularFile(str(path)) from e
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise IrregularFile(str(path))
    return os.fdopen(fd, "rb")
