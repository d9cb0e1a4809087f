"""Networks that are cut, slow or reset, and processes that stand still: the model is that of a quiet day."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from tests.chaos.adding_network import SIZE, AddingNetwork
from tests.chaos.proxy import FAULTS, Fault, Way

pytestmark = [pytest.mark.process, pytest.mark.restarts, pytest.mark.timeout(180)]

HEARTBEAT_S = 1.0


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AddingNetwork]:
    with AddingNetwork(tmp_path_factory.mktemp("cuts"), RUNNEL_HEARTBEAT_S=str(HEARTBEAT_S)) as net:
        net.start(combiners=2, clients=3)
        yield net


def all_at(network: AddingNetwork) -> str:
    """Return the combiner at which all clients are: what is done to the other one would hurt nobody."""
    network.until_attached("c1", "c2", *network.steps)
    return network.gather()


@pytest.mark.parametrize("where", ["reducer", "combiner"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_cut_between_two_tiers(network: AddingNetwork, work: tuple[str, str], where: str, fault: Fault) -> None:
    where = all_at(network) if where == "combiner" else where
    proxy = network.proxies[where]
    before = proxy.blobs.moved[Way.UP]
    session = network.session_under_way(work, 4)
    assert proxy.blobs.moved[Way.UP] - before > 8 * SIZE, "updates and sums do not pass the proxy of the blob port"
    proxy.inflict(fault)
    time.sleep(4 * HEARTBEAT_S)
    proxy.inflict(Fault.NONE)
    # Who is not told that a connection is gone finds out by a probe: the longest is 10 s to it and 10 s for its answer.
    # Who waited for the round's time-out would take 120 s.
    network.require_exact(session, 4, timeout_s=80 if fault is Fault.NO_SERVER else 120)
    network.require_nothing_held()


@pytest.mark.parametrize("who", ["reducer", "combiner", "site-1"])
def test_a_process_that_stands_still_for_longer_than_the_heartbeats(
    network: AddingNetwork, work: tuple[str, str], who: str
) -> None:
    who = all_at(network) if who == "combiner" else who
    session = network.session_under_way(work, 4)
    network.process(who).send_signal(signal.SIGSTOP)
    time.sleep(4 * HEARTBEAT_S)
    network.process(who).send_signal(signal.SIGCONT)
    network.require_exact(session, 4, timeout_s=120)
    network.require_nothing_held()
