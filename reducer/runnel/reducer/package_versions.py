"""Versions of packages: which may be given to sessions, and which a session is to run from its next round on."""

from __future__ import annotations

from datetime import UTC, datetime

from runnel.common.crash_points import CrashPoint, reach
from runnel.common.errors import ServerFunctionsRefused
from runnel.common.protocol import BlobRef
from runnel.reducer.authority import INITIATORS, require
from runnel.reducer.domain.session_rules import check_server_functions
from runnel.reducer.domain.values import PackageView, SessionConfig, SessionStatus
from runnel.reducer.engine.position import server_code
from runnel.reducer.server_functions.functions import Asked, ServerFunctions
from runnel.reducer.service import Caller
from runnel.reducer.store import ledger, registry
from runnel.reducer.store.journal import Journal, Transaction
from runnel.reducer.store.tables import RoundRow, SessionRow


class PackageVersions:
    """Retires packages and moves sessions to others.

    A round runs the package that its session has in the transaction that begins it, and keeps it: so whatever happens,
    and whenever, no round sees two.

    Args:
        journal: the durable state.
        functions: runs what packages do at the reducer; None: nothing.
    """

    def __init__(self, journal: Journal, functions: ServerFunctions | None = None) -> None:
        self._journal = journal
        self._functions = functions

    async def require_runnable(self, organisation: str, package: str, config: SessionConfig) -> None:
        """Require that what a package does at the reducer fits a session's options, is allowed and can be loaded.

        Raises:
            NotFound: there is no such package.
            InvalidInput: an option of the session leaves the package nothing to do.
            ServerFunctionsRefused: the reducer does not run it.
            ServerFunctionFailed: it can't be loaded.
        """
        async with self._journal.database.read() as tx:
            row = await registry.find_package(tx, organisation, package)
        code = server_code(row, config)
        if code is None:
            return
        check_server_functions(config, code)
        if self._functions is None:
            raise ServerFunctionsRefused("This reducer runs no functions of packages.", package=row.digest)
        ref = BlobRef(sha256=row.digest, size_bytes=row.size_bytes)
        await self._functions.check(Asked(package=ref, code=code, signatures=registry.package_signatures(row)))

    async def retire(self, caller: Caller, digest: str, *, undo: bool) -> PackageView:
        """Let no session be given a package any more, or again; those that have it go on.

        Raises:
            NotFound: there is no such package.
        """
        require(caller, INITIATORS)
        async with self._journal.transaction() as tx:
            row = await registry.find_package(tx.session, caller.organisation, digest)
            if undo != (row.retired_at is None):
                row.retired_at = None if undo else datetime.now(UTC)
                kind = "package.restored" if undo else "package.retired"
                await tx.record(kind, caller.organisation, digest=row.digest, name=row.name, by=caller.token_id)
            return await registry.package_entry(tx.session, row)

    async def update_session(self, caller: Caller, session: str, package: str) -> str:
        """Give a session another package for the rounds that have not begun; return the session's id.

        Raises:
            NotFound: there is no such session or package.
            Conflict: the package is retired.
            RunnelError: of :meth:`require_runnable`.
        """
        require(caller, INITIATORS)
        async with self._journal.database.read() as read:
            config = ledger.config_from_json((await ledger.find_session(read, caller.organisation, session)).config)
        await self.require_runnable(caller.organisation, package, config)
        async with self._journal.transaction() as tx:
            row = await ledger.find_session(tx.session, caller.organisation, session)
            new = (await registry.usable_package(tx.session, caller.organisation, package)).digest
            changed, previous = row.package_digest != new, row.package_digest
            if changed:
                row.package_digest = new
                await tx.record(
                    "session.updated",
                    caller.organisation,
                    row.id,
                    package=new,
                    previous=previous,
                    from_round=await _first_round(tx, row),
                    by=caller.token_id,
                )
        if changed:
            reach(CrashPoint.PACKAGE_UPDATED)
        return row.id


async def _first_round(tx: Transaction, row: SessionRow) -> int:
    """Return the first round that runs the session's package if nothing is changed until then."""
    current = await tx.session.get(RoundRow, (row.id, row.round))
    return row.round if taken_up(row, current) else row.round + 1


def taken_up(row: SessionRow, current: RoundRow | None) -> bool:
    """Whether an ended session that is resumed begins its ``current`` round once more, under the same number.

    That is the round that has no model and ran the package that the session has still. With another package the number
    is not used again, for clients that are away may hold updates of it which the earlier package made.
    """
    if current is None or current.model_id is not None or not SessionStatus(row.phase).ended:
        return False
    return not SessionStatus(current.status).ended and current.package_digest == row.package_digest
