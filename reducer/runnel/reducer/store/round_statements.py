"""What each round asks of the database, built once.

To build a statement and the key that its compiled form is found by takes longer than SQLite takes to execute it, and
an object for each row takes longer still. So these are statements on tables, with parameters to be filled in.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Table, and_, bindparam, delete, func, insert, select, union_all, update

from runnel.common.protocol import AssignmentKey, Work
from runnel.reducer.store.tables import Base, EventRow, PackageRow, PartialRow, RoundRow, SessionRow, SlotRow

_TABLES = Base.metadata.tables
SLOT: Table = _TABLES[SlotRow.__tablename__]
PARTIAL: Table = _TABLES[PartialRow.__tablename__]
EVENT: Table = _TABLES[EventRow.__tablename__]
_ROUND: Table = _TABLES[RoundRow.__tablename__]

# The names of parameters differ from those of columns, which an UPDATE would take for values.
_OF_WORK = (
    SLOT.c.session_id == bindparam("of_session"),
    SLOT.c.round == bindparam("of_round"),
    SLOT.c.work == bindparam("of_work"),
)
_TRAINED = (SLOT.c.session_id == bindparam("of_session"), SLOT.c.work == Work.TRAIN.value)
_COUNTED_HERE = SLOT.c.counted_in == bindparam("of_round")


def of_work(key: AssignmentKey) -> dict[str, Any]:
    """Return the parameters that name a piece of work."""
    return {"of_session": key.session_id, "of_round": key.round, "of_work": key.work.value}


def of_round(session_id: str, number: int) -> dict[str, Any]:
    """Return the parameters that name a round."""
    return {"of_session": session_id, "of_round": number}


PRESENT = (
    select(SessionRow, RoundRow)
    .outerjoin(RoundRow, and_(RoundRow.session_id == SessionRow.id, RoundRow.number == SessionRow.round))
    .where(SessionRow.id == bindparam("of_session"))
)
SLOT_STATES = select(SLOT.c.client, SLOT.c.state).where(*_OF_WORK)
ADD_SLOTS = insert(SLOT)
MARK_LATE = update(SLOT).where(*_OF_WORK, SLOT.c.state == "open").values(state="late")
NOTE_OUTCOMES = (
    update(SLOT)
    .where(*_OF_WORK, SLOT.c.client == bindparam("of_client"))
    .values(
        {
            column: bindparam(column.name)
            for column in SLOT.c
            if column.name not in {"session_id", "round", "work", "client"}
        }
    )
)
COUNTED_UPDATES = (
    select(SLOT.c.round, SLOT.c.client, SLOT.c.weight, SLOT.c.metrics, SLOT.c.extra)
    .where(*_TRAINED, _COUNTED_HERE)
    .order_by(SLOT.c.client, SLOT.c.round)
)
# Counted by the database: rows of a thousand clients are most of what committing a round would cost. Two queries in
# one, each with its index: with both conditions in one, the slots of all rounds of the session would be looked at.
SLOT_COUNTS = union_all(
    *(
        select(SLOT.c.state, func.count()).where(*_TRAINED, *belongs).group_by(SLOT.c.state)
        for belongs in ([_COUNTED_HERE], [SLOT.c.round == bindparam("of_round"), SLOT.c.counted_in.is_(None)])
    )
)
ADD_PARTIAL = insert(PARTIAL)
DROP_PARTIALS = delete(PARTIAL).where(
    PARTIAL.c.session_id == bindparam("of_session"), PARTIAL.c.counted_in <= bindparam("of_round")
)
PARTIALS = (
    select(PartialRow)
    .where(PartialRow.session_id == bindparam("of_session"), PartialRow.counted_in == bindparam("of_round"))
    .order_by(PartialRow.order_id)
)
ADD_EVENTS = insert(EVENT)
PACKAGE_OF_ROUND = select(PackageRow).where(
    PackageRow.organisation_id == bindparam("of_organisation"),
    PackageRow.digest
    == select(_ROUND.c.package_digest)
    .where(_ROUND.c.session_id == bindparam("of_session"), _ROUND.c.number == bindparam("of_round"))
    .scalar_subquery(),
)
