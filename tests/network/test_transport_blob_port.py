"""Large blobs beside gRPC: what goes where, and what happens when the blob port is not there, lies or falls silent."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme

from runnel.common.errors import Conflict, InvalidInput, RunnelError, Unauthenticated, Unreachable
from runnel.common.protocol import BlobRef, Welcome
from runnel.rpc.v1 import uplink_pb2 as pb
from runnel.transport import BlobServer, ClientTls, ServerTls, blob_calls, blob_server
from runnel.transport.addresses import Address, parse_address
from runnel.transport.blob_calls import BlobRoute, route_to
from runnel.transport.blob_connection import MAGIC, SILENT_S, SMALL_BYTES, BlobConnection, Frame
from runnel.transport.identity import bearer_metadata
from runnel.transport.status import told_error
from tests.doubles.uplink import BreakableProxy, SmallNetwork, attached, before
from tests.eventually import eventually, let_pass

pytestmark = pytest.mark.network

DATA = os.urandom(8 << 20)
REF = BlobRef(sha256=hashlib.sha256(DATA).hexdigest(), size_bytes=len(DATA))


@pytest.fixture(autouse=True)
def patient_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is slow to connect is no reason to take the way of gRPC."""
    monkeypatch.setattr(blob_calls, "_CONNECT_S", 30.0)


@pytest.fixture
async def network(tmp_path: Path) -> AsyncIterator[SmallNetwork]:
    async with SmallNetwork(tmp_path / "red", blobs=True) as network:
        network.handler.put(tmp_path, DATA)
        yield network


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").write_bytes(DATA)
    return tmp_path / "source"


# ---- what goes where


