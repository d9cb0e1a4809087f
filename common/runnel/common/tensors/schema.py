"""Names, shapes and dtypes of a model: what every update of a session has to match exactly."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runnel.common.errors import BadModel

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Accepted dtypes and the bytes of one element. Everything else (objects, strings, complex, dates, records) is refused.
DTYPES: Mapping[str, int] = {
    "bool": 1,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "uint8": 1,
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
    "bfloat16": 2,
    "float16": 2,
    "float32": 4,
    "float64": 8,
}

#: Elements handled at a time. Measured: blocks of 64 Ki elements stay in a core's second-level cache; four times as
#: many fold a quarter slower.
BLOCK_PARAMS = 1 << 16

MAX_NAME_BYTES = 4096
"""Of one tensor's name in UTF-8."""

MAX_DIMENSIONS = 32
"""Of one tensor; what every supported numpy can hold."""

_CONTROL = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One tensor: ``name`` as in the archive without ``.npy``, ``shape`` in elements, ``dtype`` such as ``"float32"``.

    Raises:
        BadModel: the name could not be a member of an archive, the shape has a negative or too many dimensions, or the
            dtype is not one of :data:`DTYPES`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str

    def __post_init__(self) -> None:
        fault = name_fault(self.name)
        if fault is None and self.dtype not in DTYPES:
            fault = f"has the dtype {self.dtype}; accepted are {', '.join(DTYPES)}"
        if fault is None and (len(self.shape) > MAX_DIMENSIONS or any(d < 0 for d in self.shape)):
            fault = f"has the shape {self.shape}; up to {MAX_DIMENSIONS} dimensions of 0 or more are possible"
        if fault is not None:
            raise BadModel(f"The tensor {self.name!r:.200} {fault}.", tensor=self.name[:200])

    @property
    def n_params(self) -> int:
        """Number of elements; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return self.n_params * DTYPES[self.dtype]

    @property
    def is_float(self) -> bool:
        """Whether the elements are floats: only those are touched by server optimizers."""
        return self.dtype.startswith(("float", "bfloat"))

    def __str__(self) -> str:
        return f"{self.name!r} {self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A run of elements inside one tensor: ``tensor`` is its index, ``start`` counts from the model's first element."""

    tensor: int
    start: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSchema:
    """The tensors of a model in their order; flattened one after the other (C order) they are the model's elements.

    Raises:
        BadModel: there is no tensor, or two have one name.

    >>> schema = ModelSchema(tensors=(
    ...     TensorSpec(name="w", shape=(2, 3), dtype="float32"), TensorSpec(name="b", shape=(3,), dtype="float32")))
    >>> schema.n_params, schema.nbytes, schema.offsets
    (9, 36, (0, 6))
    """

    tensors: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        if not self.tensors:
            raise BadModel("A model needs at least one tensor; this one has none.")
        seen: set[str] = set()
        for spec in self.tensors:
            if spec.name in seen:
                raise BadModel(f"Two tensors of the model are named {spec.name!r}.", tensor=spec.name)
            seen.add(spec.name)

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]]) -> ModelSchema:
        """Describe ``arrays`` in the mapping's order; byte order does not matter.

        Raises:
            BadModel: as for the constructors.
        """
        return cls(
            tensors=tuple(TensorSpec(name=k, shape=tuple(a.shape), dtype=a.dtype.name) for k, a in arrays.items())
        )

    @property
    def n_params(self) -> int:
        """Elements over all tensors, of whatever dtype."""
        return sum(spec.n_params for spec in self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return sum(spec.nbytes for spec in self.tensors)

    @property
    def offsets(self) -> tuple[int, ...]:
        """For each tensor the position of its first element in the flattened model."""
        offsets, at = [], 0
        for spec in self.tensors:
            offsets.append(at)
            at += spec.n_params
        return tuple(offsets)

    def spans(self, block_params: int = BLOCK_PARAMS) -> Iterator[Span]:
        """Cut the flattened model into runs of at most ``block_params`` elements, none over two tensors, in order."""
        for tensor, (spec, offset) in enumerate(zip(self.tensors, self.offsets, strict=True)):
            for at in range(0, spec.n_params, block_params):
                yield Span(tensor=tensor, start=offset + at, count=min(block_params, spec.n_params - at))

    def require_same(self, other: ModelSchema, *, source: str) -> None:
        """Require that ``other``, which came from ``source``, has the same names, shapes and dtypes in the same order.

        Raises:
            BadModel: names the first tensor that differs, what was expected, what came, and ``source``.
        """
        if self == other:
            return
        mine = {spec.name: spec for spec in self.tensors}
        theirs = {spec.name: spec for spec in other.tensors}
        for expected in self.tensors:
            came = theirs.get(expected.name)
            if came is None:
                raise _differs(source, expected.name, f"the tensor {expected} is missing")
            if came.shape != expected.shape or came.dtype != expected.dtype:
                raise _differs(source, expected.name, f"expected was {expected}, what came is {came}")
        for spec in other.tensors:
            if spec.name not in mine:
                raise _differs(source, spec.name, f"the tensor {spec} is not part of the session's model")
        for place, (expected, came) in enumerate(zip(self.tensors, other.tensors, strict=True)):
            if expected != came:
                what = f"tensor number {place} should be {expected.name!r}, what came is {came.name!r}"
                raise _differs(source, came.name, what, "The order of the tensors matters.")
        raise AssertionError("schemas that differ have a difference")


def _differs(source: str, tensor: str, what: str, hint: str = "") -> BadModel:
    hint = hint or "Names, shapes and dtypes have to be those of the model that was handed out."
    return BadModel(f"The model of {source} does not fit: {what}.", hint=hint, source=source, tensor=tensor)


def name_fault(name: str) -> str | None:
    """Say what keeps ``name`` from naming a tensor, or None. Slashes are fine (``"dense/kernel"``), tricks are not."""
    if any(part in {"", ".", ".."} for part in name.split("/")):
        return "has an empty name, or one with empty, '.' or '..' parts between slashes"
    if "\\" in name or re.match(r"[A-Za-z]:", name):
        return "has a name with a backslash or a drive letter"
    if _CONTROL.search(name):
        return "has a name with control characters"
    if len(name.encode()) > MAX_NAME_BYTES:
        return f"has a name of more than {MAX_NAME_BYTES:,} bytes"
    return None
