"""The SDK against a server that is really there, goes away and comes back."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trustme

from runnel.common.errors import (
    BadSettings,
    CorruptData,
    Forbidden,
    InvalidInput,
    NotFound,
    RunnelError,
    Unauthenticated,
    Unreachable,
)
from runnel.reducer.http import round_document
from runnel.sdk import Attempts, Event, Network, Session
from runnel.transport.tls import ServerTls
from tests.doubles.reducer_service import OPERATOR_TOKEN, VIEWER_TOKEN, InMemoryReducer
from tests.doubles.serving import Served, serving
from tests.eventually import eventually
from tests.lasting_port import lasting_port

pytestmark = pytest.mark.network

T = TypeVar("T")
QUICK = Attempts(number=3, first_pause_s=0.01, max_pause_s=0.05)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path) as it:
        yield it


async def use(url: str, act: Callable[[Network], T], **options: Any) -> T:
    """Run ``act`` with a network in a thread, as people's programs do."""

    def run() -> T:
        with Network(url, attempts=QUICK, **options) as network:
            return act(network)

    return await asyncio.to_thread(run)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    package, seed = tmp_path / "digits.tar.gz", tmp_path / "seed.npz"
    package.write_bytes(b"archive" * 300_000)
    seed.write_bytes(b"model")
    return package, seed


def start(network: Network, files: tuple[Path, Path], **options: Any) -> Session:
    return network.sessions.start(package=files[0], seed=files[1], **{"rounds": 3, **options})


async def test_a_session_from_files_to_its_model(served: Served, files: tuple[Path, Path], tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []

    def begin(network: Network) -> Session:
        return start(network, files, progress=lambda done, total: told.append((done, total)), sample=0.5)

    session = await use(served.url, begin)
    assert session.status == "running"
    assert session.config["sample"] == 0.5
    size = files[0].stat().st_size
    assert told[0] == (1 << 20, size)
    assert (size, size) in told
    watching = asyncio.create_task(use(served.url, lambda n: list(n.sessions.watch(session))))
    await eventually(lambda: served.reducer.following == 1)
    served.reducer.progress(session.session, {"round": 1})
    served.reducer.commit(session.session, round_document)
    served.reducer.finish(session.session)
    events: list[Event] = await watching
    assert [e.kind for e in events] == ["session.created", "progress", "round.committed", "session.ended"]
    assert events[1].seq is None
    shown = await use(served.url, lambda n: n.sessions.show(session, clients=True))
    assert (shown.status, shown.ended, shown.rounds[0].metrics["accuracy"]) == ("finished", True, 0.5)
    assert shown.rounds[0].clients[0].weight == 100.0
    assert shown.raw["rounds"][0]["round"] == 1
    # A session that has ended can still be watched: its history, then the end.
    again = await use(served.url, lambda n: list(n.sessions.watch(session)))
    assert [e.kind for e in again] == ["session.created", "round.committed", "session.ended"]
    trail = await use(served.url, lambda n: list(n.models.trail(shown.model)))
    assert [model.round for model in trail] == [1, None]
    target = tmp_path / "out.npz"
    await use(served.url, lambda n: n.models.get(shown.model, target))
    assert target.read_bytes() == files[0].read_bytes()
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".part")] == []


async def test_ids_in_place_of_files_push_nothing(served: Served, files: tuple[Path, Path]) -> None:
    first = await use(served.url, lambda n: start(n, files))
    served.reducer.effects.clear()
    second = await use(
        served.url, lambda n: n.sessions.start(package=first.package[:12], seed=first.seed, rounds=1, name="again")
    )
    assert served.reducer.effects == ["session"]
    assert second.package == first.package


async def test_the_seed_of_a_refused_session_goes_again_if_it_came_with_it(
    served: Served, files: tuple[Path, Path]
) -> None:
    kept = await use(served.url, lambda n: n.models.push(files[1]))
    with pytest.raises(NotFound, match="package"):
        await use(served.url, lambda n: n.sessions.start(package="feedfeed", seed=files[1], rounds=1))
    with pytest.raises(NotFound, match="package"):
        await use(served.url, lambda n: n.sessions.start(package="feedfeed", seed=kept.model, rounds=1))
    assert served.reducer.effects == ["model", "model", "model removed"]
    assert [model.model for model in await use(served.url, lambda n: list(n.models.list()))] == [kept.model]


