"""Zstandard (RFC 8878) over a whole file: nothing is lost, and no frame unpacks to more than is wanted."""

from __future__ import annotations

from pathlib import Path

import zstandard

from runnel.common.errors import BadModel
from runnel.common.tensors import AtomicFile

_LEVEL = 3
_PIECE_BYTES = 1 << 18
MAX_WINDOW_BYTES = 1 << 23
"""What RFC 8878 asks every decoder to support; the level used here needs a quarter of it."""


def compress_file(source: Path, target: Path) -> None:
    """Write ``source`` as one frame with a checksum to ``target``, which is replaced.

    Raises:
        StorageFull: no room.
    """
    with source.open("rb") as read, AtomicFile(target) as out:
        writer = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compressobj(size=source.stat().st_size)
        while piece := read.read(_PIECE_BYTES):
            out.write(writer.compress(piece))
        out.write(writer.flush())
        out.commit()


def decompress_file(source: Path, target: Path, *, max_bytes: int, sender: str) -> None:
    """Write what the frame ``source`` holds to ``target``, which is replaced.

    Args:
        source: one frame, from anybody.
        target: whole or not there.
        max_bytes: what it may hold at most.
        sender: whose it is, for messages.

    Raises:
        BadModel: it is no such frame, or a damaged one, or it holds more, or asks for more memory than
            :data:`MAX_WINDOW_BYTES`. A frame that was cut off is for the reader of ``target`` to find out.
        StorageFull: no room.
    """
    with source.open("rb") as read, AtomicFile(target) as out:
        unpacker = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).stream_reader(
            read, read_size=_PIECE_BYTES
        )
        left = max_bytes
        try:
            # Never more than one piece at once, however many bytes of input it comes of.
            while piece := unpacker.read(_PIECE_BYTES):
                left -= len(piece)
                if left < 0:
                    raise BadModel(
                        f"The compressed update of {sender} unpacks to more than {max_bytes:,} bytes, the most that an"
                        " update of this model can have.",
                        source=sender,
                    )
                out.write(piece)
        except zstandard.ZstdError as error:
            raise BadModel(
                f"The compressed update of {sender} is no zstd frame, or is damaged: {error}.", source=sender
            ) from error
        out.commit()
