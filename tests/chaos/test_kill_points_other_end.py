"""kill -9 of the other end of what is under way, through the blob port and through gRPC alone."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from runnel.common.crash_points import CrashPoint
from tests.chaos.adding_network import AddingNetwork
from tests.chaos.test_kill_points import FETCHED
from tests.chaos.test_large_models import NO_BLOB_PORT

pytestmark = [pytest.mark.process, pytest.mark.restarts, pytest.mark.timeout(120)]

ROUNDS = 2
# Who passes the point, and who is killed when it does.
TRANSFERS = [
    (CrashPoint.BLOB_HALF_FETCHED, "site-1", "combiner"),
    (CrashPoint.BLOB_HALF_FETCHED, "combiner", "reducer"),
    (CrashPoint.PAYLOAD_HALF_PUSHED, "site-1", "combiner"),
    (CrashPoint.PAYLOAD_HALF_PUSHED, "combiner", "reducer"),
]
OWN_END = [
    (CrashPoint.BLOB_HALF_FETCHED, "site-1", "site-1"),
    (CrashPoint.PAYLOAD_HALF_PUSHED, "site-1", "site-1"),
    (CrashPoint.PAYLOAD_HALF_PUSHED, "combiner", "combiner"),
]
NEWS = [
    (CrashPoint.ASSIGNMENT_ARRIVED, "reducer", "combiner"),
    (CrashPoint.ASSIGNMENT_ARRIVED, "reducer", "site-1"),
    (CrashPoint.UPDATE_PUSHED, "site-1", "combiner"),
    (CrashPoint.UPDATE_FOLDED, "combiner", "site-1"),
    (CrashPoint.SUM_PUSHED, "combiner", "reducer"),
    (CrashPoint.REPORT_COMMITTED, "reducer", "combiner"),
    (CrashPoint.SETTLED_ABOVE, "combiner", "site-1"),
    (CrashPoint.ROUND_COMMITTED, "reducer", "combiner"),
]
# A client that is killed before its update is kept may train again.
UNFINISHED = {CrashPoint.ASSIGNMENT_ARRIVED, CrashPoint.BLOB_HALF_FETCHED, CrashPoint.UPDATE_FOLDED}


@pytest.fixture(scope="module")
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AddingNetwork]:
    environ = NO_BLOB_PORT if request.param == "gRPC" else {}
    with AddingNetwork(tmp_path_factory.mktemp("adding"), **environ) as net:
        net.start(combiners=2, clients=3)
        yield net


@pytest.mark.parametrize(
    ("network", "point", "who", "victim"),
    [("blob port", *case) for case in TRANSFERS + NEWS] + [("gRPC", *case) for case in TRANSFERS + OWN_END],
    ids=lambda v: getattr(v, "value", v),
    indirect=["network"],
    scope="module",
)
def test_no_update_is_lost_or_counted_twice(
    network: AddingNetwork, work: tuple[str, str], point: CrashPoint, who: str, victim: str
) -> None:
    network.until_attached("c1", "c2", *network.steps)
    combiner = network.gather(anew=point in FETCHED and who == "combiner")
    who, victim = (combiner if name == "combiner" else name for name in (who, victim))
    network.crash(who, point, victim)
    session = network.start_session(work, ROUNDS)
    assert network.until_dead(victim, timeout_s=60) == -signal.SIGKILL
    network.relaunch(victim)
    network.require_exact(session, ROUNDS, again=[victim] if point in UNFINISHED else [])
    network.require_nothing_held()
