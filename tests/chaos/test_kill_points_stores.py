"""kill -9 of a reducer whose files are in a bucket, or its state in PostgreSQL: the final model is that of no kill."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from runnel.common.crash_points import CrashPoint
from tests.bucket_server import CREDENTIALS, running_bucket_server
from tests.chaos.adding_network import AddingNetwork
from tests.chaos.test_kill_points import WHO
from tests.postgresql import running_cluster

pytestmark = [pytest.mark.process, pytest.mark.restarts, pytest.mark.timeout(120)]

ROUNDS = 2


@pytest.fixture(scope="module", params=["bucket", "postgresql"])
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AddingNetwork]:
    with ExitStack() as stack:
        own: tuple[str, ...] = ()
        if request.param == "bucket":
            own, variables = ("--blobs", stack.enter_context(running_bucket_server()).new_bucket()), CREDENTIALS
        else:
            variables = {"RUNNEL_REDUCER_DATABASE": stack.enter_context(running_cluster()).new_database()}
        net = stack.enter_context(AddingNetwork(tmp_path_factory.mktemp("adding"), **variables))
        net.start(1, 2, *own)
        assert (net.folder / "reducer" / "reducer.db").exists() == (request.param == "bucket")
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
