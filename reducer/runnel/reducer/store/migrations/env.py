"""Alembic's entry: runs on the connection that :mod:`runnel.reducer.store.database` hands over."""

from alembic import context

from runnel.reducer.store import catalogues, pytaskmanager_tables  # noqa: F401 (their tables are part of the schema)
from runnel.reducer.store.tables import Base

connection = context.config.attributes.get("connection")
if connection is not None:
    context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()
