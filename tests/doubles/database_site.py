"""A site with one database, as its runs select from it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from runnel.client.data import DatabaseConfig, select
from runnel.common.errors import RunnelError
from runnel.common.tasks import Language, Selection


class DatabaseSite:
    """Selects from one database into a folder."""

    def __init__(self, folder: Path, database: DatabaseConfig, language: Language) -> None:
        self._folder, self._database, self._language = folder, database, language

    def select(self, query: str, **options: Any) -> list[list[list[str]]]:
        """Return the lines of each file that a query fills."""
        read = []
        selection = Selection(query=query, language=self._language, name="answer")
        for each in select([selection], {"default": self._database}, self._folder, **options):
            with each.path.open(newline="", encoding="utf-8") as file:
                read.append(list(csv.reader(file, strict=True)))
            each.path.unlink()
        return read

    def lines(self, query: str, **options: Any) -> list[list[str]]:
        """Return the lines of the one file that a query fills."""
        (read,) = self.select(query, **options)
        return read

    def refuses(self, kind: type[RunnelError], query: str, **options: Any) -> str:
        """Return why a query is refused, which leaves no file."""
        with pytest.raises(kind) as caught:
            self.select(query, **options)
        assert list(self._folder.iterdir()) == []
        return str(caught.value)
