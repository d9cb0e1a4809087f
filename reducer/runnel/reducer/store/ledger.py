"""Sessions, their rounds and the ledger of who gave what, in the reducer's state."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from runnel.common.errors import IllegalState, InvalidInput
from runnel.common.protocol import WAITING, AssignmentKey, LogLines, Outcome, Report, Work
from runnel.reducer.domain.values import (
    ENDED,
    ClientContribution,
    LogView,
    Page,
    RoundView,
    SessionConfig,
    SessionStatus,
    SessionView,
    StopRule,
)
from runnel.reducer.store import round_statements
from runnel.reducer.store.pages import after_cursor, decode_cursor, encode_cursor, page_of
from runnel.reducer.store.registry import by_prefix, contribution_of
from runnel.reducer.store.round_statements import of_round, of_work
from runnel.reducer.store.server_states import let_go
from runnel.reducer.store.tables import LogRow, ModelRow, PartialRow, RoundRow, SessionRow, SlotRow


@dataclasses.dataclass(frozen=True, slots=True)
class CountedUpdate:
    """An update that is part of a model: the round that it was trained for, whose it is, its weight and metadata."""

    round: int
    client: str
    weight: float
    metrics: Mapping[str, float]
    extra: Mapping[str, Any]


_LAST_MS = 253_402_300_799_000  # the end of the year 9999; clocks of others may say anything


def config_to_json(config: SessionConfig) -> dict[str, Any]:
    """Return a JSON-ready mapping."""
    return dataclasses.asdict(config)


def config_from_json(data: dict[str, Any]) -> SessionConfig:
    """Return the config that :func:`config_to_json` was given."""
    rule = data.get("stop_when")
    return SessionConfig(**{**data, "stop_when": None if rule is None else StopRule(**rule)})


def round_view(row: RoundRow, slots: Iterable[SlotRow], *, clients: bool) -> RoundView:
    """Return a round with what its training slots amount to."""
    slots = list(slots)
    states = Counter(s.state for s in slots if s.work == Work.TRAIN.value)
    return _round_view(row, states, contributions(slots) if clients else ())


def _round_view(row: RoundRow, states: Mapping[str, int], clients: tuple[ClientContribution, ...] = ()) -> RoundView:
    return RoundView(
        round=row.number,
        status=row.status,
        package=row.package_digest,
        seconds=row.seconds,
        phases=row.phases,
        updates=states.get("counted", 0),
        late=states.get("late", 0),
        failed=states.get("failed", 0),
        awaiting=states.get("awaiting", 0),
        model=row.model_id,
        metrics=row.metrics,
        train_metrics=row.train_metrics,
        clients=clients,
    )


def session_view(row: SessionRow, rounds: tuple[RoundView, ...] = ()) -> SessionView:
    """Return the row as a value."""
    phase = SessionStatus(row.phase)
    return SessionView(
        session=row.id,
        name=row.name,
        organisation=row.organisation_id,
        status=phase.value if phase.ended else "running",
        phase=phase,
        reason=row.reason,
        package=row.package_digest,
        seed=row.seed_id,
        model=row.model_id,
        config=config_from_json(row.config),
        created_at=row.created_at,
        finished_at=row.finished_at,
        rounds=rounds,
    )


async def find_session(tx: AsyncSession, organisation: str, session: str) -> SessionRow:
    """Return the session whose id starts with ``session``."""
    row: SessionRow = await by_prefix(tx, SessionRow, SessionRow.id, organisation, session, "session")
    return row


async def require_session(tx: AsyncSession, session_id: str) -> SessionRow:
    """Return a session that is known to exist."""
    row = await tx.get(SessionRow, session_id)
    if row is None:
        raise IllegalState(f"Session {session_id} is not in the reducer's state.", session=session_id)
    return row


async def present_round(tx: AsyncSession, session_id: str) -> tuple[SessionRow, RoundRow | None]:
    """Return a session that is known to exist, and its round that is under way, or the last one, if there is one."""
    found = (await tx.execute(round_statements.PRESENT, {"of_session": session_id})).one_or_none()
    if found is None:
        raise IllegalState(f"Session {session_id} is not in the reducer's state.", session=session_id)
    return found.SessionRow, found.RoundRow


async def sessions(tx: AsyncSession, organisation: str, cursor: str | None, limit: int) -> Page[SessionView]:
    """List sessions, newest first, without their rounds."""
    query = select(SessionRow).where(SessionRow.organisation_id == organisation)
    rows = list(await tx.scalars(after_cursor(query, SessionRow.created_at, SessionRow.id, cursor, limit)))
    return page_of(rows, limit, lambda r: (r.created_at, r.id), session_view)


async def running_sessions(tx: AsyncSession) -> list[str]:
    """Return the ids of sessions that are to go on, oldest first."""
    query = select(SessionRow.id).where(SessionRow.phase.not_in(ENDED)).order_by(SessionRow.created_at)
    return list(await tx.scalars(query))


async def count_running(tx: AsyncSession, organisation: str) -> int:
    """Return how many sessions of an organisation have not ended."""
    query = select(func.count()).where(SessionRow.organisation_id == organisation, SessionRow.phase.not_in(ENDED))
    return await tx.scalar(query.select_from(SessionRow)) or 0


async def is_seed(tx: AsyncSession, model_id: str) -> bool:
    """Whether any session began with a model."""
    return await tx.scalar(select(SessionRow.id).where(SessionRow.seed_id == model_id).limit(1)) is not None


async def session_with_rounds(tx: AsyncSession, row: SessionRow, *, clients: bool) -> SessionView:
    """Return a session with all its rounds."""
    numbers = await tx.scalars(select(RoundRow).where(RoundRow.session_id == row.id).order_by(RoundRow.number))
    slots: dict[int, list[SlotRow]] = {}
    query = select(SlotRow).where(SlotRow.session_id == row.id).order_by(SlotRow.work, SlotRow.client)
    for slot in await tx.scalars(query):
        slots.setdefault(slot.round if slot.counted_in is None else slot.counted_in, []).append(slot)
    return session_view(row, tuple(round_view(r, slots.get(r.number, ()), clients=clients) for r in numbers))


async def one_round(tx: AsyncSession, session_id: str, number: int) -> RoundView:
    """Return a round without its clients."""
    row = await tx.get_one(RoundRow, (session_id, number))
    states: Counter[str] = Counter()
    for state, count in await tx.execute(round_statements.SLOT_COUNTS, of_round(session_id, number)):
        states[state] += count
    return _round_view(row, states)


# ---- slots and partials


async def add_slots(tx: AsyncSession, key: AssignmentKey, clients: Iterable[str]) -> None:
    """Store that these clients are asked, of whom nothing is stored for this work yet."""
    nothing: dict[str, Any] = {"state": "open", "metrics": {}, "extra": {}, "elapsed_s": {}}
    if rows := [_slot(key, client) | nothing for client in sorted(clients)]:
        await tx.execute(round_statements.ADD_SLOTS, rows)


async def open_slots(tx: AsyncSession, key: AssignmentKey, clients: Iterable[str]) -> None:
    """Store that clients are asked; those stored before are open again unless they are counted."""
    stored = await slot_states(tx, key)
    asked = list(dict.fromkeys(clients))
    forgotten = {"state": "open", "error_code": None, "error": None, "log_tail": None}
    again = [_slot(key, client) | forgotten for client in asked if stored.get(client, "counted") != "counted"]
    await add_slots(tx, key, [client for client in asked if client not in stored])
    if again:
        await tx.execute(update(SlotRow), again)


async def slots(tx: AsyncSession, key: AssignmentKey) -> list[SlotRow]:
    """Return the slots of a phase by client."""
    return list(await tx.scalars(select(SlotRow).where(*_of(key)).order_by(SlotRow.client)))


async def slot_states(tx: AsyncSession, key: AssignmentKey) -> dict[str, str]:
    """Return the states of the slots of a phase by client."""
    found = await tx.execute(round_statements.SLOT_STATES, of_work(key))
    return {client: state for client, state in found}  # noqa: C416 - of rows, which are no tuples to mypy


def _of(key: AssignmentKey) -> tuple[ColumnElement[bool], ...]:
    return SlotRow.session_id == key.session_id, SlotRow.round == key.round, SlotRow.work == key.work.value


def _slot(key: AssignmentKey, client: str) -> dict[str, Any]:
    return {"session_id": key.session_id, "round": key.round, "work": key.work.value, "client": client}


async def counted_updates(tx: AsyncSession, session_id: str, number: int) -> list[CountedUpdate]:
    """Return the updates that are part of a round's model, by client."""
    found = await tx.execute(round_statements.COUNTED_UPDATES, of_round(session_id, number))
    return [CountedUpdate(each.round, each.client, each.weight or 0.0, each.metrics, each.extra) for each in found]


