"""What tasks see whole of a site's databases, where a contract hands them over."""

from __future__ import annotations

from collections.abc import Mapping

from runnel.client.data import DatabaseConfig
from runnel.client.tasks.contract import Database


def whole_databases(databases: Mapping[str, DatabaseConfig]) -> dict[str, Database]:
    """Return databases as contracts hand them to containers: a path, or the address as it is configured."""
    found = {}
    for label, each in databases.items():
        where = each.path if each.path is not None else each.uri
        if where is not None:
            secrets = {name: value for name in ("password", "token") if (value := getattr(each, name)) is not None}
            found[label] = Database(label=label, kind=each.kind.value, where=where, options=secrets)
    return found
