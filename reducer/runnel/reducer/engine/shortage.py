"""Why a round has too few updates, told to people."""

from __future__ import annotations

from runnel.common.errors import NotEnoughClients
from runnel.reducer.domain.collection import Collection
from runnel.reducer.domain.values import SessionConfig
from runnel.reducer.store import ledger
from runnel.reducer.store.database import Database


async def too_few_updates(database: Database, config: SessionConfig, collection: Collection) -> NotEnoughClients:
    """Make the error that says what became of the clients that were asked.

    Args:
        database: the durable state, which knows the failures.
        config: of the session.
        collection: of the round.
    """
    async with database.read() as tx:
        rows = await ledger.slots(tx, collection.key)
    counts, session_id = collection.counts, collection.key.session_id
    failures = [f"{row.client}: {(row.error or '').splitlines()[0][:200]}" for row in rows if row.error]
    failures += [f"{client}, last heard: {told[:200]}" for client, told in collection.unanswered().items()]
    attempts = config.retries + 1
    return NotEnoughClients(
        f"Round {collection.key.round} has {counts.counted} of at least {config.min_clients} updates"
        f" after {attempts} {'attempt' if attempts == 1 else 'attempts'}"
        f" ({counts.failed} failed, {counts.late + counts.open} did not answer"
        + (f", {counts.awaiting} wait for their site)." if counts.awaiting else ").")
        + ("".join(f"\n  {line}" for line in failures[:5])),
        hint=f"See `runnel session logs {session_id}`, then `runnel session resume {session_id}`.",
        session=session_id,
    )
