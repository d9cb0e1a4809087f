"""What tasks see of a site's databases: selections of them, and some whole where a contract hands them over."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from runnel.client.data import DatabaseConfig, selected
from runnel.client.data.databases import default_languages
from runnel.client.tasks.contract import Database
from runnel.common.tasks import Selection


class SiteSelector:
    """Selects from ``databases``; see :class:`.runner.Selector`."""

    def __init__(self, databases: Mapping[str, DatabaseConfig]) -> None:
        self._databases = databases

    async def __call__(self, selections: Sequence[Selection], folder: Path, *, minimum_rows: int) -> None:
        """Write one CSV file for each selected table into ``folder``; the stricter minimum of rows holds."""
        limited = {label: _limited(each, minimum_rows) for label, each in self._databases.items()}
        await selected(selections, limited, folder)


def _limited(database: DatabaseConfig, minimum_rows: int) -> DatabaseConfig:
    if minimum_rows <= database.minimum_rows:
        return database
    languages = database.languages
    if database.minimum_rows == 0:
        # A statement can make many rows of one person's; who lets it count them says so for the database itself.
        languages &= default_languages(database.kind, minimum_rows)
    return dataclasses.replace(database, minimum_rows=minimum_rows, languages=languages)


def whole_databases(databases: Mapping[str, DatabaseConfig]) -> dict[str, Database]:
    """Return databases as contracts hand them to containers: a path, or the address as it is configured."""
    found = {}
    for label, each in databases.items():
        where = each.path if each.path is not None else each.uri
        if where is not None:
            secrets = {name: value for name in ("password", "token") if (value := getattr(each, name)) is not None}
            found[label] = Database(label=label, kind=each.kind.value, where=where, options=secrets)
    return found
