"""kill -9 in rounds of a small model: it goes within orders, and the end of training is committed with the next one."""

from __future__ import annotations

import signal
from collections.abc import Sequence

import pytest

from runnel.common.crash_points import CrashPoint
from tests.chaos.adding_network import AddingNetwork

pytestmark = [pytest.mark.process, pytest.mark.restarts, pytest.mark.timeout(120)]

ROUNDS = 4
SIZE = 400
WHO = {
    CrashPoint.SLOTS_STORED: "reducer",
    CrashPoint.UPDATE_HALF_KEPT: "site-1",
    CrashPoint.UPDATE_KEPT: "site-1",
    CrashPoint.UPDATE_RECEIVED: "combiner",
    CrashPoint.UPDATE_FOLDED: "combiner",
    CrashPoint.SUM_PUSHED: "combiner",
    CrashPoint.REPORT_RECEIVED: "reducer",
    CrashPoint.REPORT_COMMITTED: "reducer",
    CrashPoint.MODEL_STORED: "reducer",
    CrashPoint.ROUND_COMMITTED: "reducer",
}


@pytest.fixture(scope="module")
def work(network: AddingNetwork) -> tuple[str, str]:
    """Digest of the package and id of the seed."""
    return network.work(SIZE)


@pytest.mark.parametrize(("point", "who"), WHO.items(), ids=lambda v: getattr(v, "value", v))
def test_no_small_update_is_lost_or_counted_twice(
    network: AddingNetwork, work: tuple[str, str], point: CrashPoint, who: str
) -> None:
    network.until_attached("c1", "c2", *network.steps)
    who = network.gather() if who == "combiner" else who
    network.crash(who, point)
    session = network.start_session(work, ROUNDS)
    assert network.until_dead(who, timeout_s=60) == -signal.SIGKILL
    network.relaunch(who)
    again: Sequence[str] = [who] if point is CrashPoint.UPDATE_HALF_KEPT else []
    network.require_exact(session, ROUNDS, again=again)
    network.require_nothing_held()
    phases = [list(each.phases) for each in network.sdk.sessions.show(session).rounds]
    assert all({"training", "reducing", "validating"} <= set(each) for each in phases)
