"""Versions of packages: which may be given to sessions, and which a session is to run from its next round on."""

from __future__ import annotations

from datetime import UTC, datetime

from runnel.common.crash_points import CrashPoint, reach
from runnel.reducer.authority import INITIATORS, require
from runnel.reducer.domain.values import PackageView, SessionStatus
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
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

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
        """
        require(caller, INITIATORS)
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
