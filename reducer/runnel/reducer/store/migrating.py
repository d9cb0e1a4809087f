"""Applies migrations. It loads Alembic, which a database of the newest schema does without."""

from __future__ import annotations

import alembic.command
import alembic.config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from runnel.reducer.store.schema import MIGRATIONS


def known_revisions() -> set[str]:
    """Return the names of all schemas that there were."""
    return {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}


def apply_migrations(connection: Connection, revision: str = "head") -> None:
    """Apply migrations up to ``revision``, also to an empty database."""
    config = _config()
    config.attributes["connection"] = connection
    alembic.command.upgrade(config, revision)


def _config() -> alembic.config.Config:
    config = alembic.config.Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return config
