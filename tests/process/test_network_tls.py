"""Encryption from end to end, and what people read when certificates do not fit."""

from __future__ import annotations

import signal
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import trustme

from runnel.common.endpoints import read_endpoints
from runnel.common.tensors import write_npz
from runnel.sdk import Network
from runnel.transport import parse_address
from tests.eventually import eventually_blocking
from tests.process.secure_network import Certificates, SecureNetwork

pytestmark = [pytest.mark.process, pytest.mark.restarts, pytest.mark.timeout(120)]

SAYS_WITHIN_S = 30.0  # on a busy machine


def certificates(folder: Path) -> Certificates:
    folder.mkdir()
    authority = trustme.CA()
    leaf = authority.issue_cert("127.0.0.1", "localhost")
    made = Certificates(authority=folder / "ca.pem", chain=folder / "chain.pem", key=folder / "key.pem")
    authority.cert_pem.write_to_path(str(made.authority))
    leaf.private_key_pem.write_to_path(str(made.key))
    made.chain.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    return made


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("stranger") / "certificates")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureNetwork]:
    folder = tmp_path_factory.mktemp("tls")
    (folder / "data").write_text("1")
    with SecureNetwork(folder, certificates(folder / "certificates")) as net:
        net.start_reducer()
        with net.together():
            net.start_combiner("c1")
            net.start_client("site-1", folder / "data")
        net.until_attached("c1", "site-1")
        yield net


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureNetwork]:
    with SecureNetwork(tmp_path_factory.mktemp("plain")) as net:
        net.start_reducer()
        yield net


def test_a_session_over_tls(network: SecureNetwork) -> None:
    network.build_package("import shutil, sys; shutil.copy(sys.argv[1], sys.argv[2])")
    write_npz(network.folder / "seed.npz", {"w": np.arange(10.0)})
    said = network.person(
        *("session", "start", "--package", "package.tar.gz", "--seed", "seed.npz", "--rounds", "1"),
        *("--watch", "--json"),
    )
    assert said.status == 0, said.err
    assert said.document["status"] == "finished"
    places = {"c1": "reducer", "site-1": "c1"}  # in the end: who comes before c1 is at the reducer until then
    eventually_blocking(lambda: {node.name: node.attached_to for node in network.sdk.nodes.list()} == places)
    for name in network.components:
        assert "plain text" not in network.log_of(name)


@pytest.mark.parametrize(
    ("ca_file", "words"),
    [("stranger", "certificate verify failed"), ("", "certificate verify failed"), ("/nowhere", "can't be read")],
)
def test_people_are_told_of_a_certificate_that_is_not_trusted(
    network: SecureNetwork, stranger: Certificates, ca_file: str, words: str
) -> None:
    said = network.person("status", RUNNEL_CA_FILE=str(stranger.authority) if ca_file == "stranger" else ca_file)
    assert said.status == (2 if ca_file == "/nowhere" else 1)
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert words in line
    assert "--ca-file" in line


def test_people_are_told_of_http_and_https_confused(network: SecureNetwork, plain: SecureNetwork) -> None:
    said = network.person("status", RUNNEL_URL=network.url.replace("https", "http"))
    assert (said.status, len(said.err.splitlines())) == (1, 1)
    said = plain.person("status", RUNNEL_URL=plain.url.replace("http", "https"))
    assert said.status == 1
    assert "It does not speak TLS: write http:// instead of https://." in said.err


