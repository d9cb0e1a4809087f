"""Brings a database to the schema of this version."""

from __future__ import annotations

from pathlib import Path

import alembic.command
import alembic.config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from runnel.common.errors import BadSettings

_MIGRATIONS = Path(__file__).parent / "migrations"


def migrate(connection: Connection) -> None:
    """Apply the migrations that are missing, in the transaction of ``connection``.

    Raises:
        BadSettings: the schema is that of a newer version.
    """
    config = alembic.config.Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes["connection"] = connection
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    found = MigrationContext.configure(connection).get_current_revision()
    if found is not None and found not in known:
        raise BadSettings(
            f"The reducer's state has the schema {found}, and this version knows it up to {max(known)}.",
            hint="It was written by a newer version: run that one, or restore a backup that is older.",
            found=found,
            known=max(known),
        )
    alembic.command.upgrade(config, "head")
