"""What a database says, as the errors that everybody here knows."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DataError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnectionInTime

from runnel.common.errors import BadSettings, InvalidInput, RunnelError, StorageFull, Unreachable

_DISK_FULL = "53100"
_READ_ONLY = "25006"  # a server that is no longer the primary
_FORBIDDEN = "42501"
_BUSY = ("SQLITE_BUSY", "SQLITE_LOCKED")


def is_away(error: BaseException) -> bool:
    """Whether the database does not answer, or not now: the same may succeed later."""
    if isinstance(error, NoConnectionInTime):
        return True
    if not isinstance(error, DBAPIError):
        return False
    if isinstance(error.orig, sqlite3.Error):
        return (getattr(error.orig, "sqlite_errorname", None) or "").startswith(_BUSY)
    if _state(error) == _DISK_FULL:
        return False
    return (
        error.connection_invalidated
        or isinstance(error, (OperationalError, InterfaceError))
        or _state(error) == _READ_ONLY
    )


@contextmanager
def database_errors(database: str) -> Iterator[None]:
    """Raise what the driver says about the state of ``database`` (a name for people) as a :class:`RunnelError`.

    Raises:
        Unreachable: it does not answer, or not now.
        StorageFull: its disk is full.
        InvalidInput: a value does not fit its column.
        BadSettings: its user may not do this.
    """
    try:
        yield
    except (DBAPIError, NoConnectionInTime) as error:
        known = _known(error, database)
        if known is None:
            raise
        raise known from error


def _known(error: DBAPIError | NoConnectionInTime, database: str) -> RunnelError | None:
    if is_away(error):
        return Unreachable(
            f"The reducer's database {database} does not answer: {reason(error)}.",
            hint="Nothing that was committed is lost; it is tried again.",
        )
    assert isinstance(error, DBAPIError)
    full = isinstance(error.orig, sqlite3.Error) and getattr(error.orig, "sqlite_errorname", "") == "SQLITE_FULL"
    if full or _state(error) == _DISK_FULL:
        return StorageFull(
            f"The disk of the reducer's database {database} is full.",
            hint="Free some space; nothing that was committed is lost.",
        )
    if _state(error) == _FORBIDDEN:
        return BadSettings(
            f"The user of the reducer's database {database} may not do what is needed: {reason(error)}.",
            hint="It needs to create and change tables in its schema, for example as the owner of the database.",
        )
    if isinstance(error, DataError):
        return InvalidInput(f"A value does not fit the reducer's database: {reason(error)}.")
    return None


def reason(error: BaseException) -> str:
    """Return the first line of what the driver says, without the statement and its values."""
    text = str(getattr(error, "orig", None) or error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__


def _state(error: DBAPIError) -> str | None:
    state = getattr(error.orig, "sqlstate", None)
    return state if isinstance(state, str) else None
