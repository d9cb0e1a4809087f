"""The reducer's side of the wire: who may join and where, and what attached nodes fetch, push and report."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import structlog

from runnel.common.blobs import KEPT_HEARTBEATS, Leftovers, Spool, SpoolFile
from runnel.common.errors import Conflict, Forbidden, IllegalState, StorageFull, Unauthenticated
from runnel.common.protocol import (
    RUN_PREFIX,
    BlobRef,
    Cancel,
    Downward,
    Drain,
    Hello,
    NodeKind,
    Report,
    Settled,
    TaskSettled,
    Upward,
    Welcome,
)
from runnel.reducer.domain.values import DEFAULT_ORGANISATION, Role
from runnel.reducer.engine.engine import Engine
from runnel.reducer.engine.small_blobs import payload_name
from runnel.reducer.rpc.run_files import RunFiles
from runnel.reducer.store import access
from runnel.reducer.store.blobs import Blobs
from runnel.reducer.store.journal import Journal
from runnel.transport import Child, JoinAsk, NodeIdentity, Place
from runnel.transport.credentials import CredentialIssuer

log = structlog.get_logger()

_SENT_AND_EXPECTED_S = 15.0
_LOOK_LATER_S = 0.1  # than what was left is over
_ROLE_OF_KIND = {NodeKind.CLIENT: Role.CLIENT, NodeKind.COMBINER: Role.COMBINER}
_COMBINER_THERE = Drain(reason="a combiner is there")


class Gateway:
    """Handler of ``Uplink`` and ``Directory`` for the reducer.

    Args:
        engine: runs the sessions.
        journal: the durable state.
        blobs: what nodes may fetch.
        spool: where payloads arrive; ``partials`` is where they wait, whole, for their round.
        run_files: takes files of runs of tasks.
        issuer: of the nodes' credentials.
        insecure: nodes join without a token.
        credential_ttl_s: how long a revoked token still works at most.
        direct_capacity: how many clients may attach to the reducer itself while no combiner has room.
        max_overhead_bytes: by how much a payload may be larger than its model asks for.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        journal: Journal,
        blobs: Blobs,
        spool: Spool,
        partials: Path,
        run_files: RunFiles,
        issuer: CredentialIssuer,
        insecure: bool,
        heartbeat_s: float,
        credential_ttl_s: float,
        direct_capacity: int,
        max_overhead_bytes: int = 16 << 20,
    ) -> None:
        self._engine = engine
        self._journal = journal
        self._blobs = blobs
        self._spool = spool
        self._partials = partials
        self._run_files = run_files
        self._issuer = issuer
        self._insecure = insecure
        self._heartbeat_s = heartbeat_s
        self._keep_s = KEPT_HEARTBEATS * heartbeat_s
        self._left = Leftovers(spool, self._keep_s)
        self._credential_ttl_s = credential_ttl_s
        self._direct_capacity = direct_capacity
        self._max_overhead_bytes = max_overhead_bytes
        self._children: dict[str, Child] = {}
        self._pushed: dict[tuple[str, str], tuple[BlobRef, Path]] = {}
        self._begun: dict[str, set[str]] = {}  # by node, the orders for which it began to push
        self._sent: dict[str, tuple[str, float]] = {}
        self._combiners_came = 0
        self._kept_here: dict[str, int] = {}  # clients that were given a place here, and how many combiners had come

    # ---- Directory

    async def join(self, ask: JoinAsk, bearer: str | None) -> Place:
        """Admit a node and tell it where to attach.

        Raises:
            Unauthenticated: the token is missing, unknown, expired or revoked.
            Forbidden: the token is not for such a node.
            Conflict: the name is another node's.
            CapacityExceeded: there is no room.
        """
        roster = self._engine.roster
        if ask.name == self._engine.name:
            raise Conflict(f"The name {ask.name!r} is the reducer's own.", hint="Choose another --name.")
        async with self._journal.database.write() as tx:
            organisation, token_id = DEFAULT_ORGANISATION, ""
            if not self._insecure:
                token = await access.find_token(tx, bearer) if bearer else None
                now = datetime.now(UTC)
                if token is None or token.revoked_at or (token.expires_at and token.expires_at < now):
                    state = access.why_not(token, now)
                    raise Unauthenticated(
                        f"The {ask.kind.value} {ask.name} came with "
                        + (f"a token that is {state}." if bearer else "no token."),
                        hint=f"Make one with `runnel token create --role {ask.kind.value}` and give it by --token.",
                        name=ask.name,
                    )
                if token.role not in {_ROLE_OF_KIND[ask.kind].value, Role.OPERATOR.value}:
                    raise Forbidden(
                        f"The token of the {ask.kind.value} {ask.name} is for the role {token.role}.",
                        hint=f"Make one with `runnel token create --role {ask.kind.value}`.",
                        name=ask.name,
                    )
                organisation, token_id = token.organisation_id, token.id
            attached = roster.find(ask.name)
            await access.note_joined(
                tx,
                ask.name,
                ask.node_id,
                ask.kind.value,
                organisation,
                token_id,
                attached=attached is not None and attached.node_id != ask.node_id,
            )
        identity = NodeIdentity(name=ask.name, node_id=ask.node_id, kind=ask.kind, organisation=organisation)
        if ask.kind is NodeKind.COMBINER:
            member = roster.parent_for(ask.name, ask.prefer) if ask.prefer else None
        else:
            member = roster.place(
                prefer=ask.prefer,
                stay=ask.attached_to,
                avoid=frozenset(ask.avoid),
                own_name=self._engine.name,
                direct_capacity=self._direct_capacity,
                underway=self._underway(),
            ).member
            if member is None:
                self._kept_here[ask.name] = self._combiners_came
            elif ask.attached_to != member.name:
                self._sent[ask.name] = (member.name, time.monotonic())
        return Place(
            address="" if member is None else member.address,
            tls=member is not None and member.tls,
            attach_to=self._engine.name if member is None else member.name,
            credential=self._issuer.issue(identity, self._credential_ttl_s),
            ttl_s=self._credential_ttl_s,
        )

    def _underway(self) -> dict[str, int]:
        """Count by combiner who was sent there and has not been heard of since."""
        now = time.monotonic()
        roster = self._engine.roster
        counts: dict[str, int] = {}
        for client, (combiner, at) in list(self._sent.items()):
            if now - at > _SENT_AND_EXPECTED_S or roster.find(client) is not None:
                del self._sent[client]
            else:
                counts[combiner] = counts.get(combiner, 0) + 1
        return counts

    # ---- Uplink

    def welcome(self, child: Child) -> Welcome:
        """Return the first message down."""
        return Welcome(
            name=self._engine.name,
            heartbeat_s=self._heartbeat_s,
            credential_public_key=self._issuer.public_key if child.identity.kind is NodeKind.COMBINER else b"",
        )

    async def attached(self, child: Child, hello: Hello) -> None:
        """A node attached here."""
        self._children[child.identity.name] = child
        forget_dead = partial(self._forget_dead, child.identity.name)
        await self._engine.attached(hello, _Way(child, forget_dead, self._run_files.forget_ended))
        log.info("node attached", name=child.identity.name, kind=child.identity.kind.value, below=len(hello.below))
        # Clients that attach here for want of a combiner are to move once there is one.
        if child.identity.kind is NodeKind.COMBINER:
            self._combiners_came += 1
            for name in self._engine.roster.direct_clients():
                if name in self._children:
                    self._children[name].send(_COMBINER_THERE)
        elif self._kept_here.pop(child.identity.name, self._combiners_came) < self._combiners_came:
            child.send(_COMBINER_THERE)  # it came while this one was on its way

    def _forget_dead(self, name: str) -> None:
        """Remove what a node pushed, in part or whole, for orders whose report is not waited for any more."""
        begun = self._begun.get(name, set())
        for order_id in [each for each in begun if not self._engine.has_order(each)]:
            begun.discard(order_id)
            self._spool.forget(f"{order_id}/{name}")
        for key in [key for key in self._pushed if key[1] == name and not self._engine.has_order(key[0])]:
            _, payload = self._pushed.pop(key)
            payload.unlink(missing_ok=True)

    async def detached(self, child: Child, reason: str) -> None:
        """A node that was attached here is gone."""
        name = child.identity.name
        self._children.pop(name, None)
        self._run_files.detached(name)
        for order_id in self._begun.pop(name, ()):
            if self._engine.has_order(order_id):
                self._left.leave(f"{order_id}/{name}", name)
                asyncio.get_running_loop().call_later(self._keep_s + _LOOK_LATER_S, self._left.expire)
            else:
                self._spool.forget(f"{order_id}/{name}")
        await self._engine.detached(name)
        for key in [key for key in self._pushed if key[1] == name]:
            _, payload = self._pushed.pop(key)
            await asyncio.to_thread(payload.unlink, missing_ok=True)
        log.info("node left", name=name, reason=reason)

    async def received(self, child: Child, message: Upward) -> None:
        """A node below says something."""
        name = child.identity.name
        payload = None
        if isinstance(message, Report):
            ref, payload = self._pushed.pop((message.order_id, name), (None, None))
            if payload is not None and ref != message.payload:
                await asyncio.to_thread(payload.unlink, missing_ok=True)
                payload = None
        await self._engine.received(name, message, payload)

    def blob_file(self, ref: BlobRef, identity: NodeIdentity) -> AbstractAsyncContextManager[Path]:
        """Give a model or a package."""
        return self._blobs.held(ref)

    async def open_push(self, identity: NodeIdentity, order_id: str, ref: BlobRef) -> SpoolFile | None:
        """Return where a payload for a living order, or a file of a run, goes."""
        if order_id.startswith(RUN_PREFIX):
            return await self._run_files.open(identity, order_id, ref)
        exchange = self._engine.require_order(order_id, identity.name)
        exchange.require_fitting(ref, order_id, identity.kind, self._max_overhead_bytes)
        if self._pushed.get((order_id, identity.name), (None,))[0] == ref:
            return None
        if identity.name in self._children:
            self._forget_dead(identity.name)
            self._begun.setdefault(identity.name, set()).add(order_id)
        key = f"{order_id}/{identity.name}"
        self._left.take_up(key, identity.name, ref.name)
        file = await asyncio.to_thread(self._spool.open, key, ref)
        try:
            await asyncio.to_thread(file.require_room, exchange.decoding_bytes(identity.kind))
            self._engine.require_order(order_id, identity.name)
        except StorageFull as err:
            log.error("no room for a payload", child=identity.name, order_id=order_id, error=str(err))
            raise
        except IllegalState:
            self._spool.forget(key)
            raise
        return file

    async def pushed(self, identity: NodeIdentity, order_id: str, ref: BlobRef, file: Path) -> None:
        """Take a verified payload, which waits in the partials' folder for its report, or a file of a run."""
        if order_id.startswith(RUN_PREFIX):
            await self._run_files.keep(identity, order_id, ref, file)
            return
        try:
            self._engine.require_order(order_id, identity.name)
        except IllegalState:
            await asyncio.to_thread(file.unlink, missing_ok=True)
            raise
        place = self._partials / payload_name(order_id)
        await asyncio.to_thread(file.replace, place)
        await asyncio.to_thread(self._spool.forget, f"{order_id}/{identity.name}")
        self._begun.get(identity.name, set()).discard(order_id)
        try:
            self._engine.require_order(order_id, identity.name)
        except IllegalState:
            await asyncio.to_thread(place.unlink, missing_ok=True)
            raise
        _, earlier = self._pushed.get((order_id, identity.name), (None, None))
        self._pushed[(order_id, identity.name)] = (ref, place)
        if earlier is not None:
            await asyncio.to_thread(earlier.unlink, missing_ok=True)


class _Way:
    """The way down to a node; what came of work that is over goes with the news of that, for it may stay for weeks."""

    def __init__(self, child: Child, forget_dead: Callable[[], None], forget_ended: Callable[[], None]) -> None:
        self._child = child
        self._forget_dead = forget_dead
        self._forget_ended = forget_ended

    def send(self, message: Downward) -> None:
        self._child.send(message)
        if isinstance(message, (Cancel, Settled)):
            self._forget_dead()
        elif isinstance(message, TaskSettled):
            self._forget_ended()

    def send_each(self, messages: Iterable[Downward], number: int) -> None:
        self._child.send_each(messages, number)
        self._forget_ended()
