"""Clocks that jump in a running network: sessions go on, and who is refused for it reads of clocks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from runnel.common.tensors import write_npz
from tests.eventually import eventually_blocking
from tests.process.clocked_network import ClockedNetwork
from tests.process.secure_network import SecureNetwork

pytestmark = [pytest.mark.process, pytest.mark.restarts, pytest.mark.timeout(120)]

HOUR_S, DAY_S = 3600, 86400
TTL_S = 10.0
FOR_GOOD = 100_000

TRAIN = """
import sys
import numpy as np

with np.load(sys.argv[1]) as model:
    np.savez(sys.argv[2], **{name: model[name] + 1.0 for name in model.files})
"""


class ShiftedNetwork(ClockedNetwork, SecureNetwork):
    """A combiner and a client, and tokens and credentials, which expire."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, RUNNEL_HEARTBEAT_S="0.5")

    def start(self) -> str:
        """Start everything; return a session that goes on for good."""
        self.start_reducer(RUNNEL_REDUCER_CREDENTIAL_TTL_S=str(TTL_S))
        data = self.folder / "data"
        data.write_text("")
        with self.together():
            self.start_combiner("c1")
            self.start_client("site-1", data)
        self.until_attached("c1", "site-1")
        write_npz(self.folder / "seed.npz", {"w": np.zeros(10)})
        return self.sdk.sessions.start(
            package=str(self.build_package(TRAIN)),
            seed=str(self.folder / "seed.npz"),
            rounds=FOR_GOOD,
            validate_every=0,
            round_timeout_s=60,
            retries=20,
        ).session

    def committed(self, session: str) -> int:
        return sum(each.status == "committed" for each in self.sdk.sessions.show(session).rounds)

    def goes_on(self, session: str) -> None:
        """Wait for some more rounds, from their beginning to their end."""
        before = self.committed(session)
        eventually_blocking(lambda: self.committed(session) >= before + 2, timeout_s=30)

    def jump(self, name: str, seconds: float, session: str, *, refused: bool = False) -> None:
        """Let a clock jump; the session goes on, and whoever is ``refused`` for it meanwhile reads of clocks."""
        said = self.complaints()
        self.shift(name, seconds)
        if refused:
            eventually_blocking(lambda: self.complaints() > said, timeout_s=30)
        self.goes_on(session)

    def complaints(self) -> int:
        return sum(self.log_of(name).count("compare the clocks") for name in self.components)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShiftedNetwork]:
    with ShiftedNetwork(tmp_path_factory.mktemp("clocks")) as net:
        yield net


def test_a_session_goes_on(network: ShiftedNetwork) -> None:
    session = network.start()
    network.goes_on(session)
    for seconds in (DAY_S, -HOUR_S):
        network.jump("site-1", seconds, session)
    for seconds in (-DAY_S, -HOUR_S):
        network.jump("c1", seconds, session)
    network.shift("c1", 0)
    # Forward: who is attached has a credential of the past. Backward: the new ones are too old for the combiner.
    for seconds in (HOUR_S, -DAY_S):
        network.jump("reducer", seconds, session, refused=True)
    for seconds in (0, DAY_S):
        network.jump("reducer", seconds, session)
    network.jump("c1", 10 * DAY_S, session)
    network.sdk.sessions.stop(session)
    ended = network.until_ended(session)
    listed = ended["rounds"]
    assert isinstance(listed, list)
    rounds = [each for each in listed if each["status"] == "committed"]
    assert all(each["updates"] == 1 for each in rounds)
    assert all(0 < each["seconds"] < 60 for each in rounds), "by the clock on the wall"
    target = network.folder / "got.npz"
    network.sdk.models.get(str(ended["model"]), target)
    with np.load(target) as model:
        assert np.array_equal(model["w"], np.full(10, float(len(rounds))))
    for name in network.components:
        assert network.process(name).poll() is None
        assert "Traceback" not in network.log_of(name)


def test_a_token_that_a_jump_lets_expire_is_refused_in_terms_of_clocks(network: ShiftedNetwork) -> None:
    network.shift("reducer", 0)
    short = network.token("operator", ttl_s=HOUR_S)
    assert network.person("status", token=short).status == 0
    network.shift("reducer", DAY_S)
    said = network.person("status", token=short)
    assert said.status == 1
    assert "The token is expired: it was good until " in said.err
    assert "and the reducer's clock says " in said.err
    node = network.runnel(
        *("client", "--network", network.rpc, "--name", "late", "--state", "late"), RUNNEL_CLIENT_TOKEN=short
    )
    assert node.status == 1
    assert "and the reducer's clock says " in node.err.splitlines()[-1]
