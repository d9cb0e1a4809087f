"""kill -9 while every update travels up by itself: for a rule that needs them all, and for a buffer of them.

The model is that of no kill.
"""

from __future__ import annotations

import signal
from typing import Any

import pytest

from runnel.common.crash_points import CrashPoint
from tests.chaos.adding_network import AddingNetwork

pytestmark = [pytest.mark.process, pytest.mark.restarts, pytest.mark.timeout(120)]

ROUNDS = 2
# What a round adds, of 3, 6 and 12, and what of it rounding may take: a third is no float. A buffer of as many as there
# are clients has one update of each.
SESSIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "median": ({"strategy": "median"}, {"gain": 6.0}),
    "fedbuff": ({"strategy": "fedbuff", "buffer": 3}, {"within": 1e-9}),
}
WHO = [
    ("median", CrashPoint.PAYLOAD_HALF_PUSHED, "combiner"),
    ("median", CrashPoint.UPDATE_FOLDED, "combiner"),
    ("median", CrashPoint.SUM_PUSHED, "combiner"),
    ("median", CrashPoint.REPORT_RECEIVED, "reducer"),
    ("median", CrashPoint.REPORT_COMMITTED, "reducer"),
    ("median", CrashPoint.MODEL_STORED, "reducer"),
    ("fedbuff", CrashPoint.SLOTS_STORED, "reducer"),
    ("fedbuff", CrashPoint.UPDATE_KEPT, "site-1"),
    ("fedbuff", CrashPoint.SUM_PUSHED, "combiner"),
    ("fedbuff", CrashPoint.REPORT_COMMITTED, "reducer"),
    ("fedbuff", CrashPoint.MODEL_STORED, "reducer"),
    ("fedbuff", CrashPoint.ROUND_COMMITTED, "reducer"),
]


@pytest.mark.parametrize(("strategy", "point", "who"), WHO, ids=lambda v: getattr(v, "value", v))
def test_no_update_is_lost_or_counted_twice(
    network: AddingNetwork, work: tuple[str, str], strategy: str, point: CrashPoint, who: str
) -> None:
    options, right = SESSIONS[strategy]
    network.until_attached("c1", "c2", *network.steps)
    who = network.gather() if who == "combiner" else who
    network.crash(who, point)
    session = network.start_session(work, ROUNDS, **options)
    assert network.until_dead(who, timeout_s=60) == -signal.SIGKILL
    network.relaunch(who)
    network.require_exact(session, ROUNDS, **right)
    network.require_nothing_held()
    assert not list((network.folder / "reducer" / "partials").iterdir())