@pytest.mark.parametrize("kind", ["client", "combiner"])
@pytest.mark.parametrize(
    ("ca", "words"),
    [
        ("stranger", "CERTIFICATE_VERIFY_FAILED"),
        ("none", "does it speak TLS exactly if you do?"),
        ("to plain", "It does not speak TLS, and this side does."),
    ],
)
def test_nodes_say_soon_what_is_wrong_and_try_again(
    network: SecureNetwork, plain: SecureNetwork, stranger: Certificates, kind: str, ca: str, words: str
) -> None:
    target = plain.rpc if ca == "to plain" else network.rpc
    name = f"{kind}-{ca.replace(' ', '-')}"
    arguments = [kind, "--network", target, "--name", name]
    arguments += ["--listen", "127.0.0.1:0"] if kind == "combiner" else []
    arguments += [] if ca == "none" else ["--tls-ca", str(stranger.authority)]
    network._add(name, arguments, **{f"RUNNEL_{kind.upper()}_TOKEN": network.operator})
    eventually_blocking(lambda: words in network.log_of(name), timeout_s=SAYS_WITHIN_S)
    assert network.process(name).poll() is None
    assert network.operator not in network.log_of(name)
    assert len(network.log_of(name).splitlines()) < 20
    assert network.kill(name, signal.SIGTERM) == 0


@pytest.mark.parametrize("kind", ["client", "combiner"])
def test_an_authority_file_that_is_none_ends_a_node_before_it_is_ready(
    network: SecureNetwork, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "ca.pem").write_text("not a certificate")
    more = ["--listen", "127.0.0.1:0"] if kind == "combiner" else []
    state = str(tmp_path / "state")
    said = network.runnel(kind, "--network", network.rpc, "--state", state, "--tls-ca", str(tmp_path / "ca.pem"), *more)
    assert said.status == 2
    assert said.err.startswith(f"runnel: The TLS authority file {tmp_path / 'ca.pem'} is not a PEM file.")


def test_the_log_of_a_reducer_is_its_own(network: SecureNetwork, stranger: Certificates) -> None:
    """What its libraries say of callers that do not know how to shake hands is not for people."""
    port = int(network.rpc.rpartition(":")[2])
    for nonsense in (b"", b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(64)):
        with socket.create_connection(("127.0.0.1", port)) as caller:
            caller.sendall(nonsense)
            caller.shutdown(socket.SHUT_WR)
            caller.settimeout(SAYS_WITHIN_S)
            with suppress(ConnectionResetError):
                while caller.recv(4096):
                    pass
    untrusting = ssl.create_default_context(cafile=stranger.authority)
    with (
        socket.create_connection(("127.0.0.1", port)) as caller,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        untrusting.wrap_socket(caller, server_hostname="localhost")
    network.until_attached("c1", "site-1")
    lines = network.log_of("reducer").splitlines()
    assert [line for line in lines if not line.startswith("timestamp=")] == []


def test_all_addresses_are_listened_on_and_one_is_told(tmp_path: Path) -> None:
    with SecureNetwork(tmp_path) as net:
        net._add("reducer", ["reducer", "--rpc", "0.0.0.0:0", "--http", "0.0.0.0:0", "--allow-plaintext"])
        warnings = [line for line in net.log_of("reducer").splitlines() if "level=warning" in line]
        assert any("serving plain text, without encryption" in line and "0.0.0.0:" in line for line in warnings)
        reducer = read_endpoints(tmp_path / "reducer")
        rpc, http = parse_address(str(reducer.rpc)), parse_address(str(reducer.http))
        assert (rpc.host, http.host) == ("127.0.0.1", "127.0.0.1")
        token = (tmp_path / "reducer" / "operator.token").read_text().strip()
        for host in ("127.0.0.1", "localhost"):
            said = net.runnel("status", "--json", RUNNEL_URL=f"http://{host}:{http.port}", RUNNEL_TOKEN=token)
            assert said.document["rpc_address"] == f"{host}:{rpc.port}"
        more = ["--listen", "0.0.0.0:0", "--allow-plaintext", "--name", "c1"]
        net._add("c1", ["combiner", "--network", str(rpc), *more], RUNNEL_COMBINER_TOKEN=token)
        own = read_endpoints(tmp_path / "c1").rpc
        assert str(own).startswith("127.0.0.1:")
        with Network(f"http://{http}", token) as network:
            (node,) = eventually_blocking(lambda: [node for node in network.nodes.list() if node.address])
            assert node.address == own
