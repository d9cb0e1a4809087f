"""kill -9 of a reducer whose files are in a bucket, where it hurts: the final model is that of no kill."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from runnel.common.crash_points import CrashPoint
from tests.bucket_server import CREDENTIALS, running_bucket_server
from tests.chaos.adding_network import AddingNetwork
from tests.chaos.test_kill_points import WHO

pytestmark = [pytest.mark.process, pytest.mark.restarts, pytest.mark.timeout(120)]

ROUNDS = 2


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AddingNetwork]:
    with (
        running_bucket_server() as server,
        AddingNetwork(tmp_path_factory.mktemp("adding"), **CREDENTIALS) as net,
    ):
        net.start(1, 2, "--blobs", server.new_bucket())
        yield net


@pytest.mark.parametrize(
    "point", [point for point, names in WHO.items() if "reducer" in names], ids=lambda point: point.value
)
def test_no_update_is_lost_or_counted_twice(network: AddingNetwork, work: tuple[str, str], point: CrashPoint) -> None:
    network.until_attached("c1", *network.steps)
    network.crash("reducer", point)
    session = network.start_session(work, ROUNDS)
    assert network.until_dead("reducer", timeout_s=60) == -signal.SIGKILL
    network.relaunch("reducer")
    network.require_exact(session, ROUNDS)
    network.require_nothing_held()
