"""Which of the attached clients a round asks."""

from __future__ import annotations

import math
import random
from collections.abc import Collection

from runnel.reducer.domain.values import SessionConfig


def wanted_clients(config: SessionConfig, attached: int) -> int:
    """Return how many of ``attached`` clients a round asks.

    A fraction is of those attached, rounded to the nearest, at least one (the ``max(C*K, 1)`` of McMahan et al. 2017);
    never fewer than ``min_clients`` while so many are attached.

    >>> wanted_clients(SessionConfig(rounds=1, sample=0.1), 100)
    10
    >>> wanted_clients(SessionConfig(rounds=1, sample=3), 2)
    2
    """
    match config.sample:
        case None:
            count = attached
        case float(fraction):
            count = max(1, math.floor(fraction * attached + 0.5))
        case count:
            pass
    return min(attached, max(count, config.min_clients))


def select_clients(config: SessionConfig, round_number: int, attached: Collection[str], seed: int) -> list[str] | None:
    """Draw the clients of a round, or return None while fewer than ``min_clients`` are attached.

    The draw depends on nothing but ``seed``, the round and the names, so that a reducer that was restarted in between
    asks the same clients. Without replacement, uniformly; sorted by name.
    """
    if len(attached) < config.min_clients:
        return None
    names = sorted(attached)
    drawn = random.Random(f"{seed}/{round_number}").sample(names, wanted_clients(config, len(names)))  # noqa: S311
    return sorted(drawn)
