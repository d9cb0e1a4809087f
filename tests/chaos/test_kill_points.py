"""kill -9 of each kind of process at each point where it hurts: the final model is, bit for bit, that of no kill."""

from __future__ import annotations

import signal

import pytest

from runnel.common.crash_points import CrashPoint
from tests.chaos.adding_network import AddingNetwork

pytestmark = [pytest.mark.process, pytest.mark.restarts, pytest.mark.timeout(120)]

ROUNDS = 2

WHO = {
    CrashPoint.SLOTS_STORED: ["reducer"],
    CrashPoint.ASSIGNMENT_ARRIVED: ["reducer"],
    CrashPoint.BLOB_HALF_FETCHED: ["site-1", "combiner"],
    CrashPoint.UPDATE_HALF_KEPT: ["site-1"],
    CrashPoint.UPDATE_KEPT: ["site-1"],
    CrashPoint.PAYLOAD_HALF_PUSHED: ["site-1", "combiner"],
    CrashPoint.UPDATE_PUSHED: ["site-1"],
    CrashPoint.UPDATE_RECEIVED: ["combiner"],
    CrashPoint.UPDATE_FOLDED: ["combiner"],
    CrashPoint.SUM_PUSHED: ["combiner"],
    CrashPoint.REPORT_RECEIVED: ["reducer"],
    CrashPoint.REPORT_COMMITTED: ["reducer"],
    CrashPoint.SETTLED_ABOVE: ["combiner"],
    CrashPoint.SETTLED_RECEIVED: ["site-1"],
    CrashPoint.MODEL_STORED: ["reducer"],
    CrashPoint.ROUND_COMMITTED: ["reducer"],
}
# Up to here the client has not finished its work, so that it may do it again.
UNFINISHED = {CrashPoint.BLOB_HALF_FETCHED, CrashPoint.UPDATE_HALF_KEPT}

# What a combiner fetches it keeps, and what it summed up alone is the next model: only the seed is fetched, once.
FETCHED = {CrashPoint.BLOB_HALF_FETCHED}

# With clients at both combiners a round has two orders and two sums: the other combiner goes on and may be given these
# clients under a second order for the same work, and the reducer begins again with one report in its ledger.
AT_TWO = [
    (CrashPoint.UPDATE_FOLDED, "combiner"),
    (CrashPoint.SUM_PUSHED, "combiner"),
    (CrashPoint.SETTLED_ABOVE, "combiner"),
    (CrashPoint.REPORT_COMMITTED, "reducer"),
    (CrashPoint.MODEL_STORED, "reducer"),
]

# What a round does not pass by itself, in a test of its own.
ELSEWHERE = {
    CrashPoint.PACKAGE_UPDATED: "test_kill_points_versions.py",
    CrashPoint.RUN_ARRIVED: "docker/test_task_kills.py",
    CrashPoint.RUN_FILE_RECEIVED: "docker/test_task_kills.py",
    CrashPoint.RUN_FILE_KEPT: "docker/test_task_kills.py",
    CrashPoint.RUN_END_COMMITTED: "docker/test_task_kills.py",
    CrashPoint.RUN_SETTLED_ABOVE: "docker/test_task_kills.py",
    CrashPoint.RUN_HELD: "docker/test_task_kills.py",
    CrashPoint.RUN_BEGUN: "docker/test_task_kills.py",
    CrashPoint.RUN_ENDED: "docker/test_task_kills.py",
    CrashPoint.RUN_PUSHED: "docker/test_task_kills.py",
}


def test_every_point_is_tried() -> None:
    assert WHO.keys() | ELSEWHERE.keys() == set(CrashPoint)


@pytest.mark.parametrize(
    ("point", "who"),
    [(point, who) for point, names in WHO.items() for who in names],
    ids=lambda v: getattr(v, "value", v),
)
def test_no_update_is_lost_or_counted_twice(
    network: AddingNetwork, work: tuple[str, str], point: CrashPoint, who: str
) -> None:
    network.until_attached("c1", "c2", *network.steps)
    who = network.gather(anew=point in FETCHED) if who == "combiner" else who
    network.crash(who, point)
    session = network.start_session(work, ROUNDS)
    assert network.until_dead(who, timeout_s=60) == -signal.SIGKILL
    network.relaunch(who)
    network.require_exact(session, ROUNDS, again=[who] if point in UNFINISHED else [])
    network.require_nothing_held()


@pytest.mark.parametrize("point", [CrashPoint.UPDATE_FOLDED, CrashPoint.SUM_PUSHED], ids=lambda point: point.value)
def test_another_combiner_gets_what_one_had_that_never_comes_back(
    network: AddingNetwork, work: tuple[str, str], point: CrashPoint
) -> None:
    network.until_attached("c1", "c2", *network.steps)
    who = network.gather()
    network.crash(who, point)
    session = network.start_session(work, ROUNDS)
    assert network.until_dead(who, timeout_s=60) == -signal.SIGKILL
    network.require_exact(session, ROUNDS)
    network.require_nothing_held()
    assert set(network.places().values()) == {"c1", "c2"} - {who}
    network.relaunch(who)


@pytest.mark.parametrize(("point", "who"), AT_TWO, ids=lambda v: getattr(v, "value", v))
def test_the_other_combiner_goes_on(network: AddingNetwork, work: tuple[str, str], point: CrashPoint, who: str) -> None:
    place = network.spread()
    who = place if who == "combiner" else who
    network.crash(who, point)
    session = network.start_session(work, ROUNDS)
    assert network.until_dead(who, timeout_s=60) == -signal.SIGKILL
    network.relaunch(who)
    network.require_exact(session, ROUNDS)
    network.require_nothing_held()
