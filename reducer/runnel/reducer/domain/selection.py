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

    ``over_select`` asks more than are wanted, so that the slowest are not waited for (Bonawitz et al. 2019):

    >>> wanted_clients(SessionConfig(rounds=1, sample=10, over_select=1.3), 100)
    13
    """
    match config.sample:
        case None:
            count = attached
        case float(fraction):
            count = max(1, math.floor(fraction * attached + 0.5))
        case count:
            pass
    return min(attached, math.ceil(max(count, config.min_clients) * config.over_select - 1e-9))


def wanted_updates(config: SessionConfig, asked: int) -> int | None:
    """Return how many updates close a round in which ``asked`` clients were asked; None: all of them.

    >>> wanted_updates(SessionConfig(rounds=1, sample=10, over_select=1.3), 13)
    10
    """
    if config.buffer is not None or config.over_select == 1.0:
        return config.buffer
    sampled = config.sample if isinstance(config.sample, int) else math.floor(asked / config.over_select + 1e-9)
    return max(min(sampled, asked), config.min_clients)


def select_clients(
    config: SessionConfig, round_number: int, attached: Collection[str], seed: int, *, busy: Collection[str] = ()
) -> list[str] | None:
    """Draw the clients of a round, or return None while fewer than ``min_clients`` are attached.

    The draw depends on nothing but ``seed``, the round and the names, so that a reducer that was restarted in between
    asks the same clients. Without replacement, uniformly; sorted by name. Who is ``busy`` for an earlier round is not
    asked and counts as one of those wanted.
    """
    if len(attached) < config.min_clients:
        return None
    idle = sorted(set(attached) - set(busy))
    wanted = wanted_clients(config, len(attached)) - len(set(attached) & set(busy))
    drawn = random.Random(f"{seed}/{round_number}").sample(idle, max(0, min(wanted, len(idle))))  # noqa: S311
    return sorted(drawn)
