"""The end of a round: from parts (updates, weighted sums) and the present global model to the next one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runnel.common.aggregation.float64_file import Float64File, as_bytes
from runnel.common.aggregation.mean import require_weight
from runnel.common.aggregation.optimizers import FedAvg, ServerOptimizer
from runnel.common.aggregation.parts import Part, total_blocks
from runnel.common.errors import CorruptData, EmptyAggregate, InvalidInput
from runnel.common.protocol import BlobRef
from runnel.common.tensors import AtomicFile, BackgroundWriter, NpzWriter, cast_block, magnitude, open_npz

_ITEM_BYTES = 8

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduced:
    """What was reduced: ``weight`` and number of ``updates`` in total; ``state``: the optimizer's file, if any.

    ``model``: digest and length of the next model's file.
    """

    model: BlobRef
    weight: float
    updates: int
    state: Path | None


def reduce_round(
    parts: Sequence[Part],
    base: Path,
    optimizer: ServerOptimizer,
    state_in: Path | None,
    model_out: Path,
    state_out: Path | None,
    *,
    source: str = "the reduced round",
) -> Reduced:
    """Write the next global model and the optimizer's next state.

    The mean ``sum of weight * update / sum of weights`` is formed in float64 for a block of elements over all parts,
    handed to the optimizer with the same block of ``base``, cast by the rule of :mod:`runnel.common.tensors.casting`
    and written; then the next block. Memory: some blocks for each part, whatever the size of the model. Tensors of
    integers and booleans take the plain mean: optimizers act on floats only, and their state stays as it was there.

    Args:
        parts: in any order (another order changes the last bits of float64 sums only).
        base: the present global model; its schema is what parts must have.
        optimizer: from :func:`runnel.common.aggregation.optimizers.make_optimizer`.
        state_in: its state file after the round before; None at the first round.
        model_out: where the next model goes, canonical ``.npz``; replaced whole.
        state_out: where the next state goes, float64[slots, n_params] raw little-endian; needed if the optimizer has
            state, not written otherwise. With a file of its own for each round, a killed one can be reduced again.
        source: what the next model is called in messages.

    Raises:
        EmptyAggregate: there are no parts.
        InvalidInput: a weight is not finite or not above 0, or ``state_out`` is missing.
        BadModel: a part or the base is malformed, does not fit or is not finite (``fields["source"]`` says whose; the
            round may be reduced again without it); or the next model would not be finite.
        CorruptData: ``state_in`` has the wrong size.
        StorageFull: the disk is full. Neither file was touched then, nor after any error above.
    """
    if not parts:
        raise EmptyAggregate("There is nothing to reduce: no update came.", hint="Ask more clients, or wait longer.")
    weight = 0.0
    for part in parts:
        weight += require_weight(part.weight, source=part.source, so_far=weight)
    kept = state_out if optimizer.slots else None
    if optimizer.slots and kept is None:
        raise InvalidInput("The server optimizer has state, and there is no file to keep it in.")
    with ExitStack() as stack:
        base_model = stack.enter_context(open_npz(base, source="the present global model"))
        schema = base_model.schema
        state = _State(optimizer, state_in, kept, schema.n_params, stack)
        writer = stack.enter_context(NpzWriter(model_out, schema, digest=True, early_sync=True))
        behind = stack.enter_context(BackgroundWriter(writer))
        replaces = optimizer == FedAvg()  # the mean is the model
        totals = total_blocks(parts, schema, model_out.parent)
        for block, total in zip(base_model.blocks(), totals, strict=True):
            spec = schema.tensors[block.tensor]
            magnitude(block.values, schema, block.tensor, base_model.source)
            mean = np.divide(total, weight, out=total)
            if spec.is_float and not replaces:
                mean = state.step(block.start, block.values.astype(np.float64), mean)
            else:
                state.keep(block.start, mean.size)
            cast = cast_block(mean, spec.dtype)
            magnitude(cast, schema, block.tensor, source)
            behind.append(cast)
        behind.finish()
        state.seal()
        writer.close()
        state.commit()
    return Reduced(model=writer.blob, weight=weight, updates=sum(part.updates for part in parts), state=kept)


class _State:
    """The optimizer's state, read from one file and written to another, block by block, slot after slot."""

    def __init__(
        self, optimizer: ServerOptimizer, state_in: Path | None, state_out: Path | None, n_params: int, stack: ExitStack
    ) -> None:
        self._optimizer = optimizer
        self._n_params = n_params
        self._in: Float64File | None = None
        self._out: AtomicFile | None = None
        if state_out is not None:
            if state_in is not None:
                count = optimizer.slots * n_params
                self._in = stack.enter_context(
                    Float64File(state_in, count, source="the server optimizer", error=CorruptData)
                )
            self._out = stack.enter_context(AtomicFile(state_out))

    def step(self, start: int, base: Vector, mean: Vector) -> Vector:
        """Let the optimizer act on one block and keep its next state; the model may be infinite, the caller looks."""
        with np.errstate(over="ignore", invalid="ignore"):
            model, state = self._optimizer.step(base, mean, self._read(start, base.size))
        self._write(start, state)
        return model

    def keep(self, start: int, count: int) -> None:
        """Carry the state of a block over as it is."""
        self._write(start, self._read(start, count))

    def seal(self) -> None:
        """Bring all of it to the disk, so that only a renaming is left to do."""
        if self._out is not None:
            self._out.seal()

    def commit(self) -> None:
        """Put the next state in its place."""
        if self._out is not None:
            self._out.commit()

    def _read(self, start: int, count: int) -> Sequence[Vector]:
        if self._in is None:
            return [np.full(count, value) for value in self._optimizer.initial()]
        return [self._in.read(slot * self._n_params + start, count) for slot in range(self._optimizer.slots)]

    def _write(self, start: int, state: Sequence[Vector]) -> None:
        if self._out is not None:
            for slot, values in enumerate(state):
                self._out.write_at((slot * self._n_params + start) * _ITEM_BYTES, as_bytes(values))
