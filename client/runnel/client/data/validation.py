"""Does a database hold what its dictionary says? Fields that lack or are too many, values of another type, constraints.

What is found is told by field and number of rows; values are not told.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from enum import Enum
from typing import TYPE_CHECKING

from runnel.client.data.databases import DatabaseConfig, FieldEntry, TableEntry
from runnel.client.data.interruption import Interruption
from runnel.client.data.selection import open_tables
from runnel.client.data.tables import Statement, Tables
from runnel.client.data.values import plain
from runnel.common.catalogue import FieldType
from runnel.common.errors import QueryFailed

if TYPE_CHECKING:
    from sqlglot import exp


class Finding(Enum):
    """What can be wrong."""

    UNREADABLE = "unreadable"
    MISSING_TABLE = "missing table"
    MISSING_FIELD = "missing field"
    UNEXPECTED_FIELD = "unexpected field"
    WRONG_TYPE = "wrong type"
    EMPTY = "empty"
    NOT_UNIQUE = "not unique"
    TOO_SMALL = "too small"
    TOO_LARGE = "too large"
    TOO_SHORT = "too short"
    TOO_LONG = "too long"
    NO_MATCH = "does not match"
    NOT_ONE_OF = "not one of"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What is wrong with a table or a field; ``rows``: how many have it, ``first``: the number of the first, from 1."""

    table: str
    finding: Finding
    field: str = ""
    rows: int = 0
    first: int = 0
    detail: str = ""


def validate(database: DatabaseConfig) -> Sequence[Problem]:
    """Read all tables of a database that its dictionary describes, and return what is wrong; blocks.

    Raises:
        QueryFailed: the database does not answer at all.
    """
    # Read as it is: that a value is none of its declared type is to be found, and not to end the reading.
    bare = dataclasses.replace(database, dictionary={})
    with contextlib.closing(open_tables(bare)) as tables:
        return list(_problems(database.dictionary, tables))


def _problems(dictionary: Mapping[str, TableEntry], tables: Tables) -> Iterator[Problem]:
    for table, entry in dictionary.items():
        if table not in tables.names():
            yield Problem(table=table, finding=Finding.MISSING_TABLE)
            continue
        try:
            yield from _of_table(table, entry, tables)
        except QueryFailed as error:
            yield Problem(table=table, finding=Finding.UNREADABLE, detail=reason(error))


def reason(error: QueryFailed) -> str:
    """Return what went wrong in the words of the database too, which are for the site's people only."""
    cause = error.__cause__
    said = "" if cause is None else str(getattr(cause, "orig", None) or cause).strip()
    return " ".join(f"{error.message} {said}".split())


def _of_table(table: str, entry: TableEntry, tables: Tables) -> Iterator[Problem]:
    there = [field.name for field in tables.fields(table)]
    described = [field.name for field in entry.fields]
    for name in described:
        if name not in there:
            yield Problem(table=table, field=name, finding=Finding.MISSING_FIELD)
    for name in there:
        if name not in described:
            yield Problem(table=table, field=name, finding=Finding.UNEXPECTED_FIELD)
    checks = [_Check(field) for field in entry.fields if field.name in there]
    if not checks:
        return
    statement = Statement(tree=_all(table, [each.entry.name for each in checks], tables), tables=frozenset({table}))
    with tables.answer(statement, Interruption()) as rows:
        number = 0
        for batch in rows.batches:
            for row in batch:
                number += 1
                for check, value in zip(checks, row, strict=True):
                    check.look(number, value)
    for check in checks:
        yield from check.problems(table)


def _all(table: str, fields: Sequence[str], tables: Tables) -> exp.Select:
    from sqlglot import exp

    name, schema = tables.reference(table)
    return exp.select(*(exp.column(field, quoted=True) for field in fields)).from_(
        exp.table_(name, db=schema, quoted=True)
    )


def _integer(text: str) -> float:
    return int(text)


def _decimal(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text!r} is not finite")
    return number


def _boolean(text: str) -> str:
    if text.lower() not in ("true", "false", "0", "1"):
        raise ValueError(f"{text!r} is neither true nor false")
    return text.lower()


def _day(text: str) -> str:
    return date.fromisoformat(text).isoformat()


def _moment(text: str) -> str:
    return datetime.fromisoformat(text).isoformat()


def _clock(text: str) -> str:
    return time.fromisoformat(text).isoformat()


_READERS: Mapping[FieldType, Callable[[str], float | str]] = {
    FieldType.INTEGER: _integer,
    FieldType.DECIMAL: _decimal,
    FieldType.BOOLEAN: _boolean,
    FieldType.DATE: _day,
    FieldType.DATETIME: _moment,
    FieldType.TIME: _clock,
}


class _Check:
    """Looks at the values of one field, and counts."""

    def __init__(self, entry: FieldEntry) -> None:
        self.entry = entry
        self._read = _READERS.get(entry.type, str)
        self._pattern = None if entry.constraints.pattern is None else re.compile(entry.constraints.pattern)
        self._allowed = None if entry.constraints.one_of is None else frozenset(entry.constraints.one_of)
        self._seen: set[str] = set()
        self._found: dict[Finding, tuple[int, int]] = {}

    def look(self, number: int, value: object) -> None:
        written = plain(value)
        text = "" if written is None else str(written)
        for finding in self._findings(text):
            rows, first = self._found.get(finding, (0, number))
            self._found[finding] = (rows + 1, first)

    def problems(self, table: str) -> Iterator[Problem]:
        for finding, (rows, first) in self._found.items():
            yield Problem(table=table, field=self.entry.name, finding=finding, rows=rows, first=first)

    def _findings(self, text: str) -> Iterator[Finding]:
        rules = self.entry.constraints
        if not text:
            if rules.required:
                yield Finding.EMPTY
            return
        if rules.unique:
            if text in self._seen:
                yield Finding.NOT_UNIQUE
            self._seen.add(text)
        if rules.minimum_length is not None and len(text) < rules.minimum_length:
            yield Finding.TOO_SHORT
        if rules.maximum_length is not None and len(text) > rules.maximum_length:
            yield Finding.TOO_LONG
        if self._pattern is not None and not self._pattern.fullmatch(text):
            yield Finding.NO_MATCH
        if self._allowed is not None and text not in self._allowed:
            yield Finding.NOT_ONE_OF
        try:
            read = self._read(text)
        except (ValueError, OverflowError):
            yield Finding.WRONG_TYPE
            return
        if rules.minimum is not None and _below(read, rules.minimum):
            yield Finding.TOO_SMALL
        if rules.maximum is not None and _below(rules.maximum, read):
            yield Finding.TOO_LARGE


def _below(one: float | str, other: float | str) -> bool:
    """Compare two numbers, or two texts: dates and times in ISO form are in order as texts."""
    if isinstance(one, str) or isinstance(other, str):
        return str(one) < str(other)
    return one < other
