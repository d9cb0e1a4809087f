"""Told to stop in the middle of a round: the first signal drains, the second ends at once, nothing is left or lost."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from runnel.common.endpoints import read_endpoints
from runnel.common.lifetime import INTERRUPTED, OK
from runnel.common.tensors import write_npz
from runnel.transport import parse_address
from tests.eventually import eventually_blocking
from tests.process.process_network import ProcessNetwork

pytestmark = [pytest.mark.process, pytest.mark.restarts, pytest.mark.timeout(90)]

SOON_S = 20.0  # on a busy machine; alone it takes well under one
GRACE_S = 60.0  # longer than any test waits: who ends earlier did not just run out of it

TRAIN = """
import os, pathlib, signal, sys, time
import numpy as np

site = pathlib.Path(os.environ["RUNNEL_DATA"])
if (site / "stubborn").exists():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
(site / "began").write_text(str(os.getpid()))
while not (site / "go").exists():
    time.sleep(0.01)
with np.load(sys.argv[1]) as model:
    np.savez(sys.argv[2], **{name: model[name] + float((site / "step").read_text()) for name in model.files})
"""


class SignalledNetwork(ProcessNetwork):
    """A combiner and two clients whose training waits for a file."""

    def start(self) -> None:
        self.start_reducer("--grace-s", str(GRACE_S))
        with self.together():
            self.start_combiner("c1", "--grace-s", str(GRACE_S))
            for number in (1, 2):
                (self.site(number)).mkdir()
                (self.site(number) / "step").write_text(str(float(number)))
                self.start_client(f"site-{number}", self.site(number), "--grace-s", str(GRACE_S))
        self.package = str(self.build_package(TRAIN))
        self.seed = self.folder / "seed.npz"
        write_npz(self.seed, {"w": np.zeros(1000)})

    def site(self, number: int) -> Path:
        return self.folder / f"data-{number}"

    def in_the_middle(self) -> str:
        """Start a session and return it when both clients train."""
        self.until_attached("c1", "site-1", "site-2")
        # Who was at the reducer, for want of c1, has moved.
        eventually_blocking(
            lambda: all(node.attached_to == "c1" for node in self.sdk.nodes.list() if node.kind == "client")
        )
        for number in (1, 2):
            for name in ("began", "go"):
                (self.site(number) / name).unlink(missing_ok=True)
        started = self.sdk.sessions.start(
            package=self.package, seed=str(self.seed), rounds=1, min_clients=2, round_timeout_s=60, validate_every=0
        )
        eventually_blocking(lambda: self.run_of(1) and self.run_of(2), timeout_s=30)
        return started.session

    def run_of(self, number: int) -> int | None:
        """Return the process id of the training at a client, if it has begun."""
        file = self.site(number) / "began"
        return int(file.read_text() or 0) if file.exists() else None

    def go(self, *numbers: int) -> None:
        for number in numbers:
            (self.site(number) / "go").touch()

    def tell(self, name: str, number: signal.Signals, until: str = "", times: int = 1) -> None:
        """Send a signal, and wait until the process has logged ``until`` since then."""
        before = self.log_of(name).count(until) if until else 0
        self._children = psutil.Process(self.process(name).pid).children(recursive=True)
        self.process(name).send_signal(number)
        if until:
            eventually_blocking(lambda: self.log_of(name).count(until) >= before + times, timeout_s=SOON_S)

    def require_ended(self, name: str, status: int) -> None:
        """The process that was told last ends soon, and with it what it had started; its endpoints are gone."""
        assert self.until_dead(name, SOON_S) == status, self.log_of(name)
        _, alive = psutil.wait_procs(self._children, timeout=SOON_S)
        assert not alive
        assert not (self.folder / name / "endpoints.json").exists()

    def again(self, name: str) -> None:
        self.launch(name)
        self.until_ready(name)

    def require_right(self, session: str) -> None:
        ended = self.until_ended(session)
        assert ended["status"] == "finished", ended["reason"]
        target = self.folder / "got.npz"
        self.sdk.models.get(str(ended["model"]), target)
        with np.load(target) as model:
            assert np.array_equal(model["w"], np.full(1000, 1.5))


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SignalledNetwork]:
    with SignalledNetwork(tmp_path_factory.mktemp("signals")) as net:
        net.start()
        yield net


def test_a_client_ends_what_it_works_on_and_its_update_counts(network: SignalledNetwork) -> None:
    session = network.in_the_middle()
    network.tell("site-1", signal.SIGTERM, until="event=stopping running=1")
    assert network.process("site-1").poll() is None
    network.go(1, 2)
    network.require_ended("site-1", OK)
    network.require_right(session)  # the client is not there any more: it reported before it went
    network.again("site-1")


def test_a_second_signal_ends_a_client_and_its_run_at_once(network: SignalledNetwork) -> None:
    (network.site(1) / "stubborn").touch()
    session = network.in_the_middle()
    run = psutil.Process(network.run_of(1))
    network.tell("site-1", signal.SIGINT, until="event=stopping running=1")
    network.tell("site-1", signal.SIGINT)
    network.require_ended("site-1", INTERRUPTED)
    assert "did not end when asked to" not in network.log_of("site-1")  # nor does it wait for a run that ignores that
    assert not run.is_running()
    (network.site(1) / "stubborn").unlink()
    network.go(1, 2)
    network.again("site-1")
    network.require_right(session)


def test_a_combiner_sends_its_clients_on_and_nothing_is_done_again(network: SignalledNetwork) -> None:
    session = network.in_the_middle()
    runs = network.run_of(1), network.run_of(2)
    network.tell("c1", signal.SIGTERM)
    network.require_ended("c1", OK)
    network.until_attached("site-1", "site-2")
    network.go(1, 2)
    network.require_right(session)
    assert (network.run_of(1), network.run_of(2)) == runs
    network.again("c1")


def test_a_second_signal_ends_a_combiner_at_once(network: SignalledNetwork) -> None:
    session = network.in_the_middle()
    network.tell("site-2", signal.SIGSTOP)  # one of those below that does not go
    try:
        network.tell("c1", signal.SIGTERM, until='event="node left" name=site-1')
        assert network.process("c1").poll() is None
        network.tell("c1", signal.SIGINT)
        network.require_ended("c1", INTERRUPTED)
    finally:
        network.tell("site-2", signal.SIGCONT)
    network.go(1, 2)
    network.require_right(session)
    network.again("c1")


def test_a_reducer_goes_and_its_session_goes_on_where_it_was(network: SignalledNetwork) -> None:
    session = network.in_the_middle()
    runs = network.run_of(1), network.run_of(2)
    network.tell("reducer", signal.SIGTERM)
    network.require_ended("reducer", OK)
    network.go(1, 2)
    network.again("reducer")
    network.require_right(session)
    assert (network.run_of(1), network.run_of(2)) == runs


def test_a_second_signal_ends_a_reducer_at_once(network: SignalledNetwork) -> None:
    session = network.in_the_middle()
    address = parse_address(str(read_endpoints(network.folder / "reducer").http))
    with socket.create_connection((address.host, address.port)) as slow:  # a request that does not end
        slow.sendall(
            b"POST /api/v1/models HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\nIdempotency-Key: slow-one\r\n\r\nPK"
        )
        network.tell("reducer", signal.SIGINT, until="event=stopping", times=2)
        with pytest.raises(subprocess.TimeoutExpired):
            network.until_dead("reducer", 0.5)
        network.tell("reducer", signal.SIGINT)
        network.require_ended("reducer", INTERRUPTED)
    network.go(1, 2)
    network.again("reducer")
    network.require_right(session)
