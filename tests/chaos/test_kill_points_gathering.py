"""kill -9 while every update travels up by itself, for a rule that needs them all: the model is that of no kill."""

from __future__ import annotations

import signal

import pytest

from runnel.common.crash_points import CrashPoint
from tests.chaos.adding_network import AddingNetwork

pytestmark = [pytest.mark.process, pytest.mark.restarts, pytest.mark.timeout(120)]

ROUNDS = 2
MEDIAN_STEP = 6.0  # of 3, 6 and 12

WHO = [
    (CrashPoint.PAYLOAD_HALF_PUSHED, "c1"),
    (CrashPoint.UPDATE_FOLDED, "c1"),
    (CrashPoint.SUM_PUSHED, "c1"),
    (CrashPoint.REPORT_RECEIVED, "reducer"),
    (CrashPoint.REPORT_COMMITTED, "reducer"),
    (CrashPoint.MODEL_STORED, "reducer"),
]


@pytest.mark.parametrize(("point", "who"), WHO, ids=lambda v: getattr(v, "value", v))
def test_no_gathered_update_is_lost_or_counted_twice(
    network: AddingNetwork, work: tuple[str, str], point: CrashPoint, who: str
) -> None:
    network.kill(who, signal.SIGTERM)
    network.relaunch(who, RUNNEL_CRASH_AT=point.value)
    network.until_attached("c1", "c2", *network.steps)
    if who == "c1":
        network.gather_at_c1()
        network.until_attached("c2", *network.steps)
    session = network.start_session(work, ROUNDS, strategy="median")
    assert network.until_dead(who, timeout_s=60) == -signal.SIGKILL
    network.relaunch(who)
    network.require_exact(session, ROUNDS, gain=MEDIAN_STEP)
    network.require_nothing_held()
    assert not list((network.folder / "reducer" / "partials").iterdir())
