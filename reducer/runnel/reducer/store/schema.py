"""Brings a database to the schema of this version."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Column, Connection, MetaData, PrimaryKeyConstraint, String, Table, insert, inspect, select

from runnel.common.errors import BadSettings
from runnel.reducer.store import catalogues, pytaskmanager_tables  # noqa: F401 (their tables are part of the schema)
from runnel.reducer.store.tables import Base

MIGRATIONS = Path(__file__).parent / "migrations"

# As Alembic makes it: it tells which schema there is.
_VERSION = Table(
    "alembic_version",
    MetaData(),
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)


def migrate(connection: Connection) -> None:
    """Make the tables of an empty database, or apply the migrations that are missing; in ``connection``'s transaction.

    Raises:
        BadSettings: the schema is that of a newer version.
    """
    newest = _newest_revision()
    tables = inspect(connection).get_table_names()
    if not tables:
        _make_tables(connection, newest)
        return
    found = connection.scalar(select(_VERSION.c.version_num)) if _VERSION.name in tables else None
    if found == newest:
        return
    from runnel.reducer.store.migrating import apply_migrations, known_revisions

    if found is not None and found not in known_revisions():
        raise BadSettings(
            f"The reducer's state has the schema {found}, and this version knows it up to {newest}.",
            hint="It was written by a newer version: run that one, or restore a backup that is older.",
            found=found,
            known=newest,
        )
    apply_migrations(connection)


def _newest_revision() -> str:
    """Return the name of the newest schema: the files of migrations are called by number, as their revisions are."""
    return max(file.name for file in (MIGRATIONS / "versions").glob("*.py")).partition("_")[0]


def _make_tables(connection: Connection, revision: str) -> None:
    """Make them at once: the migrations, which copy tables to change them on SQLite, take several times as long."""
    if connection.dialect.name == "sqlite":
        # Its driver begins no transaction for tables; with one, who is killed here leaves all of them or none.
        connection.exec_driver_sql("BEGIN")
    Base.metadata.create_all(connection)
    if connection.dialect.name == "sqlite":
        _make_partial_indexes_anew(connection)
    _VERSION.create(connection)
    connection.execute(insert(_VERSION).values(version_num=revision))


def _make_partial_indexes_anew(connection: Connection) -> None:
    """Let them be the newest: of indexes that serve a query alike SQLite takes that, and these have fewer rows.

    Else which one it takes would be left to the order in which a set gives them.
    """
    for table in Base.metadata.sorted_tables:
        for index in table.indexes:
            if index.dialect_options["sqlite"]["where"] is not None:
                index.drop(connection)
                index.create(connection)
