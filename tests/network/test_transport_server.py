"""The gRPC server: ports, health, reflection, TLS, errors on their way."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog.testing
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from runnel.common.errors import (
    BadSettings,
    Conflict,
    DeadlineExceeded,
    Forbidden,
    NotFound,
    RunnelError,
    Unauthenticated,
    Unreachable,
)
from runnel.common.protocol import NodeKind
from runnel.transport import ClientTls, DirectoryServer, JoinAsk, RpcServer, ServerTls, join, open_channel, rpc_errors
from tests.doubles.uplink import TOKEN, FixedDirectory, SmallNetwork, attached
from tests.lasting_port import lasting_port

pytestmark = pytest.mark.network

ASK = JoinAsk(name="c1", node_id="id-c1", kind=NodeKind.CLIENT)


@pytest.fixture
async def network(tmp_path: Path) -> AsyncIterator[SmallNetwork]:
    async with SmallNetwork(tmp_path / "red") as network:
        yield network


async def test_a_taken_port_is_a_conflict_that_says_what_to_do() -> None:
    async with RpcServer("127.0.0.1:0") as first:
        with pytest.raises(Conflict, match=f"The port of {first.address} is taken") as caught:
            async with RpcServer(first.address):
                pass
        assert "another port" in caught.value.hint


async def test_a_port_taken_by_another_program_is_a_conflict() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(1)
        with pytest.raises(Conflict):
            async with RpcServer(f"127.0.0.1:{other.getsockname()[1]}"):
                pass


async def test_a_port_is_free_again_after_the_stop() -> None:
    address = f"127.0.0.1:{lasting_port()}"
    async with RpcServer(address):
        pass
    async with RpcServer(address) as second:
        assert second.address == address


async def test_an_address_of_another_machine_can_not_be_listened_on() -> None:
    with pytest.raises(BadSettings, match=r"Can't listen on 192\.0\.2\.1:0"):
        async with RpcServer("192.0.2.1:0", allow_plaintext=True):
            pass


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0"])
async def test_plain_text_for_other_machines_is_refused(listen: str) -> None:
    with pytest.raises(BadSettings, match="without TLS") as caught:
        async with RpcServer(listen):
            pass
    assert "--tls-cert" in caught.value.hint


async def test_plain_text_says_so_at_the_start() -> None:
    with structlog.testing.capture_logs() as logs:
        async with RpcServer("0.0.0.0:0", allow_plaintext=True) as server:
            pass
    assert [(each["log_level"], each["address"]) for each in logs] == [("warning", server.address)]


async def test_stopping_twice_or_before_the_start_is_fine() -> None:
    server = RpcServer("127.0.0.1:0")
    await server.stop(0)
    async with server:
        await server.stop(0)
        await server.stop(0)


async def test_health_is_serving_and_then_not(network: SmallNetwork) -> None:
    async with open_channel(network.address, tls=None) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", "runnel.rpc.v1.Uplink", "runnel.rpc.v1.Directory"):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=60)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        watch = stub.Watch(health_pb2.HealthCheckRequest(service="runnel.rpc.v1.Uplink"), timeout=60)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        assert network.server is not None
        stopping = asyncio.create_task(network.server.stop(60))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()
        await stopping


async def test_reflection_lists_the_services(network: SmallNetwork) -> None:
    async with open_channel(network.address, tls=None) as channel:
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(timeout=60)
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        answer = await call.read()
        names = {service.name for service in answer.list_services_response.service}
        assert {"runnel.rpc.v1.Uplink", "runnel.rpc.v1.Directory", "grpc.health.v1.Health"} <= names
        await call.done_writing()
        assert await call.read() == grpc.aio.EOF


# ---- TLS


async def test_everything_works_over_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    cert = authority.issue_cert("127.0.0.1", "localhost")
    chain, key, root = (tmp_path / name for name in ("chain.pem", "key.pem", "root.pem"))
    for number, blob in enumerate(cert.cert_chain_pems):
        blob.write_to_path(chain, append=number > 0)
    cert.private_key_pem.write_to_path(key)
    authority.cert_pem.write_to_path(root)
    async with SmallNetwork(tmp_path / "red", tls=ServerTls(cert_file=chain, key_file=key)) as network:
        data = bytes(range(256)) * 1000
        ref = network.handler.put(tmp_path, data)
        async with attached(network, tls=ClientTls(ca_file=root)) as link:
            await link.fetch(ref, tmp_path / "fetched", deadline_s=60)
            assert (tmp_path / "fetched").read_bytes() == data
            await link.push("ord-1", tmp_path / "fetched", ref, deadline_s=60)
            assert network.handler.payloads == {("ord-1", "c1"): data}
        stranger = tmp_path / "stranger.pem"
        trustme.CA().cert_pem.write_to_path(stranger)
        for tls in (ClientTls(ca_file=stranger), None):
            async with open_channel(network.address, tls=tls) as channel:
                with pytest.raises(Unreachable):
                    await join(channel, ASK, token=TOKEN, deadline_s=60)


# ---- errors


async def test_join_tells_where_to_attach(network: SmallNetwork) -> None:
    async with open_channel(network.address, tls=None) as channel:
        place = await join(channel, ASK, token=TOKEN, deadline_s=60)
        assert (place.attach_to, place.address, place.ttl_s, place.tls) == ("red", "", 600.0, False)
        assert network.directory.asks == [ASK]


@pytest.mark.parametrize(
    ("name", "token", "kind"),
    [
        ("c1", "wrong", Unauthenticated),
        ("c1", None, Unauthenticated),
        ("taken", TOKEN, Conflict),
        ("viewer", TOKEN, Forbidden),
    ],
)
async def test_what_the_directory_raises_is_raised_here(
    network: SmallNetwork, name: str, token: str | None, kind: type[RunnelError]
) -> None:
    async with open_channel(network.address, tls=None) as channel:
        ask = JoinAsk(name=name, node_id="n", kind=NodeKind.CLIENT)
        with pytest.raises(kind):
            await join(channel, ask, token=token, deadline_s=60)


async def test_an_unexpected_error_tells_the_caller_only_a_number(network: SmallNetwork) -> None:
    class Faulty(FixedDirectory):
        async def join(self, ask: JoinAsk, bearer: str | None) -> Any:
            raise ZeroDivisionError("the secret is 42")

    with structlog.testing.capture_logs() as logs:
        service = DirectoryServer(Faulty(network.issuer)).service
        async with RpcServer("127.0.0.1:0", services=[service]) as server:
            channel = open_channel(server.address, tls=None)
            async with channel:
                with pytest.raises(RunnelError) as caught:
                    await join(channel, ASK, token=TOKEN, deadline_s=60)
    assert type(caught.value) is RunnelError
    assert "secret" not in str(caught.value.as_wire())
    [logged] = [each for each in logs if each["log_level"] == "error"]
    assert logged["incident"] == caught.value.fields["incident"]
    assert logged["incident"] in caught.value.message


async def test_nobody_there_is_unreachable_and_named() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        async with open_channel(address, tls=None) as channel:
            with pytest.raises(Unreachable, match=f"the reducer at {address}"):
                await join(channel, ASK, token=TOKEN, deadline_s=60, peer=f"the reducer at {address}")


async def test_a_peer_that_does_not_answer_costs_the_deadline_and_no_more() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(1)
        async with open_channel(f"127.0.0.1:{silent.getsockname()[1]}", tls=None) as channel:
            with pytest.raises(DeadlineExceeded):
                await join(channel, ASK, token=TOKEN, deadline_s=0.2)


async def test_errors_of_generators_come_through_too() -> None:
    async def answers(request: bytes, context: object) -> AsyncIterator[bytes]:
        yield b"one"
        raise NotFound("There is no second.", hint="Be content.")

    class Generic(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> Any:
            behaviour: Any = answers
            return grpc.unary_stream_rpc_method_handler(behaviour)

    def register(server: grpc.aio.Server) -> None:
        server.add_generic_rpc_handlers((Generic(),))

    async with RpcServer("127.0.0.1:0", services=[("test.Service", register)]) as server:
        channel = open_channel(server.address, tls=None)
        async with channel:
            method: Any = channel.unary_stream("/test.Service/Answers")
            call = method(b"", timeout=60)
            assert await call.read() == b"one"
            with pytest.raises(NotFound, match="There is no second") as caught, rpc_errors("p"):
                await call.read()
            assert caught.value.hint == "Be content."


async def test_a_closed_connection_is_unreachable(network: SmallNetwork) -> None:
    channel = open_channel(network.address, tls=None)
    await channel.close()
    with pytest.raises(Unreachable, match="is closed"):
        await join(channel, ASK, token=TOKEN, deadline_s=60)