async def slot_state(tx: AsyncSession, key: AssignmentKey, client: str) -> str | None:
    """Return the stored state of one slot."""
    row = await tx.get(SlotRow, (key.session_id, key.round, key.work.value, client))
    return None if row is None else row.state


async def open_rounds(tx: AsyncSession, session_id: str) -> list[int]:
    """Return the rounds in which a client's update may still come, oldest first."""
    query = select(SlotRow.round).where(
        SlotRow.session_id == session_id, SlotRow.work == Work.TRAIN.value, SlotRow.state == "open"
    )
    return sorted(set(await tx.scalars(query)))


async def counting_round(tx: AsyncSession, session_id: str) -> int:
    """Return the round in which an update counts that comes now: the next one, once the present one is closed."""
    row = await require_session(tx, session_id)
    open_to_updates = row.phase in {SessionStatus.SELECTING.value, SessionStatus.TRAINING.value}
    return row.round if open_to_updates else row.round + 1


async def note_outcomes(
    tx: AsyncSession, key: AssignmentKey, order_id: str, outcomes: Iterable[Outcome], counted_in: int | None = None
) -> None:
    """Enter a report's outcomes in the ledger.

    ``counted_in``: the round of whose model the updates are to be part; None: that of ``key``.

    Raises:
        IllegalState: a client is already counted in this round; nothing of the report may count then.
    """
    stored = await slot_states(tx, key)
    noted, work = [], of_work(key)
    for outcome in outcomes:
        if stored.get(outcome.client, "counted") == "counted":
            raise IllegalState(
                f"{outcome.client} is {'counted already' if outcome.client in stored else 'not asked'} for {key}.",
                client=outcome.client,
                order_id=order_id,
            )
        failure = outcome.failure
        stored[outcome.client] = "counted" if failure is None else "awaiting" if failure.code in WAITING else "failed"
        noted.append(
            {
                **work,
                "of_client": outcome.client,
                "state": stored[outcome.client],
                "order_id": order_id,
                "counted_in": (counted_in or key.round) if failure is None else None,
                "weight": outcome.weight if failure is None else None,
                "metrics": dict(outcome.metrics),
                "elapsed_s": dict(outcome.elapsed_s),
                "extra": _extra(outcome.extra_json),
                "error_code": None if failure is None else failure.code[:64],
                "error": None if failure is None else failure.message,
                "log_tail": None if failure is None else failure.log_tail,
            }
        )
    if noted:
        await tx.execute(round_statements.NOTE_OUTCOMES, noted)


