"""Brings a database to the schema of this version."""

from __future__ import annotations

from pathlib import Path

import alembic.command
import alembic.config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect

from runnel.common.errors import BadSettings
from runnel.reducer.store import catalogues, pytaskmanager_tables  # noqa: F401 (their tables are part of the schema)
from runnel.reducer.store.tables import Base

_MIGRATIONS = Path(__file__).parent / "migrations"


def migrate(connection: Connection) -> None:
    """Make the tables of an empty database, or apply the migrations that are missing; in ``connection``'s transaction.

    Raises:
        BadSettings: the schema is that of a newer version.
    """
    config = _config(connection)
    scripts = ScriptDirectory.from_config(config)
    context = MigrationContext.configure(connection)
    found = context.get_current_revision()
    if found is None and not inspect(connection).get_table_names():
        # At once: the migrations, which copy tables to change them on SQLite, take several times as long.
        if connection.dialect.name == "sqlite":
            # Its driver begins no transaction for tables; with one, who is killed here leaves all of them or none.
            connection.exec_driver_sql("BEGIN")
        Base.metadata.create_all(connection)
        if connection.dialect.name == "sqlite":
            _make_partial_indexes_anew(connection)
        context.stamp(scripts, "head")
        return
    known = {script.revision for script in scripts.walk_revisions()}
    if found is not None and found not in known:
        raise BadSettings(
            f"The reducer's state has the schema {found}, and this version knows it up to {max(known)}.",
            hint="It was written by a newer version: run that one, or restore a backup that is older.",
            found=found,
            known=max(known),
        )
    apply_migrations(connection)


def _make_partial_indexes_anew(connection: Connection) -> None:
    """Let them be the newest: of indexes that serve a query alike SQLite takes that, and these have fewer rows.

    Else which one it takes would be left to the order in which a set gives them.
    """
    for table in Base.metadata.sorted_tables:
        for index in table.indexes:
            if index.dialect_options["sqlite"]["where"] is not None:
                index.drop(connection)
                index.create(connection)


def apply_migrations(connection: Connection, revision: str = "head") -> None:
    """Apply migrations up to ``revision``, also to an empty database."""
    alembic.command.upgrade(_config(connection), revision)


def _config(connection: Connection) -> alembic.config.Config:
    config = alembic.config.Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes["connection"] = connection
    return config