async def test_why_a_session_is_refused_is_told_though_its_seed_can_not_be_removed(
    served: Served, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(served.reducer, "remove_model", fail)
    with pytest.raises(NotFound, match="package"):
        await use(served.url, lambda n: n.sessions.start(package="feedfeed", seed=files[1], rounds=1))


async def test_a_folder_and_a_missing_file_are_told(served: Served, tmp_path: Path, files: tuple[Path, Path]) -> None:
    with pytest.raises(InvalidInput, match="is a folder") as folder:
        await use(served.url, lambda n: n.sessions.start(package=tmp_path, seed=files[1], rounds=1))
    assert "runnel package build" in folder.value.hint
    with pytest.raises(InvalidInput, match="no file"):
        await use(served.url, lambda n: n.sessions.start(package=files[0], seed="gone.npz", rounds=1))
    with pytest.raises(NotFound, match="can't be read"):
        await use(served.url, lambda n: n.models.push(tmp_path / "gone.npz"))


async def test_errors_come_back_as_they_were_raised(tmp_path: Path) -> None:
    async with serving(tmp_path, insecure=False) as served:
        with pytest.raises(Unauthenticated, match="token"):
            await use(served.url, lambda n: n.status())
        with pytest.raises(Forbidden) as refused:
            await use(served.url, lambda n: n.tokens.create("client"), token=VIEWER_TOKEN)
        assert refused.value.fields == {"role": "viewer"}
        with pytest.raises(NotFound, match="no session 'ses-none'") as missing:
            await use(served.url, lambda n: n.sessions.show("ses-none"), token=OPERATOR_TOKEN)
        assert "list" in missing.value.hint
        with pytest.raises(InvalidInput, match=r"rounds: .*came 0"):
            await use(
                served.url, lambda n: n.sessions.start(package="abcd", seed="mod-1", rounds=0), token=OPERATOR_TOKEN
            )
        with pytest.raises(InvalidInput, match="JSON"):
            await use(
                served.url, lambda n: n.sessions.start(package="a", seed="m", rounds=1, client_settings={"x": 1j})
            )


async def test_lists_come_whole(served: Served) -> None:
    for number in range(450):
        served.reducer.add_model_entry("ab" * 32, number)
    models = await use(served.url, lambda n: list(n.models.list()))
    assert len({model.model for model in models}) == 450
    assert await use(served.url, lambda n: list(n.nodes.list())) == []


async def test_tokens(served: Served) -> None:
    made = await use(served.url, lambda n: n.tokens.create("client", name="site-1", ttl_s=60))
    assert made.token == f"secret-of-{made.id}"
    assert "secret-of" not in repr(made)
    revoked = await use(served.url, lambda n: n.tokens.revoke(made.id))
    assert revoked.revoked_at is not None
    (listed,) = await use(served.url, lambda n: list(n.tokens.list()))
    assert listed.token is None


async def test_nobody_there_is_told_with_the_way_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closing:
        url = f"http://127.0.0.1:{closing.getsockname()[1]}"
    with pytest.raises(Unreachable, match=url) as told:
        await use(url, lambda n: n.status())
    assert "RUNNEL_URL" in told.value.hint


@pytest.mark.parametrize("url", ["127.0.0.1:7480", "ftp://x", "http://", ""])
def test_an_address_that_is_none_is_told(url: str) -> None:
    with pytest.raises(BadSettings, match="http://HOST:PORT"):
        Network(url)


def test_a_token_that_can_be_none_is_told_without_being_shown() -> None:
    with pytest.raises(BadSettings) as told:
        Network(token="sécret token")
    assert "sécret" not in str(told.value)


class FlakyServer:
    """Answers each connection with the next of its scripts: bytes, or None to hang up after the request's head."""

    def __init__(self, *scripts: bytes | None) -> None:
        self._scripts = list(scripts)
        self.requests: list[bytes] = []

    async def __aenter__(self) -> FlakyServer:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.requests.append(head)
        script = self._scripts.pop(0)
        if script is not None:
            writer.write(script)
            await writer.drain()
        writer.close()
        await writer.wait_closed()


def answer(body: bytes, status: str = "200 OK", kind: str = "application/json", length: int | None = None) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length or len(body)}\r\nConnection: close"
    return head.encode() + b"\r\n\r\n" + body


def header(head: bytes, name: str) -> str:
    lines = head.decode().split("\r\n")
    return next(line.partition(": ")[2] for line in lines if line.lower().startswith(f"{name.lower()}:"))


async def test_a_post_is_sent_again_under_the_same_key() -> None:
    session = b'{"session": "ses-1", "status": "stopped"}'
    async with FlakyServer(None, answer(b"", "503 Service Unavailable", "text/plain"), answer(session)) as server:
        stopped = await use(server.url, lambda n: n.sessions.stop("ses-1"))
    assert stopped.status == "stopped"
    keys = {header(head, "Idempotency-Key") for head in server.requests}
    assert (len(server.requests), len(keys)) == (3, 1)


async def test_what_is_no_network_is_told() -> None:
    async with FlakyServer(
        answer(b"<html>", "404 Not Found", "text/html"), answer(b"hello", kind="text/plain")
    ) as server:
        for _ in range(2):
            with pytest.raises(Unreachable, match="not a Runnel network"):
                await use(server.url, lambda n: n.status())