def _extra(text: str) -> dict[str, Any]:
    try:
        extra = json.loads(text or "{}")
    except ValueError:
        extra = {"text": text}
    return extra if isinstance(extra, dict) else {"value": extra}


async def mark_late(tx: AsyncSession, key: AssignmentKey) -> None:
    """Store that whoever has not answered is late."""
    await tx.execute(round_statements.MARK_LATE, of_work(key))


async def mark_all_late(tx: AsyncSession, session_id: str) -> None:
    """Store that whoever has not answered by the end of a session is late."""
    open_ones = (SlotRow.session_id == session_id, SlotRow.state == "open")
    await tx.execute(update(SlotRow).where(*open_ones).values(state="late"))


async def add_partial(
    tx: AsyncSession, report: Report, child: str, filename: str, counted_in: int | None = None
) -> None:
    """Store where the payload of a durable report lies, and for which round it is."""
    row = {
        "order_id": report.order_id,
        "session_id": report.key.session_id,
        "round": report.key.round,
        "counted_in": counted_in or report.key.round,
        "child": child,
        "kind": report.payload_kind.value,
        "weight": report.weight,
        "filename": filename,
        "clients": [outcome.client for outcome in report.outcomes if outcome.failure is None],
    }
    await tx.execute(round_statements.ADD_PARTIAL, row)


async def partials(tx: AsyncSession, session_id: str, number: int) -> list[PartialRow]:
    """Return the payloads of which a round's model is made, by order."""
    return list(await tx.scalars(round_statements.PARTIALS, of_round(session_id, number)))


async def base_of_round(tx: AsyncSession, session_id: str, number: int) -> ModelRow:
    """Return the model that the clients of a round were given: the newest of an earlier round, or the seed."""
    earlier = (RoundRow.session_id == session_id, RoundRow.number < number)
    query = select(ModelRow).join(RoundRow, RoundRow.model_id == ModelRow.id).where(*earlier)
    newest = await tx.scalar(query.order_by(RoundRow.number.desc()).limit(1))
    if newest is not None:
        return newest
    return await tx.get_one(ModelRow, (await require_session(tx, session_id)).seed_id)


async def all_partial_files(tx: AsyncSession) -> set[str]:
    """Return the names of all payload files that are still wanted."""
    return set(await tx.scalars(select(PartialRow.filename)))


async def drop_partials(tx: AsyncSession, session_id: str, number: int) -> None:
    """Forget the payloads of a round, which are part of its model now."""
    await tx.execute(round_statements.DROP_PARTIALS, of_round(session_id, number))


