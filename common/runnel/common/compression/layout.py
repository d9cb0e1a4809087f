"""Which arrays a compressed update has: all follows from the global model's schema and the codec."""

from __future__ import annotations

from collections.abc import Sequence

from runnel.common.compression.codec import Codec, Part, wide
from runnel.common.tensors import ModelSchema, TensorSpec

_MEMBER_BYTES = 512
"""About what a member costs beside its elements: headers, padding, its line in the directory."""

_SMALL_BYTES = 1024
"""Tensors up to this are exact: biases and the like, whose bytes are few and whose errors add up over a layer."""

_EXACT = "exact"


class Layout:
    """The members of the updates of a model, tensor by tensor.

    ``encoded``: their schema. ``left``: the schema of what an update leaves for the next one: the tensors that are not
    sent exactly, in float64 where the model's are, otherwise in float32; None if the codec has no feedback or there is
    no such tensor.
    """

    def __init__(self, model: ModelSchema, codec: Codec) -> None:
        parts = [_parts(spec, codec) for spec in model.tensors]
        self.encoded = ModelSchema(
            tensors=tuple(
                TensorSpec(name=f"{number}/{part.name}", shape=(part.count,), dtype=part.dtype)
                for number, of_tensor in enumerate(parts)
                for part in of_tensor
            )
        )
        self._places: list[dict[str, int]] = []
        first = 0
        for of_tensor in parts:
            self._places.append({part.name: place for place, part in enumerate(of_tensor, first)})
            first += len(of_tensor)
        lossy = [number for number in range(len(parts)) if self.exact(number) is None]
        self._left = {number: place for place, number in enumerate(lossy)} if codec.feedback else {}
        tensors = [model.tensors[number] for number in self._left]
        left = tuple(TensorSpec(name=each.name, shape=each.shape, dtype=wide(each.dtype).name) for each in tensors)
        self.left = ModelSchema(tensors=left) if left else None

    def place(self, number: int, part: str) -> int:
        """Return which member of the encoded update the ``part`` of tensor ``number`` is."""
        return self._places[number][part]

    def exact(self, number: int) -> int | None:
        """Return which member tensor ``number`` is as it is; None if it is encoded."""
        return self._places[number].get(_EXACT)

    def left_place(self, number: int) -> int | None:
        """Return which tensor of what is left belongs to tensor ``number``; None: nothing is left of it."""
        return self._left.get(number)


def largest_file(schema: ModelSchema) -> int:
    """Return a size in bytes that no honest writer's archive of ``schema`` goes beyond."""
    names = sum(2 * len(spec.name.encode()) for spec in schema.tensors)
    return schema.nbytes + names + 2 * _MEMBER_BYTES * (1 + len(schema.tensors))


def _parts(spec: TensorSpec, codec: Codec) -> tuple[Part, ...]:
    exact = (Part(name=_EXACT, count=spec.n_params, dtype=spec.dtype),)
    if not spec.is_float or spec.nbytes <= _SMALL_BYTES:
        return exact
    parts = codec.parts(spec.n_params, spec.dtype)
    return parts if _bytes_of(parts) < _bytes_of(exact) else exact


def _bytes_of(parts: Sequence[Part]) -> int:
    return sum(part.nbytes + _MEMBER_BYTES for part in parts)
