"""Small files that are either whole or not there: atomic writes, durable as a rule, and JSON on top of them.

All functions block for as long as the disk takes; on an event loop call them through ``asyncio.to_thread``.
"""

from __future__ import annotations

import json
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

from runnel.common.errors import BadSettings, CorruptData, NotFound
from runnel.common.storage import storage_errors


def write_bytes(path: Path, data: bytes, *, mode: int = 0o644, durable: bool = True) -> None:
    """Replace ``path`` by a file of exactly ``data``; a crash at any moment leaves the old file or the new one.

    Args:
        path: where; its folder exists.
        data: all of it; this is meant for files of kilobytes.
        mode: permission bits of the file, less the umask. The content never exists under wider ones.
        durable: wait until it is on the disk. If not, the above holds for crashes of this process only: after a loss of
            power the file may be torn or missing.

    Raises:
        StorageFull: no room in the folder; the old file is untouched.
        OSError: anything else that the operating system refuses.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with storage_errors(path, need_bytes=len(data)):
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            with open(descriptor, "wb") as file:  # noqa: PTH123 (a descriptor, not a path)
                file.write(data)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            beside.replace(path)
        except BaseException:
            with suppress(FileNotFoundError):
                beside.unlink()
            raise
        if durable:
            sync_folder(path.parent)


def state_folder(path: Path) -> Path:
    """Make the folder ``path`` for the state of a component, if it is not there, and return it.

    Raises:
        BadSettings: it can't be made, is no folder, or nothing can be written in it.
        StorageFull: no room for it.
    """
    try:
        with storage_errors(path):
            path.mkdir(parents=True, exist_ok=True)
            probe = path / f".{secrets.token_hex(4)}.probe"
            probe.touch()
            probe.unlink()
    except OSError as error:
        raise BadSettings(
            f"The state folder {path} can't be used: {error.strerror or error}.",
            hint="Choose another --state, or let this user write there.",
            key="state",
            path=str(path),
        ) from error
    return path


def sync_folder(folder: Path) -> None:
    """Make renames and removals in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: object, *, mode: int = 0o644, durable: bool = True) -> None:
    """Replace ``path`` by ``value`` as JSON (UTF-8, one line), in the way of :func:`write_bytes`.

    Raises:
        ValueError: a number in it is NaN or infinite, which JSON does not know.
        TypeError: something in it has no form in JSON.
        StorageFull: no room in the folder.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    write_bytes(path, f"{text}\n".encode(), mode=mode, durable=durable)


def read_json(path: Path) -> Any:
    """Return what the JSON file ``path`` holds.

    Raises:
        NotFound: there is no such file.
        CorruptData: it is not JSON; line and column are named.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise NotFound(f"There is no file {path}.", path=str(path)) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CorruptData(
            f"{path} should hold JSON but does not: {error}.",
            hint="It was changed by hand or by another program; restore or remove it.",
            path=str(path),
        ) from error