def model_document(data: bytes, **changes: Any) -> bytes:
    import json

    digest = hashlib.sha256(data).hexdigest()
    return json.dumps({"model": "mod-1", "digest": digest, "size_bytes": len(data), "format": "npz"} | changes).encode()


async def test_a_download_that_breaks_goes_on_where_it_broke(tmp_path: Path) -> None:
    data = bytes(range(256)) * 8
    part = answer(data[:1000], length=len(data), kind="application/octet-stream")
    rest = answer(data[1000:], "206 Partial Content", "application/octet-stream")
    async with FlakyServer(answer(model_document(data)), part, rest) as server:
        await use(server.url, lambda n: n.models.get("mod-1", tmp_path / "m.npz"))
    assert (tmp_path / "m.npz").read_bytes() == data
    assert header(server.requests[2], "Range") == "bytes=1000-"


async def test_a_download_from_a_server_without_ranges_is_not_doubled(tmp_path: Path) -> None:
    data = bytes(range(256)) * 8
    part = answer(data[:1000], length=len(data), kind="application/octet-stream")
    async with FlakyServer(answer(model_document(data)), part, answer(data, kind="application/octet-stream")) as server:
        await use(server.url, lambda n: n.models.get("mod-1", tmp_path / "m.npz"))
    assert (tmp_path / "m.npz").read_bytes() == data


async def test_a_download_that_is_something_else_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "m.npz").write_bytes(b"before")
    async with FlakyServer(answer(model_document(b"good")), answer(b"evil", kind="application/octet-stream")) as server:
        with pytest.raises(CorruptData, match="announced"):
            await use(server.url, lambda n: n.models.get("mod-1", tmp_path / "m.npz"))
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("m.npz", b"before")]


async def test_watching_survives_a_restart_of_the_network(tmp_path: Path, files: tuple[Path, Path]) -> None:
    reducer = InMemoryReducer(tmp_path, insecure=True)
    async with serving(tmp_path, reducer=reducer, listen=f"127.0.0.1:{lasting_port()}") as served:
        session = await use(served.url, lambda n: start(n, files))
        url, address = served.url, served.server.address
        watching = asyncio.create_task(use(url, lambda n: list(n.sessions.watch(session))))
        await eventually(lambda: reducer.following == 1)
        reducer.commit(session.session, round_document)
    assert not watching.done()
    reducer.commit(session.session, round_document)
    async with serving(tmp_path, reducer=reducer, listen=address):
        await eventually(lambda: reducer.following == 1)
        reducer.finish(session.session)
        events = await watching
    assert [event.seq for event in events] == [1, 2, 3, 4]


async def test_watching_goes_on_when_the_session_was_resumed(served: Served, files: tuple[Path, Path]) -> None:
    session = await use(served.url, lambda n: start(n, files))
    await use(served.url, lambda n: n.sessions.stop(session))
    await use(served.url, lambda n: n.sessions.resume(session))
    watching = asyncio.create_task(use(served.url, lambda n: list(n.sessions.watch(session))))
    await eventually(lambda: served.reducer.following == 1)
    served.reducer.finish(session.session)
    events = await watching
    assert [e.data["status"] for e in events if e.kind == "session.ended"] == ["stopped", "finished"]


async def test_watching_a_network_that_stays_away_ends(tmp_path: Path, files: tuple[Path, Path]) -> None:
    reducer = InMemoryReducer(tmp_path, insecure=True)
    async with serving(tmp_path, reducer=reducer) as served:
        session = await use(served.url, lambda n: start(n, files))
        watching = asyncio.create_task(use(served.url, lambda n: list(n.sessions.watch(session, patience_s=0.2))))
        await eventually(lambda: reducer.following == 1)
    with pytest.raises(Unreachable, match="does not answer"):
        await watching


async def test_an_error_within_the_events_is_raised(served: Served) -> None:
    served.reducer.follow_fails = True
    with pytest.raises(RunnelError, match="log is closed"):
        await use(served.url, lambda n: next(n.events()))


async def test_tls_with_the_networks_own_authority(tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    cert, key, ca = (tmp_path / name for name in ("cert.pem", "key.pem", "ca.pem"))
    cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    authority.cert_pem.write_to_path(str(ca))
    async with serving(tmp_path, tls=ServerTls(cert_file=cert, key_file=key)) as served:
        assert (await use(served.url, lambda n: n.status(), ca_file=ca)).clients_attached == 2
        with pytest.raises(Unreachable, match="certificate"):
            await use(served.url, lambda n: n.status())
    with pytest.raises(BadSettings, match="can't be read"):
        Network("https://127.0.0.1", ca_file=tmp_path / "none.pem")
