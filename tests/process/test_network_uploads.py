"""Clients that vanish in the middle of a large upload: the others go on, and nothing of it is counted by half."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from runnel.common.crash_points import CrashPoint
from runnel.common.tensors import write_npz
from runnel.compute_package import pack
from tests.eventually import eventually_blocking
from tests.process.process_network import ProcessNetwork

pytestmark = [pytest.mark.process, pytest.mark.restarts, pytest.mark.timeout(120)]

FLOATS = 6_500_000  # 52 MB
TRAIN = """
import os, sys, time
import numpy as np

while os.path.exists(os.environ["RUNNEL_DATA"] + ".wait"):
    time.sleep(0.02)
step = float(open(os.environ["RUNNEL_DATA"]).read())
with np.load(sys.argv[1]) as model:
    np.savez(sys.argv[2], **{name: model[name] + step for name in model.files})
"""
VALIDATE = "import json, sys; json.dump({'loss': 1}, open(sys.argv[2], 'w'))"


@pytest.fixture
def network(tmp_path: Path) -> Iterator[ProcessNetwork]:
    with ProcessNetwork(tmp_path) as net:
        net.start_reducer(RUNNEL_REDUCER_HEARTBEAT_S="1")
        net.start_combiner("c1", RUNNEL_COMBINER_HEARTBEAT_S="1")
        for number in (1, 2):
            (tmp_path / f"site-{number}.txt").write_text(str(float(number)))
        net.start_client("site-1", tmp_path / "site-1.txt")
        net.until_attached("c1", "site-1")
        yield net


def start(net: ProcessNetwork, *, min_clients: int, floats: int = FLOATS, **wanted: object) -> str:
    package = net.folder / "package"
    if not package.exists():
        package.mkdir()
        (package / "train.py").write_text(TRAIN)
        (package / "validate.py").write_text(VALIDATE)
        pack(package, net.folder / "package.tar.gz")
    write_npz(net.folder / "seed.npz", {"w": np.zeros(floats)})
    return net.sdk.sessions.start(
        package=str(net.folder / "package.tar.gz"),
        seed=str(net.folder / "seed.npz"),
        rounds=1,
        min_clients=min_clients,
        validate_every=0,
        **wanted,  # type: ignore[arg-type]
    ).session


def mean_is(net: ProcessNetwork, session: str, value: float) -> None:
    ended = net.until_ended(session)
    assert ended["status"] == "finished", ended["reason"]
    target = net.folder / "got.npz"
    net.sdk.models.get(str(ended["model"]), target)
    with np.load(target) as model:
        assert np.array_equal(model["w"], np.full(model["w"].shape, value))


def spooled(net: ProcessNetwork) -> int:
    """Return how many bytes of updates are at the combiner."""
    return sum(file.stat().st_size for file in (net.folder / "c1" / "spool").rglob("*.part"))


def test_killed_half_way_through_and_never_back(network: ProcessNetwork) -> None:
    network.start_client("site-2", network.folder / "site-2.txt", RUNNEL_CRASH_AT=CrashPoint.PAYLOAD_HALF_PUSHED.value)
    network.until_attached("site-2")
    session = start(network, min_clients=1, round_timeout_s=20)
    assert network.until_dead("site-2", timeout_s=60) == -signal.SIGKILL
    mean_is(network, session, 1.0)
    (only,) = network.sdk.sessions.show(session, clients=True).rounds
    assert (only.updates, only.failed) == (1, 0)
    assert {part.client: part.status for part in only.clients} == {"site-1": "counted", "site-2": "late"}
    eventually_blocking(lambda: spooled(network) == 0, timeout_s=45)
    assert "Traceback" not in network.log_of("c1")


def test_killed_half_way_through_and_back(network: ProcessNetwork) -> None:
    network.start_client("site-2", network.folder / "site-2.txt", RUNNEL_CRASH_AT=CrashPoint.PAYLOAD_HALF_PUSHED.value)
    network.until_attached("site-2")
    session = start(network, min_clients=2)
    assert network.until_dead("site-2", timeout_s=60) == -signal.SIGKILL
    network.launch("site-2")
    mean_is(network, session, 1.5)
    eventually_blocking(lambda: spooled(network) == 0)


def test_stopped_in_the_middle_and_gone_on_later(network: ProcessNetwork) -> None:
    """A process that stands still looks like one that is gone: its client is let go, and taken in when it goes on."""
    network.start_client("site-2", network.folder / "site-2.txt")
    network.until_attached("site-2")
    wait = network.folder / "site-1.txt.wait"
    wait.touch()  # so that all is not over before it is stopped, if this process is slow
    session = start(network, min_clients=2)
    process = network.process("site-2")
    outbox = network.folder / "site-2" / "outbox"
    eventually_blocking(lambda: any(outbox.glob("*.json")), timeout_s=60)
    process.send_signal(signal.SIGSTOP)
    try:

        def let_go() -> bool:
            return "away" in {node.status for node in network.sdk.nodes.list() if node.name == "site-2"}

        eventually_blocking(let_go, timeout_s=30)
        assert network.sdk.sessions.show(session).status == "running"
    finally:
        process.send_signal(signal.SIGCONT)
    wait.unlink()
    mean_is(network, session, 1.5)
    for name in ("reducer", "c1", "site-2"):
        assert network.process(name).poll() is None
        assert "Traceback" not in network.log_of(name)


def test_a_client_that_stands_still_does_not_keep_the_rest(network: ProcessNetwork) -> None:
    network.start_client("site-2", network.folder / "site-2.txt")
    network.until_attached("site-2")
    process = network.process("site-2")
    process.send_signal(signal.SIGSTOP)
    try:
        mean_is(network, start(network, min_clients=1, floats=10, round_timeout_s=10), 1.0)
    finally:
        process.send_signal(signal.SIGCONT)
    network.until_attached("site-2")
    mean_is(network, start(network, min_clients=2, floats=10), 1.5)
