"""Robust rules: a mean of the updates that some of them can't carry away, and the end of a round with such a rule.

A rule sees every update as one vector, the elements of all tensors in model order (integers and booleans among them),
in float64; what it gives back is cast by the rule of :mod:`runnel.common.tensors.casting`. The rules are in
:mod:`~runnel.common.aggregation.coordinate_rules`, :mod:`~runnel.common.aggregation.distance_rules` and
:mod:`~runnel.common.aggregation.norm_rules`. None of them can work on sums, so all updates travel up to whoever
reduces: traffic and disk grow with their number, memory does not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from runnel.common.aggregation.optimizers import FedAvg, ServerOptimizer
from runnel.common.aggregation.reduce import Reduced
from runnel.common.aggregation.update_stack import Columns, Update, UpdateStack
from runnel.common.errors import BadModel, BadSettings, NotEnoughClients
from runnel.common.tensors import NpzWriter, cast_block, magnitude

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]


class RobustRule(Protocol):
    """One rule with its options."""

    @property
    def least_updates(self) -> int:
        """Number of updates below which the rule says nothing, or would protect from nobody."""
        ...

    def means(self, updates: UpdateStack) -> Iterator[Vector]:
        """Yield the rule's mean of the updates, float64[n] for each block of :meth:`UpdateStack.columns` in turn.

        Raises:
            BadModel: numbers are so large that float64 can't tell which updates to keep.
        """
        ...


def reduce_updates(
    updates: Sequence[Update],
    base: Path,
    rule: RobustRule,
    model_out: Path,
    *,
    optimizer: ServerOptimizer | None = None,
    source: str = "the reduced round",
    block_params: int | None = None,
) -> Reduced:
    """Write the next global model: the rule's mean of the updates, handed to the optimizer, cast.

    Memory: a block for each update, whatever the size of the model; the files are read once or a few times.

    Args:
        updates: in any order; a rule that has to choose between equally good ones takes the first.
        base: the present global model; its schema is what updates must have.
        rule: see :class:`RobustRule`.
        model_out: where the next model goes, canonical ``.npz``; replaced whole.
        optimizer: one without state; None replaces the global model by the mean. It acts on floats only.
        source: what the next model is called in messages.
        block_params: elements read at a time; None: as many as fit.

    Raises:
        EmptyAggregate: there are no updates.
        NotEnoughClients: there are fewer than the rule needs; the message says how many.
        InvalidInput: a weight is not finite or not above 0.
        BadModel: an update or the base is malformed, does not fit or is not finite (``fields["source"]`` says whose);
            or the next model would not be finite.
        StorageFull: the disk is full. ``model_out`` was not touched then, nor after any error above.
    """
    step = optimizer or FedAvg()
    if step.slots:
        raise BadSettings("An optimizer that remembers rounds can't follow a robust rule.", key="strategy")
    if 0 < len(updates) < rule.least_updates:
        raise NotEnoughClients(
            f"{rule} needs at least {rule.least_updates} updates; {len(updates)} came.",
            hint=f"Start the session with --min-clients {rule.least_updates}, or let the rule expect fewer bad ones.",
            needed=rule.least_updates,
            came=len(updates),
        )
    with UpdateStack(updates, base, model_out.parent, block_params=block_params) as stack:
        schema = stack.schema
        with NpzWriter(model_out, schema, digest=True, early_sync=True) as writer:
            blocks = zip(schema.spans(stack.block_params), stack.base_blocks(), rule.means(stack), strict=True)
            for span, base_values, mean in blocks:
                spec = schema.tensors[span.tensor]
                if spec.is_float:
                    with np.errstate(over="ignore", invalid="ignore"):
                        mean, _ = step.step(base_values, mean, ())
                cast = cast_block(mean, spec.dtype)
                magnitude(cast, schema, span.tensor, source)
                writer.append(cast)
    weight = math.fsum(update.weight for update in updates)
    return Reduced(model=writer.blob, weight=weight, updates=len(updates), state=None)


def plain_mean(rows: Matrix) -> Vector:
    """Return the mean of each column of float64[m, n], never outside the column's numbers, and finite as they are."""
    with np.errstate(over="ignore", invalid="ignore"):
        mean = rows.sum(axis=0) / len(rows)
        if not np.isfinite(mean).all():
            mean = (rows / len(rows)).sum(axis=0)
    bounded: Vector = np.clip(mean, rows.min(axis=0), rows.max(axis=0))
    return bounded


def mixed(columns: Columns, shares: Vector, rest: float = 0.0) -> Vector:
    """Return the sum of the updates times their shares, and of the global model times ``rest``.

    Without ``rest`` it is a mean, and stays within the numbers of the updates that have a share.
    """
    total: Vector = shares @ columns.rows
    if rest:
        return total + rest * columns.base
    part = columns.rows[shares > 0]
    bounded: Vector = np.clip(total, part.min(axis=0), part.max(axis=0))
    return bounded


def require_whole(rule: str, name: str, value: int, least: int) -> None:
    """Require that the option ``name`` of ``rule`` is an integer of at least ``least``; raises :class:`BadSettings`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise BadSettings(
            f"The option {name} of {rule} is {value!r}; expected was an integer of {least} or more.", key=name
        )


def require_between(rule: str, name: str, value: float, low: float, high: float = math.inf) -> None:
    """Require that the option is a finite number above ``low`` and below ``high``; raises :class:`BadSettings`."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not (number and low < value < high):
        wanted = f"above {low:g}" + (f" and below {high:g}" if math.isfinite(high) else "")
        raise BadSettings(f"The option {name} of {rule} is {value!r}; expected was a number {wanted}.", key=name)


def beyond_float64(what: str) -> BadModel:
    """Say that numbers are too large for a rule."""
    return BadModel(
        f"The updates are so far apart that {what} is beyond float64.",
        hint="Training diverged at too many clients for this rule.",
    )
