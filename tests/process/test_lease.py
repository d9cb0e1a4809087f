"""Two reducer processes and one state: only one acts, whatever becomes of the other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from runnel.common.endpoints import read_endpoints
from tests.eventually import eventually_blocking
from tests.postgresql import Cluster
from tests.process.process_network import Component, ProcessNetwork

pytestmark = [pytest.mark.process, pytest.mark.restarts, pytest.mark.timeout(180)]

LEASE_S = 3.0


class TwoReducers(ProcessNetwork):
    """Reducers on one database, each with a state folder of its own."""

    def __init__(self, folder: Path, url: str, *, lease_s: float = LEASE_S) -> None:
        # In the environment, as the password does not belong on a command line.
        super().__init__(folder, RUNNEL_REDUCER_DATABASE=url, RUNNEL_REDUCER_LEASE_S=str(lease_s))

    def start(self, name: str) -> None:
        state = self.folder / name
        arguments = ["reducer", "--rpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--insecure", "--state", str(state)]
        arguments += ["--name", name]
        if name not in self.components:
            self.components[name] = Component(name, arguments, state, (self.folder / f"{name}.log").open("ab"))
        self.launch(name)

    def api(self, name: str) -> str:
        return f"http://{read_endpoints(self.folder / name).http}/api/v1"

    def tokens(self, name: str) -> set[str]:
        answer = httpx.get(f"{self.api(name)}/tokens", timeout=20)
        answer.raise_for_status()
        return {token["name"] for token in answer.json()["items"]}

    def make_token(self, name: str, token: str) -> httpx.Response:
        return httpx.post(f"{self.api(name)}/tokens", json={"role": "client", "name": token}, timeout=30)


@pytest.fixture
def two(tmp_path: Path, cluster: Cluster) -> Iterator[TwoReducers]:
    with TwoReducers(tmp_path, cluster.new_database()) as reducers:
        yield reducers


@pytest.fixture
def two_of_long_leases(tmp_path: Path, cluster: Cluster) -> Iterator[TwoReducers]:
    """Their leases last longer than any start: that one follows in time shows that it waits for none."""
    with TwoReducers(tmp_path, cluster.new_database(), lease_s=60.0) as reducers:
        yield reducers


def test_the_second_is_refused_while_the_first_lives_and_follows_it_at_once_when_it_was_killed(
    two_of_long_leases: TwoReducers,
) -> None:
    two = two_of_long_leases
    two.start("north")
    two.until_ready("north")
    two.make_token("north", "before").raise_for_status()
    two.start("south")
    assert two.until_dead("south", 30) == 1
    lines = two.log_of("south").strip().splitlines()
    pid = two.process("north").pid
    assert f"The reducer north on {os.uname().nodename} (process {pid}) acts on the database test_" in lines[-1]
    assert "since 20" in lines[-1]
    assert "Traceback" not in two.log_of("south")
    two.kill("north")
    began = time.monotonic()
    two.start("south")
    two.until_ready("south")
    assert time.monotonic() - began < 45  # what a process takes to start on a busy machine; nobody waits for the lease
    assert "the holder of the lease is gone" in two.log_of("south")
    assert two.tokens("south") == {"before"}
    for name in ("north", "south"):
        assert "battery" not in two.log_of(name)


def test_one_that_stood_still_for_longer_than_its_lease_never_acts_again(two: TwoReducers) -> None:
    two.start("north")
    two.until_ready("north")
    api = two.api("north")
    north = two.process("north")
    north.send_signal(signal.SIGSTOP)
    stopped = time.monotonic()
    try:
        # Its connections live on; only that it is silent tells. Whoever watches over reducers starts the next until it
        # stays.
        while True:
            two.start("south")
            eventually_blocking(
                lambda: two.process("south").poll() is not None or "ready" in two.log_of("south"), timeout_s=30
            )
            if two.process("south").poll() is None:
                break
        taken = time.monotonic() - stopped
        two.until_ready("south")
        assert taken < LEASE_S + 60
        answers: list[httpx.Response | httpx.HTTPError] = []

        def ask() -> None:
            try:
                answers.append(httpx.post(f"{api}/tokens", json={"role": "client", "name": "stale"}, timeout=30))
            except httpx.HTTPError as error:
                answers.append(error)

        asking = threading.Thread(target=ask)
        asking.start()  # what waits in its sockets is the first that it sees
        time.sleep(0.2)
    finally:
        north.send_signal(signal.SIGCONT)
    assert north.wait(60) == 1
    asking.join()
    assert not any(isinstance(answer, httpx.Response) and answer.status_code < 500 for answer in answers)
    last = two.log_of("north").strip().splitlines()[-1]
    assert "no longer has the lease" in last
    assert "south on" in last
    assert "Traceback" not in two.log_of("north")
    assert two.make_token("south", "fresh").status_code == 201
    assert two.tokens("south") == {"fresh"}


STOPS_INSIDE = """
import asyncio, os, signal, sys
from datetime import UTC, datetime

from runnel.common.errors import Unreachable
from runnel.reducer.store.database import Database
from runnel.reducer.store.tables import OrganisationRow

async def main():
    try:
        async with Database(os.environ["URL"], name="first", lease_s=2, patience_s=1) as database:
            async with database.write() as tx:
                tx.add(OrganisationRow(id=sys.argv[1], created_at=datetime.now(UTC)))
                await tx.flush()
                if sys.argv[1] == "first":
                    os.kill(os.getpid(), signal.SIGSTOP)
            print("committed")
    except* Unreachable as group:
        print("refused", group.exceptions)

asyncio.run(main())
"""


def test_one_that_stands_still_inside_of_a_transaction_keeps_nobody_waiting(cluster: Cluster) -> None:
    url = cluster.new_database()

    def start(name: str) -> subprocess.Popen[str]:
        environ = os.environ | {"URL": url}
        return subprocess.Popen(
            [sys.executable, "-c", STOPS_INSIDE, name], env=environ, stdout=subprocess.PIPE, text=True
        )

    with start("first") as first:
        try:
            eventually_blocking(lambda: "T" in Path(f"/proc/{first.pid}/stat").read_text().split()[2], timeout_s=30)
            time.sleep(2.5)  # the lease
            began = time.monotonic()
            with start("second") as second:
                told, _ = second.communicate(timeout=60)
            assert "committed" in told
            assert time.monotonic() - began < 50
            first.send_signal(signal.SIGCONT)
            told, _ = first.communicate(timeout=60)
        finally:
            first.kill()
    assert "refused" in told
    name = url.rpartition("/")[2]
    assert cluster.query(name, "SELECT id FROM organisation") == [("second",)]


def test_a_sqlite_file_elsewhere_is_locked_too(tmp_path: Path) -> None:
    with TwoReducers(tmp_path, f"sqlite:///{tmp_path / 'shared' / 'state.db'}") as two:
        two.start("north")
        two.until_ready("north")
        two.start("south")
        assert two.until_dead("south", 30) == 1
        last = two.log_of("south").strip().splitlines()[-1]
        assert f"Another reducer (process {two.process('north').pid} on " in last
        assert "state.db" in last