async def drop_spare(tx: AsyncSession, session_id: str, last: int) -> list[str]:
    """Forget what came too late for the ``last`` round and was buffered for one that will not be; returns its files."""
    beyond = (PartialRow.session_id == session_id, PartialRow.counted_in > last)
    files = list(await tx.scalars(delete(PartialRow).where(*beyond).returning(PartialRow.filename)))
    spare = (SlotRow.session_id == session_id, SlotRow.counted_in > last)
    await tx.execute(update(SlotRow).where(*spare).values(state="late", counted_in=None))
    return files


async def drop_unmade(tx: AsyncSession, session_id: str, number: int) -> list[str]:
    """Forget the payloads of a round that ended without a model, of which none will be made; returns their files.

    Updates of earlier rounds that are to count in it stay, and so does everything if it has a model.
    """
    model = select(RoundRow.model_id).where(RoundRow.session_id == session_id, RoundRow.number == number)
    if await tx.scalar(model) is not None:
        return []
    its_own = (PartialRow.session_id == session_id, PartialRow.round == number)
    return list(await tx.scalars(delete(PartialRow).where(*its_own).returning(PartialRow.filename)))


async def forget_round(tx: AsyncSession, session_id: str, number: int) -> list[str]:
    """Forget what an uncommitted round had: its slots, payloads and times; returns the files of its payloads.

    Updates of earlier rounds that are to count in it stay.
    """
    files = await drop_unmade(tx, session_id, number)
    await tx.execute(delete(SlotRow).where(SlotRow.session_id == session_id, SlotRow.round == number))
    row = await tx.get(RoundRow, (session_id, number))
    if row is not None and row.server_state is not None:
        await let_go(tx, [row.server_state])
    await tx.execute(delete(RoundRow).where(RoundRow.session_id == session_id, RoundRow.number == number))
    return files


async def give_round_up(tx: AsyncSession, session_id: str, number: int, status: str) -> list[str]:
    """Let a round without a model stand as it ended; nobody's update counts in it. Returns the files of its payloads.

    Updates of earlier rounds that were to count in it count in the next.
    """
    files = await drop_unmade(tx, session_id, number)
    its_own = (SlotRow.session_id == session_id, SlotRow.round == number, SlotRow.state.in_(("open", "counted")))
    await tx.execute(update(SlotRow).where(*its_own).values(state="late", counted_in=None))
    for table in (PartialRow, SlotRow):
        waiting = (table.session_id == session_id, table.counted_in == number)
        await tx.execute(update(table).where(*waiting).values(counted_in=number + 1))
    of_round = (RoundRow.session_id == session_id, RoundRow.number == number)
    await tx.execute(update(RoundRow).where(*of_round).values(status=status))
    return files


# ---- logs


async def add_log(tx: AsyncSession, log: LogLines) -> None:
    """Store lines that an entry point wrote."""
    key = log.key
    common = {"session_id": key.session_id, "round": key.round, "work": key.work.value, "client": log.client}
    rows = [
        common
        | {
            "at": datetime.fromtimestamp(min(line.at_ms, _LAST_MS) / 1000, UTC),
            "stream": line.stream[:16],
            "text": line.text,
        }
        for line in log.lines
    ]
    if rows:
        # In bulk: one object for each line takes thirty times as long, and others wait to write meanwhile.
        await tx.execute(insert(LogRow), rows)


async def logs(
    tx: AsyncSession, session_id: str, round_number: int | None, client: str | None, cursor: str | None, limit: int
) -> Page[LogView]:
    """Return stored lines, oldest first."""
    query = select(LogRow).where(LogRow.session_id == session_id).order_by(LogRow.id).limit(limit + 1)
    if round_number is not None:
        query = query.where(LogRow.round == round_number)
    if client is not None:
        query = query.where(LogRow.client == client)
    if cursor is not None:
        after = decode_cursor(cursor)[0]
        if not isinstance(after, int) or not 0 <= after < 1 << 63:
            raise InvalidInput(f"{cursor!r} is no cursor of this listing.", hint="Use `next` of the page before.")
        query = query.where(LogRow.id > after)
    rows = list(await tx.scalars(query))
    items = tuple(
        LogView(
            id=r.id,
            session=r.session_id,
            round=r.round,
            work=r.work,
            client=r.client,
            at=r.at,
            stream=r.stream,
            text=r.text,
        )
        for r in rows[:limit]
    )
    return Page(items=items, next_cursor=encode_cursor(items[-1].id) if len(rows) > limit else None)


def contributions(rows: Iterable[SlotRow]) -> tuple[ClientContribution, ...]:
    """Return rows as values."""
    return tuple(contribution_of(row) for row in rows)
