"""The header of a ``.npy`` file: read with suspicion, written the same by every numpy."""

from __future__ import annotations

import io
import math
import tokenize
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.lib import format as npy_format

from runnel.common.tensors.dtypes import BFLOAT16, numpy_dtype
from runnel.common.tensors.schema import DTYPES, MAX_DIMENSIONS, TensorSpec

PREFIX_BYTES = 12
"""Enough to know how long the header is."""

_MAX_HEADER_BYTES = 1 << 14
_ALIGN = 64
_REMEMBERED, _REMEMBERED_BYTES = 4096, 256


class HeaderFault(ValueError):
    """What is wrong with a header, as the end of a sentence; the reader adds whose it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NpyHeader:
    """What stands before the elements of a member.

    ``nbytes``: length of the header itself. ``dtype``: as stored, in any byte order. ``fortran``: whether the elements
    are in column-major order and there are two dimensions or more, so that it matters.
    """

    nbytes: int
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool

    @property
    def data_nbytes(self) -> int:
        """Bytes of the elements."""
        return math.prod(self.shape) * self.dtype.itemsize


def header_nbytes(prefix: bytes) -> int:
    """Tell from the first :data:`PREFIX_BYTES` of a member how long its header is, or raise :class:`HeaderFault`."""
    if len(prefix) < PREFIX_BYTES or prefix[:6] != b"\x93NUMPY":
        raise HeaderFault("is no .npy array (no magic bytes)")
    version = (prefix[6], prefix[7])
    if version == (1, 0):
        nbytes = 10 + int.from_bytes(prefix[8:10], "little")
    elif version == (2, 0):
        nbytes = 12 + int.from_bytes(prefix[8:12], "little")
    else:
        raise HeaderFault(f"is a .npy array of version {version[0]}.{version[1]}; known are 1.0 and 2.0")
    if nbytes > _MAX_HEADER_BYTES:
        raise HeaderFault(f"has a .npy header of {nbytes} bytes; the limit is {_MAX_HEADER_BYTES}")
    return nbytes


def parse_header(raw: bytes) -> NpyHeader:
    """Parse a whole header of :func:`header_nbytes` bytes, or raise :class:`HeaderFault`.

    Only plain numbers and booleans pass. Nothing is ever unpickled: the header is a literal, and a dtype with objects
    is refused by its name.
    """
    return _parse_again(raw) if len(raw) <= _REMEMBERED_BYTES else _parse(raw)


def _parse(raw: bytes) -> NpyHeader:
    # No accepted header has an "L" or a backslash. Python 2 wrote "3L", for which numpy warns and parses a second time.
    if b"L" in raw[PREFIX_BYTES:] or b"\\" in raw:
        raise HeaderFault("has a .npy header that Python 2 wrote, or a malformed one")
    stream = io.BytesIO(raw)
    version = npy_format.read_magic(stream)
    read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
    try:
        shape, fortran, dtype = read(stream)
    except (ValueError, TypeError, SyntaxError, OverflowError, RecursionError, MemoryError) as e:
        raise HeaderFault("has a malformed .npy header") from e
    except (tokenize.TokenError, Warning) as e:
        raise HeaderFault("has a malformed .npy header") from e
    if dtype.hasobject:
        raise HeaderFault("holds Python objects, which only pickle could read, and pickle is never used")
    if dtype.str == "|V2" and dtype.names is None and dtype.subdtype is None and b"'>V2'" not in raw:
        dtype = numpy_dtype(BFLOAT16)  # what numpy makes of arrays of ml_dtypes.bfloat16
    elif dtype.name not in DTYPES or dtype.kind not in "biuf":
        raise HeaderFault(f"has the dtype {dtype.name}; accepted are {', '.join(DTYPES)}")
    if len(shape) > MAX_DIMENSIONS or any(isinstance(d, bool) or d < 0 for d in shape):
        raise HeaderFault(f"has the shape {shape}; up to {MAX_DIMENSIONS} dimensions of 0 or more are possible")
    # A dimension of 0 must not hide one that no array could have.
    if math.prod(max(d, 1) for d in shape) > 1 << 48:
        raise HeaderFault(f"has the shape {shape}, which is larger than any array")
    return NpyHeader(nbytes=len(raw), shape=tuple(shape), dtype=dtype, fortran=fortran and len(shape) > 1)


# All models of a session have the same headers, and Python's parser takes longer over one than all else that is done
# about a small array.
_parse_again = lru_cache(maxsize=_REMEMBERED)(_parse)


def write_header(spec: TensorSpec) -> bytes:
    """Return the version 1.0 header of ``spec`` in C order, little-endian, a multiple of 64 bytes long.

    Made here and not by numpy, whose padding has changed between releases: equal models have equal digests on all
    sites of a network.

    >>> write_header(TensorSpec(name="w", shape=(3,), dtype="float32"))[10:].strip()
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }"
    """
    descr = "<V2" if spec.dtype == BFLOAT16 else np.dtype(spec.dtype).newbyteorder("<").str
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {spec.shape!r}, }}".encode("latin-1")
    padding = -(10 + len(text) + 1) % _ALIGN
    return b"\x93NUMPY\x01\x00" + (len(text) + padding + 1).to_bytes(2, "little") + text + b" " * padding + b"\n"
