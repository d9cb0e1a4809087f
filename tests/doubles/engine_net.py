"""An engine between a durable state and nodes that are lists of what was sent to them."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from runnel.common.blobs import BlobStore, Spool, digest_file
from runnel.common.errors import StorageFull
from runnel.common.protocol import (
    Assignment,
    AssignmentKey,
    Downward,
    Hello,
    Member,
    NodeKind,
    Outcome,
    PayloadKind,
    Report,
    Settled,
    Settlement,
    Work,
)
from runnel.common.tensors import write_npz
from runnel.reducer.access_tokens import AccessTokens
from runnel.reducer.callers import Callers
from runnel.reducer.domain.values import DEFAULT_ORGANISATION, Role, SessionConfig, SessionStatus
from runnel.reducer.engine.engine import Engine
from runnel.reducer.engine.way_down import WayDown
from runnel.reducer.operations import Operations
from runnel.reducer.rpc.gateway import Gateway
from runnel.reducer.rpc.run_files import RunFiles
from runnel.reducer.service import Caller
from runnel.reducer.store import access, ledger
from runnel.reducer.store.database import Database
from runnel.reducer.store.journal import Journal, Transaction
from runnel.reducer.store.tables import SessionRow
from runnel.reducer.uploads import Uploads
from runnel.rpc.v1 import uplink_pb2 as pb
from runnel.transport import Child, NodeIdentity
from runnel.transport.credentials import CredentialIssuer
from runnel.transport.messages import downward_to_wire
from tests.doubles.faulty_blobs import FaultyBlobs
from tests.doubles.reducer_state import add_session, database_in, model_row
from tests.eventually import eventually

SESSION = "ses-aaaaaaaaaa"
CALLER = Caller(token_id="", role=Role.OPERATOR, organisation=DEFAULT_ORGANISATION)
TRAIN = AssignmentKey(session_id=SESSION, round=1, work=Work.TRAIN)
M = TypeVar("M", bound=Downward)


async def nothing() -> None:
    """Do nothing."""


class FragileJournal(Journal):
    """Has no room for the next ``failing`` commits; calls ``before_commit`` when all is written but not committed."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.failing = 0
        self.before_commit: Callable[[], Awaitable[None]] = nothing

    @asynccontextmanager
    async def transaction(self, *, short: bool = False) -> AsyncIterator[Transaction]:
        async with super().transaction(short=short) as tx:
            yield tx
            await self.before_commit()
            if self.failing:
                self.failing -= 1
                raise StorageFull("The disk of the reducer's database is full.")


class ListedWay:
    """The way down to a node that is a list."""

    def __init__(self, sent: list[Downward] | None = None) -> None:
        self.sent = [] if sent is None else sent
        self.series: list[int] = []  # how many were sent at once

    def send(self, message: Downward) -> None:
        self.sent.append(message)

    def send_each(self, messages: Iterable[Downward], number: int) -> None:
        self.series.append(number)
        self.sent.extend(messages)


