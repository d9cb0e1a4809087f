"""``runnel health``: from not well to well, with TLS and without, for each component."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from runnel.common.endpoints import write_endpoints
from tests.eventually import eventually_blocking
from tests.process.forked_process import run_runnel
from tests.process.process_network import ProcessNetwork
from tests.process.secure_network import Certificates, SecureNetwork

pytestmark = pytest.mark.process


def health(state: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return run_runnel(["health", "--state", str(state), *more], env=os.environ)


def until_well(state: Path) -> str:
    told: list[str] = []

    def well() -> bool:
        answer = health(state)
        told.append(answer.stdout)
        return answer.returncode == 0

    eventually_blocking(well, timeout_s=30)
    return told[-1]


@pytest.fixture
def network(tmp_path: Path) -> Iterator[ProcessNetwork]:
    with ProcessNetwork(tmp_path / "network") as made:
        made.start_reducer()
        yield made


def test_it_follows_what_happens_to_a_network(network: ProcessNetwork, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("1")
    network.start_combiner("c1")
    network.until_attached("c1")  # a client that joined before it would stay at the reducer for a moment
    network.start_client("site", tmp_path / "data")
    folder = network.folder
    assert until_well(folder / "reducer") == f"well, serving at {network.rpc} and {network.http}\n"
    assert until_well(folder / "c1").endswith(", attached to reducer\n")
    assert until_well(folder / "site") == "well, attached to c1\n"
    told = json.loads(health(folder / "site", "--json").stdout)
    assert (told["attached_to"], told["rpc"]) == ("c1", None)

    network.kill("reducer", signal.SIGKILL)
    gone = health(folder / "reducer")
    assert gone.returncode == 1
    assert "which served, is gone" in gone.stderr
    eventually_blocking(lambda: "attached to nobody" in health(folder / "c1").stderr, timeout_s=30)
    assert health(folder / "c1").returncode == 1
    network.launch("reducer")
    until_well(folder / "c1")

    network.kill("site", signal.SIGTERM)
    assert "Nothing serves from" in health(folder / "site").stderr


def test_it_asks_over_tls_without_an_authority(tmp_path: Path) -> None:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    # A name under which nothing is called here.
    issued = ca.issue_cert("reducer.example.org", "127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "server.pem")
    issued.private_key_pem.write_to_path(tmp_path / "server.key")
    files = Certificates(authority=tmp_path / "ca.pem", chain=tmp_path / "server.pem", key=tmp_path / "server.key")
    with SecureNetwork(tmp_path / "network", files) as network:
        network.start_reducer()
        network.start_combiner("c1")
        assert "serving at" in until_well(network.folder / "reducer")
        assert until_well(network.folder / "c1").endswith(", attached to reducer\n")


def test_a_process_that_lives_and_serves_nothing_is_not_well(tmp_path: Path) -> None:
    write_endpoints(tmp_path, rpc="127.0.0.1:9", http="127.0.0.1:9")
    told = health(tmp_path, "--timeout-s", "1")
    assert told.returncode == 1
    assert "127.0.0.1:9" in told.stderr
    write_endpoints(tmp_path, http="127.0.0.1:9", tls=True)
    assert "Nothing answers at 127.0.0.1:9" in health(tmp_path, "--timeout-s", "1").stderr
