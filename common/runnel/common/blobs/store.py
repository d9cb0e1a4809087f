"""A folder of files, each named by the SHA-256 of its bytes."""

from __future__ import annotations

import errno
import hashlib
import secrets
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

from runnel.common.blobs.digests import digest_file, is_sha256
from runnel.common.blobs.threads import in_thread
from runnel.common.errors import CorruptData, InvalidInput, NotFound, TooLarge
from runnel.common.protocol import BlobRef
from runnel.common.storage import storage_errors, sync_file


class BlobStore:
    """Content-addressed files below ``root``: ``root/ab/abcdef…``.

    A file appears under its name only when it is whole and, if ``durable``, on the disk. Methods that are not
    coroutines and read or write more than a directory entry (``adopt``, ``total_bytes``) block: call them in a thread.

    Args:
        root: made if it does not exist. Unfinished files of an earlier process in ``root/tmp`` are removed, so one
            folder belongs to one process at a time.
        durable: whether blobs must outlive this process and a loss of power. If not, this is a cache of what can be
            had again: it begins empty and never waits for the disk.

    Raises:
        StorageFull: the folders can't be made.
    """

    def __init__(self, root: Path, *, durable: bool = True) -> None:
        self.root = root
        self._durable = durable
        self._temporary = root / "tmp"
        with storage_errors(root):
            if not durable:
                shutil.rmtree(root, ignore_errors=True)
            root.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary.mkdir(exist_ok=True)

    def has(self, ref: BlobRef) -> bool:
        """Whether the whole blob is here."""
        return self.find(ref.sha256) == ref

    def path(self, ref: BlobRef) -> Path:
        """Return the file of ``ref``; it must not be changed.

        Raises:
            NotFound: it is not here, or what is here has another length.
        """
        if not self.has(ref):
            raise NotFound(
                f"No blob {ref.sha256} of {ref.size_bytes:,} bytes in {self.root}.",
                hint="It was deleted, or never stored here.",
                sha256=ref.sha256,
            )
        return self._place(ref.sha256)

    def find(self, sha256: str) -> BlobRef | None:
        """Return the blob with this digest (64 lower-case hex characters), or None.

        Raises:
            InvalidInput: ``sha256`` is not such a digest.
        """
        try:
            size = self._place(sha256).stat().st_size
        except FileNotFoundError:
            return None
        return BlobRef(sha256=sha256, size_bytes=size)

    def adopt(self, file: Path, ref: BlobRef | None = None) -> BlobRef:
        """Move ``file`` into the store and return its name. Doing it again with an equal file changes nothing.

        Args:
            file: a closed file that nobody writes to any more; afterwards it is gone from where it was.
            ref: its name if the caller has just verified it; else the file is read to find it.

        Raises:
            CorruptData: the length is not that of ``ref``; the file stays where it was.
            StorageFull: no room (the file was on another file system); the file stays where it was.
        """
        size = file.stat().st_size
        if ref is None:
            ref = digest_file(file)
        elif size != ref.size_bytes:
            raise CorruptData(
                f"{file.name} was announced with {ref.size_bytes:,} bytes and has {size:,}.", sha256=ref.sha256
            )
        place = self._place(ref.sha256)
        if self.has(ref):
            file.unlink()
            return ref
        with storage_errors(place, need_bytes=ref.size_bytes):
            place.parent.mkdir(exist_ok=True)
            if self._durable:
                sync_file(file)
            self._move(file, place)
            if self._durable:
                sync_file(place.parent)
        return ref

    def release(self, ref: BlobRef) -> Path:
        """Take a blob out of the store and return its file, which is the caller's now.

        Raises:
            NotFound: it is not here.
        """
        return self.path(ref).rename(self.temporary())

    def delete(self, sha256: str) -> bool:
        """Remove the blob; return whether it was there."""
        try:
            self._place(sha256).unlink()
        except FileNotFoundError:
            return False
        return True

    def total_bytes(self) -> int:
        """Return the sum of the lengths of all whole blobs."""
        return sum(
            file.stat().st_size
            for folder in self.root.iterdir()
            if folder.is_dir() and folder != self._temporary
            for file in folder.iterdir()
        )

    def temporary(self) -> Path:
        """Return a fresh name on the same file system; what is left there is removed at the next start."""
        return self._temporary / secrets.token_hex(16)

    async def put_stream(self, chunks: AsyncIterator[bytes], *, limit_bytes: int) -> BlobRef:
        """Store what ``chunks`` yields. On any failure, cancelling included, nothing is left behind.

        Raises:
            TooLarge: more than ``limit_bytes`` came; the rest is not asked for.
            StorageFull: no room.
        """
        partial = self.temporary()
        digest = hashlib.sha256()
        size = 0
        try:
            with storage_errors(partial):
                file = await in_thread(partial.open, "xb", buffering=0)
            with file:
                async for chunk in chunks:
                    size += len(chunk)
                    if size > limit_bytes:
                        raise TooLarge(
                            f"More than {limit_bytes:,} bytes came, which is the most that is taken here.",
                            limit_bytes=limit_bytes,
                        )
                    with storage_errors(partial, need_bytes=len(chunk)):
                        await in_thread(_write_and_digest, file, digest, chunk)
            return await in_thread(self.adopt, partial, BlobRef(sha256=digest.hexdigest(), size_bytes=size))
        finally:
            partial.unlink(missing_ok=True)

    def _place(self, sha256: str) -> Path:
        if not is_sha256(sha256):
            raise InvalidInput(f"A digest is 64 lower-case hex characters, not {sha256[:80]!r}.")
        return self.root / sha256[:2] / sha256

    def _move(self, file: Path, place: Path) -> None:
        try:
            file.replace(place)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            partial = self.temporary()
            try:
                shutil.copyfile(file, partial)
                sync_file(partial)
                partial.replace(place)
            finally:
                partial.unlink(missing_ok=True)
            file.unlink()


def _write_and_digest(file: object, digest: hashlib._Hash, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]  # type: ignore[attr-defined]
    digest.update(data)