class Net:
    """An engine with its state, and what was sent to each directly attached node."""

    def __init__(self, folder: Path, database: Database) -> None:
        self.folder = folder
        self.partials = folder / "partials"
        self.database = database
        self.journal = FragileJournal(database)
        self.blobs = BlobStore(folder / "blobs")
        self.lasting = FaultyBlobs(self.blobs)
        self.sent: dict[str, list[Downward]] = {}
        self.engine = self.new_engine()

    def new_engine(self) -> Engine:
        return Engine(
            journal=self.journal,
            blobs=self.lasting,
            partials=self.partials,
            name="top",
            organisation="default",
        )

    def new_gateway(self) -> Gateway:
        return Gateway(
            engine=self.engine,
            journal=self.journal,
            blobs=self.lasting,
            spool=Spool(self.folder / "spool"),
            partials=self.partials,
            run_files=RunFiles(
                self.engine.tasks,
                journal=self.journal,
                blobs=self.lasting,
                spool=Spool(self.folder / "run-spool"),
                keep_s=12.0,
                max_bytes=1 << 20,
            ),
            issuer=CredentialIssuer(bytes(32)),
            insecure=True,
            heartbeat_s=1.0,
            credential_ttl_s=60.0,
            direct_capacity=9,
        )

    # ---- nodes

    async def attach(
        self, name: str, *below: str, holding: tuple[AssignmentKey, ...] = (), way: WayDown | None = None
    ) -> None:
        """Attach a client, or with ``below`` a combiner of these clients (or of nobody: ``""``)."""
        kind = NodeKind.COMBINER if below else NodeKind.CLIENT
        member = Member(name=name, node_id=f"id-{name}", kind=kind, holding=() if below else holding)
        clients = [self.client(client, holding) for client in below if client]
        await self.join(member, *clients)
        self.sent[name] = []
        await self.engine.attached(Hello(member=member, below=tuple(clients)), way or self.way(name))

    def way(self, name: str) -> ListedWay:
        return ListedWay(self.sent[name])

    @staticmethod
    def client(name: str, holding: tuple[AssignmentKey, ...] = ()) -> Member:
        return Member(name=name, node_id=f"id-{name}", kind=NodeKind.CLIENT, holding=holding)

    async def join(self, *members: Member) -> None:
        async with self.database.write() as tx:
            for member in members:
                kind = member.kind.value
                await access.note_joined(tx, member.name, member.node_id, kind, "default", "", attached=False)

    def got(self, child: str, kind: type[M]) -> list[M]:
        return [message for message in self.sent[child] if isinstance(message, kind)]

    async def order(self, child: str, number: int = 1) -> Assignment:
        """Return the ``number``-th order that the child gets."""
        await eventually(lambda: len(self.got(child, Assignment)) >= number, state=lambda: self.sent)
        return self.got(child, Assignment)[number - 1]

    async def report(self, child: str, order: Assignment, *outcomes: Outcome, kind: PayloadKind | None = None) -> None:
        """Report; of a client with the model 1, of a combiner with the sum of as many models 1 as there are."""
        counted = [outcome for outcome in outcomes if outcome.failure is None]
        report = Report(key=order.key, order_id=order.order_id, outcomes=outcomes)
        payload = None
        if counted and order.key.work is Work.TRAIN:
            weight = sum(outcome.weight for outcome in counted)
            payload = self.partials / f"{order.order_id}.payload"
            kind = kind or (PayloadKind.UPDATE if child == outcomes[0].client else PayloadKind.WEIGHTED_SUM)
            if kind is PayloadKind.UPDATE:
                write_npz(payload, {"w": np.ones(4, np.float32)})
            else:
                payload.write_bytes(np.full(4, weight, "<f8").tobytes())
            report = dataclasses.replace(report, payload_kind=kind, payload=digest_file(payload), weight=weight)
        await self.engine.received(child, report, payload)

    # ---- sessions

    async def start(self, **config: Any) -> None:
        seed = self.folder / "seed.npz"
        write_npz(seed, {"w": np.zeros(4, np.float32)})
        ref = self.blobs.adopt(seed)
        async with self.database.write() as tx:
            model = model_row("mod-seed", digest=ref.sha256)
            model.size_bytes = ref.size_bytes
            given = {"rounds": 1, "validate_every": 0, "retries": 0} | config
            await add_session(tx, SESSION, config=SessionConfig(**given), model=model)
        self.engine.launch(SESSION)

    async def row(self) -> SessionRow:
        async with self.database.read() as tx:
            return await ledger.require_session(tx, SESSION)

    async def ended(self) -> SessionRow:
        async def has_ended() -> SessionRow | None:
            row = await self.row()
            return row if SessionStatus(row.phase).ended and not self.engine.running else None

        row = await eventually(has_ended)
        assert row is not None
        return row

    async def states(self, key: AssignmentKey = TRAIN) -> dict[str, str]:
        async with self.database.read() as tx:
            return {row.client: row.state for row in await ledger.slots(tx, key)}

    def model(self, digest: str) -> list[float]:
        ref = self.blobs.find(digest)
        assert ref is not None
        with np.load(self.blobs.path(ref)) as arrays:
            return [float(x) for x in arrays["w"]]


@asynccontextmanager
async def net_in(folder: Path) -> AsyncIterator[Net]:
    """An engine at work, with its state in ``folder``."""
    async with database_in(folder) as database:
        made = Net(folder, database)
        async with made.engine:
            yield made


def operations(net: Net) -> Operations:
    uploads = Uploads(journal=net.journal, blobs=net.lasting, max_package_bytes=1, max_model_bytes=1)
    return Operations(
        engine=net.engine,
        journal=net.journal,
        blobs=net.lasting,
        callers=Callers(net.journal, AccessTokens(bytes(32)), insecure=True),
        rpc_address=str,
        uploads=uploads,
        max_blob_bytes=1,
    )


def settlements(net: Net, child: str) -> list[tuple[tuple[str, ...], Settlement]]:
    return [(message.clients, message.settlement) for message in net.got(child, Settled)]


def ok(*clients: str) -> list[Outcome]:
    return [Outcome(client=client) for client in clients]


def child_named(
    name: str, kind: NodeKind = NodeKind.CLIENT, encode: Callable[[Downward], pb.Downward] = downward_to_wire
) -> Child:
    identity = NodeIdentity(name=name, node_id=f"id-{name}", kind=kind)
    return Child(
        identity,
        credential=None,
        verify=lambda _: identity,
        attached_at=0.0,
        encode=encode,
        mailbox_bytes=1 << 20,
        silence_s=60.0,
    )
