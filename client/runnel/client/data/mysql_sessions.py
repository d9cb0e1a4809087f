"""What is particular to MariaDB and MySQL: how a session is made to read only, and how a query of it is ended."""

from __future__ import annotations

import contextlib
from typing import Any

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

BACKENDS = frozenset({"mysql", "mariadb"})
DRIVER = "pymysql"


def arguments(connect_s: int) -> dict[str, object]:
    """Return what the driver is told when it connects.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    from pymysql.constants import FIELD_TYPE
    from pymysql.converters import conversions, convert_time

    return {
        "connect_timeout": connect_s,
        # As the check reads texts, whatever the server's setting; from the first statement on, for the dialect asks.
        "sql_mode": "STRICT_ALL_TABLES",
        "init_command": "SET SESSION time_zone = '+00:00'",
        # A time of the day where it is one, as with other databases, and not what has passed since midnight.
        "conv": {**conversions, FIELD_TYPE.TIME: convert_time},
        "program_name": "runnel",
    }


def begin(connection: Connection, time_s: float) -> None:
    """Begin a transaction that only reads, and whose tables are all of one moment."""
    limit_s = time_s + 1
    mariadb = getattr(connection.dialect, "is_mariadb", False)
    limit = f"max_statement_time = {limit_s:g}" if mariadb else f"max_execution_time = {limit_s * 1000:.0f}"
    for statement in (
        f"SET SESSION {limit}",
        "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ",
        "SET SESSION TRANSACTION READ ONLY",
        "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY",
    ):
        connection.exec_driver_sql(statement)


def end_query(engine: Engine, driver: Any) -> None:
    """End what the connection ``driver`` runs, over another one. Nothing is raised: it may have ended by itself."""
    dbapi = engine.dialect.loaded_dbapi
    with (
        contextlib.suppress(dbapi.Error, SQLAlchemyError, OSError),
        contextlib.closing(engine.raw_connection()) as other,
    ):
        other.cursor().execute(f"KILL QUERY {int(driver.thread_id())}")
