"""The running weighted sum of a round: what a combiner keeps instead of updates."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runnel.common.aggregation.float64_file import Float64File, as_bytes
from runnel.common.errors import BadModel, EmptyAggregate, IllegalState, InvalidInput
from runnel.common.tensors import BLOCK_PARAMS, ModelSchema, NpzModel, largest_value

#: What sums of magnitudes may reach. Half of the largest float64: rounding can't carry a sum within it to infinity.
_LARGEST_SUM = float(np.finfo(np.float64).max) / 2
#: What one update times its weight, and one sum of others, may reach. Far below, so that none of them leaves so little
#: room that the good ones after it can't be added: what overflows is to be told of whoever sent it.
LARGEST_UPDATE = 1e280
LARGEST_PART = 1e300
#: By how much rounding may carry a mean beyond the largest value in it.
_ROUNDING = 1e-9


class SumMemory:
    """The memory of the last sum that is done with, for the next one of the same size.

    To be given fresh memory by the kernel, and on a virtual machine by its host, takes longer than folding an update.
    """

    def __init__(self) -> None:
        self._spare: NDArray[np.float64] | None = None

    def take(self, count: int) -> NDArray[np.float64]:
        """Return float64[count] with anything in it."""
        spare, self._spare = self._spare, None
        return spare if spare is not None and spare.size == count else np.empty(count)

    def give(self, memory: NDArray[np.float64]) -> None:
        """Keep ``memory``, which the caller does not use any more, instead of what was kept before."""
        self._spare = memory

    def forget(self) -> None:
        """Give what is kept back to the system."""
        self._spare = None


class WeightedSum:
    r"""Accumulates :math:`S = \sum_k w_k x_k` and :math:`W = \sum_k w_k` in float64, in any order of arrival.

    The mean of McMahan et al. 2017 ("Communication-Efficient Learning of Deep Networks from Decentralized Data"),
    ``S / W``, is formed once at the top of the tree; sums of unequal combiners add up to the sum of all.

    Memory: one float64[n_params] and a few blocks, whatever the number of updates; that is twice a float32 model. The
    sum is kept in memory, not in a mapped file: measured on 100 MB updates, folding takes as long as numpy's
    ``acc += w * x`` and the check before it 0.4 times that; reading and writing the sum block by block would take twice
    as long, and a full disk under a map would end the process instead of raising.

    An :meth:`add` or :meth:`merge` that raises has changed nothing, unless it failed in the second reading: then the
    sum is :attr:`broken`, of no use to anybody, and says so. Not for several threads at once.

    Args:
        schema: of the models.
        memory: where the memory of the sum comes from, and goes with :meth:`release`.
    """

    def __init__(self, schema: ModelSchema, memory: SumMemory | None = None) -> None:
        self._schema = schema
        self._memory = memory
        self._sum = (memory or SumMemory()).take(schema.n_params)
        self._product: NDArray[np.float64] = np.empty(BLOCK_PARAMS)
        self._reach = 0.0  # no element of the sum has a larger magnitude
        self._weight = 0.0
        self._count = 0
        self._broken = False

    @property
    def broken(self) -> bool:
        """Whether a part of an update is in it and the rest is not."""
        return self._broken

    @property
    def weight(self) -> float:
        """Sum of all weights so far."""
        return self._weight

    @property
    def count(self) -> int:
        """Number of updates so far, those inside merged sums included."""
        return self._count

    def add(self, model: NpzModel, weight: float) -> None:
        """Add ``weight * model``.

        Args:
            model: of the same schema; read twice: once to see that all of it is good, then to add it.
            weight: finite and above 0, such as the number of examples.

        Raises:
            InvalidInput: the weight is not finite or not above 0.
            BadModel: another schema, NaN or infinity, a damaged member, or numbers so large that the sum would not be
                finite. The message names ``model.source``.
            IllegalState: the sum is broken.
        """
        self._require_whole()
        weight = require_weight(weight, source=model.source, so_far=self._weight)
        self._schema.require_same(model.schema, source=model.source)
        reach = self._reach_with(update_magnitude(model, weight), model.source)
        with self._whole():
            for block in model.blocks():
                self._fold(block.start, block.values, weight)
        self._reach, self._weight, self._count = reach, self._weight + weight, self._count + 1

    def merge(self, sum_file: Path, weight: float, *, source: str, count: int = 1) -> None:
        """Add the file of another weighted sum.

        Args:
            sum_file: float64[n_params], raw little-endian: the bytes of its :meth:`finish`.
            weight: sum of the weights inside it, finite and above 0; the file is added as it is, not multiplied.
            source: who made it, for messages.
            count: number of updates inside it.

        Raises:
            InvalidInput: the weight is not finite or not above 0.
            BadModel: wrong size, NaN or infinity, or numbers so large that the sum would not be finite.
            IllegalState: the sum is broken.
        """
        self._require_whole()
        weight = require_weight(weight, source=source, so_far=self._weight)
        with Float64File(sum_file, self._schema.n_params, source=source) as other:
            reach = self._reach_with(part_magnitude(other, weight, self._schema, source), source)
            with self._whole():
                for span in self._schema.spans():
                    self._fold(span.start, other.read(span.start, span.count), 1.0)
        self._reach, self._weight, self._count = reach, self._weight + weight, self._count + count

    def finish(self) -> memoryview:
        """Return the sum as float64[n_params], raw little-endian, elements in model order.

        It is what travels as ``PAYLOAD_KIND_WEIGHTED_SUM``. The bytes are those of the sum itself, without a copy:
        nothing may be added while they are used.

        Raises:
            EmptyAggregate: nothing was added.
            IllegalState: the sum is broken.
        """
        self._require_whole()
        if self._count == 0:
            raise EmptyAggregate("Nothing was added to this sum, so there is no mean to take of it.")
        return as_bytes(self._sum).toreadonly()

    def release(self) -> None:
        """Give the memory to the next sum; neither this one nor what :meth:`finish` returned may be used any more."""
        if self._memory is not None:
            self._memory.give(self._sum)

    def _require_whole(self) -> None:
        if self._broken:
            raise IllegalState("An update is in this sum in part only, so it is of no use.")

    @contextmanager
    def _whole(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._broken = self._count > 0  # what the first one left is overwritten
            raise

    def _fold(self, start: int, values: NDArray[np.generic], weight: float) -> None:
        total = self._sum[start : start + values.size]
        if self._count == 0:  # whatever is in the memory
            np.multiply(values, weight, out=total, dtype=np.float64)
            return
        product = self._product[: values.size]
        np.multiply(values, weight, out=product, dtype=np.float64)
        np.add(total, product, out=total)

    def _reach_with(self, largest: float, source: str) -> float:
        reach = self._reach + largest
        if not reach <= _LARGEST_SUM:
            raise too_large(source)
        return reach


def require_weight(weight: float, *, source: str, so_far: float = 0.0) -> float:
    """Return ``weight`` as a float if it is finite and above 0, and so is its sum with ``so_far``.

    Raises:
        InvalidInput: it is not; the message names ``source``.
    """
    if not (math.isfinite(weight) and weight > 0 and math.isfinite(so_far + weight)):
        raise InvalidInput(
            f"The weight of {source} is {weight!r}; expected was a finite number above 0.",
            hint="The weight is num_examples in the metadata of the training entry point.",
            source=source,
            weight=float(weight),
        )
    return float(weight)


def update_magnitude(model: NpzModel, weight: float) -> float:
    """Return the largest magnitude in an update times its weight.

    Raises:
        BadModel: it is not finite, or beyond any use.
    """
    largest = weight * model.require_finite()
    if not largest <= LARGEST_UPDATE:
        raise too_large(model.source)
    return largest


def part_magnitude(sums: Float64File, weight: float, schema: ModelSchema, source: str) -> float:
    """Return the largest magnitude in a weighted sum of updates.

    Raises:
        BadModel: it is not finite, beyond any use, or beyond what updates of this schema can sum up to: divided by its
            weight it is no model.
    """
    largest = 0.0
    for span in schema.spans():
        of_span = sum_magnitude(sums.read(span.start, span.count), source)
        spec = schema.tensors[span.tensor]
        if spec.is_float and of_span / weight > largest_value(spec.dtype) * (1 + _ROUNDING):
            raise BadModel(
                f"The weighted sum of {source} has {of_span:g} in {spec.name!r}, which no updates of {spec.dtype} with"
                f" the weight {weight:g} in all can sum up to.",
                source=source,
            )
        largest = max(largest, of_span)
    if not largest <= LARGEST_PART:
        raise too_large(source)
    return largest


def sum_magnitude(values: NDArray[np.float64], source: str) -> float:
    """Return the largest magnitude in a block of a weighted sum.

    Raises:
        BadModel: it has NaN or infinity.
    """
    with np.errstate(invalid="ignore"):
        largest = max(float(values.max()), -float(values.min()))
    if not math.isfinite(largest) or math.isnan(float(values.min())):
        raise BadModel(f"The weighted sum of {source} has NaN or infinity in it.", source=source)
    return largest


def too_large(source: str) -> BadModel:
    """Say that the numbers of ``source`` would carry a sum beyond float64."""
    return BadModel(
        f"The numbers of {source}, times their weight, are too large to be summed in float64.",
        hint="Training diverged, or the weight is not a number of examples.",
        source=source,
    )
