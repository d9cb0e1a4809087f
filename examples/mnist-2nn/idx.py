"""Reading MNIST's own files: IDX, gzipped or not."""

import gzip
import math
import struct
from pathlib import Path

import numpy as np

_UINT8 = 0x08


def read_idx(path):
    """Return the array in an IDX file of bytes: uint8, with the shape that its header states.

    Raises:
        ValueError: it is no such file, or shorter or longer than its header says; the file is named.
    """
    raw = Path(path).read_bytes()
    if raw[:2] == b"\x1f\x8b":
        raw = gzip.decompress(raw)
    if len(raw) < 4 or raw[0] or raw[1] or raw[2] != _UINT8:
        raise ValueError(
            f"{path} should be an IDX file of bytes (magic 00 00 08 ..) but begins with {raw[:4].hex(' ')}"
        )
    header = 4 + 4 * raw[3]
    if len(raw) < header:
        raise ValueError(f"{path} ends within its header")
    shape = struct.unpack_from(f">{raw[3]}I", raw, 4)
    if len(raw) - header != math.prod(shape):
        raise ValueError(f"{path} should have {shape} bytes behind its header but has {len(raw) - header}")
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def read_part(folder, part):
    """Return images uint8[n, 784] and labels uint8[n] of ``part`` ("train" or "t10k") from the files in ``folder``."""
    images, labels = (read_idx(_find(folder, f"{part}-{kind}")) for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))
    if len(images) != len(labels):
        raise ValueError(f"{folder} has {len(images)} images but {len(labels)} labels in its {part} files")
    return images.reshape(len(images), -1), labels


def _find(folder, name):
    for candidate in (Path(folder) / name, Path(folder) / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"there is neither {name} nor {name}.gz in {folder}")
