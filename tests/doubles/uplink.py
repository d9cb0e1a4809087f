"""A small network for tests of the transport: a recording handler, a directory, a proxy that breaks connections."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

from runnel.common.blobs import BlobStore, Spool, SpoolFile, is_blob
from runnel.common.errors import Conflict, Forbidden, RunnelError, Unauthenticated
from runnel.common.protocol import (
    AssignmentKey,
    BlobRef,
    Hello,
    Member,
    NodeKind,
    Progress,
    Released,
    Stage,
    Upward,
    Welcome,
    Work,
)
from runnel.transport import (
    BlobServer,
    Child,
    ClientTls,
    DirectoryServer,
    JoinAsk,
    NodeIdentity,
    Place,
    RetryPolicy,
    RpcServer,
    ServerTls,
    UplinkLink,
    UplinkServer,
)
from runnel.transport.addresses import parse_address
from runnel.transport.asking import AskHandler
from runnel.transport.credentials import CredentialIssuer, CredentialVerifier
from runnel.transport.transfer_queue import TransferQueue

KEY = bytes(range(32))
TOKEN = "rnl_test"
FAST = RetryPolicy(initial_s=0.01, max_s=0.1)


def progress(number: int, client: str = "c1") -> Progress:
    key = AssignmentKey(session_id="ses-1", round=max(1, number), work=Work.TRAIN)
    return Progress(key=key, order_id="ord-1", client=client, stage=Stage.RUNNING, detail=str(number))


class RecordingHandler:
    """Keeps what it is told; faults are switched on by setting the attributes."""

    def __init__(self, folder: Path, *, name: str = "red", heartbeat_s: float = 10.0) -> None:
        self.name = name
        self.heartbeat_s = heartbeat_s
        self.store = BlobStore(folder / "blobs")
        self.spool = Spool(folder / "spool")
        self.calls: list[tuple[str, str, object]] = []
        self.children: dict[str, Child] = {}
        self.payloads: dict[tuple[str, str], bytes] = {}
        self.opened: list[BlobRef] = []  # pushes, as they began
        self.receiving = False  # whether a message is being handled
        self.refuse: RunnelError | None = None
        self.refuse_message: Exception | None = None
        self.refuse_push: RunnelError | None = None
        self.first: Callable[[Child], None] = lambda child: None
        self.last: Callable[[Child], None] = lambda child: None
        self.hold_attached = asyncio.Event()
        self.hold_received = asyncio.Event()
        self.hold_pushed = asyncio.Event()
        for gate in (self.hold_attached, self.hold_received, self.hold_pushed):
            gate.set()

    def put(self, folder: Path, data: bytes) -> BlobRef:
        file = folder / "to-be-adopted"
        file.write_bytes(data)
        return self.store.adopt(file)

    def said(self, call: str, name: str | None = None) -> list[object]:
        return [what for each, who, what in self.calls if each == call and name in (None, who)]

    def welcome(self, child: Child) -> Welcome:
        return Welcome(name=self.name, heartbeat_s=self.heartbeat_s)

    async def attached(self, child: Child, hello: Hello) -> None:
        await self.hold_attached.wait()
        if self.refuse is not None:
            raise self.refuse
        self.calls.append(("attached", child.identity.name, hello))
        self.children[child.identity.name] = child
        self.first(child)

    async def received(self, child: Child, message: Upward) -> None:
        self.receiving = True
        await self.hold_received.wait()
        self.receiving = False
        if self.refuse_message is not None:
            raise self.refuse_message
        self.calls.append(("received", child.identity.name, message))

    async def detached(self, child: Child, reason: str) -> None:
        self.last(child)
        self.calls.append(("detached", child.identity.name, reason))
        if self.children.get(child.identity.name) is child:
            del self.children[child.identity.name]

    @asynccontextmanager
    async def blob_file(self, ref: BlobRef, identity: NodeIdentity) -> AsyncIterator[Path]:
        yield self.store.path(ref)

    async def open_push(self, identity: NodeIdentity, order_id: str, ref: BlobRef) -> SpoolFile | None:
        if self.refuse_push is not None:
            raise self.refuse_push
        self.opened.append(ref)
        return self.spool.open(f"{order_id} {identity.name}", ref)

    async def pushed(self, identity: NodeIdentity, order_id: str, ref: BlobRef, file: Path) -> None:
        await self.hold_pushed.wait()
        assert is_blob(file.read_bytes(), ref)
        self.calls.append(("pushed", identity.name, order_id))
        self.payloads[(order_id, identity.name)] = file.read_bytes()
        file.unlink()


class FixedDirectory:
    """Sends every node to the first place that it does not avoid."""

    def __init__(self, issuer: CredentialIssuer) -> None:
        self.issuer = issuer
        self.places: dict[str, str] = {"red": ""}
        self.asks: list[JoinAsk] = []
        self.ttl_s = 600.0
        self.tls = False
        self.fault: RunnelError | None = None

    async def join(self, ask: JoinAsk, bearer: str | None) -> Place:
        self.asks.append(ask)
        if self.fault is not None:
            raise self.fault
        if bearer != TOKEN:
            raise Unauthenticated("The token is unknown.", hint="Ask the operator for one.")
        if ask.name == "taken":
            raise Conflict("Another node has this name.")
        if ask.name == "viewer":
            raise Forbidden("This token is for people.")
        names = [name for name in self.places if name not in ask.avoid] or list(self.places)
        if ask.attached_to in self.places:
            names = [ask.attached_to]
        identity = NodeIdentity(name=ask.name, node_id=ask.node_id, kind=ask.kind)
        return Place(
            address=self.places[names[0]],
            tls=self.tls,
            attach_to=names[0],
            credential=self.issuer.issue(identity, self.ttl_s),
            ttl_s=self.ttl_s,
        )


class BreakableProxy:
    """Forwards a TCP port; can cut all connections, at once or after so many bytes, or fall silent."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.address = ""
        self.cut_up_after: int | None = None
        self.cut_down_after: int | None = None
        self.stop_up_after: int | None = None
        self.stop_down_after: int | None = None
        self.up_bytes = 0
        self.down_bytes = 0
        self.cuts = 0
        self.flowing = asyncio.Event()
        self.flowing.set()

    async def __aenter__(self) -> BreakableProxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.flowing.set()
        self.cut()
        await asyncio.gather(*self._tasks)
        await self._server.wait_closed()

    def cut(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        pair = {writer}
        try:
            above, up = await asyncio.open_connection(*self._target)
            pair.add(up)
            self._writers |= pair
            if self._server is None or not self._server.is_serving():
                return  # it was closed while this connected, and has cut what there was
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, up, "up"))
                group.create_task(self._pump(above, writer, "down"))
        except* (OSError, ConnectionError):
            pass  # that the other side is gone is what this proxy is for
        finally:
            self._writers -= pair
            for each in pair:
                each.transport.abort()
            self._tasks.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                if self._reached(f"stop_{way}_after", len(data)):
                    self.flowing.clear()
                await self.flowing.wait()
                if self._reached(f"cut_{way}_after", len(data)):
                    self.cuts += 1
                    self.cut()
                    return
                setattr(self, f"{way}_bytes", getattr(self, f"{way}_bytes") + len(data))
                writer.write(data)
                await writer.drain()
        writer.close()

    def _reached(self, limit: str, count: int) -> bool:
        """Count down one of the switches; True once when it has reached its end."""
        left: int | None = getattr(self, limit, None)
        if left is None:
            return False
        left -= count
        setattr(self, limit, left if left > 0 else None)
        return left <= 0


