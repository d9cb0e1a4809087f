"""From one model format to another, in blocks and bit for bit.

What is kept: the name, shape, dtype and bytes of each tensor. What is not: the free text that a ``.safetensors`` file
may have under ``__metadata__``, compression, memory order and byte order of an ``.npz``. Names are the keys of the
archive without ``.npy``, and the keys of the header; :func:`numbered` and :func:`named` change them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from runnel.common.errors import BadModel
from runnel.common.model_format import ModelFormat
from runnel.common.tensors.npz import DEFAULT_MAX_BYTES, NpzModel, magnitude, open_npz
from runnel.common.tensors.npz_writer import NpzWriter, normalise
from runnel.common.tensors.safetensors import SafetensorsModel, SafetensorsWriter, open_safetensors
from runnel.common.tensors.schema import ModelSchema

_NUMBERED = re.compile(r"(?:arr_)?(0|[1-9][0-9]{0,8})")
_SNIFFED_BYTES = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """Which tensors of a file make a model: ``places`` in its own schema, in the order of ``schema``."""

    schema: ModelSchema
    places: tuple[int, ...]


Arrange = Callable[[ModelSchema, str], Arrangement]
"""Arranges the schema of a file that came from a source."""


def find_format(path: Path) -> ModelFormat:
    """Tell the format of a model file by its first bytes. What is neither is called ``.npz``, which its reader refuses.

    Raises:
        OSError: the file is not there or not readable.
    """
    with path.open("rb") as file:
        start = file.read(_SNIFFED_BYTES)
    if start[:4] != b"PK\x03\x04" and start[8:] == b"{":
        return ModelFormat.SAFETENSORS
    return ModelFormat.NPZ


def open_model(
    path: Path, form: ModelFormat, *, source: str, max_bytes: int = DEFAULT_MAX_BYTES
) -> NpzModel | SafetensorsModel:
    """Open a model file of the format ``form``; errors are those of the reader of that.

    A tensor in Fortran order takes the memory of it while it is read, however large.
    """
    if form is ModelFormat.SAFETENSORS:
        return open_safetensors(path, source=source)
    return open_npz(path, source=source, max_bytes=max_bytes, max_fortran_bytes=max_bytes)


def convert(
    src: Path,
    dst: Path,
    target: ModelFormat,
    *,
    source: str,
    form: ModelFormat | None = None,
    arrange: Arrange | None = None,
    require_finite: bool = False,
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> ModelSchema:
    """Write the model in ``src`` to ``dst`` in another format, or the same; return its schema as it is there.

    Args:
        src: a model file, from anybody.
        dst: replaced if it exists; it may be ``src``.
        target: of ``dst``.
        source: whose file ``src`` is, for messages.
        form: of ``src``; None: by its first bytes.
        arrange: names and order of the result; None: as they are.
        require_finite: refuse NaN and infinity.
        max_bytes: limit of what an ``.npz`` may unpack to.

    Raises:
        BadModel: the file is not acceptable, or can't be arranged so; there is no ``dst`` then.
        StorageFull: the disk is full.
        OSError: ``src`` is not there or not readable.
    """
    with open_model(src, form or find_format(src), source=source, max_bytes=max_bytes) as model:
        made = Arrangement(schema=model.schema, places=tuple(range(len(model.schema.tensors))))
        if arrange is not None:
            made = arrange(model.schema, source)
        writer = NpzWriter(dst, made.schema) if target is ModelFormat.NPZ else SafetensorsWriter(dst, made.schema)
        with writer:
            for number, place in enumerate(made.places):
                for block in _blocks(model, place):
                    if require_finite:
                        magnitude(block, made.schema, number, source)
                    writer.append(block)
        return made.schema


def to_canonical(
    src: Path,
    dst: Path,
    form: ModelFormat,
    *,
    source: str,
    expect: ModelSchema | None = None,
    keep_plain: bool = False,
) -> ModelSchema:
    """Write a finite model of anybody as the ``.npz`` in which models travel; return its schema.

    A tensor in Fortran order takes the memory of it, however large: that is for where the model was made.

    Args:
        src: a model file of the format ``form``.
        dst: replaced if it exists.
        form: of ``src``.
        source: whose file ``src`` is, for messages.
        expect: if given, the schema that the model must have. A ``.safetensors`` file may have it in any order.
        keep_plain: see :func:`runnel.common.tensors.normalise`.

    Raises:
        BadModel: the file is not acceptable, or its numbers are not finite; there is no ``dst`` then.
        StorageFull: the disk is full.
    """
    if form is ModelFormat.NPZ:
        return normalise(
            src, dst, source=source, expect=expect, max_fortran_bytes=DEFAULT_MAX_BYTES, keep_plain=keep_plain
        )
    arrange = None if expect is None else like(expect)
    return convert(src, dst, ModelFormat.NPZ, source=source, form=form, arrange=arrange, require_finite=True)


def like(expect: ModelSchema) -> Arrange:
    """Require the tensors of ``expect``, by name; the result has them in its order."""

    def arrange(schema: ModelSchema, source: str) -> Arrangement:
        place_of = {spec.name: place for place, spec in enumerate(schema.tensors)}
        wanted = [place_of[spec.name] for spec in expect.tensors if spec.name in place_of]
        rest = set(place_of.values()).difference(wanted)
        made = _picked(schema, [*wanted, *sorted(rest)])
        expect.require_same(made.schema, source=source)
        return made

    return arrange


def numbered(prefix: str = "") -> Arrange:
    """Name the tensors ``0``, ``1`` … with ``prefix`` before the number, in the order in which they are."""

    def arrange(schema: ModelSchema, source: str) -> Arrangement:
        made = _picked(schema, _in_order(schema))
        return _renamed(made, [f"{prefix}{number}" for number in range(len(made.places))])

    return arrange


def named(names: ModelSchema) -> Arrange:
    """Give the tensors the names of ``names``, place by place, where the shapes are the same.

    Numbered keys (``0``, ``1`` … or ``arr_0``, ``arr_1`` …) are taken in the order of their numbers.
    """

    def arrange(schema: ModelSchema, source: str) -> Arrangement:
        made = _picked(schema, _in_order(schema))
        if len(made.places) != len(names.tensors):
            raise BadModel(
                f"The model of {source} has {len(made.places)} tensors; the one with the names has "
                f"{len(names.tensors)}.",
                source=source,
            )
        for number, (mine, theirs) in enumerate(zip(made.schema.tensors, names.tensors, strict=True)):
            if mine.shape != theirs.shape:
                raise BadModel(
                    f"Tensor number {number} of {source} is {mine}; the one with the names has {theirs} there.",
                    hint="Names go by place: both models need the same tensors in the same order.",
                    source=source,
                    tensor=mine.name,
                )
        return _renamed(made, [spec.name for spec in names.tensors])

    return arrange


def _in_order(schema: ModelSchema) -> Sequence[int]:
    """Return the places by number, if all keys are numbers from 0 on, and else as they are: ``10`` is after ``9``."""
    found = [_NUMBERED.fullmatch(spec.name) for spec in schema.tensors]
    numbers = {int(match[1]): place for place, match in enumerate(found) if match is not None}
    if sorted(numbers) == list(range(len(found))):
        return [numbers[number] for number in range(len(found))]
    return range(len(found))


def _picked(schema: ModelSchema, places: Sequence[int]) -> Arrangement:
    return Arrangement(
        schema=ModelSchema(tensors=tuple(schema.tensors[place] for place in places)), places=tuple(places)
    )


def _renamed(made: Arrangement, names: Sequence[str]) -> Arrangement:
    pairs = zip(made.schema.tensors, names, strict=True)
    return Arrangement(
        schema=ModelSchema(tensors=tuple(replace(spec, name=name) for spec, name in pairs)), places=made.places
    )


def _blocks(model: NpzModel | SafetensorsModel, tensor: int) -> Iterator[NDArray[Any]]:
    if isinstance(model, NpzModel):
        return model.tensor_blocks(tensor, check_crc=True)
    return model.tensor_blocks(tensor)
