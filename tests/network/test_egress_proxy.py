"""A run's way out, with the clients that programs have: what it leads to, and what it does not."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import structlog
from aiohttp import web

from runnel.client.domain.egress import egress_host
from runnel.client.tasks.egress import EgressProxy, Traffic
from runnel.common.errors import EnvironmentFailed

pytestmark = [pytest.mark.network, pytest.mark.timeout(90)]

LARGE = b"0123456789abcdef" * (1 << 16)


@dataclass(frozen=True, slots=True)
class Way:
    """A server beyond, by its ``port``, and a proxy with its variables and what it counts."""

    port: int
    variables: Mapping[str, str]
    traffic: Traffic

    @property
    def proxy(self) -> str:
        return self.variables["HTTPS_PROXY"]

    async def raw(self, request: bytes) -> bytes:
        """Return what the proxy answers before it closes."""
        where = urlsplit(self.proxy)
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        writer.write(request)
        try:
            return await reader.read()
        finally:
            writer.close()


async def _echo(request: web.Request) -> web.Response:
    told = {
        "method": request.method,
        "path": request.raw_path,
        "headers": sorted(name.lower() for name in request.headers),
        "bytes": len(await request.read()),
    }
    return web.json_response(told)


async def _large(_: web.Request) -> web.Response:
    return web.Response(body=LARGE)


@contextlib.asynccontextmanager
async def way(entries: Sequence[str] = ("127.0.0.1:{port}",)) -> AsyncIterator[Way]:
    app = web.Application(client_max_size=1 << 24)
    app.add_routes([web.get("/large", _large), web.route("*", "/{tail:.*}", _echo)])
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    traffic = Traffic()
    proxy = EgressProxy([egress_host(each.format(port=port)) for each in entries], run_id="run-1", traffic=traffic)
    try:
        async with proxy.serving("127.0.0.1") as variables:
            yield Way(port, variables, traffic)
    finally:
        await runner.cleanup()


async def ask(there: Way, method: str, path: str, **choices: Any) -> httpx.Response:
    async with httpx.AsyncClient(proxy=there.proxy, trust_env=False, timeout=30) as client:
        return await client.request(method, f"http://127.0.0.1:{there.port}{path}", **choices)


async def test_a_named_host_is_asked_and_what_passed_is_counted() -> None:
    async with way() as there:
        told = (await ask(there, "POST", "/a%2Fb?x=1", content=LARGE)).json()
        assert (told["method"], told["path"], told["bytes"]) == ("POST", "/a%2Fb?x=1", len(LARGE))
        assert "proxy-authorization" not in told["headers"]
        assert (await ask(there, "GET", "/large")).content == LARGE
        where = f"127.0.0.1:{there.port}"
        assert there.traffic.connections == {where: 2}
        assert there.traffic.bytes_out > len(LARGE)
        assert there.traffic.bytes_in > len(LARGE)
        assert json.loads(json.dumps(there.traffic.note()))["refused"] == {}


async def test_a_tunnel_carries_anything_both_ways() -> None:
    async with way() as there:
        where = urlsplit(there.proxy)
        credentials = httpx.BasicAuth(where.username or "", where.password or "")._auth_header
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        host = f"127.0.0.1:{there.port}"
        connect = f"CONNECT {host} HTTP/1.1\r\nHost: {host}\r\nProxy-Authorization: {credentials}\r\n\r\n"
        # What follows at once is for the host, not for the proxy.
        writer.write(connect.encode() + f"GET /early HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 200 Connection established\r\n\r\nHTTP/1.1 200 OK")
        assert b'"path": "/early"' in answer


async def test_curl_finds_the_way_by_its_variables() -> None:
    async with way() as there:
        asked = await asyncio.create_subprocess_exec(
            *("curl", "--silent", "--show-error", "--noproxy", "", f"http://127.0.0.1:{there.port}/curl"),
            env={**there.variables},
            stdout=asyncio.subprocess.PIPE,
        )
        said, _ = await asked.communicate()
        assert json.loads(said)["path"] == "/curl"


@pytest.mark.parametrize(
    ("entries", "host"),
    [
        ((), "127.0.0.1"),
        (("127.0.0.1:1",), "127.0.0.1"),
        (("*.example.org:{port}",), "127.0.0.1"),
        (("example.org:{port}",), "localhost"),
    ],
)
async def test_other_hosts_and_ports_are_refused_with_the_rule(entries: Sequence[str], host: str) -> None:
    async with way(entries) as there, httpx.AsyncClient(proxy=there.proxy, trust_env=False, timeout=30) as client:
        answer = await client.get(f"http://{host}:{there.port}/")
        assert answer.status_code == 403
        assert answer.text == f"The policy of this site (tasks.egress) does not lead to {host}:{there.port}.\n"
        assert there.traffic.refused == {f"{host}:{there.port}": 1}
        assert not there.traffic.connections


async def test_a_name_does_not_lead_back_to_this_machine() -> None:
    async with (
        way(("localhost:{port}",)) as there,
        httpx.AsyncClient(proxy=there.proxy, trust_env=False, timeout=30) as client,
    ):
        answer = await client.get(f"http://localhost:{there.port}/")
        assert answer.status_code == 502
        assert "leads to this machine" in answer.text


async def test_a_host_that_is_not_there_is_told() -> None:
    async with (
        way(("127.0.0.1:9",)) as there,
        httpx.AsyncClient(proxy=there.proxy, trust_env=False, timeout=30) as client,
    ):
        answer = await client.get("http://127.0.0.1:9/")
        assert answer.status_code == 502


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET http://127.0.0.1:%d/ HTTP/1.1\r\nHost: x\r\n\r\n", 407),
        (b"GET http://127.0.0.1:%d/ HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Basic cnVuOngK\r\n\r\n", 407),
        (b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Bearer x\r\n\r\n", 407),
        (b"\x16\x03\x01 no HTTP %d\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: %d" + b"y" * (200 << 10) + b"\r\n\r\n", 431),
    ],
)
async def test_others_and_nonsense_are_turned_away(request_: bytes, status: int) -> None:
    async with way() as there:
        answer = await there.raw(request_.replace(b"%d", str(there.port).encode()))
        assert answer.split(b" ", 2)[1] == str(status).encode()
        assert not there.traffic.connections


@pytest.mark.parametrize(
    "target",
    ["/path", "https://127.0.0.1:{port}/", "http://u:p@127.0.0.1:{port}/", "http://127.0.0.1:x/", "http://:1/"],
)
async def test_a_target_that_is_none_is_told(target: str) -> None:
    async with way() as there:
        where = urlsplit(there.proxy)
        credentials = httpx.BasicAuth(where.username or "", where.password or "")._auth_header
        line = f"GET {target.format(port=there.port)} HTTP/1.1\r\nHost: x\r\nProxy-Authorization: {credentials}\r\n\r\n"
        answer = await there.raw(line.encode())
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"A proxy wants http://HOST" in answer


async def test_what_is_open_ends_with_the_run() -> None:
    async with way() as there:
        where = urlsplit(there.proxy)
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        writer.write(b"GET http://")
    with contextlib.suppress(ConnectionResetError):
        assert await reader.read() == b""
    writer.close()
    with pytest.raises(OSError, match="Connect"):
        await asyncio.open_connection(where.hostname, where.port)


async def test_an_address_of_another_machine_is_told() -> None:
    with pytest.raises(EnvironmentFailed, match=r"Can't listen at 192\.0\.2\.7"):
        async with EgressProxy([], run_id="run-1", traffic=Traffic()).serving("192.0.2.7"):
            pass


async def test_a_run_that_asks_for_ever_more_hosts_fills_neither_memory_nor_log() -> None:
    with structlog.testing.capture_logs() as lines:
        async with (
            way(["api.example.org"]) as there,
            httpx.AsyncClient(proxy=there.proxy, trust_env=False, timeout=30) as client,
        ):
            answers = [await client.get(f"http://h{number}.example.org/") for number in range(300)]
    assert {answer.status_code for answer in answers} == {403}
    refused = there.traffic.refused
    assert (len(refused), refused["others"], sum(refused.values())) == (257, 44, 300)
    assert len([line for line in lines if line["event"] == "a run may not go there"]) == 257
