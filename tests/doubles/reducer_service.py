"""A reducer without engine and store: what the HTTP interface and the SDK are tested against."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from runnel.common.errors import BadPackage, Conflict, Forbidden, IllegalState, NotFound, Unauthenticated
from runnel.common.protocol import PackageSignature
from runnel.compute_package import key_id, public_key_text
from runnel.reducer.domain.values import (
    ClientContribution,
    EventView,
    LogView,
    ModelView,
    NodeView,
    PackageView,
    Page,
    Role,
    RoundView,
    SessionConfig,
    SessionStatus,
    SessionView,
    SignerView,
    StatusView,
    TokenView,
)
from runnel.reducer.service import AccessToken, Caller
from tests.doubles.task_service import InMemoryTasks

T = TypeVar("T")
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
OPERATOR_TOKEN = "rnl-operator"
VIEWER_TOKEN = "rnl-viewer"
LOOKING = {Role.OPERATOR, Role.INITIATOR, Role.VIEWER}


class InMemoryReducer(InMemoryTasks):
    """Implements :class:`runnel.reducer.service.ReducerService`.

    Fault switches: ``broken`` raises an unexpected error in status(); ``gate`` holds start_session() back until set;
    ``refuse_packages`` has add_package() refuse after the first block; ``follow_fails`` ends follow() with an error
    after the events that are kept.
    """

    def __init__(self, folder: Path, *, insecure: bool = False) -> None:
        super().__init__(folder)
        self.insecure = insecure
        self.broken = False
        self.refuse_packages = False
        self.follow_fails = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.waiting = 0
        self.authentications = 0
        self.effects: list[str] = []
        self.blocks: list[int] = []
        self.following = 0
        self._packages: dict[str, PackageView] = {}
        self._models: dict[str, ModelView] = {}
        self._sessions: dict[str, SessionView] = {}
        self._tokens: dict[str, TokenView] = {}
        self.log: list[EventView] = []
        self.lines: list[LogView] = []
        self.members: list[NodeView] = []
        self.remembered: dict[tuple[str, str], tuple[str, int, bytes]] = {}
        self._followers: list[asyncio.Queue[Mapping[str, Any]]] = []

    async def authenticate(self, bearer: str | None, *, client_id: str | None = None) -> Caller:
        self.authentications += 1
        if self.insecure:
            return Caller(token_id="", role=Role.OPERATOR, organisation="default")
        roles = {OPERATOR_TOKEN: Role.OPERATOR, VIEWER_TOKEN: Role.VIEWER}
        if bearer is None or bearer not in roles:
            raise Unauthenticated("A token is asked for here.", hint="Set RUNNEL_TOKEN.")
        return Caller(token_id=f"tok-{bearer}", role=roles[bearer], organisation="default")

    async def access_token(self, caller: Caller) -> AccessToken:
        return AccessToken(token=caller.token_id.removeprefix("tok-"), expires_in_s=60.0)

    async def note_call(self, caller: Caller, *, method: str, path: str, status: int, calls: int) -> None:
        self.effects.append(f"{method} {path} {status}")

    @staticmethod
    def _may(caller: Caller, *roles: Role) -> None:
        if caller.role not in (roles or LOOKING):
            raise Forbidden(f"A token of role {caller.role.value} may not do this.", role=caller.role.value)

    async def status(self, caller: Caller) -> StatusView:
        if self.broken:
            raise ZeroDivisionError("secret detail")
        return StatusView(
            version="0.1.0",
            organisation=caller.organisation,
            rpc_address="127.0.0.1:7400",
            started_at=NOW,
            clients_attached=2,
            combiners_attached=1,
            sessions_running=sum(s.status == "running" for s in self._sessions.values()),
            blobs_bytes=12345,
        )

    async def _store(self, body: AsyncIterator[bytes]) -> tuple[str, int]:
        data = b""
        async for block in body:
            self.blocks.append(len(block))
            if self.refuse_packages:
                raise BadPackage("train.py is missing.", hint="Add it.", member="train.py")
            data += block
        digest = hashlib.sha256(data).hexdigest()
        await asyncio.to_thread((self.folder / digest).write_bytes, data)
        return digest, len(data)

    async def add_package(self, caller: Caller, filename: str, body: AsyncIterator[bytes]) -> PackageView:
        self._may(caller, Role.OPERATOR, Role.INITIATOR)
        digest, size = await self._store(body)
        self.effects.append("package")
        view = PackageView(
            digest=digest,
            name=filename.removesuffix(".tar.gz"),
            version="1",
            size_bytes=size,
            organisation=caller.organisation,
            created_at=NOW,
            manifest={"entry_points": {"train": "python train.py"}},
        )
        return self._packages.setdefault(digest, view)

    async def sign_package(self, caller: Caller, digest: str, signature: PackageSignature) -> PackageView:
        self._may(caller, Role.OPERATOR, Role.INITIATOR)
        self.effects.append("signature")
        view = _one(self._packages, digest, "package")
        signer = SignerView(
            key_id=key_id(signature.public_key),
            public_key=public_key_text(signature.public_key),
            signature=signature.signature.hex(),
        )
        self._packages[view.digest] = replace(view, signatures=(*view.signatures, signer))
        return self._packages[view.digest]

    async def retire_package(self, caller: Caller, digest: str, *, undo: bool) -> PackageView:
        self._may(caller, Role.OPERATOR, Role.INITIATOR)
        self.effects.append("retire")
        view = _one(self._packages, digest, "package")
        self._packages[view.digest] = replace(view, retired_at=None if undo else NOW)
        return self._packages[view.digest]

    async def packages(self, caller: Caller, cursor: str | None, limit: int) -> Page[PackageView]:
        return _page([*self._packages.values()][::-1], cursor, limit)

    async def package(self, caller: Caller, digest: str) -> PackageView:
        return _one(self._packages, digest, "package")

    @asynccontextmanager
    async def package_file(self, caller: Caller, digest: str) -> AsyncIterator[Path]:
        yield self.folder / _one(self._packages, digest, "package").digest

    async def add_model(self, caller: Caller, body: AsyncIterator[bytes]) -> ModelView:
        self._may(caller, Role.OPERATOR, Role.INITIATOR)
        digest, size = await self._store(body)
        self.effects.append("model")
        return self.add_model_entry(digest, size, organisation=caller.organisation)

    def add_model_entry(self, digest: str, size: int, **changes: Any) -> ModelView:
        view = ModelView(
            model=f"mod-{len(self._models):06d}",
            digest=digest,
            size_bytes=size,
            format="npz",
            n_params=10,
            tensors=2,
            parent=None,
            session=None,
            round=None,
            package=None,
            strategy=None,
            organisation="default",
            created_at=NOW,
            metrics={},
        )
        self._models[view.model] = replace(view, **changes)
        return self._models[view.model]

    async def remove_model(self, caller: Caller, model: str) -> ModelView:
        self._may(caller, Role.OPERATOR, Role.INITIATOR)
        self.effects.append("model removed")
        return self._models.pop(_one(self._models, model, "model").model)

    async def models(self, caller: Caller, session: str | None, cursor: str | None, limit: int) -> Page[ModelView]:
        found = [m for m in self._models.values() if session is None or m.session == session]
        return _page(found[::-1], cursor, limit)

    async def model(self, caller: Caller, model: str) -> ModelView:
        return _one(self._models, model, "model")

    @asynccontextmanager
    async def model_file(self, caller: Caller, model: str) -> AsyncIterator[Path]:
        yield self.folder / _one(self._models, model, "model").digest

    async def start_session(
        self, caller: Caller, *, name: str, package: str, seed: str, config: SessionConfig
    ) -> SessionView:
        self._may(caller, Role.OPERATOR, Role.INITIATOR)
        self.waiting += 1
        await self.gate.wait()
        self.waiting -= 1
        stored, model = _one(self._packages, package, "package"), _one(self._models, seed, "model")
        self.effects.append("session")
        view = SessionView(
            session=f"ses-{len(self._sessions):06d}",
            name=name,
            organisation=caller.organisation,
            status="running",
            phase=SessionStatus.SEEDED,
            reason=None,
            package=stored.digest,
            seed=model.model,
            model=model.model,
            config=config,
            created_at=NOW,
            finished_at=None,
        )
        self._sessions[view.session] = view
        self.happen("session.created", view.session, {})
        return view

    async def sessions(self, caller: Caller, cursor: str | None, limit: int) -> Page[SessionView]:
        return _page([replace(s, rounds=()) for s in self._sessions.values()][::-1], cursor, limit)

    async def session(self, caller: Caller, session: str, *, clients: bool = False) -> SessionView:
        view = _one(self._sessions, session, "session")
        return view if clients else replace(view, rounds=tuple(replace(r, clients=()) for r in view.rounds))

    def _end(self, session: str, status: str, reason: str | None) -> SessionView:
        view = replace(
            self._sessions[session], status=status, phase=SessionStatus(status), reason=reason, finished_at=NOW
        )
        self._sessions[session] = view
        self.happen("session.ended", session, {"status": status, "reason": reason})
        return view

    async def stop_session(self, caller: Caller, session: str) -> SessionView:
        view = _one(self._sessions, session, "session")
        if view.status != "running":
            raise IllegalState(f"{view.session} is {view.status}; only a running session can be stopped.")
        self.effects.append("stop")
        return self._end(view.session, "stopped", "stopped by a person")

    async def resume_session(self, caller: Caller, session: str) -> SessionView:
        view = _one(self._sessions, session, "session")
        if view.status not in {"stopped", "failed"}:
            raise IllegalState(f"{view.session} is {view.status}; only a stopped or failed session can be resumed.")
        self._sessions[view.session] = replace(
            view, status="running", phase=SessionStatus.SELECTING, reason=None, finished_at=None
        )
        self.happen("session.phase", view.session, {"phase": "selecting", "round": len(view.rounds) + 1})
        return self._sessions[view.session]

    async def extend_session(self, caller: Caller, session: str, rounds: int) -> SessionView:
        view = _one(self._sessions, session, "session")
        self.effects.append("extend")
        config = replace(view.config, rounds=view.config.rounds + rounds)
        self._sessions[view.session] = replace(view, config=config)
        return self._sessions[view.session]

    async def update_session(self, caller: Caller, session: str, package: str) -> SessionView:
        self._may(caller, Role.OPERATOR, Role.INITIATOR)
        self.effects.append("update")
        view = _one(self._sessions, session, "session")
        self._sessions[view.session] = replace(view, package=_one(self._packages, package, "package").digest)
        return self._sessions[view.session]

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
        view = _one(self._sessions, session, "session")
        found = [
            line
            for line in self.lines
            if line.session == view.session and round_number in {None, line.round} and client in {None, line.client}
        ]
        return _page(found, cursor, limit)

    async def nodes(self, caller: Caller, cursor: str | None, limit: int) -> Page[NodeView]:
        return _page(self.members, cursor, limit)

    async def create_token(
        self, caller: Caller, *, role: Role, name: str, organisation: str | None, ttl_s: float | None
    ) -> TokenView:
        self._may(caller, Role.OPERATOR)
        self.effects.append("token")
        view = TokenView(
            id=f"tok-{len(self._tokens):06d}",
            role=role,
            name=name,
            organisation=organisation or caller.organisation,
            created_at=NOW,
            expires_at=None,
            revoked_at=None,
        )
        self._tokens[view.id] = view
        return replace(view, token=f"secret-of-{view.id}")

    async def tokens(self, caller: Caller, cursor: str | None, limit: int) -> Page[TokenView]:
        self._may(caller, Role.OPERATOR)
        return _page([*self._tokens.values()][::-1], cursor, limit)

    async def revoke_token(self, caller: Caller, token_id: str) -> TokenView:
        self._may(caller, Role.OPERATOR)
        view = _one(self._tokens, token_id, "token")
        self._tokens[view.id] = replace(view, revoked_at=NOW)
        return self._tokens[view.id]

    async def events(self, caller: Caller, session: str | None, after: int, limit: int) -> Page[EventView]:
        self._may(caller)
        if session is not None and session not in self._tasks:
            session = _one(self._sessions, session, "session").session
        found = [e for e in self.log if e.seq > after and session in {None, e.session}]
        return Page(items=tuple(found[:limit]), next_cursor=str(found[limit - 1].seq) if len(found) > limit else None)

    async def follow(self, caller: Caller, session: str | None, after: int) -> AsyncIterator[Mapping[str, Any]]:
        queue: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue()
        self._followers.append(queue)
        self.following += 1
        if session is not None and session not in self._tasks:
            session = _one(self._sessions, session, "session").session
        try:
            for event in [e for e in self.log if e.seq > after]:
                if session in {None, event.session}:
                    yield _json(event)
            if self.follow_fails:
                raise IllegalState("The log is closed.")
            while True:
                passing = await queue.get()
                if session in {None, passing["session"]}:
                    yield passing
        finally:
            self.following -= 1
            self._followers.remove(queue)

    async def recall(self, caller: Caller, key: str, fingerprint: str) -> tuple[int, bytes] | None:
        entry = self.remembered.get((caller.token_id, key))
        if entry is None:
            return None
        if entry[0] != fingerprint:
            raise Conflict(f"The idempotency key {key!r} was used for another request.")
        return entry[1], entry[2]

    async def remember(self, caller: Caller, key: str, fingerprint: str, status: int, body: bytes) -> None:
        self.remembered[(caller.token_id, key)] = (fingerprint, status, body)

    # ---- what a test makes happen

    def happen(self, kind: str, session: str | None, data: Mapping[str, Any]) -> EventView:
        event = EventView(
            seq=len(self.log) + 1, at=NOW, kind=kind, session=session, data=data, previous_hash="0" * 64, hash="1" * 64
        )
        self.log.append(event)
        self._publish(_json(event))
        return event

    def progress(self, session: str, data: Mapping[str, Any]) -> None:
        self._publish({"at": NOW.isoformat(), "kind": "progress", "session": session, "data": data})

    def _publish(self, event: Mapping[str, Any]) -> None:
        for queue in self._followers:
            queue.put_nowait(event)

    def commit(self, session: str, document: Callable[[RoundView], Mapping[str, Any]], **changes: Any) -> RoundView:
        """Commit the next round, with an accuracy that climbs."""
        view = self._sessions[session]
        number = len(view.rounds) + 1
        archive = self._packages[view.package]
        model = self.add_model_entry(
            archive.digest,
            archive.size_bytes,
            session=session,
            round=number,
            parent=view.model,
            package=view.package,
            strategy="fedavg",
        )
        made = RoundView(
            round=number,
            status="committed",
            package=view.package,
            seconds=1.5,
            phases={"training": 1.0, "reducing": 0.2, "validating": 0.3},
            updates=2,
            late=1,
            failed=0,
            model=model.model,
            metrics={"accuracy": 1 - 0.5**number, "loss": 0.5**number},
            train_metrics={},
            clients=(ClientContribution(client="site-1", work="train", status="counted", weight=100.0),),
        )
        made = replace(made, **changes)
        self._sessions[session] = replace(view, rounds=(*view.rounds, made), model=model.model)
        self.happen("round.committed", session, document(made))
        return made

    def finish(self, session: str, status: str = "finished", reason: str | None = None) -> None:
        self._end(session, status, reason)


def _one(entries: Mapping[str, T], prefix: str, what: str) -> T:
    found = [entries[key] for key in entries if key.startswith(prefix)] if len(prefix) >= 4 else []
    if len(found) != 1:
        raise NotFound(f"There is no {what} {prefix!r}.", hint=f"runnel {what} list shows what there is.", got=prefix)
    return found[0]


def _page(items: list[T], cursor: str | None, limit: int) -> Page[T]:
    start = int(cursor or 0)
    end = start + limit
    return Page(items=tuple(items[start:end]), next_cursor=str(end) if end < len(items) else None)


def _json(event: EventView) -> Mapping[str, Any]:
    return {
        "seq": event.seq,
        "at": event.at.isoformat(),
        "kind": event.kind,
        "session": event.session,
        "data": dict(event.data),
    }
