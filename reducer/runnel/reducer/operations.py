"""The reducer's answers to people: :class:`runnel.reducer.service.ReducerService` over the store and the engine."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from runnel.common.errors import IllegalState
from runnel.common.ids import new_id, new_secret
from runnel.common.protocol import BlobRef, NodeKind, PackageSignature
from runnel.compute_package import signature_of
from runnel.reducer.authority import INITIATORS, OPERATORS, READERS, realm, require, require_realm
from runnel.reducer.callers import Callers
from runnel.reducer.domain.session_rules import check_config
from runnel.reducer.domain.values import (
    EventView,
    LogView,
    ModelView,
    NodeView,
    PackageView,
    Page,
    Role,
    SessionConfig,
    SessionStatus,
    SessionView,
    StatusView,
    TokenView,
)
from runnel.reducer.engine.engine import Engine
from runnel.reducer.package_versions import PackageVersions, taken_up
from runnel.reducer.server_functions.functions import ServerFunctions
from runnel.reducer.service import AccessToken, Caller
from runnel.reducer.store import access, ledger, registry, task_lists
from runnel.reducer.store.blobs import Blobs
from runnel.reducer.store.journal import Journal
from runnel.reducer.store.tables import RoundRow, SessionRow
from runnel.reducer.task_operations import TASK_PREFIX, TaskOperations
from runnel.reducer.uploads import Uploads


class Operations(TaskOperations):
    """See :class:`runnel.reducer.service.ReducerService`.

    Args:
        engine: runs the sessions.
        journal: the durable state.
        blobs: packages and models.
        callers: tells who calls.
        functions: runs what packages do at the reducer; None: nothing.
        rpc_address: returns where nodes join.
        uploads: takes in what people upload.
        max_blob_bytes: of a file that is stored for tasks.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        journal: Journal,
        blobs: Blobs,
        callers: Callers,
        functions: ServerFunctions | None = None,
        rpc_address: Callable[[], str],
        uploads: Uploads,
        max_blob_bytes: int,
    ) -> None:
        super().__init__(engine=engine, journal=journal, blobs=blobs, max_blob_bytes=max_blob_bytes)
        self._callers = callers
        self._rpc_address = rpc_address
        self._uploads = uploads
        self._versions = PackageVersions(journal, functions)
        self._started_at = datetime.now(UTC)

    async def authenticate(self, bearer: str | None, *, client_id: str | None = None) -> Caller:
        """Return who presents ``bearer``."""
        return await self._callers.authenticate(bearer, client_id=client_id)

    async def access_token(self, caller: Caller) -> AccessToken:
        """Return what stands for the caller's token for a while."""
        return self._callers.access_token(caller)

    async def note_call(self, caller: Caller, *, method: str, path: str, status: int, calls: int) -> None:
        """Record what was called and how it was answered."""
        await self._callers.note_call(caller, method=method, path=path, status=status, calls=calls)

    async def status(self, caller: Caller) -> StatusView:
        """Return the network at a glance."""
        require(caller, READERS)
        if realm(caller) is None:
            running, stored = self._engine.running, await self._blobs.total_bytes()
        else:
            async with self._journal.database.read() as tx:
                running = await ledger.count_running(tx, caller.organisation)
                stored = await registry.stored_bytes(tx, caller.organisation)
        nodes = self._engine.members(realm(caller))
        return StatusView(
            version=version("runnel"),
            organisation=caller.organisation,
            rpc_address=self._rpc_address(),
            started_at=self._started_at,
            clients_attached=sum(node.kind is NodeKind.CLIENT for node in nodes),
            combiners_attached=sum(node.kind is NodeKind.COMBINER for node in nodes),
            sessions_running=running,
            blobs_bytes=stored,
        )

    # ---- packages and models

    async def add_package(self, caller: Caller, filename: str, body: AsyncIterator[bytes]) -> PackageView:
        """Store and check an archive."""
        require(caller, INITIATORS)
        return await self._uploads.add_package(caller.organisation, filename, body, by=caller.token_id)

    async def sign_package(self, caller: Caller, digest: str, signature: PackageSignature) -> PackageView:
        """Store who vouches for a package."""
        require(caller, INITIATORS)
        view = await self._uploads.sign_package(caller.organisation, digest, signature)
        signatures = tuple(signature_of(each.public_key, each.signature) for each in view.signatures)
        self._engine.signed(caller.organisation, view.digest, signatures)
        return view

    async def retire_package(self, caller: Caller, digest: str, *, undo: bool) -> PackageView:
        """Let no new session be given a package, or again."""
        return await self._versions.retire(caller, digest, undo=undo)

    async def packages(self, caller: Caller, cursor: str | None, limit: int) -> Page[PackageView]:
        """List packages, newest first."""
        require(caller, READERS)
        async with self._journal.database.read() as tx:
            return await registry.packages(tx, caller.organisation, cursor, limit)

    async def package(self, caller: Caller, digest: str) -> PackageView:
        """Return one package."""
        require(caller, READERS)
        async with self._journal.database.read() as tx:
            return await registry.package_entry(tx, await registry.find_package(tx, caller.organisation, digest))

    @asynccontextmanager
    async def package_file(self, caller: Caller, digest: str) -> AsyncIterator[Path]:
        """Give the archive's file."""
        view = await self.package(caller, digest)
        async with self._blobs.held(BlobRef(sha256=view.digest, size_bytes=view.size_bytes)) as file:
            yield file

    async def add_model(self, caller: Caller, body: AsyncIterator[bytes]) -> ModelView:
        """Store and check a seed model."""
        require(caller, INITIATORS)
        return await self._uploads.add_model(caller.organisation, body)

    async def remove_model(self, caller: Caller, model: str) -> ModelView:
        """Remove a seed model that no session began with."""
        require(caller, INITIATORS)
        view = await self._uploads.remove_model(caller.organisation, model, by=caller.token_id)
        await self._engine.remove_files()
        return view

    async def models(self, caller: Caller, session: str | None, cursor: str | None, limit: int) -> Page[ModelView]:
        """List the trail, newest first."""
        require(caller, READERS)
        async with self._journal.database.read() as tx:
            if session is not None:
                session = (await ledger.find_session(tx, caller.organisation, session)).id
            return await registry.models(tx, caller.organisation, session, cursor, limit)

    async def model(self, caller: Caller, model: str) -> ModelView:
        """Return one model with its participants."""
        require(caller, READERS)
        async with self._journal.database.read() as tx:
            row = await registry.find_model(tx, caller.organisation, model)
            return registry.model_view(row, await registry.participants(tx, row))

    @asynccontextmanager
    async def model_file(self, caller: Caller, model: str) -> AsyncIterator[Path]:
        """Give the model's file."""
        require(caller, READERS)
        async with self._journal.database.read() as tx:
            row = await registry.find_model(tx, caller.organisation, model)
            await registry.require_file(tx, row)
        async with self._blobs.held(BlobRef(sha256=row.digest, size_bytes=row.size_bytes)) as file:
            yield file

    # ---- sessions

    async def start_session(
        self, caller: Caller, *, name: str, package: str, seed: str, config: SessionConfig
    ) -> SessionView:
        """Create a session of a stored package and model, and run it."""
        require(caller, INITIATORS)
        check_config(config)
        await self._versions.require_runnable(caller.organisation, package, config)
        async with self._journal.transaction() as tx:
            package_row = await registry.usable_package(tx.session, caller.organisation, package)
            model_row = await registry.find_model(tx.session, caller.organisation, seed)
            await registry.require_file(tx.session, model_row)
            session_id = new_id("ses")
            row = SessionRow(
                id=session_id,
                organisation_id=caller.organisation,
                name=name or f"{package_row.name} {session_id[4:8]}",
                package_digest=package_row.digest,
                seed_id=model_row.id,
                model_id=model_row.id,
                config=ledger.config_to_json(config),
                seed=random.getrandbits(32) if config.random_seed is None else config.random_seed,
                phase=SessionStatus.SEEDED.value,
                round=0,
                created_at=datetime.now(UTC),
            )
            tx.session.add(row)
            await tx.record(
                "session.created",
                caller.organisation,
                session_id,
                name=row.name,
                package=package_row.digest,
                seed=model_row.id,
                by=caller.token_id,
            )
        self._engine.launch(session_id)
        return ledger.session_view(row)

    async def sessions(self, caller: Caller, cursor: str | None, limit: int) -> Page[SessionView]:
        """List sessions, newest first, without their rounds."""
        require(caller, READERS)
        async with self._journal.database.read() as tx:
            page = await ledger.sessions(tx, caller.organisation, cursor, limit)
        return dataclasses.replace(page, items=tuple(map(self._with_wait, page.items)))

    async def session(self, caller: Caller, session: str, *, clients: bool = False) -> SessionView:
        """Return one session with its rounds."""
        require(caller, READERS)
        async with self._journal.database.read() as tx:
            row = await ledger.find_session(tx, caller.organisation, session)
            return self._with_wait(await ledger.session_with_rounds(tx, row, clients=clients))

    def _with_wait(self, view: SessionView) -> SessionView:
        """Return a view with what the session waits for, if it is stalled."""
        waits = None if view.phase.ended else self._engine.stalled.get(view.session)
        return view if waits is None else dataclasses.replace(view, reason=waits)

    async def stop_session(self, caller: Caller, session: str) -> SessionView:
        """End a session as stopped."""
        require(caller, INITIATORS)
        view = await self.session(caller, session)
        if view.phase.ended:
            raise IllegalState(f"Session {view.session} is {view.status} already.", session=view.session)
        await wait_for(self._engine.stop(view.session))
        return await self.session(caller, view.session)

    async def resume_session(self, caller: Caller, session: str) -> SessionView:
        """Go on with a stopped or failed session."""
        require(caller, INITIATORS)
        view = await self.session(caller, session)
        if view.phase not in {SessionStatus.STOPPED, SessionStatus.FAILED}:
            raise IllegalState(
                f"Session {view.session} is {view.status}; only a stopped or failed one can be resumed.",
                hint="`runnel session extend` adds rounds to a finished one.",
                session=view.session,
            )
        await self._go_on(caller, view.session, view.config.rounds)
        return await self.session(caller, view.session)

    async def extend_session(self, caller: Caller, session: str, rounds: int) -> SessionView:
        """Add rounds; an ended session goes on."""
        require(caller, INITIATORS)
        view = await self.session(caller, session)
        wanted = view.config.rounds + rounds
        if view.phase.ended:
            await self._go_on(caller, view.session, wanted)
        else:
            async with self._journal.transaction() as tx:
                row = await ledger.require_session(tx.session, view.session)
                row.config = {**row.config, "rounds": wanted}
                await tx.record("session.extended", caller.organisation, view.session, rounds=wanted)
            self._engine.extend(view.session, wanted)
        return await self.session(caller, view.session)

    async def update_session(self, caller: Caller, session: str, package: str) -> SessionView:
        """Give a session another package for the rounds that have not begun."""
        view = await self.session(caller, await self._versions.update_session(caller, session, package))
        self._engine.moved(view.session, view.package)
        return view

    async def _go_on(self, caller: Caller, session_id: str, rounds: int) -> None:
        """Put an ended session back to where it goes on: its last validation, or the border of a round."""
        await wait_for(self._engine.stop(session_id))
        payloads: list[str] = []
        async with self._journal.transaction() as tx:
            row = await ledger.require_session(tx.session, session_id)
            current = await tx.session.get(RoundRow, (session_id, row.round))
            status = SessionStatus.COMMITTED if current is None else SessionStatus(current.status)
            if status is SessionStatus.COMMITTED or status.ended:
                phase = SessionStatus.SEEDED if row.round == 0 else SessionStatus.COMMITTED
            elif current is not None and current.model_id is not None:
                phase = SessionStatus.VALIDATING
            else:
                phase = SessionStatus.SEEDED
                if taken_up(row, current):
                    payloads = await ledger.forget_round(tx.session, session_id, row.round)
                    row.round -= 1
                else:
                    payloads = await ledger.give_round_up(tx.session, session_id, row.round, row.phase)
                    rounds += 1  # what was asked for is models, and this round has none
            row.phase, row.reason, row.finished_at = phase.value, None, None
            row.config = {**row.config, "rounds": rounds}
            await tx.record("session.resumed", caller.organisation, session_id, rounds=rounds, by=caller.token_id)
        self._engine.launch(session_id)
        await self._engine.remove_files(payloads)

    async def session_logs(
        self,
        caller: Caller,
        session: str,
        *,
        round_number: int | None,
        client: str | None,
        cursor: str | None,
        limit: int,
    ) -> Page[LogView]:
        """Return what the entry points wrote, oldest first."""
        require(caller, READERS)
        async with self._journal.database.read() as tx:
            row = await ledger.find_session(tx, caller.organisation, session)
            return await ledger.logs(tx, row.id, round_number, client, cursor, limit)

    # ---- nodes and tokens

    async def nodes(self, caller: Caller, cursor: str | None, limit: int) -> Page[NodeView]:
        """List clients and combiners by name."""
        require(caller, READERS)
        organisation = realm(caller)
        async with self._journal.database.read() as tx:
            rows, following = await access.nodes(tx, organisation, cursor, limit)
        now = datetime.now(UTC)
        views = []
        for row in rows:
            attached_to = self._engine.roster.attached_to(row.name, self._engine.name)
            views.append(
                NodeView(
                    name=row.name,
                    node_id=row.node_id,
                    kind=row.kind,
                    organisation=row.organisation_id,
                    status="away" if attached_to is None else "attached",
                    attached_to=attached_to,
                    version=row.version,
                    platform=row.platform,
                    address=row.address if row.kind == NodeKind.COMBINER.value else None,
                    first_seen_at=row.first_seen_at,
                    last_seen_at=row.last_seen_at if attached_to is None else now,
                )
            )
        return Page(items=tuple(views), next_cursor=following)

    async def create_token(
        self, caller: Caller, *, role: Role, name: str, organisation: str | None, ttl_s: float | None
    ) -> TokenView:
        """Make a token; only this answer carries its secret."""
        require(caller, OPERATORS)
        owner = organisation or caller.organisation
        require_realm(caller, owner)
        async with self._journal.transaction() as tx:
            view = await access.add_token(tx.session, new_id("tok"), new_secret(), owner, role, name, ttl_s)
            await tx.record("token.created", owner, token=view.id, role=role.value, name=name, by=caller.token_id)
        return view

    async def tokens(self, caller: Caller, cursor: str | None, limit: int) -> Page[TokenView]:
        """List tokens, newest first, without secrets."""
        require(caller, OPERATORS)
        async with self._journal.database.read() as tx:
            return await access.tokens(tx, realm(caller), cursor, limit)

    async def revoke_token(self, caller: Caller, token_id: str) -> TokenView:
        """End a token."""
        require(caller, OPERATORS)
        async with self._journal.transaction() as tx:
            view = await access.revoke_token(tx.session, realm(caller), token_id)
            await tx.record("token.revoked", view.organisation, token=token_id, by=caller.token_id)
        return view

    # ---- events and idempotency

    async def events(self, caller: Caller, session: str | None, after: int, limit: int) -> Page[EventView]:
        """Return events after a sequence number, oldest first."""
        require(caller, READERS)
        session_id, user = await self._whose(caller, session)
        items = await self._journal.events(session_id, after, limit, caller.organisation, user=user)
        return Page(items=tuple(items), next_cursor=str(items[-1].seq) if len(items) == limit else None)

    async def _whose(self, caller: Caller, session: str | None) -> tuple[str | None, str | None]:
        """Return the whole id of a session or task, and whose tasks the caller may hear of; None: of all."""
        async with self._journal.database.read() as tx:
            user = await self._own(tx, caller)
            if session is None:
                return None, user
            if session.startswith(TASK_PREFIX):
                return (await task_lists.find_task(tx, caller.organisation, session, user=user)).id, user
            return (await ledger.find_session(tx, caller.organisation, session)).id, user

    async def follow(self, caller: Caller, session: str | None, after: int) -> AsyncIterator[Mapping[str, Any]]:
        """Yield events as they happen."""
        require(caller, READERS)
        session_id, user = await self._whose(caller, session)
        async for event in self._journal.follow(session_id, after, caller.organisation, user=user):
            yield event

    async def recall(self, caller: Caller, key: str, fingerprint: str) -> tuple[int, bytes] | None:
        """Return the stored answer to an idempotency key."""
        async with self._journal.database.read() as tx:
            return await access.recall(tx, key, caller.token_id or caller.organisation, fingerprint)

    async def remember(self, caller: Caller, key: str, fingerprint: str, status: int, body: bytes) -> None:
        """Store the answer to an idempotency key."""
        async with self._journal.database.write() as tx:
            await access.remember(tx, key, caller.token_id or caller.organisation, fingerprint, status, body)


async def wait_for(task: asyncio.Task[None] | None) -> None:
    """Wait until a session's task is done, whatever its end."""
    if task is not None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(task)
