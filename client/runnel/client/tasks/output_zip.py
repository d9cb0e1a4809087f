"""What a run left in its folders as one ZIP archive: files only, as many and as large as the site lets out."""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from runnel.client.tasks.beneath import Found, files_beneath, open_beneath
from runnel.common.errors import BadOutput
from runnel.common.storage import storage_errors

_BLOCK_BYTES = 1 << 20
_NO_TIME = (1980, 1, 1, 0, 0, 0)


def write_zip(
    target: Path, sources: Iterable[tuple[Path, str, str]], *, most_bytes: int, most_files: int
) -> tuple[int, int]:
    """Write the regular files in ``sources`` to the archive ``target``; equal files give equal archives. Blocks.

    Args:
        target: a new file.
        sources: root folder, path of a file or folder below it (empty: the root), and what goes before the names of its
            files in the archive. What is below a root is not trusted. Of two files of one name the first counts.
        most_bytes: of all files together.
        most_files: files and folders together.

    Returns:
        How many files there are, and their bytes.

    Raises:
        BadOutput: there is more.
        StorageFull: no room.
    """
    files = size = 0
    with storage_errors(target), zipfile.ZipFile(target, "x", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for root, path, prefix in sources:
            with open_beneath(root, path) as single:
                if single is not None:
                    status = os.fstat(single.fileno())
                    found = Found(
                        path=PurePosixPath(), descriptor=single.fileno(), size_bytes=status.st_size, mode=status.st_mode
                    )
                    size += _add(archive, found, prefix, most_bytes - size)
                    files += 1
                    continue
            for each in files_beneath(root, path, most_files=most_files - files):
                size += _add(archive, each, prefix, most_bytes - size)
                files += 1
    return files, size


def _add(archive: zipfile.ZipFile, found: Found, prefix: str, left: int) -> int:
    name = os.fsencode(PurePosixPath(prefix) / found.path).decode(errors="replace")
    if name in archive.NameToInfo:
        return 0
    info = zipfile.ZipInfo(name, date_time=_NO_TIME)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = (stat.S_IFREG | (0o755 if found.mode & 0o111 else 0o644)) << 16
    size = 0
    # What a file says of its length may be a lie of many zeros: what is read counts.
    with archive.open(info, "w", force_zip64=True) as target:
        while block := os.read(found.descriptor, _BLOCK_BYTES):
            size += len(block)
            if size > left:
                raise BadOutput(
                    f"The run left more bytes of results than the site lets out, at {name}.", limit="output"
                )
            target.write(block)
    return size