class SmallNetwork:
    """A directory and an Uplink on one port, and links to them."""

    def __init__(
        self,
        folder: Path,
        *,
        heartbeat_s: float = 10.0,
        mailbox_bytes: int = 16 << 20,
        tls: ServerTls | None = None,
        asks: AskHandler | None = None,
        queue: TransferQueue | None = None,
        blobs: bool = False,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.handler = RecordingHandler(folder, heartbeat_s=heartbeat_s)
        self.issuer = CredentialIssuer(KEY)
        self.directory = FixedDirectory(self.issuer)
        self.uplink = UplinkServer(
            self.handler,
            CredentialVerifier(self.issuer.public_key, wall_clock),
            asks=asks,
            heartbeat_s=heartbeat_s,
            mailbox_bytes=mailbox_bytes,
            queue=queue,
            clock=clock,
        )
        self._tls = tls
        self._blobs = blobs
        self.server: RpcServer | None = None
        self._stack = AsyncExitStack()

    @property
    def address(self) -> str:
        assert self.server is not None
        return self.server.address

    async def __aenter__(self) -> SmallNetwork:
        return await self.start()

    async def start(self, listen: str = "127.0.0.1:0") -> SmallNetwork:
        self.server = RpcServer(
            listen, tls=self._tls, services=[self.uplink.service, DirectoryServer(self.directory).service]
        )
        await self._stack.enter_async_context(self.server)
        if self._blobs:
            await self._stack.enter_async_context(BlobServer(self.uplink, self.address, tls=self._tls))
        await self._stack.enter_async_context(self.uplink)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def credential(self, name: str = "c1", *, ttl_s: float = 60.0, key: bytes = KEY, node_id: str | None = None) -> str:
        identity = NodeIdentity(name=name, node_id=node_id or f"id-{name}", kind=NodeKind.CLIENT)
        return CredentialIssuer(key).issue(identity, ttl_s)

    def link(
        self,
        name: str = "c1",
        *,
        node_id: str | None = None,
        kind: NodeKind = NodeKind.CLIENT,
        token: str | None = TOKEN,
        network: str | None = None,
        tls: ClientTls | None = None,
        retry: RetryPolicy = FAST,
        mailbox_bytes: int = 16 << 20,
        clock: Callable[[], float] = time.monotonic,
    ) -> UplinkLink:
        node_id = node_id or f"id-{name}"
        return UplinkLink(
            network or self.address,
            name=name,
            node_id=node_id,
            kind=kind,
            token=token,
            hello=lambda: hello(name, node_id, kind),
            tls=tls,
            retry=retry,
            mailbox_bytes=mailbox_bytes,
            clock=clock,
        )


def hello(name: str = "c1", node_id: str | None = None, kind: NodeKind = NodeKind.CLIENT) -> Hello:
    return Hello(member=Member(name=name, node_id=node_id or f"id-{name}", kind=kind, version="0.1.0"))


def released(number: int) -> Released:
    return Released(order_id=f"ord-{number}", clients=("c1",))


@asynccontextmanager
async def before(network: SmallNetwork) -> AsyncIterator[list[BreakableProxy]]:
    """Proxies before gRPC's port and, if there is one, the blob port, which nodes are sent to."""
    async with AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(BreakableProxy(network.address))]
        network.directory.places = {"red": proxies[0].address}
        if network.uplink.blob_port:
            proxies.append(await stack.enter_async_context(BreakableProxy(f"127.0.0.1:{network.uplink.blob_port}")))
            network.uplink.blob_port = parse_address(proxies[1].address).port
        yield proxies


@asynccontextmanager
async def attached(
    network: SmallNetwork, name: str = "c1", *, kind: NodeKind = NodeKind.CLIENT, tls: ClientTls | None = None
) -> AsyncIterator[UplinkLink]:
    """A link that is attached already."""
    async with network.link(name, kind=kind, tls=tls) as link:
        await anext(aiter(link))
        assert link.attached
        yield link
