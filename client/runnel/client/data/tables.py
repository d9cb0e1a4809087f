"""What every database with tables can do, whichever engine reads it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from runnel.common.catalogue import FieldType

if TYPE_CHECKING:
    from sqlglot import exp

    from runnel.client.data.interruption import Interruption


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """A field of a table; ``native``: its type in the words of the database."""

    name: str
    type: FieldType
    native: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The answer to a query: names of fields, and rows in batches. It is read within the block that gave it."""

    fields: tuple[str, ...]
    batches: Iterator[Sequence[Sequence[object]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """A query that was checked: its tree, the tables it reads, and the values of its placeholders ``p0``, ``p1``, …."""

    tree: exp.Query
    tables: frozenset[str]
    parameters: Mapping[str, object] = field(default_factory=dict)


class Tables(Protocol):
    """An open database with tables. Methods block; :meth:`answer` ends when ``interruption`` wants it."""

    dialect: str
    schema: str  # the default one, known after :meth:`names`; empty where there are none

    def names(self) -> Collection[str]:
        """Return the tables that may be selected from, ``schema.table`` for those of another than the default schema.

        Raises:
            QueryFailed: the database does not answer.
        """
        ...

    def reference(self, table: str) -> tuple[str, str | None]:
        """Return name and schema of one of :meth:`names`, as a statement is to write them."""
        ...

    def fields(self, table: str) -> Sequence[Field]:
        """Return the fields of one of :meth:`names`.

        Raises:
            QueryFailed: the database does not answer, or a file can't be read.
        """
        ...

    def answer(self, statement: Statement, interruption: Interruption) -> AbstractContextManager[Rows]:
        """Run a checked statement, in a way that can only read.

        Raises:
            QueryFailed: the database does not take it, or fails.
            Cancelled, DeadlineExceeded: it was interrupted.
        """
        ...

    def close(self) -> None:
        """Close what is open."""
        ...
