"""The strategies of a soak's sessions, each with what the model must be by the ledger of counted updates.

Of a mean, a median and a trimmed mean every client counts in every round, so the model is known bit for bit. With a
buffer or with over-selection it depends on time who counts when. There the ledger must have each update once at most,
and the model must be what the ledger says, with the staleness that it says, but for the rounding of divisions.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runnel.sdk import Session
from tests.chaos.adding_network import AddingNetwork

ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """An entry of the ledger: an update that is part of the model of round ``counted_in``.

    ``step``: what its client adds; ``staleness``: how many rounds before it was asked.
    """

    client: str
    step: float
    weight: float
    counted_in: int
    staleness: int

    @property
    def work(self) -> tuple[int, str]:
        """What may count only once: the round that was trained, and by whom."""
        return self.counted_in - self.staleness, self.client


def mean(updates: Sequence[Counted]) -> float:
    return sum(each.weight * each.step for each in updates) / sum(each.weight for each in updates)


def discounted_mean(updates: Sequence[Counted]) -> float:
    discounted = sum(each.weight * each.step / math.sqrt(1 + each.staleness) for each in updates)
    return discounted / sum(each.weight for each in updates)


def median(updates: Sequence[Counted]) -> float:
    return statistics.median(each.step for each in updates)


def mean_of_the_middle(updates: Sequence[Counted]) -> float:
    return statistics.mean(sorted(each.step for each in updates)[1:-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """``options`` of a session, and the ``gain`` of a round by its entries in the ledger.

    ``least``: so many updates count in a round; None: those of all clients, and the gain is exact.
    """

    options: Mapping[str, Any]
    gain: Callable[[Sequence[Counted]], float]
    least: int | None = None

    def require_balanced(
        self, network: AddingNetwork, session: str, rounds: int, *, again: Collection[str], timeout_s: float
    ) -> None:
        """Wait for the end; the ledger balances, and nobody but ``again`` trained a round twice."""
        ended = network.until_ended(session, timeout_s)
        assert ended["status"] == "finished", ended["reason"]
        view = network.sdk.sessions.show(session, clients=True)
        assert [each.status for each in view.rounds] == ["committed"] * rounds
        counted = ledger(view, network)
        by_round = {n: [each for each in counted if each.counted_in == n] for n in range(1, rounds + 1)}
        for number, updates in by_round.items():
            if self.least is None:
                assert sorted(each.work for each in updates) == [(number, name) for name in sorted(network.steps)]
            else:
                assert len(updates) >= self.least
        gain = sum(self.gain(updates) for updates in by_round.values())
        network.require_added(ended, gain, 0.0 if self.least is None else ROUNDING * gain)
        for name in network.steps:
            trained = network.trained(name, session)
            counts = {each.work[0] for each in counted if each.client == name}
            assert counts <= set(trained), f"{name} counts in rounds {counts} and trained {trained}"
            assert name in again or len(set(trained)) == len(trained), f"{name} did finished work again: {trained}"
            self._require_none_lost(name, set(trained) - counts, trained)

    def _require_none_lost(self, name: str, lost: set[int], trained: Sequence[int]) -> None:
        if self.least is None:
            assert not lost, f"{name} trained rounds {lost}, and does not count there"


class Buffered(Strategy):
    """Nobody is called off before the end, so only what a client did last may have come too late."""

    def _require_none_lost(self, name: str, lost: set[int], trained: Sequence[int]) -> None:
        assert lost <= set(trained[-1:]), f"{name} trained rounds {trained}, of which {lost} count nowhere"


def ledger(view: Session, network: AddingNetwork) -> list[Counted]:
    """Return the updates that count; each does so once, with the weight that its client gave it."""
    counted = [
        Counted(
            client=each.client,
            step=network.steps[each.client],
            weight=each.weight or 0.0,
            counted_in=number.round,
            staleness=each.staleness,
        )
        for number in view.rounds
        for each in number.clients
        if (each.work, each.status) == ("train", "counted")
    ]
    assert len({each.work for each in counted}) == len(counted), f"an update counts twice: {counted}"
    assert [each.weight for each in counted] == [each.step / 3 for each in counted]
    assert [each.updates for each in view.rounds] == [
        sum(each.counted_in == number.round for each in counted) for number in view.rounds
    ]
    return counted


STRATEGIES = {
    "fedavg": Strategy(options={}, gain=mean),
    "median": Strategy(options={"strategy": "median"}, gain=median),
    "trimmed_mean": Strategy(
        options={"strategy": "trimmed_mean", "strategy_options": {"beta": 0.25}}, gain=mean_of_the_middle
    ),
    "fedbuff": Buffered(options={"strategy": "fedbuff", "buffer": 2, "min_clients": 2}, gain=discounted_mean, least=2),
    "over-selection": Strategy(options={"sample": 2, "over_select": 2.0, "min_clients": 2}, gain=mean, least=2),
}
