"""How much of what clients say beside their updates fits into one report."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence

from runnel.common.protocol import Outcome

#: Half of what a message may have, so that names and numbers find room beside.
MOST_BYTES = 8 << 20

_LEAST_SHARE = 512
_METRIC_BYTES = 16  # of a number, beside its name
_LEFT_OUT = json.dumps({"left_out": "The report of the combiner had no room for it."})


def in_order(outcomes: Mapping[str, Outcome], folded: Sequence[str]) -> list[Outcome]:
    """Return the outcomes of the clients ``folded``, in that order, and then those of all others."""
    first = dict.fromkeys(folded)
    return [outcomes[client] for client in folded] + [o for name, o in outcomes.items() if name not in first]


def fitting(outcomes: Iterable[Outcome], most_bytes: int = MOST_BYTES) -> tuple[Outcome, ...]:
    """Return ``outcomes`` so that together they stay within ``most_bytes``, roughly, whatever clients sent.

    While there is room for all, nothing is left out. Else each has an equal share, and of those that are beyond theirs
    the notes are left out, then what is too long of log and message, then metrics: one talkative client must not keep
    the updates of all from being reported. What decides about a round (who, weight, failure's code) always stays.
    """
    found = tuple(outcomes)
    sizes = [_size(outcome) for outcome in found]
    if sum(sizes) <= most_bytes:
        return found
    share = max(_LEAST_SHARE, most_bytes // len(found))
    return tuple(
        outcome if size <= share else _shortened(outcome, share) for outcome, size in zip(found, sizes, strict=True)
    )


def _size(outcome: Outcome) -> int:
    failure = outcome.failure
    said = 0 if failure is None else len(failure.message.encode()) + len(failure.log_tail.encode())
    numbers = sum(len(name.encode()) + _METRIC_BYTES for name in outcome.metrics)
    return len(outcome.extra_json.encode()) + said + numbers


def _shortened(outcome: Outcome, share: int) -> Outcome:
    part = share // 4
    failure = outcome.failure
    if failure is not None:
        # A character has up to four bytes.
        most = part // 4
        failure = dataclasses.replace(failure, message=failure.message[:most], log_tail=failure.log_tail[-most:])
    metrics: dict[str, float] = {}
    room = part
    for name, value in outcome.metrics.items():
        room -= len(name.encode()) + _METRIC_BYTES
        if room < 0:
            break
        metrics[name] = value
    return dataclasses.replace(outcome, failure=failure, metrics=metrics, extra_json=_LEFT_OUT)
