"""Tables of a database server, or of SQLite, by SQLAlchemy: one read-only transaction for all that a selection asks.

All tables of a selection are of one moment where the database can do that. What keeps a statement from writing is, in
this order: the check of its tree, a transaction that only reads, for SQLite also a file that is opened for reading and
an authorizer that knows the allowed tables, and the rights of the account that the site gives its client.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import NullPool
from sqlglot import exp

from runnel.client.data import mysql_sessions
from runnel.client.data.databases import DatabaseConfig
from runnel.client.data.tables import Field, Rows, Statement
from runnel.common.catalogue import FieldType
from runnel.common.errors import QueryFailed

if TYPE_CHECKING:
    from runnel.client.data.interruption import Interruption

_BATCH_ROWS = 2048
_CONNECT_S = 15
_CANCEL_S = 5.0
_DRIVERS: Mapping[str, str] = {
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
    "mysql": f"mysql+{mysql_sessions.DRIVER}",
    "mariadb": f"mariadb+{mysql_sessions.DRIVER}",
}
_DIALECTS: Mapping[str, str] = {
    "postgresql": "postgres",
    "sqlite": "sqlite",
    "mysql": "mysql",
    "mariadb": "mysql",
    "mssql": "tsql",
    "oracle": "oracle",
}
_ONLY_READ: Mapping[str, tuple[str, ...]] = {
    "oracle": ("SET TRANSACTION READ ONLY",),
    # What a view or a generated column of a hostile file could call is kept harmless too.
    "sqlite": ("PRAGMA query_only = ON", "PRAGMA trusted_schema = OFF", "BEGIN"),
}
_SYSTEM = frozenset({"information_schema", "performance_schema", "mysql", "sys", "pg_catalog", "pg_toast"})
_FIELD_TYPES: Sequence[tuple[type[sa.types.TypeEngine[Any]], FieldType]] = (
    (sa.Enum, FieldType.OTHER),  # a type of its own in PostgreSQL
    (sa.Boolean, FieldType.BOOLEAN),
    (sa.Integer, FieldType.INTEGER),
    (sa.Numeric, FieldType.DECIMAL),
    (sa.Float, FieldType.DECIMAL),
    (sa.String, FieldType.TEXT),
    (sa.DateTime, FieldType.DATETIME),
    (sa.Date, FieldType.DATE),
    (sa.Time, FieldType.TIME),
)
_STATEMENT_IS_WRONG = "42"  # the class of SQLSTATE whose messages are about names and rights, never about values


class ServerTables:
    """The tables of a database with an SQLAlchemy dialect.

    Raises:
        QueryFailed: its address makes no sense, or its driver is not installed.
    """

    def __init__(self, database: DatabaseConfig, *, time_s: float = 600.0) -> None:
        assert database.uri is not None
        self._database = database
        self._names: dict[str, tuple[str | None, str]] | None = None
        self._connection: Connection | None = None
        self._time_s = time_s
        try:
            url = _url(database)
            self._engine = sa.create_engine(url, poolclass=NullPool, connect_args=_arguments(url, time_s))
            self.dialect = _DIALECTS[self._engine.dialect.name]
        except (ArgumentError, NoSuchModuleError, KeyError) as error:
            raise QueryFailed(
                f"The address of the database {database.name!r} is none of {', '.join(sorted(_DIALECTS))}.",
                database=database.name,
            ) from error
        self.schema = ""

    def names(self) -> Collection[str]:
        """Return the tables and views that may be selected from."""
        if self._names is None:
            with self._errors():
                self._names = dict(self._listed())
        return self._names

    def reference(self, table: str) -> tuple[str, str | None]:
        """Return name and schema: without its schema a table might be looked for in another."""
        self.names()
        assert self._names is not None
        schema, name = self._names[table]
        return name, schema

    def fields(self, table: str) -> Sequence[Field]:
        """Return the fields of a table, as the database declares them."""
        name, schema = self.reference(table)
        with self._errors():
            columns = sa.inspect(self._open()).get_columns(name, schema)
        return [
            Field(name=each["name"], type=self._type(each["type"]), native=str(each["type"])[:100]) for each in columns
        ]

    @contextlib.contextmanager
    def answer(self, statement: Statement, interruption: Interruption) -> Iterator[Rows]:
        """Run a statement in the transaction that was begun with the first question."""
        with self._errors(), interruption.ended_by(self._interrupt):
            connection = self._open().execution_options(stream_results=True, max_row_buffer=_BATCH_ROWS)
            with (
                self._guarded(connection, statement.tables),
                contextlib.closing(self._executed(connection, statement)) as result,
            ):
                try:
                    yield Rows(fields=tuple(result.keys()), batches=_batches(result))
                except BaseException:
                    if self._is_mysql:
                        self._interrupt()  # its driver reads a result to the end before it closes it
                    raise

    def close(self) -> None:
        """Roll back and close the connection."""
        if self._connection is not None:
            with contextlib.suppress(SQLAlchemyError):  # it is lost already
                self._connection.close()
        self._engine.dispose()

    def _open(self) -> Connection:
        if self._connection is None:
            options = {}
            if self._engine.dialect.name == "postgresql":
                options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
            connection = self._connection = self._engine.connect().execution_options(**options)
            for statement in _ONLY_READ.get(self._engine.dialect.name, ()):
                connection.exec_driver_sql(statement)
            if self._is_mysql:
                mysql_sessions.begin(connection, self._time_s)
        return self._connection

    @property
    def _is_mysql(self) -> bool:
        return self._engine.dialect.name in mysql_sessions.BACKENDS

    def _listed(self) -> Iterator[tuple[str, tuple[str | None, str]]]:
        inspector = sa.inspect(self._open())
        default = inspector.default_schema_name
        self.schema = default or ""
        patterns = self._database.tables or ()
        others = inspector.get_schema_names() if any("." in pattern for pattern in patterns) else []
        for schema in (default, *sorted(set(others) - {default} - _SYSTEM)):
            tables = {*inspector.get_table_names(schema), *inspector.get_view_names(schema)}
            if self._engine.dialect.name == "postgresql":
                tables |= {*inspector.get_materialized_view_names(schema)}
            for table in sorted(tables):
                known = table if schema == default else f"{schema}.{table}"
                if self._database.allows(known) or (schema and self._database.allows(f"{schema}.{table}")):
                    yield known, (schema, table)

    @contextlib.contextmanager
    def _guarded(self, connection: Connection, tables: Collection[str]) -> Iterator[None]:
        """Let SQLite read these tables, and what their views read, and call what computes; nothing else."""
        driver = connection.connection.driver_connection
        if not isinstance(driver, sqlite3.Connection):
            yield
            return

        def allowed(action: int, what: str | None, of: str | None, schema: str | None, view: str | None) -> int:
            if action == sqlite3.SQLITE_READ and (what in tables or view in tables):
                return sqlite3.SQLITE_OK
            if action == sqlite3.SQLITE_FUNCTION:
                return sqlite3.SQLITE_DENY if of == "load_extension" else sqlite3.SQLITE_OK
            return sqlite3.SQLITE_OK if action == sqlite3.SQLITE_SELECT else sqlite3.SQLITE_DENY

        driver.set_authorizer(allowed)
        try:
            yield
        finally:
            driver.set_authorizer(None)

    def _executed(self, connection: Connection, statement: Statement) -> sa.CursorResult[Any]:
        if not statement.parameters:
            text = statement.tree.sql(self.dialect, comments=False)
            return connection.execution_options(no_parameters=True).exec_driver_sql(text)
        return connection.execute(with_parameters(statement, self.dialect), self._bound(statement.parameters))

    def _type(self, declared: sa.types.TypeEngine[Any]) -> FieldType:
        found = next((each for kind, each in _FIELD_TYPES if isinstance(declared, kind)), FieldType.OTHER)
        if self._engine.dialect.name == "sqlite" and found in (FieldType.DATE, FieldType.DATETIME, FieldType.TIME):
            return FieldType.TEXT  # which is what SQLite keeps
        return found

    def _bound(self, parameters: Mapping[str, object]) -> dict[str, object]:
        if self._is_mysql:  # which knows no zones: those of the session are UTC
            return {
                name: value.astimezone(UTC).replace(tzinfo=None)
                if isinstance(value, datetime) and value.tzinfo
                else value
                for name, value in parameters.items()
            }
        if self._engine.dialect.name != "sqlite":
            return dict(parameters)
        return {
            name: value.isoformat() if isinstance(value, (date, datetime, time)) else value
            for name, value in parameters.items()
        }

    def _interrupt(self) -> None:
        driver = None if self._connection is None else self._connection.connection.driver_connection
        if isinstance(driver, sqlite3.Connection):
            driver.interrupt()
        elif driver is not None and self._is_mysql:
            mysql_sessions.end_query(self._engine, driver)
        elif driver is not None and hasattr(driver, "cancel_safe"):
            dbapi = self._engine.dialect.loaded_dbapi
            with contextlib.suppress(dbapi.Error):  # the server is gone: the query ends by that
                driver.cancel_safe(timeout=_CANCEL_S)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        name = self._database.name
        try:
            yield
        except DBAPIError as error:
            state = str(getattr(error.orig, "sqlstate", None) or "")
            if state.startswith(_STATEMENT_IS_WRONG):
                said = str(error.orig).strip().splitlines()[0]
                raise QueryFailed(
                    f"The database {name!r} does not take the query: {said}.", database=name, sqlstate=state
                ) from error
            code = f", SQLSTATE {state}" if state else ""
            raise QueryFailed(
                f"The database {name!r} can't answer: {type(error.orig).__name__}{code}.",
                hint="What it said about it stays at the site, where `runnel client data check` shows it.",
                database=name,
                sqlstate=state,
            ) from error
        except SQLAlchemyError as error:
            raise QueryFailed(f"The database {name!r} can't be read: {type(error).__name__}.", database=name) from error


def with_parameters(statement: Statement, dialect: str) -> sa.TextClause:
    """Return a statement in the words of a dialect, with its parameters as SQLAlchemy knows them."""
    tree = statement.tree.copy()
    for name in tree.find_all(exp.Identifier):
        name.set("this", name.name.replace(":", "\\:"))  # or what follows would be taken for a placeholder
    for place in tree.find_all(exp.Placeholder):
        place.replace(exp.Var(this=f":{place.name}"))  # dialects write it in ways of their own
    return sa.text(tree.sql(dialect, comments=False))


def _url(database: DatabaseConfig) -> URL:
    url = make_url(database.uri or "")
    url = url.set(drivername=_DRIVERS.get(url.drivername, url.drivername))
    if url.get_backend_name() == "sqlite":
        return url.set(database=f"file:{url.database}", query={"mode": "ro", "uri": "true"})
    return url if database.password is None else url.set(password=database.password)


def _arguments(url: URL, time_s: float) -> dict[str, object]:
    if url.get_backend_name() in mysql_sessions.BACKENDS and url.get_driver_name() == mysql_sessions.DRIVER:
        return mysql_sessions.arguments(_CONNECT_S)
    if url.get_backend_name() != "postgresql":
        return {}
    settings = {
        "default_transaction_read_only": "on",
        "statement_timeout": str(int(time_s * 1000) + 1000),
        "standard_conforming_strings": "on",  # as the check reads texts
        "timezone": "UTC",
    }
    options = " ".join(f"-c {name}={value}" for name, value in settings.items())
    return {"connect_timeout": _CONNECT_S, "options": options, "application_name": "runnel"}


def _batches(result: sa.CursorResult[Any]) -> Iterator[Sequence[Sequence[object]]]:
    while batch := result.fetchmany(_BATCH_ROWS):
        yield batch
