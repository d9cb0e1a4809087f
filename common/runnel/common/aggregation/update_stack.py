"""All updates of a round side by side, a block of columns at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from runnel.common.aggregation.gathering import GatheredFile, Gathering
from runnel.common.aggregation.mean import require_weight
from runnel.common.errors import EmptyAggregate
from runnel.common.storage import storage_errors
from runnel.common.tensors import BLOCK_PARAMS, ModelSchema, NpzModel, Span, magnitude, open_npz

MAX_OPEN_FILES = 100
"""Files of updates that are read in place; what lies in more is copied into one first."""

# Measured: matrices of 2 to 8 MB are read and sorted fastest.
_MATRIX_PARAMS = 1 << 19
_LEAST_BLOCK = 256

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]
_Reader = NpzModel | Callable[[Span], NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """One update of a round.

    Args:
        path: a model ``.npz``, or a file of gathered updates
            (:class:`runnel.common.aggregation.gathering.Gathering`); not modified.
        source: whose it is, for messages.
        weight: such as the number of examples; finite, above 0. Most robust rules do not look at it.
        place: which of the gathered updates it is; None for a model ``.npz``.
        gathered: how many updates the gathered file holds.
        base: the model that it was trained from, if that is not the present global model: its difference to that one
            counts, as an update of the present model.
        discount: factor of the difference to the model that it was trained from.
    """

    path: Path
    source: str
    weight: float = 1.0
    place: int | None = None
    gathered: int = 0
    base: Path | None = None
    discount: float = 1.0


class Columns(NamedTuple):
    """The same elements of the global model and of all updates.

    ``base``: float64[n]; ``rows``: float64[k, n], a row for each update in the order given. Both are the receiver's.
    """

    span: Span
    base: Vector
    rows: Matrix


class UpdateStack:
    """The updates of a round and the global model that they came from, read together in blocks, as often as wanted.

    An update is one vector here: all its elements in model order, integers and booleans (0 and 1) among them, in
    float64. Memory: ``k`` blocks, at most about 4 MB for up to 2,000 updates, whatever the size of the model. Disk: an
    update that can't be read in place (deflated, in Fortran order, or in one file of more than
    :data:`MAX_OPEN_FILES`) is copied to ``scratch`` first.

    Args:
        updates: at least one.
        base: the global model; its schema is what updates must have.
        scratch: folder for temporary files.
        block_params: elements of a block; None: as many as fit into the memory above.

    Raises:
        EmptyAggregate: there are no updates.
        InvalidInput: a weight is not finite or not above 0.
        BadModel: an update or the base is malformed, does not fit or is not finite; ``fields["source"]`` says whose.
        StorageFull: there is no room for the temporary files.
    """

    def __init__(
        self, updates: Sequence[Update], base: Path, scratch: Path, *, block_params: int | None = None
    ) -> None:
        if not updates:
            raise EmptyAggregate(
                "There is nothing to reduce: no update came.", hint="Ask more clients, or wait longer."
            )
        total = 0.0
        for update in updates:
            total += require_weight(update.weight, source=update.source, so_far=total)
        self._updates = list(updates)
        self._weights = np.array([update.weight for update in updates], np.float64)
        fitting = max(_LEAST_BLOCK, _MATRIX_PARAMS // len(updates))
        self.block_params = min(BLOCK_PARAMS, fitting) if block_params is None else block_params
        with ExitStack() as stack:
            self._base = stack.enter_context(open_npz(base, source="the present global model"))
            self.schema = self._base.schema
            self._readers = _open_all(updates, self.schema, scratch, stack)
            self._bases = {
                path: stack.enter_context(open_npz(path, source="an earlier global model", expect=self.schema))
                for path in {update.base for update in updates if update.base is not None}
            }
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def k(self) -> int:
        """Number of updates."""
        return len(self._updates)

    @property
    def weights(self) -> Vector:
        """float64[k]."""
        return self._weights.copy()

    def base_blocks(self) -> Iterator[Vector]:
        """Read the global model alone: float64[n] for each block of :meth:`columns`."""
        for block in self._base.blocks(self.block_params):
            magnitude(block.values, self.schema, block.tensor, self._base.source)
            yield block.values.astype(np.float64)

    def columns(self) -> Iterator[Columns]:
        """Read everything once, from the first element to the last.

        Raises:
            BadModel: an update has NaN or infinity, or was cut off; ``fields["source"]`` says whose.
        """
        streams = [self._stream(reader) for reader in self._readers]
        earlier = {path: self._stream(model) for path, model in self._bases.items()}
        spans = self.schema.spans(self.block_params)
        for span, base, *rows in zip(spans, self.base_blocks(), *streams, strict=True):
            matrix = np.empty((self.k, span.count))
            bases = {path: next(blocks).astype(np.float64) for path, blocks in earlier.items()}
            for row, values, update in zip(matrix, rows, self._updates, strict=True):
                magnitude(values, self.schema, span.tensor, update.source)
                row[:] = values
                if update.base is not None or update.discount != 1.0:
                    row -= base if update.base is None else bases[update.base]
                    row *= update.discount
                    row += base
            yield Columns(span, base, matrix)

    def _stream(self, reader: _Reader) -> Iterator[NDArray[Any]]:
        if isinstance(reader, NpzModel):
            return (block.values for block in reader.blocks(self.block_params))
        return (reader(span) for span in self.schema.spans(self.block_params))


def _open_all(updates: Sequence[Update], schema: ModelSchema, scratch: Path, stack: ExitStack) -> list[_Reader]:
    """Open each file once, in place where that can be; gather the other updates in a file of their own."""
    opened: dict[Path, GatheredFile] = {}
    models = 0
    readers: list[_Reader | None] = []
    for update in updates:
        reader: _Reader | None = None
        full = len(opened) + models >= MAX_OPEN_FILES
        if update.place is not None and (update.path in opened or not full):
            if update.path not in opened:
                opened[update.path] = stack.enter_context(_gathered(update, schema))
            reader = _at(opened[update.path], update.place)
        elif update.place is None and not full:
            reader = _model_in_place(update, schema, stack)
            models += reader is not None
        readers.append(reader)
    left = [update for update, reader in zip(updates, readers, strict=True) if reader is None]
    if not left:
        return [reader for reader in readers if reader is not None]
    copies = stack.enter_context(_copied(left, schema, scratch, stack))
    places = itertools.count()
    return [_at(copies, next(places)) if reader is None else reader for reader in readers]


def _model_in_place(update: Update, schema: ModelSchema, stack: ExitStack) -> NpzModel | None:
    model = open_npz(update.path, source=update.source, expect=schema)
    if model.has_fortran_order or model.is_deflated:
        # Read in place it would take the memory of whole tensors, or be inflated again for every pass.
        model.close()
        return None
    return stack.enter_context(model)


def _copied(updates: Sequence[Update], schema: ModelSchema, scratch: Path, stack: ExitStack) -> GatheredFile:
    with storage_errors(scratch):
        folder = Path(stack.enter_context(TemporaryDirectory(prefix=".reduce-", dir=scratch)))
    path = folder / "updates"
    with Gathering(path, schema) as copies:
        for update in updates:
            if update.place is None:
                with open_npz(update.path, source=update.source, expect=schema) as model:
                    copies.add(model)
            else:
                with _gathered(update, schema) as file:
                    copies.copy(file, update.place)
    return GatheredFile(path, schema, len(updates), source="the copied updates")


def _gathered(update: Update, schema: ModelSchema) -> GatheredFile:
    return GatheredFile(update.path, schema, update.gathered, source=update.source)


def _at(file: GatheredFile, place: int) -> Callable[[Span], NDArray[Any]]:
    return lambda span: file.block(place, span)