async def test_large_blobs_go_over_the_blob_port_and_small_ones_do_not(
    network: SmallNetwork, tmp_path: Path, source: Path
) -> None:
    small = network.handler.put(tmp_path, DATA[: 1 << 20])
    async with before(network) as (grpc_proxy, blob_proxy), attached(network) as link:
        await link.fetch(REF, tmp_path / "large", deadline_s=60)
        await link.push("ord-1", source, REF, deadline_s=60)
        assert (blob_proxy.down_bytes // len(DATA), blob_proxy.up_bytes // len(DATA)) == (1, 1)
        assert grpc_proxy.down_bytes + grpc_proxy.up_bytes < 1 << 16
        before_small = blob_proxy.down_bytes
        await link.fetch(small, tmp_path / "small", deadline_s=60)
        assert blob_proxy.down_bytes == before_small
    assert (tmp_path / "large").read_bytes() == DATA
    assert network.handler.payloads == {("ord-1", "c1"): DATA}


async def test_a_cut_fetch_goes_on_at_the_same_byte_over_grpc(network: SmallNetwork, tmp_path: Path) -> None:
    async with before(network) as (grpc_proxy, blob_proxy), attached(network) as link:
        blob_proxy.cut_down_after = 5 << 20
        await link.fetch(REF, tmp_path / "target", deadline_s=60)
        assert (tmp_path / "target").read_bytes() == DATA
        assert (blob_proxy.cuts, len(network.handler.said("attached"))) == (1, 1)
        assert grpc_proxy.down_bytes < 6 << 20, "it began anew"


async def test_a_cut_push_goes_on_at_the_same_byte_over_grpc(
    network: SmallNetwork, tmp_path: Path, source: Path
) -> None:
    async with before(network) as (grpc_proxy, blob_proxy), attached(network) as link:
        blob_proxy.cut_up_after = 5 << 20
        await link.push("ord-1", source, REF, deadline_s=60)
        assert network.handler.payloads == {("ord-1", "c1"): DATA}
        assert (blob_proxy.cuts, len(network.handler.said("attached"))) == (1, 1)
        assert grpc_proxy.up_bytes < 6 << 20, "it began anew"


async def test_without_a_way_to_the_blob_port_all_goes_over_grpc(
    network: SmallNetwork, tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with before(network) as (grpc_proxy, _):
        async with BreakableProxy(network.address) as gone:
            network.uplink.blob_port = parse_address(gone.address).port
        async with attached(network) as link:
            await link.fetch(REF, tmp_path / "target", deadline_s=60)
            await link.push("ord-1", source, REF, deadline_s=60)
        assert grpc_proxy.down_bytes > len(DATA) < grpc_proxy.up_bytes
    assert (tmp_path / "target").read_bytes() == DATA
    assert network.handler.payloads == {("ord-1", "c1"): DATA}
    assert capsys.readouterr().out.count("large blobs go over gRPC") == 1, "it tried again at once, or said nothing"


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 403 Forbidden\r\n\r\n", struct.pack("!BI", 2, 1 << 31), b"", b"\5\0\0\0\1{"]
)
async def test_what_is_no_blob_port_costs_one_attempt(network: SmallNetwork, tmp_path: Path, answer: bytes) -> None:
    async def lie(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(MAGIC))
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(lie, "127.0.0.1", 0)
    async with server:
        network.uplink.blob_port = server.sockets[0].getsockname()[1]
        async with attached(network) as link:
            await link.fetch(REF, tmp_path / "target", deadline_s=60)
    assert (tmp_path / "target").read_bytes() == DATA


async def test_when_there_are_too_many_connections_gRPC_takes_the_rest(
    network: SmallNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blob_server, "_MOST_CONNECTIONS", 0)
    async with before(network) as (grpc_proxy, _), attached(network) as link:
        await link.fetch(REF, tmp_path / "target", deadline_s=60)
        assert grpc_proxy.down_bytes > len(DATA)


def test_behind_a_proxy_of_the_environment_there_is_no_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def way(address: str) -> BlobRoute | None:
        return route_to(address, Welcome(name="red", heartbeat_s=10.0, blob_port=7401), peer="red", tls=None)

    monkeypatch.setenv("https_proxy", "http://proxy.example.org:3128")
    monkeypatch.setenv("no_proxy", "near.example.org")
    assert way("reducer.example.org:7400") is None
    assert way("near.example.org:7400") is not None
    assert way("127.0.0.1:7400") is not None


async def test_the_blob_port_of_another_node_is_not_taken_for_that_of_this_one(
    network: SmallNetwork, tmp_path: Path, source: Path
) -> None:
    """As where two combiners share a host, and only one of them has published its blob port."""
    async with SmallNetwork(tmp_path / "other", blobs=True) as other:
        network.uplink.blob_port = other.uplink.blob_port
        async with attached(network) as link:
            await link.fetch(REF, tmp_path / "target", deadline_s=60)
            await link.push("ord-1", source, REF, deadline_s=60)
        assert other.handler.opened == []
    assert network.handler.payloads == {("ord-1", "c1"): DATA}


# ---- TLS


@asynccontextmanager
async def secured(tmp_path: Path) -> AsyncIterator[tuple[SmallNetwork, ClientTls]]:
    """A network with TLS, and whom to trust."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "localhost")
    cert, key, ca = (tmp_path / name for name in ("cert.pem", "key.pem", "ca.pem"))
    cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(key)
    authority.cert_pem.write_to_path(ca)
    async with SmallNetwork(tmp_path / "red", tls=ServerTls(cert_file=cert, key_file=key), blobs=True) as network:
        network.handler.put(tmp_path, DATA)
        network.directory.tls = True
        yield network, ClientTls(ca_file=ca)


async def test_speaks_tls_where_gRPC_does(tmp_path: Path, source: Path) -> None:
    async with (
        secured(tmp_path) as (network, trust),
        before(network) as (grpc_proxy, blob_proxy),
        attached(network, tls=trust) as link,
    ):
        await link.fetch(REF, tmp_path / "target", deadline_s=60)
        await link.push("ord-1", source, REF, deadline_s=60)
        assert grpc_proxy.down_bytes + grpc_proxy.up_bytes < 1 << 16
        assert blob_proxy.down_bytes > len(DATA) < blob_proxy.up_bytes
        here = parse_address(blob_proxy.address)
        assert await BlobRoute(here, "", peer="red", tls=ClientTls()).call() is None, "it trusts whom nobody named"
    assert (tmp_path / "target").read_bytes() == DATA
    assert network.handler.payloads == {("ord-1", "c1"): DATA}


async def test_a_handshake_that_is_never_answered_costs_one_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blob_calls, "_CONNECT_S", 0.3)
    async with (
        secured(tmp_path) as (network, trust),
        before(network) as (grpc_proxy, blob_proxy),
        attached(network, tls=trust) as link,
    ):
        blob_proxy.flowing.clear()
        await link.fetch(REF, tmp_path / "target", deadline_s=60)
        assert (grpc_proxy.down_bytes // len(DATA), blob_proxy.down_bytes) == (1, 0)
    assert (tmp_path / "target").read_bytes() == DATA


# ---- who calls


async def called(network: SmallNetwork, *frames: tuple[int, bytes], greeting: bytes = MAGIC) -> bytes:
    """Return all that comes back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", network.uplink.blob_port)
    try:
        writer.write(greeting + b"".join(struct.pack("!BI", kind, len(body)) + body for kind, body in frames))
        return await asyncio.wait_for(reader.read(), 60)
    except ConnectionError:
        return b""
    finally:
        writer.close()


def call(network: SmallNetwork, method: str = "Fetch", *, credential: str | None = None) -> tuple[int, bytes]:
    metadata = dict(bearer_metadata(credential or network.credential()))
    return Frame.CALL, json.dumps({"method": method, "key": network.uplink.blob_key, "metadata": metadata}).encode()


def told(answer: bytes) -> RunnelError:
    kind, length = struct.unpack("!BI", answer[:5])
    assert (kind, length) == (Frame.STATUS, len(answer) - 5)
    return told_error(answer[5:], peer="red")


REQUEST = (Frame.MESSAGE, pb.FetchRequest(blob=pb.BlobRef(sha256=bytes(32), size_bytes=9)).SerializeToString())


@pytest.mark.parametrize(
    ("frames", "error", "said"),
    [
        (lambda net: [call(net, credential="forged"), REQUEST], Unauthenticated, "credential"),
        (lambda net: [call(net, "Attach"), REQUEST], InvalidInput, "no method 'Attach'"),
        (lambda net: [REQUEST], InvalidInput, "must be a call"),
        (lambda net: [(Frame.CALL, b"[]")], InvalidInput, "must be a call"),
        (lambda net: [(Frame.CALL, b"\xff{")], InvalidInput, "must be a call"),
        (lambda net: [call(net), (Frame.END, b"")], InvalidInput, "before its request"),
        (lambda net: [call(net), (Frame.MESSAGE, b"\xff")], InvalidInput, "no FetchRequest"),
        (lambda net: [(Frame.CALL, b"[" * 30_000)], InvalidInput, "must be a call"),
        (lambda net: [call(net), (Frame.TURN, b""), (Frame.STATUS, b"")], InvalidInput, "frame STATUS"),
    ],
)
async def test_a_caller_that_is_wrong_is_told(
    network: SmallNetwork,
    frames: Callable[[SmallNetwork], list[tuple[int, bytes]]],
    error: type[RunnelError],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blob_server, "_FAREWELL_S", 0.1)
    problem = told(await called(network, *frames(network)))
    assert type(problem) is error
    assert said in problem.message


@pytest.mark.parametrize(
    ("frames", "greeting"),
    [
        ([], b"GET / HTTP/1.1\r\nHost: red\r\n\r\n"),
        ([(9, b"")], MAGIC),
        ([(Frame.CALL, bytes(SMALL_BYTES + 1))], MAGIC),
    ],
)
async def test_what_is_no_call_is_cut_off(
    network: SmallNetwork, frames: list[tuple[int, bytes]], greeting: bytes
) -> None:
    assert await called(network, *frames, greeting=greeting) == b""


async def test_before_the_credential_nothing_large_is_read(
    network: SmallNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blob_server, "_FAREWELL_S", 0.1)
    kind, body = call(network, "Push", credential="forged")
    announced = struct.pack("!BI", Frame.MESSAGE, 1 << 20)  # and not sent
    answer = await called(network, greeting=MAGIC + struct.pack("!BI", kind, len(body)) + body + announced)
    assert type(told(answer)) is Unauthenticated


async def test_who_calls_nothing_is_told_after_a_while(network: SmallNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blob_server, "_FIRST_DEADLINE_S", 0.1)
    monkeypatch.setattr(blob_server, "_FAREWELL_S", 0.1)
    assert "No call came" in told(await called(network)).message


async def test_a_fault_of_ours_is_told_as_a_number(network: SmallNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blob_server, "_FAREWELL_S", 0.1)
    monkeypatch.setattr(network.handler, "blob_file", None)
    problem = told(await called(network, call(network), REQUEST))
    assert "incident" in problem.fields


async def test_a_taken_port_is_told(network: SmallNetwork) -> None:
    with pytest.raises(Conflict, match="is taken"):
        async with BlobServer(network.uplink, network.address, network.uplink.blob_port):
            pass


# ---- silence


@asynccontextmanager
async def connected(
    *, ping_s: float = 5.0, silent_s: float = SILENT_S
) -> AsyncIterator[tuple[BlobConnection, BlobConnection]]:
    """Both ends of a connection; the first looks for silence again and again, and the second speaks up as is said."""
    loop = asyncio.get_running_loop()
    accepted: asyncio.Future[BlobConnection] = loop.create_future()
    server = await loop.create_server(
        lambda: BlobConnection("near", most_bytes=1 << 20, ping_s=ping_s, on_made=accepted.set_result),
        sock=blob_server._listen(Address(host="127.0.0.1", port=0)),
    )
    async with server:
        port = server.sockets[0].getsockname()[1]
        _, near = await loop.create_connection(
            lambda: BlobConnection("the peer", most_bytes=1 << 20, ping_s=0.05, silent_s=silent_s), "127.0.0.1", port
        )
        far = await accepted
        try:
            yield near, far
        finally:
            near.abort()
            far.abort()


async def some_time_passes(near: BlobConnection) -> None:
    """Let more than half of what silence is pass, and the other end speak up after it."""
    let_pass(SILENT_S * 0.55)
    heard_at = near._heard_at
    await eventually(lambda: near._error is not None or near._heard_at > heard_at)


async def test_no_frame_waits_until_the_one_before_is_acknowledged() -> None:
    async with connected() as ends:
        for end in ends:
            assert end._transport is not None
            assert end._transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_who_is_silent_is_gone() -> None:
    async with connected(silent_s=0.4) as (near, _):
        with pytest.raises(Unreachable, match="the peer was silent"):
            await asyncio.wait_for(near.read(), 30)


async def test_who_only_waits_is_not_silent() -> None:
    async with connected(ping_s=0.1) as (near, far):
        reading = asyncio.ensure_future(near.read())
        for _ in range(4):  # more than twice what silence is
            await some_time_passes(near)
        assert not reading.done()
        await far.write(Frame.MESSAGE, b"at last")
        assert await reading == (Frame.MESSAGE, b"at last")


async def test_one_frame_may_not_trickle_in_for_ever() -> None:
    async with connected() as (near, far):
        reading = asyncio.ensure_future(near.read())
        assert far._transport is not None
        far._transport.write(struct.pack("!BI", Frame.MESSAGE, 1 << 20))
        await eventually(lambda: near._kind is Frame.MESSAGE)
        for _ in range(2):
            let_pass(SILENT_S * 0.55)
            heard_at = near._heard_at
            far._transport.write(b"x")
            await eventually(lambda: reading.done() or near._heard_at > heard_at)  # noqa: B023 - called at once
        with pytest.raises(Unreachable, match="One frame of the peer was under way"):
            await asyncio.wait_for(reading, 30)


async def test_one_frame_may_not_wait_for_ever_to_be_taken() -> None:
    async with connected(ping_s=0.1) as (near, far):
        far._pause()  # it says that it is there, and reads nothing
        writing = asyncio.ensure_future(near.write(Frame.MESSAGE, bytes(16 << 20)))
        await eventually(lambda: near._held_up)
        for _ in range(2):
            await some_time_passes(near)
        with pytest.raises(Unreachable, match="One frame for the peer was under way"):
            await asyncio.wait_for(writing, 30)


async def test_what_is_read_is_not_overwritten_before_the_next_is_asked_for() -> None:
    async with connected() as (near, far):
        writing = asyncio.ensure_future(_write_many(near))
        for number in range(5):
            kind, content = await far.read()
            await asyncio.sleep(0.02)
            assert (kind, bytes(content)) == (Frame.MESSAGE, bytes([number]) * (1 << 20))
        await writing


async def _write_many(connection: BlobConnection) -> None:
    for number in range(5):
        await connection.write(Frame.MESSAGE, b"", bytes([number]) * (1 << 20))


async def test_what_follows_a_call_waits_until_that_is_read() -> None:
    async with connected() as (near, far):
        far.most_bytes = SMALL_BYTES
        await near.write(Frame.CALL, b"{}")
        writing = asyncio.ensure_future(near.write(Frame.MESSAGE, bytes(1 << 20)))
        await eventually(lambda: far.ready)
        await asyncio.sleep(0.1)
        assert await far.read() == (Frame.CALL, b"{}")
        far.most_bytes = 1 << 20
        assert len((await far.read())[1]) == 1 << 20
        await writing


async def test_one_that_is_gone_is_noticed_while_it_is_written_to() -> None:
    async def write_on() -> None:
        while True:
            await near.write(Frame.MESSAGE, bytes(1 << 20))

    async with connected(ping_s=0.1) as (near, far):
        writing = asyncio.ensure_future(write_on())  # nobody reads: the system takes only part of it
        await eventually(lambda: far.ready)
        far.abort()
        with pytest.raises(Unreachable):
            await asyncio.wait_for(writing, 30)


class Hole(asyncio.Transport):
    """Takes everything at once and lets it fall, as asyncio's do between the loss of a connection and its news."""

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass

    def abort(self) -> None:
        pass


async def test_who_writes_without_ever_waiting_leaves_others_their_turn() -> None:
    async def write_all() -> None:
        for _ in range(100):
            await connection.write(Frame.MESSAGE, b"a piece")

    connection = BlobConnection("the peer", most_bytes=1 << 20)
    with socket.socket() as unconnected:
        connection.connection_made(Hole({"socket": unconnected}))
        writing = asyncio.ensure_future(write_all())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        connection.connection_lost(None)
        with pytest.raises(Unreachable):
            await writing
