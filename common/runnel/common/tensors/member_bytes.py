"""The bytes of one archive member as a stream that can't give more, less or others than the directory promised."""

from __future__ import annotations

import os
import zlib
from typing import Protocol

from isal import isal_zlib

from runnel.common.errors import BadModel
from runnel.common.tensors.zip_directory import Member, refusal

_PIECE_BYTES = 1 << 18


class MemberBytes(Protocol):
    """Reads a member from its first byte to its last."""

    def fill(self, view: memoryview) -> None:
        """Fill ``view`` (of bytes) with the next bytes; :class:`BadModel` if there are not as many."""
        ...

    def skip(self, nbytes: int) -> None:
        """Go on after the next ``nbytes`` bytes."""
        ...

    def finish(self) -> None:
        """Require that all bytes were read and that they are those of the CRC; :class:`BadModel` otherwise."""
        ...


class StoredBytes:
    """Bytes that lie in the file as they are. The CRC is only computed if ``check_crc``: it costs more than folding.

    Read with ``pread``, not through a memory map: a map of a file that somebody truncates ends the whole process.
    """

    def __init__(self, fd: int, member: Member, source: str, *, check_crc: bool = False) -> None:
        self._fd = fd
        self._member = member
        self._source = source
        self._at = 0
        self._crc: int | None = 0 if check_crc else None

    def fill(self, view: memoryview) -> None:
        """See :class:`MemberBytes`."""
        if self._at + len(view) > self._member.nbytes:
            raise _lies(self._member, self._source)
        filled = 0
        while filled < len(view):
            n = os.preadv(self._fd, [view[filled:]], self._member.offset + self._at + filled)
            if n == 0:
                raise refusal(self._source, "was cut off while it was read", member=self._member.key)
            filled += n
        self._at += filled
        if self._crc is not None:
            self._crc = isal_zlib.crc32(view, self._crc)

    def skip(self, nbytes: int) -> None:
        """See :class:`MemberBytes`."""
        if self._crc is None:
            self._at += nbytes
        else:
            self.fill(memoryview(bytearray(nbytes)))

    def finish(self) -> None:
        """See :class:`MemberBytes`."""
        if self._at != self._member.nbytes:
            raise _lies(self._member, self._source)
        if self._crc is not None and self._crc != self._member.crc:
            raise _damaged(self._member, self._source)


class HeldBytes:
    """Bytes of a small archive that was read whole. The CRC is only computed if ``check_crc``."""

    def __init__(self, data: bytes, member: Member, source: str, *, check_crc: bool = False) -> None:
        self._left = memoryview(data)[member.offset : member.offset + member.nbytes]
        self._member = member
        self._source = source
        self._is_whole = not check_crc or isal_zlib.crc32(self._left) == member.crc

    def fill(self, view: memoryview) -> None:
        """See :class:`MemberBytes`."""
        if len(view) > len(self._left):
            raise _lies(self._member, self._source)
        view[:] = self._left[: len(view)]
        self._left = self._left[len(view) :]

    def skip(self, nbytes: int) -> None:
        """See :class:`MemberBytes`."""
        self._left = self._left[nbytes:]

    def finish(self) -> None:
        """See :class:`MemberBytes`."""
        if self._left:
            raise _lies(self._member, self._source)
        if not self._is_whole:
            raise _damaged(self._member, self._source)


class DeflatedBytes:
    """Bytes that are inflated as they are asked for, in constant memory; the CRC is always checked."""

    def __init__(self, fd: int, member: Member, source: str) -> None:
        self._fd = fd
        self._member = member
        self._source = source
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        self._raw_at = 0
        self._at = 0
        self._crc = 0

    def fill(self, view: memoryview) -> None:
        """See :class:`MemberBytes`."""
        if self._at + len(view) > self._member.nbytes:
            raise _lies(self._member, self._source)
        filled = 0
        while filled < len(view):
            piece = self._next(len(view) - filled)
            if not piece:
                raise _lies(self._member, self._source)
            view[filled : filled + len(piece)] = piece
            filled += len(piece)
        self._at += filled
        self._crc = isal_zlib.crc32(view, self._crc)

    def skip(self, nbytes: int) -> None:
        """See :class:`MemberBytes`."""
        self.fill(memoryview(bytearray(nbytes)))

    def finish(self) -> None:
        """See :class:`MemberBytes`."""
        if self._at != self._member.nbytes or self._next(1) or not self._inflate.eof:
            raise _lies(self._member, self._source)
        if self._inflate.unused_data or self._raw_at != self._member.raw_nbytes:
            raise _lies(self._member, self._source)
        if self._crc != self._member.crc:
            raise _damaged(self._member, self._source)

    def _next(self, limit: int) -> bytes:
        """Return between 1 and ``limit`` bytes; none at the end of the compressed bytes."""
        while not self._inflate.eof:
            raw = self._inflate.unconsumed_tail or self._read_raw()
            try:
                piece = self._inflate.decompress(raw, limit)
            except zlib.error as e:
                raise _damaged(self._member, self._source) from e
            if piece or not raw:
                return piece
        return b""

    def _read_raw(self) -> bytes:
        wanted = min(_PIECE_BYTES, self._member.raw_nbytes - self._raw_at)
        raw = os.pread(self._fd, wanted, self._member.offset + self._raw_at)
        if wanted and not raw:
            raise refusal(self._source, "was cut off while it was read", member=self._member.key)
        self._raw_at += len(raw)
        return raw


def _lies(member: Member, source: str) -> BadModel:
    what = f"lies about its size: the directory says {member.nbytes} bytes, which is not what it holds"
    return refusal(source, what, member=member.key)


def _damaged(member: Member, source: str) -> BadModel:
    return refusal(source, "is damaged: its checksum does not match", member=member.key)
