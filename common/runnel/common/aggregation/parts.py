"""Contributions to a round, summed block by block over all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from runnel.common.aggregation.float64_file import Float64File, as_bytes
from runnel.common.aggregation.mean import sum_magnitude, too_large
from runnel.common.errors import InvalidInput
from runnel.common.protocol import PayloadKind
from runnel.common.storage import storage_errors
from runnel.common.tensors import (
    BLOCK_PARAMS,
    AtomicFile,
    ModelSchema,
    NpzModel,
    magnitude,
    normalise,
    open_npz,
)

MAX_OPEN_PARTS = 100
"""Parts read side by side; more are summed to files in groups first, so that no limit of open files is met."""

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One contribution to a round.

    Args:
        path: a model ``.npz`` (``UPDATE``) or float64[n_params], raw little-endian (``WEIGHTED_SUM``); not modified.
        kind: which of the two.
        weight: of the update, or the sum of the weights inside the weighted sum; finite, above 0.
        source: who sent it, for messages.
        updates: number of updates inside it.
    """

    path: Path
    kind: PayloadKind
    weight: float
    source: str
    updates: int = 1


def total_blocks(parts: Sequence[Part], schema: ModelSchema, scratch: Path) -> Iterator[Vector]:
    """Hand out the sum of all parts, updates times their weights, for each of ``schema.spans()`` in turn.

    Args:
        parts: at least one, with good weights.
        schema: what every part must have.
        scratch: folder for temporary files: one float64[n_params] for every 100 parts beyond the first 100.

    Returns:
        float64[span.count] blocks that the caller owns.

    Raises:
        BadModel: a part is malformed, does not fit, is not finite or too large to be summed; ``fields["source"]`` says
            whose it is.
        StorageFull: there is no room for the temporary files.
    """
    with ExitStack() as stack:
        if len(parts) > MAX_OPEN_PARTS:
            parts = _grouped(parts, schema, stack, scratch)
        columns = [_open(part, schema, stack, scratch) for part in parts]
        product = np.empty(BLOCK_PARAMS)
        for span, *blocks in zip(schema.spans(), *columns, strict=True):
            total: Vector | None = None
            for part, values in zip(parts, blocks, strict=True):
                with np.errstate(over="ignore", invalid="ignore"):
                    if part.kind is PayloadKind.WEIGHTED_SUM:
                        term, own = values, values
                    else:
                        term = np.multiply(values, part.weight, out=product[: span.count], dtype=np.float64)
                        own = np.empty(span.count)
                    # Begun at 0: alone, -0.0 would stay what it is. A sum's block is its own memory already.
                    total = np.add(term, 0.0, out=own) if total is None else np.add(total, term, out=total)
                if not np.isfinite(total).all():
                    raise too_large(part.source)
            assert total is not None
            yield total


def _open(part: Part, schema: ModelSchema, stack: ExitStack, scratch: Path) -> Iterator[NDArray[np.generic]]:
    if part.kind is PayloadKind.WEIGHTED_SUM:
        sums = stack.enter_context(Float64File(part.path, schema.n_params, source=part.source))
        return _sum_blocks(sums, part, schema)
    if part.kind is not PayloadKind.UPDATE:
        raise InvalidInput(f"The part of {part.source} is of the kind {part.kind.value}.", source=part.source)
    model = stack.enter_context(open_npz(part.path, source=part.source, expect=schema))
    if model.has_fortran_order:
        # Read in place it would take the memory of whole tensors, for each such part.
        folder = _folder(stack, scratch)
        normalise(part.path, folder / "update.npz", source=part.source)
        model = stack.enter_context(open_npz(folder / "update.npz", source=part.source))
    return _update_blocks(model)


def _update_blocks(model: NpzModel) -> Iterator[NDArray[np.generic]]:
    for block in model.blocks():
        magnitude(block.values, model.schema, block.tensor, model.source)
        yield block.values


def _sum_blocks(sums: Float64File, part: Part, schema: ModelSchema) -> Iterator[Vector]:
    for span in schema.spans():
        values = sums.read(span.start, span.count)
        sum_magnitude(values, part.source)
        yield values


def _grouped(parts: Sequence[Part], schema: ModelSchema, stack: ExitStack, scratch: Path) -> list[Part]:
    """Sum parts to files until no more are left than may be open; a sum needs no finer source than its group's."""
    folder = _folder(stack, scratch)
    queue, made = list(parts), 0
    while len(queue) > MAX_OPEN_PARTS:
        group, queue = queue[:MAX_OPEN_PARTS], queue[MAX_OPEN_PARTS:]
        path = folder / f"{made}.f64"
        made += 1
        with AtomicFile(path) as out:
            for block in total_blocks(group, schema, folder):
                out.write(as_bytes(block))
            out.commit()
        for part in group:
            if part.path.parent == folder:
                part.path.unlink()
        weight = sum(part.weight for part in group)
        # Last, so that every part is read once before sums are summed again.
        queue.append(
            Part(path=path, kind=PayloadKind.WEIGHTED_SUM, weight=weight, source=f"{len(group)} parts together")
        )
    return queue


def _folder(stack: ExitStack, scratch: Path) -> Path:
    with storage_errors(scratch):
        return Path(stack.enter_context(TemporaryDirectory(prefix=".reduce-", dir=scratch)))
