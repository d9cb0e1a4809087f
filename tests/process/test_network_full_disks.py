"""Full disks: whose it is and what it needs is said where a person looks, all else goes on, and room mends it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

from runnel.common.endpoints import read_endpoints
from runnel.common.errors import StorageFull
from runnel.common.tensors import write_npz
from tests.eventually import eventually_blocking
from tests.process.forked_process import run_runnel
from tests.process.process_network import ProcessNetwork
from tests.small_disk import small_disk

pytestmark = [pytest.mark.process, pytest.mark.restarts, pytest.mark.timeout(120)]

DISK_BYTES = 64 << 20
LARGE = 400_000  # numbers of 8 bytes
SMALL = 100
ROOM_BYTES = 1 << 20  # for the small model, not for the large one

TRAIN = """
import os, sys
import numpy as np

step = float(open(os.environ["RUNNEL_DATA"]).read())
with np.load(sys.argv[1]) as model:
    np.savez(sys.argv[2], **{name: model[name] + step for name in model.files})
"""


class FullNetwork(ProcessNetwork):
    """A combiner and two clients; reducer, combiner and the first client have their state on small disks."""

    def start(self, stack: ExitStack) -> None:
        self.disks = {
            name: stack.enter_context(small_disk(self.folder / name, DISK_BYTES))
            for name in ("reducer", "c1", "site-1")
        }

    def serve(self) -> None:
        self.start_reducer()
        self.start_combiner("c1")
        self.until_attached("c1")  # a client that joined before it would stay at the reducer
        with self.together():
            for number in (1, 2):
                data = self.folder / f"site-{number}.txt"
                data.write_text(str(float(number)))
                self.start_client(f"site-{number}", data)
        self.until_attached("c1", "site-1", "site-2")
        self.package = self.sdk.packages.push(self.build_package(TRAIN)).digest
        self.seeds: dict[int, str] = {}
        self.first: dict[int, float] = {}
        for size in (SMALL, LARGE):
            self.push_seed(size)

    def push_seed(self, size: int, first: float = 0.0) -> None:
        """Let further sessions of this size begin with ``first``, ``first + 1``, …"""
        self.first[size] = first
        write_npz(self.folder / "seed.npz", {"w": np.arange(float(size)) + first})
        self.seeds[size] = self.sdk.models.push(self.folder / "seed.npz").model

    def session(self, size: int, **more: Any) -> str:
        options = {"rounds": 1, "min_clients": 2, "retries": 0, "round_timeout_s": 30, "validate_every": 0} | more
        return self.sdk.sessions.start(package=self.package, seed=self.seeds[size], **options).session

    def require_right(self, session: str, size: int) -> None:
        ended = self.until_ended(session)
        assert ended["status"] == "finished", ended["reason"]
        target = self.folder / "got.npz"
        self.sdk.models.get(str(ended["model"]), target)
        with np.load(target) as model:
            assert np.array_equal(model["w"], np.arange(size) + self.first[size] + 1.5)

    def person(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run_runnel(arguments, env=self._environ | {"RUNNEL_URL": f"http://{self.http}"}, timeout_s=30)

    def resume(self, session: str) -> None:
        """Do what the reason of a failed session says."""
        said = self.person("session", "resume", session)
        assert said.returncode == 0, said.stderr

    def failed(self, session: str) -> str:
        """Wait until a session has failed; return why."""
        ended = self.until_ended(session)
        assert ended["status"] == "failed"
        return str(ended["reason"])

    def address_of(self, name: str) -> str:
        return str(read_endpoints(self.folder / name).rpc)

    def require_well(self) -> None:
        for name in self.components:
            assert self.process(name).poll() is None, self.log_of(name)
            assert "Traceback" not in self.log_of(name), self.log_of(name)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FullNetwork]:
    with ExitStack() as stack:
        net = FullNetwork(tmp_path_factory.mktemp("full"))
        net.start(stack)
        with net:
            net.serve()
            yield net


def test_a_client(network: FullNetwork) -> None:
    disk = network.disks["site-1"]
    with disk.filled(ROOM_BYTES):
        session = network.session(LARGE)
        reason = network.failed(session)
        assert "Round 1 has 1 of at least 2 updates" in reason
        assert f"site-1: No room in {disk.folder}/" in reason
        assert "bytes are needed. Free some space there" in reason
        network.require_right(network.session(SMALL), SMALL)
    network.resume(session)
    network.require_right(session, LARGE)
    network.require_well()


def test_a_combiner(network: FullNetwork) -> None:
    disk = network.disks["c1"]
    network.push_seed(LARGE, first=7.0)  # one that it has not fetched yet
    with disk.filled(ROOM_BYTES):
        session = network.session(LARGE)
        reason = network.failed(session)
        for name in ("site-1", "site-2"):
            assert f"{name}: c1 at {network.address_of('c1')}: No room in {disk.folder}/" in reason
        assert f"No room in {disk.folder}/" in network.log_of("c1")
        network.require_right(network.session(SMALL), SMALL)
    network.resume(session)
    network.require_right(session, LARGE)
    network.require_well()


def test_a_combiner_without_room_for_updates(network: FullNetwork) -> None:
    """The model is there from the round before; a client whose update has no room says so and tries again."""
    disk = network.disks["c1"]
    network.require_right(network.session(LARGE), LARGE)
    with disk.filled(ROOM_BYTES):
        session = network.session(LARGE, round_timeout_s=60)
        line = 'event="no room above; trying again"'
        eventually_blocking(lambda: line in network.log_of("site-1"), timeout_s=50)
        assert f"c1 at {network.address_of('c1')}: No room in {disk.folder}/" in network.log_of("site-1")
        assert 'event="no room for an update" client=site-1' in network.log_of("c1")
    network.sdk.sessions.stop(session)  # not to wait until it is offered again
    network.resume(session)
    network.require_right(session, LARGE)
    network.require_well()


def test_a_reducer_without_room_for_payloads(network: FullNetwork) -> None:
    disk = network.disks["reducer"]
    with disk.filled(ROOM_BYTES):
        waits, ends = network.session(LARGE, round_timeout_s=60), network.session(LARGE, round_timeout_s=10)
        network.require_right(network.session(SMALL), SMALL)
        reason = network.failed(ends)
        assert "(0 failed, 2 did not answer)" in reason
        for name in ("site-1", "site-2"):
            assert f"{name}, last heard: reducer at {network.rpc}: No room in {disk.folder}/spool: " in reason
        assert 'event="no room for a payload" child=c1' in network.log_of("reducer")
        assert 'event="no room above; trying again"' in network.log_of("c1")
    network.resume(ends)
    network.require_right(waits, LARGE)  # by itself
    network.require_right(ends, LARGE)
    network.require_well()


def test_a_reducer_without_room_for_the_next_model(network: FullNetwork) -> None:
    disk = network.disks["reducer"]
    with disk.filled(LARGE * 8 + (2 << 20)):  # for the sum, and then no more for the model
        session = network.session(LARGE)
        waits = f"the reducer tries again: No room in {disk.folder}/blobs/tmp: "
        eventually_blocking(lambda: waits in (network.sdk.sessions.show(session).reason or ""), timeout_s=30)
        said = network.person("session", "show", session)
        assert "running: the reducer tries again: No room" in " ".join(said.stdout.split())
        network.require_right(network.session(SMALL), SMALL)
    network.require_right(session, LARGE)  # by itself
    assert network.sdk.sessions.show(session).reason is None
    network.require_well()


def test_a_reducer_that_can_write_nothing_at_all(network: FullNetwork) -> None:
    disk = network.disks["reducer"]
    write_npz(network.folder / "other.npz", {"w": np.ones(LARGE)})
    with disk.filled(0):
        said = network.person(
            *(
                "session",
                "start",
                "--package",
                network.package,
                "--seed",
                network.seeds[SMALL],
                "--rounds",
                "1",
                "--json",
            )
        )
        assert (said.returncode, said.stdout) == (1, "")
        error = json.loads(said.stderr)["error"]
        assert error["code"] == "storage_full"
        assert str(disk.folder) in error["message"]
        with pytest.raises(StorageFull, match=f"No room in {disk.folder}/blobs"):
            network.sdk.models.push(network.folder / "other.npz")
        assert network.sdk.status().clients_attached == 2  # what needs no room is answered
    network.require_right(network.session(SMALL), SMALL)
    network.sdk.models.push(network.folder / "other.npz")
    network.require_well()
