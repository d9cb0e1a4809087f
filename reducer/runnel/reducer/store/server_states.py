"""What packages remember of their rounds at the server, in the reducer's state.

The state that a round begins with is that which the newest round with a model left, if it had the same package. That
one is kept until the round has a model itself, so that a round that is begun anew begins with the same.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from runnel.reducer.store.tables import RemovalRow, RoundRow


async def state_before(tx: AsyncSession, current: RoundRow) -> str | None:
    """Return the digest of the state with which a round begins; None: there is none."""
    query = select(RoundRow).where(
        RoundRow.session_id == current.session_id, RoundRow.number < current.number, RoundRow.model_id.is_not(None)
    )
    last = await tx.scalar(query.order_by(RoundRow.number.desc()).limit(1))
    return None if last is None or last.package_digest != current.package_digest else last.server_state


async def put_state(tx: AsyncSession, current: RoundRow, digest: str | None) -> None:
    """Let a round have the state ``digest``, once it has its model; states that nobody needs any more may go."""
    query = select(RoundRow).where(
        RoundRow.session_id == current.session_id,
        RoundRow.number < current.number,
        RoundRow.server_state.is_not(None),
    )
    old = list(await tx.scalars(query))
    left = [row.server_state for row in old] + [current.server_state]
    for row in old:
        row.server_state = None
    current.server_state = digest
    await let_go(tx, [each for each in left if each is not None and each != digest])


async def let_go(tx: AsyncSession, digests: Iterable[str]) -> None:
    """Write down that files may go; who removes them looks whether anybody needs them."""
    for digest in sorted(set(digests)):
        await tx.merge(RemovalRow(digest=digest))
