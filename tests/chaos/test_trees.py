"""Combiners below a combiner, and clients at the reducer itself: kills, cuts and stops of what is between."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from runnel.common.crash_points import CrashPoint
from tests.chaos.adding_network import AddingNetwork
from tests.chaos.proxy import Fault
from tests.chaos.test_kill_points import FETCHED, WHO
from tests.eventually import eventually_blocking
from tests.process.process_network import START_S

pytestmark = [pytest.mark.process, pytest.mark.restarts, pytest.mark.timeout(180)]

HEARTBEAT_S = 1.0
LEAVES = ("c1", "c2")
# Where no combiner is between, the client's own order, push and report are the reducer's.
DIRECT = [
    (CrashPoint.PAYLOAD_HALF_PUSHED, "site-1"),
    (CrashPoint.UPDATE_PUSHED, "site-1"),
    (CrashPoint.REPORT_RECEIVED, "reducer"),
    (CrashPoint.REPORT_COMMITTED, "reducer"),
    (CrashPoint.SETTLED_RECEIVED, "site-1"),
]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AddingNetwork]:
    """``top`` below the reducer, two combiners below ``top``, three clients below these."""
    with AddingNetwork(tmp_path_factory.mktemp("tree"), RUNNEL_HEARTBEAT_S=str(HEARTBEAT_S)) as net:
        net.start(2, 3, above="top")
        yield net


def at_a_leaf(network: AddingNetwork) -> str:
    """Return a leaf with clients, when all are at leaves and these below ``top``."""
    network.until_attached("top", *LEAVES, *network.steps)

    def combiners() -> list[str | None]:
        nodes = {node.name: node.attached_to for node in network.sdk.nodes.list()}
        return [nodes[name] for name in ("top", *LEAVES)]

    eventually_blocking(lambda: combiners() == ["reducer", "top", "top"], timeout_s=START_S, state=combiners)
    for name, place in network.places().items():
        if place not in LEAVES:
            network.again(name)
    # Of who was started again, the place of before may still be told.
    eventually_blocking(lambda: set(network.places().values()) <= set(LEAVES), timeout_s=START_S, state=network.places)
    return str(network.places()["site-1"])


@pytest.mark.parametrize(
    "point", [point for point, names in WHO.items() if "combiner" in names], ids=lambda point: point.value
)
def test_a_combiner_that_is_killed_above_or_below(
    network: AddingNetwork, work: tuple[str, str], point: CrashPoint
) -> None:
    if point in FETCHED:
        network.again("top", *LEAVES)
    alive = {"top", at_a_leaf(network)}
    for name in alive:
        network.crash(name, point)
    session = network.start_session(work, 3)
    while alive:
        dead = eventually_blocking(
            lambda: sorted(name for name in alive if network.process(name).poll() is not None), timeout_s=60
        )
        for name in reversed(dead):  # top before those below
            assert network.until_dead(name, timeout_s=1) == -signal.SIGKILL
            network.relaunch(name)
            alive.remove(name)
    network.require_exact(session, 3)
    network.require_nothing_held()


@pytest.mark.parametrize("fault", [Fault.HOLE, Fault.NO_SERVER])
def test_a_cut_between_combiners(network: AddingNetwork, work: tuple[str, str], fault: Fault) -> None:
    at_a_leaf(network)
    session = network.session_under_way(work, 4)
    network.proxies["top"].inflict(fault)
    time.sleep(4 * HEARTBEAT_S)
    network.proxies["top"].inflict(Fault.NONE)
    network.require_exact(session, 4, timeout_s=80)  # a probe and its answer take 20 s at most, the round's time 120 s
    network.require_nothing_held()


def test_a_combiner_above_others_stands_still(network: AddingNetwork, work: tuple[str, str]) -> None:
    at_a_leaf(network)
    session = network.session_under_way(work, 4)
    network.process("top").send_signal(signal.SIGSTOP)
    time.sleep(4 * HEARTBEAT_S)
    network.process("top").send_signal(signal.SIGCONT)
    network.require_exact(session, 4, timeout_s=120)
    network.require_nothing_held()


@pytest.fixture(scope="module")
def direct(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AddingNetwork]:
    """Two clients at the reducer."""
    with AddingNetwork(tmp_path_factory.mktemp("direct"), RUNNEL_HEARTBEAT_S=str(HEARTBEAT_S)) as net:
        net.start(0, 2)
        yield net


@pytest.fixture(scope="module")
def direct_work(direct: AddingNetwork) -> tuple[str, str]:
    return direct.work()


@pytest.mark.parametrize("fault", [Fault.HOLE, Fault.NO_CALLER])
def test_a_cut_between_the_reducer_and_its_clients(
    direct: AddingNetwork, direct_work: tuple[str, str], fault: Fault
) -> None:
    session = direct.session_under_way(direct_work, 4)
    direct.proxies["reducer"].inflict(fault)
    time.sleep(4 * HEARTBEAT_S)
    direct.proxies["reducer"].inflict(Fault.NONE)
    direct.require_exact(session, 4, timeout_s=120)
    direct.require_nothing_held()


@pytest.mark.parametrize(("point", "who"), DIRECT, ids=lambda v: getattr(v, "value", v))
def test_a_kill_of_a_client_at_the_reducer_or_of_that(
    direct: AddingNetwork, direct_work: tuple[str, str], point: CrashPoint, who: str
) -> None:
    direct.until_attached(*direct.steps)
    assert set(direct.places().values()) == {"reducer"}
    direct.crash(who, point)
    session = direct.start_session(direct_work, 2)
    assert direct.until_dead(who, timeout_s=60) == -signal.SIGKILL
    direct.relaunch(who)
    direct.require_exact(session, 2)
    direct.require_nothing_held()
    assert not list((direct.folder / "reducer" / "partials").iterdir())
