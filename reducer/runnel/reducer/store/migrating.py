"""Applies migrations. It loads Alembic, which a database of the newest schema does without."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import alembic.command
import alembic.config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect

from runnel.reducer.store.schema import MIGRATIONS

_COPY = "_alembic_tmp_"  # how Alembic calls the copy of a table of SQLite, until it takes its place


def known_revisions() -> set[str]:
    """Return the names of all schemas that there were."""
    return {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}


def apply_migrations(connection: Connection, revision: str = "head") -> None:
    """Apply migrations up to ``revision``, also to an empty database."""
    config = _config()
    config.attributes["connection"] = connection
    with _as_one_step(connection) if connection.dialect.name == "sqlite" else nullcontext():
        alembic.command.upgrade(config, revision)


@contextmanager
def _as_one_step(connection: Connection) -> Iterator[None]:
    """Let SQLite change tables all or none, also those that others refer to.

    To change a table is to copy it and drop the old one, which SQLite refuses while rows of others refer to its rows;
    that it is not to look at these can be said outside of a transaction only. Its driver begins none for tables.
    """
    looked = connection.exec_driver_sql("PRAGMA foreign_keys").scalar_one()
    connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
    connection.exec_driver_sql("BEGIN")
    try:
        _drop_copies(connection)
        yield
    except BaseException:
        connection.connection.rollback()
        raise
    else:
        connection.connection.commit()
    finally:
        connection.exec_driver_sql(f"PRAGMA foreign_keys={looked}")


def _drop_copies(connection: Connection) -> None:
    """Drop what earlier versions, whose upgrades were of many steps, left of one that failed."""
    for name in inspect(connection).get_table_names():
        if name.startswith(_COPY):
            connection.exec_driver_sql(f'DROP TABLE "{name}"')


def _config() -> alembic.config.Config:
    config = alembic.config.Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return config
