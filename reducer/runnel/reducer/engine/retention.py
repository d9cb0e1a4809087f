"""Which models of a session keep their files, and how the others lose them.

The trail itself stays: a model whose file is gone has its row, with parent, participants and metrics. Kept are the
files of the newest models, as many as are wanted, and whatever else is needed: see :func:`superfluous`. Of the states
of optimizers only that of the newest model is kept, as no round begins at an older one.

What is to go is decided and written within the transaction that commits a round; the files follow. A process that ends
between the two leaves names in the table of removals, which the next start takes up. A file that another model or
package has as well stays.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from datetime import UTC, datetime

import structlog
from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from runnel.common.aggregation import make_strategy
from runnel.common.errors import Unreachable
from runnel.reducer.domain.values import ENDED, SessionConfig, StopRule
from runnel.reducer.store import ledger, registry
from runnel.reducer.store.blobs import Blobs
from runnel.reducer.store.journal import Journal, Transaction
from runnel.reducer.store.tables import ModelRow, RemovalRow, RoundRow, SessionRow

log = structlog.get_logger()

_AT_ONCE = 500  # rows that one transaction touches: where a long trail is cut for the first time
_FILES_AT_ONCE = 10  # that are removed while nobody else can write: each may take two requests to a bucket


def kept_models(config: SessionConfig, default: int) -> int:
    """Return how many of the newest models keep their files; 0: all.

    With buffered updates it is at least as many as clients may be behind, as each may still fetch, and be compared
    with, the model that it was asked to train.

    Args:
        config: of the session.
        default: what the reducer is set to, for a session that does not say.

    >>> kept_models(SessionConfig(rounds=9, keep_models=2), 0), kept_models(SessionConfig(rounds=9), 5)
    (2, 5)
    """
    wanted = default if config.keep_models is None else config.keep_models
    buffered = make_strategy(config.strategy, config.strategy_options).buffered
    return wanted if wanted == 0 or buffered is None else max(wanted, buffered.max_staleness + 1)


def superfluous(
    models: Sequence[ModelRow], keep: int, *, rule: StopRule | None, needed: Collection[str]
) -> list[ModelRow]:
    """Return the models of a session whose files may go.

    Args:
        models: those of the session that have their files, the newest first.
        keep: so many of the newest stay, at least 1.
        rule: the best by its metric stays; of equals the newest.
        needed: ids of models that sessions begin or go on with.
    """
    best = None if rule is None else _best(models, rule)
    return [model for model in models[keep:] if model is not best and model.id not in needed]


def _best(models: Sequence[ModelRow], rule: StopRule) -> ModelRow | None:
    measured = [model for model in models if math.isfinite(model.metrics.get(rule.metric, math.nan))]
    choose = max if rule.comparison.startswith(">") else min
    return choose(measured, key=lambda model: float(model.metrics[rule.metric]), default=None)


class Retention:
    """Gives up what sessions need no more.

    Args:
        journal: the durable state.
        blobs: where the files are.
        keep_models: of sessions that do not say themselves; 0: all.
    """

    def __init__(self, journal: Journal, blobs: Blobs, keep_models: int) -> None:
        self._journal = journal
        self._blobs = blobs
        self._keep_models = keep_models

    async def give_up(self, tx: Transaction, session: SessionRow) -> bool:
        """Write down what may go, within the transaction that commits a round; return whether there is any."""
        current = await tx.session.get(RoundRow, (session.id, session.round))
        newest = {session.model_id, current.model_id if current is not None else None}
        config = ledger.config_from_json(session.config)
        stateful = bool(make_strategy(config.strategy, config.strategy_options).optimizer.slots)
        digests = await self._states(tx.session, session, newest) if stateful else set()
        keep = kept_models(config, self._keep_models)
        if keep:
            digests |= await self._models(tx, session, keep, config.stop_when, {session.seed_id, *newest})
        for digest in sorted(digests):
            await tx.session.merge(RemovalRow(digest=digest))
        return bool(digests)

    async def _states(self, tx: AsyncSession, session: SessionRow, newest: set[str | None]) -> set[str]:
        query = select(ModelRow).where(ModelRow.session_id == session.id, ModelRow.optimizer_state.is_not(None))
        rows = [row for row in await tx.scalars(query.limit(_AT_ONCE)) if row.id not in newest]
        needed = await _needed(tx, {row.id for row in rows})
        digests = set()
        for row in rows:
            if row.id not in needed and row.optimizer_state is not None:
                digests.add(row.optimizer_state)
                row.optimizer_state = None
        return digests

    async def _models(
        self, tx: Transaction, session: SessionRow, keep: int, rule: StopRule | None, own: Collection[str | None]
    ) -> set[str]:
        query = select(ModelRow).where(ModelRow.session_id == session.id, ModelRow.removed_at.is_(None))
        rows = list(await tx.session.scalars(query.order_by(ModelRow.created_at.desc(), ModelRow.id.desc())))
        needed = {each for each in own if each is not None}
        going = superfluous(rows, keep, rule=rule, needed=needed)[-_AT_ONCE:]
        needed = await _needed(tx.session, {row.id for row in going})
        going = [row for row in going if row.id not in needed]
        for row in going:
            row.removed_at = datetime.now(UTC)
        if going:
            names = [row.id for row in going]
            await tx.record("model.removed", session.organisation_id, session.id, models=names, kept=keep)
        return {row.digest for row in going}

    async def remove_files(self) -> None:
        """Remove the files of what was given up, also by a process before this one.

        A file that can't be removed is tried again with the next round.

        Raises:
            Unreachable: the database does not answer.
        """
        last: str | None = ""
        while last is not None:
            last = await self._remove_files(last)

    async def _remove_files(self, after: str) -> str | None:
        """Remove a few files, in the order of their digests; return the last of them, None if there are no more."""
        some = select(RemovalRow.digest).where(RemovalRow.digest > after).order_by(RemovalRow.digest)
        # Within a write transaction, so that no row comes meanwhile that names one of them.
        async with self._journal.database.write() as tx:
            digests = list(await tx.scalars(some.limit(_FILES_AT_ONCE)))
            for digest in digests:
                if not await registry.is_used(tx, digest):
                    try:
                        await self._blobs.delete(digest)
                    except Unreachable as error:
                        log.warning("files not removed", error=str(error))
                        return None
                    except OSError as error:
                        log.warning("file not removed", sha256=digest, error=str(error))
                        continue
                await tx.execute(delete(RemovalRow).where(RemovalRow.digest == digest))
        return digests[-1] if len(digests) == _FILES_AT_ONCE else None


async def _needed(tx: AsyncSession, models: set[str]) -> set[str]:
    """Return those of ``models`` from which a session goes on or would, or with which one that runs has begun."""
    if not models:
        return set()
    newest = await tx.scalars(select(SessionRow.model_id).where(SessionRow.model_id.in_(models)))
    running = SessionRow.phase.not_in(ENDED)
    seeds = await tx.scalars(select(SessionRow.seed_id).where(SessionRow.seed_id.in_(models), running))
    return {*newest, *seeds}
