"""The HTTP server's life: addresses, ports, TLS, its end."""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
from pathlib import Path

import httpx
import pytest
import trustme

from runnel.common.errors import BadSettings, Conflict
from runnel.reducer.http import HttpServer, create_app
from runnel.transport.tls import ServerTls
from tests.doubles.reducer_service import InMemoryReducer
from tests.doubles.serving import Served, serving
from tests.eventually import eventually

pytestmark = pytest.mark.network


async def test_picks_a_port_and_leaves_signals_alone(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    async with serving(tmp_path) as served:
        assert signal.getsignal(signal.SIGTERM) is before
        host, _, port = served.server.address.rpartition(":")
        assert (host, int(port) > 0) == ("127.0.0.1", True)
        assert (await served.http.get("/healthz")).status_code == 200
        url = served.url
    async with httpx.AsyncClient() as http:
        with pytest.raises(httpx.ConnectError):
            await http.get(url)


async def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        server = HttpServer(create_app(InMemoryReducer(tmp_path), insecure=True), address)
        with pytest.raises(Conflict, match=f"listens on {address}") as refused:
            await server.__aenter__()
    assert "--http" in refused.value.hint


@pytest.mark.parametrize("address", ["127.0.0.1", "192.0.2.1:0", "nowhere.invalid:80"])
async def test_an_address_that_is_not_ours_is_told(tmp_path: Path, address: str) -> None:
    server = HttpServer(create_app(InMemoryReducer(tmp_path), insecure=True), address)
    with pytest.raises(BadSettings, match=address):
        await server.__aenter__()


async def test_speaks_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    async with serving(tmp_path, tls=ServerTls(cert_file=cert, key_file=key)) as served:
        assert served.url.startswith("https://")
        trusting = ssl.create_default_context()
        authority.configure_trust(trusting)
        async with httpx.AsyncClient(verify=trusting) as http:
            assert (await http.get(f"{served.url}/api/v1/healthz")).status_code == 200
    missing = ServerTls(cert_file=tmp_path / "no.pem", key_file=key)
    server = HttpServer(create_app(InMemoryReducer(tmp_path), insecure=True), "127.0.0.1:0", missing)
    with pytest.raises(BadSettings, match="can't be read"):
        await server.__aenter__()


async def test_a_running_request_ends_before_the_server_does(tmp_path: Path) -> None:
    reducer = InMemoryReducer(tmp_path, insecure=True)
    async with asyncio.TaskGroup() as tasks, serving(tmp_path, reducer=reducer, stop_s=60) as served:
        package = (await served.http.post("/packages", content=b"a")).json()["digest"]
        seed = (await served.http.post("/models", content=b"m")).json()["model"]
        reducer.gate.clear()
        wanted = {"package": package, "seed": seed, "rounds": 1}

        async def start() -> int:
            async with httpx.AsyncClient(timeout=60) as http:
                return (await http.post(f"{served.url}/api/v1/sessions", json=wanted)).status_code

        running = tasks.create_task(start())
        await eventually(lambda: reducer.waiting == 1)
        tasks.create_task(_open_later(served, reducer))
    assert running.result() == 201


async def _open_later(served: Served, reducer: InMemoryReducer) -> None:
    await eventually(lambda: served.server.stopping)
    reducer.gate.set()
