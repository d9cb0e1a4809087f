"""Incoming payloads that may arrive in several goes."""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Callable
from pathlib import Path

from runnel.common.blobs.digests import checking_digest, update_digest
from runnel.common.blobs.early_sync import STEP_BYTES, EarlySync
from runnel.common.blobs.spares import Spares
from runnel.common.errors import CorruptData, IllegalState, StorageFull
from runnel.common.protocol import BlobRef
from runnel.common.storage import require_room, storage_errors, sync_file

_PARTIAL = ".part"
_WHOLE = ".whole"


class SpoolFile:
    """One payload under way, written from its start to its end and verified before it gets its final name.

    Not safe for two writers at once. ``write``, ``finish`` and ``drop`` block: call them in a thread for more than a
    few ten kilobytes. Between two writes the file may be left alone for any time, or for ever.

    Args:
        partial: where the bytes are collected; what is there already is taken up again.
        whole: the name that the file gets when length and digest are right.
        ref: what is to come; with an empty digest until :meth:`name`.
        verified: ``whole`` exists already and is right.
        durable: whether ``whole`` must outlive a loss of power; else only the death of this process.
        spares: what is begun is written over one of them. While that goes on the file is longer than what is held, so
            what a killed process left at ``partial`` can't be taken up again then.
        step_bytes: how much arrives of a durable payload before that is brought to the disk, beside what arrives next.
        wanted: whether somebody would still remove ``partial``; looked at when it is made or opened.
    """

    def __init__(
        self,
        *,
        partial: Path,
        whole: Path,
        ref: BlobRef,
        verified: bool = False,
        durable: bool = True,
        spares: Spares | None = None,
        step_bytes: int = STEP_BYTES,
        wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        self.ref = ref
        self.partial = partial
        self.whole = whole
        self._verified = verified
        self._durable = durable
        self._spares = spares
        self._step_bytes = step_bytes
        self._early = EarlySync(partial, step_bytes=step_bytes)
        self._is_wanted = wanted
        self._digest, self._wanted = checking_digest(ref)
        self._digested = 0
        self._file: io.FileIO | None = None
        self._written_over = False
        self._held = ref.size_bytes if verified else _size(partial)
        if self._held > ref.size_bytes:
            partial.unlink()
            self._held = 0

    @property
    def held(self) -> int:
        """Contiguous bytes from the start that are here."""
        return self._held

    @property
    def verified(self) -> bool:
        """Whether all is here and was found right."""
        return self._verified

    def require_room(self, besides_bytes: int = 0) -> None:
        """Look whether the rest fits on the disk; it blocks no longer than a directory entry.

        Args:
            besides_bytes: what is to fit besides, once the rest is here.

        Raises:
            StorageFull: it does not. What is here of it is dropped, for others may need the room.
        """
        try:
            require_room(self.partial, self.ref.size_bytes - self._held + besides_bytes)
        except StorageFull:
            self.drop()
            raise

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Append ``data``, whose first byte is at ``offset`` of the payload.

        Raises:
            CorruptData: ``offset`` is not ``held``, or the data goes beyond the announced length. Nothing is written.
            StorageFull: no room. What is on the disk is kept and counted in ``held``.
            IllegalState: it was forgotten before anything was written. Nothing is there.
        """
        if offset != self._held or offset + len(data) > self.ref.size_bytes:
            raise CorruptData(
                f"Expected bytes from {self._held:,} up to {self.ref.size_bytes:,} of blob {self.ref.name[:12]}…, "
                f"got {len(data):,} bytes at {offset:,}.",
                digest=self.ref.name,
            )
        if not data:
            return
        with storage_errors(self.partial, need_bytes=self.ref.size_bytes - self._held):
            file = self._opened()
            rest = memoryview(data)
            while rest:
                count = file.write(rest)
                self._digest.update(rest[:count])
                self._held += count
                self._digested = self._held
                rest = rest[count:]
            if self._durable and self._held < self.ref.size_bytes:
                self._early.appended(file.fileno(), len(data))

    def name(self, ref: BlobRef) -> None:
        """Say the digest of what came, which nobody knew when it began.

        Raises:
            CorruptData: it is not for so many bytes, or had a digest before.
        """
        if self.ref.name or ref.size_bytes != self.ref.size_bytes:
            raise CorruptData(
                f"A blob was announced with {self.ref.size_bytes:,} bytes and the digest {self.ref.name[:12]!r}, and"
                f" then named {ref.name[:12]}…, of {ref.size_bytes:,} bytes.",
                digest=ref.name,
            )
        self.whole = self.whole.with_name(self.whole.name.replace(_WHOLE, ref.name + _WHOLE))
        self.ref = ref
        fresh, self._wanted = checking_digest(ref)
        if type(fresh) is not type(self._digest):  # by a node of an earlier version: all is read again
            self._digest, self._digested = fresh, 0

    def finish(self) -> Path:
        """Verify length and digest, give the file its final name, return that. May be called again.

        Raises:
            CorruptData: they are not as announced. The file is dropped.
            StorageFull: no room.
            OSError: the disk failed. The file is dropped if that was found before its end.
        """
        if self._verified:
            return self.whole
        self._wait_for_early_sync()
        self.close()
        self._held = min(self._held, _size(self.partial))  # it may have been forgotten meanwhile
        if self._held != self.ref.size_bytes:
            held = self._held
            self.drop()
            raise CorruptData(
                f"Blob {self.ref.name[:12]}… was announced with {self.ref.size_bytes:,} bytes and ended after "
                f"{held:,}.",
                digest=self.ref.name,
            )
        with storage_errors(self.partial):
            if not self._digest_is_current() or not self.partial.exists():
                self._opened()
            self.close()
            found = self._digest.hexdigest()
            if found != self._wanted:
                self.drop()
                raise CorruptData(
                    f"A blob announced as {self._wanted} has the digest {found}.",
                    hint="It was damaged on the way or at its sender; it has to be sent again from its start.",
                    digest=self.ref.name,
                    found=found,
                )
            if self._durable:
                sync_file(self.partial)
            self.partial.replace(self.whole)
        self._verified = True
        return self.whole

    def drop(self) -> None:
        """Remove the file, whole or not."""
        self.close()
        self.partial.unlink(missing_ok=True)
        if self._verified:
            self.whole.unlink(missing_ok=True)
        self._verified = False
        self._held = self._digested = 0
        self._digest, _ = checking_digest(self.ref)
        self._early = EarlySync(self.partial, step_bytes=self._step_bytes)

    def close(self) -> None:
        """Let go of the open file, which is as long as what is held then; writing may go on later."""
        if self._file is not None:
            file, self._file = self._file, None
            with file:
                if self._written_over:
                    file.truncate(self._held)
            self._written_over = False

    def _wait_for_early_sync(self) -> None:
        try:
            with storage_errors(self.partial):
                self._early.wait()
        except (OSError, StorageFull):
            self.drop()
            raise

    def _opened(self) -> io.FileIO:
        if self._file is None:
            if not self._digest_is_current():
                self._digest, _ = checking_digest(self.ref)
                self._held = self._digested = update_digest(self._digest, self.partial)
            self.partial.parent.mkdir(parents=True, exist_ok=True)
            self._written_over = (
                self._held == 0 and self._spares is not None and self._spares.take(self.partial, self.ref.size_bytes)
            )
            self._file = io.FileIO(self.partial, "r+b" if self._written_over else "ab")
            # Now and not before: who forgets it from now on finds the file.
            if not self._is_wanted():
                self.drop()
                raise IllegalState(f"Blob {self.ref.name[:12]}… is not wanted any more: what it was for has ended.")
        return self._file

    def _digest_is_current(self) -> bool:
        """Whether the digest covers what is on the disk; not so for what another object has begun."""
        return self._digested == self._held == _size(self.partial)


class Spool:
    """A folder of payloads under way, each under a key of the caller's choice.

    Args:
        root: made if it does not exist. Partial files of an earlier process are kept and taken up again.
        durable: whether verified payloads must outlive a loss of power; else only the death of this process.
        reuse: payloads may be written over what is given to ``spares``; whoever says so wipes the folder first.

    ``spares``: takes payloads that nobody needs any more.
    """

    def __init__(self, root: Path, *, durable: bool = True, reuse: bool = False) -> None:
        self.root = root
        self.spares = Spares(root)
        self._durable = durable
        self._reuse = reuse
        with storage_errors(root):
            root.mkdir(parents=True, exist_ok=True)
        # File names carry key and digest, so that bytes of one payload are never continued with those of another.
        self._begun = {file.name.split("-")[0]: file for file in root.iterdir() if file.name.endswith(_PARTIAL)}

    def open(self, key: str, ref: BlobRef) -> SpoolFile:
        """Return the file for ``key``, with what is held of ``ref``; a partial file of another blob is dropped.

        What came under ``key`` without a digest, which nobody knew yet, is taken for the beginning of the next that has
        one: verified as a whole, it is that or nothing. What comes without a digest itself begins anew.

        Cheap: what is held is read again only with the first write.
        """
        hashed = _hashed(key)
        stem = f"{hashed}-{ref.name}"
        partial = self.root / (stem + _PARTIAL)
        whole = self.root / (stem + _WHOLE)
        earlier = self._begun.get(hashed)
        if earlier is not None and ref.name and earlier.name == f"{hashed}-{_PARTIAL}" and earlier.exists():
            earlier.replace(partial)
        elif earlier is not None and (earlier != partial or not ref.name):
            earlier.unlink(missing_ok=True)
        self._begun[hashed] = partial
        verified = bool(ref.name) and whole.exists() and _size(whole) == ref.size_bytes
        return SpoolFile(
            partial=partial,
            whole=whole,
            ref=ref,
            verified=verified,
            durable=self._durable,
            spares=self.spares if self._reuse else None,
            wanted=lambda: self._begun.get(hashed) == partial,
        )

    def forget(self, key: str) -> None:
        """Remove what is left of ``key`` that was not verified; who has it open from before begins no file any more."""
        hashed = _hashed(key)
        partial = self._begun.pop(hashed, None)
        if partial is not None:
            partial.unlink(missing_ok=True)

    def begun(self, key: str) -> str | None:
        """Return the digest of what is here under ``key`` and not verified, or None; empty: it is not known yet."""
        partial = self._begun.get(_hashed(key))
        return partial.stem.rpartition("-")[2] if partial is not None and partial.exists() else None

    def move(self, key: str, other: str) -> None:
        """Let what is here under ``key`` and not verified be that of ``other``, for which nothing is under way."""
        partial = self._begun.pop(_hashed(key), None)
        if partial is not None and partial.exists():
            place = self.root / f"{_hashed(other)}-{partial.stem.rpartition('-')[2]}{_PARTIAL}"
            partial.replace(place)
            self._begun[_hashed(other)] = place

    def wipe(self) -> None:
        """Remove everything, verified or not."""
        shutil.rmtree(self.root, ignore_errors=True)
        self._begun.clear()
        with storage_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)


def _hashed(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:40]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
