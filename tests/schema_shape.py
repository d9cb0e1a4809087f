"""What a database looks like, in all that Alembic's comparison of tables looks at, and in what it does not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, inspect, text

_INDEXES = {
    "sqlite": "SELECT tbl_name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL",
    "postgresql": "SELECT tablename, indexdef FROM pg_indexes WHERE schemaname = current_schema()",
}


def schema_shape(connection: Connection) -> dict[str, dict[str, list[str]]]:
    """Return by table its columns with defaults, its keys, its constraints and the statements of its indexes."""
    inspector = inspect(connection)
    indexes: dict[str, list[str]] = {}
    for table, statement in connection.execute(text(_INDEXES[connection.dialect.name])):
        indexes.setdefault(table, []).append(" ".join(statement.replace('"', "").split()))
    return {
        table: {
            "columns": _sorted(inspector.get_columns(table)),
            "primary key": _sorted([inspector.get_pk_constraint(table)]),
            "foreign keys": _sorted(inspector.get_foreign_keys(table)),
            "unique": _sorted(inspector.get_unique_constraints(table)),
            "checks": _sorted(inspector.get_check_constraints(table)),
            "indexes": sorted(indexes.get(table, [])),
        }
        for table in inspector.get_table_names()
    }


def _sorted(found: Iterable[Any]) -> list[str]:
    return sorted(str(sorted((key, str(value)) for key, value in each.items())) for each in found)
