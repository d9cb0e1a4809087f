"""The header of a ``.safetensors`` file: read with suspicion, written as the ``safetensors`` library does.

The format (https://github.com/huggingface/safetensors#format): the length of the header as a little-endian uint64; the
header, a JSON object that names dtype, shape and place of each tensor; the elements, little-endian in C order, one
tensor after the other without gaps.

The library itself is not used: it maps files into memory, and a map of a file that somebody cuts off ends the whole
process; and it reads slices along the first dimension only, while a model is to be read in blocks of equal size.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runnel.common.errors import BadModel
from runnel.common.tensors.schema import DTYPES, ModelSchema, TensorSpec
from runnel.common.tensors.zip_directory import MAX_MEMBERS

PREFIX_BYTES = 8

MAX_HEADER_BYTES = 1 << 23
"""Enough for some 80,000 tensors. The library's own limit is 100 MB, which takes gigabytes to parse."""

_METADATA = "__metadata__"
_BY_CODE: Mapping[str, str] = {
    "BOOL": "bool",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
}
_CODES = {dtype: code for code, dtype in _BY_CODE.items()}
# No honest header has more: two of each tensor, and what names and metadata may have.
_MOST_BRACKETS = 4 * MAX_MEMBERS
_ALIGN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a file says it holds.

    Attributes:
        schema: its tensors in the order in which the header names them.
        offsets: where the elements of each begin, in bytes from the start of the file.
    """

    schema: ModelSchema
    offsets: tuple[int, ...]


def refusal(source: str, what: str, *, tensor: str = "") -> BadModel:
    """Say that the file of ``source``, or a ``tensor`` in it, is not acceptable."""
    subject = f"its tensor {tensor!r:.200} {what}" if tensor else what
    return BadModel(
        f"The model of {source} cannot be read as .safetensors: {subject}.",
        hint="Write models with the safetensors library: save_file(tensors, path).",
        source=source,
        **({"tensor": tensor[:200]} if tensor else {}),
    )


def header_nbytes(prefix: bytes, *, file_nbytes: int, source: str) -> int:
    """Tell from the first :data:`PREFIX_BYTES` of a file how long its header is.

    Raises:
        BadModel: it is too short, or its header would be longer than the file or :data:`MAX_HEADER_BYTES`.
    """
    if prefix[:4] == b"PK\x03\x04":
        raise refusal(source, "it is a zip archive, such as an .npz")
    if len(prefix) < PREFIX_BYTES:
        raise refusal(source, f"it was cut off: it has {file_nbytes} bytes")
    nbytes = int(struct.unpack("<Q", prefix)[0])
    if nbytes > MAX_HEADER_BYTES:
        raise refusal(source, f"its header claims {nbytes} bytes; the limit is {MAX_HEADER_BYTES}")
    if nbytes > file_nbytes - PREFIX_BYTES:
        raise refusal(source, f"it was cut off: its header claims {nbytes} bytes and the file has {file_nbytes}")
    return nbytes


def parse_header(raw: bytes, *, file_nbytes: int, source: str) -> Header:
    """Parse a whole header.

    Args:
        raw: of :func:`header_nbytes` bytes.
        file_nbytes: of the whole file.
        source: whose it is, for messages.

    Raises:
        BadModel: it is no such header; a tensor is named twice, has a name, shape or dtype that models can't have, or
            lies about its size; or the tensors are not the rest of the file, one after the other.
    """
    if not raw.startswith(b"{"):
        raise refusal(source, "its header is no JSON object")
    if raw.count(b"{") + raw.count(b"[") > _MOST_BRACKETS:
        raise refusal(source, f"its header has more tensors than {MAX_MEMBERS}")
    try:
        document = json.loads(raw.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as e:  # not UTF-8 is a ValueError too
        raise refusal(source, "its header is no JSON object, or names something twice") from e
    document.pop(_METADATA, None)
    if not document:
        raise refusal(source, "it has no tensors")
    if len(document) > MAX_MEMBERS:
        raise refusal(source, f"it has {len(document)} tensors; the limit is {MAX_MEMBERS}")
    specs, places = [], []
    for name, entry in document.items():
        spec, begin = _entry(name, entry, source)
        specs.append(spec)
        places.append(begin)
    start = PREFIX_BYTES + len(raw)
    _require_gapless(specs, places, file_nbytes - start, source)
    return Header(schema=ModelSchema(tensors=tuple(specs)), offsets=tuple(start + begin for begin in places))


def make_header(schema: ModelSchema) -> tuple[bytes, Header]:
    """Return the bytes before the elements of a model, and where each tensor goes.

    The header names the tensors in the order of the schema. In the file those of wide elements come first, as the
    library does it, so that all are aligned.

    Raises:
        BadModel: a tensor has the name of the metadata, or the header is longer than others can read.
    """
    places, at = [0] * len(schema.tensors), 0
    for place, spec in sorted(enumerate(schema.tensors), key=lambda pair: -DTYPES[pair[1].dtype]):
        places[place], at = at, at + spec.nbytes
    document = {
        spec.name: {
            "dtype": _CODES[spec.dtype],
            "shape": spec.shape,
            "data_offsets": [begin, begin + spec.nbytes],
        }
        for spec, begin in zip(schema.tensors, places, strict=True)
    }
    if _METADATA in document:
        raise BadModel(f"A tensor of a .safetensors file can't be named {_METADATA!r}.", tensor=_METADATA)
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGN)
    if len(text) > MAX_HEADER_BYTES:
        raise BadModel(f"The header of this model would have {len(text)} bytes; the limit is {MAX_HEADER_BYTES}.")
    start = PREFIX_BYTES + len(text)
    return struct.pack("<Q", len(text)) + text, Header(schema=schema, offsets=tuple(start + begin for begin in places))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key appears twice")
    return document


def _entry(name: str, entry: object, source: str) -> tuple[TensorSpec, int]:
    """Return the tensor and where its elements begin."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise refusal(source, "is not described by dtype, shape and data_offsets", tensor=name)
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in _BY_CODE:
        raise refusal(source, f"has the dtype {code!r:.80}; accepted are {', '.join(_BY_CODE)}", tensor=name)
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise refusal(source, "has a shape or data_offsets that are no sizes", tensor=name)
    # A dimension of 0 must not hide one that no array could have.
    if math.prod(max(size, 1) for size in shape) > 1 << 48:
        raise refusal(source, "has a shape that is larger than any array", tensor=name)
    try:
        spec = TensorSpec(name=name, shape=tuple(shape), dtype=_BY_CODE[code])
    except BadModel as e:
        raise refusal(source, e.message.rstrip(".")) from e
    begin, end = offsets
    if end - begin != spec.nbytes:
        what = f"lies about its size: shape {list(spec.shape)} and dtype {code} take {spec.nbytes} bytes"
        raise refusal(source, f"{what}, data_offsets are {end - begin} apart", tensor=name)
    return spec, begin


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 1 << 62 for size in value)


def _require_gapless(specs: list[TensorSpec], places: list[int], nbytes: int, source: str) -> None:
    """Refuse bytes that belong to no tensor, or to two: somebody else might read another model from them."""
    at = 0
    for spec, begin in sorted(zip(specs, places, strict=True), key=lambda pair: (pair[1], pair[0].nbytes)):
        if begin != at:
            raise refusal(source, f"begins at byte {begin}, the one before it ends at {at}", tensor=spec.name)
        at += spec.nbytes
    if at != nbytes:
        raise refusal(source, f"its tensors take {at} bytes, and {nbytes} follow the header")
