"""What a task's selections give: one CSV file for each table, or nothing at all."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runnel.client.data.csv_files import CsvLimits, write_csv
from runnel.client.data.databases import DatabaseConfig, DatabaseKind, find_database
from runnel.client.data.interruption import Interruption
from runnel.common.blobs import storage_errors, to_its_end
from runnel.common.errors import BadQuery, PolicyRefused, QueryFailed, TooFewRows, TooLarge
from runnel.common.tasks import Language, Selection

if TYPE_CHECKING:
    from runnel.client.data.tables import Rows, Tables


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectLimits:
    """What the selections of one task may take.

    Args:
        rows: of each file.
        bytes: of all files together.
        files: how many.
        time_s: for all of them.
    """

    rows: int = 10_000_000
    bytes: int = 4 << 30
    files: int = 256
    time_s: float = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Selected:
    """A file that a selection filled: its ``name`` without ``.csv``, and its ``rows`` without the header's."""

    name: str
    path: Path
    rows: int
    size_bytes: int
    fields: tuple[str, ...]
    database: str


DEFAULT_LIMITS = SelectLimits()


def select(
    selections: Iterable[Selection],
    databases: Mapping[str, DatabaseConfig],
    folder: Path,
    *,
    limits: SelectLimits = DEFAULT_LIMITS,
    interruption: Interruption | None = None,
) -> Sequence[Selected]:
    """Write a CSV file into ``folder`` for each table that is selected; blocks, so it is called in a thread.

    Args:
        selections: of a task.
        databases: those of the site that the task may select from, by label.
        folder: is there; holds none of the files yet. After an error it holds none either.
        limits: beyond which nothing is given.
        interruption: by which another thread can end it.

    Raises:
        BadQuery: a query can't be read or does more than to read tables.
        UnknownData: there is no such database, table or field.
        TooFewRows: fewer rows were selected than the database's ``minimum_rows``.
        TooLarge: more was selected than the limits allow.
        PolicyRefused: the database takes no query of that language.
        QueryFailed: a database could not answer.
        Cancelled, DeadlineExceeded: it was called off, or took too long.
        StorageFull: the disk is full.
    """
    interruption = interruption or Interruption()
    selected: list[Selected] = []
    with contextlib.ExitStack() as undo, interruption.within(limits.time_s):
        for selection in selections:
            database = find_database(databases, selection.database)
            _require_language(database, selection.language)
            for name, rows in _answers(selection, database, interruption):
                path = folder / f"{name}.csv"
                if any(each.name.lower() == name.lower() for each in selected):
                    raise BadQuery(f"Two selections would both fill {path.name}.", hint="Name one of them otherwise.")
                if len(selected) >= limits.files:
                    raise TooLarge(f"The selections fill more than {limits.files} files.", limit_files=limits.files)
                undo.callback(path.unlink, missing_ok=True)
                with rows as answer, storage_errors(folder):
                    left = limits.bytes - sum(each.size_bytes for each in selected)
                    count, size = write_csv(
                        path, answer.fields, answer.batches, CsvLimits(rows=limits.rows, bytes=left)
                    )
                if count < database.minimum_rows:
                    raise TooFewRows(
                        f"The selection for {path.name} has fewer rows than the database {database.name!r} gives out.",
                        hint=f"At least {database.minimum_rows} are needed.",
                        database=database.name,
                        minimum_rows=database.minimum_rows,
                    )
                selected.append(
                    Selected(
                        name=name,
                        path=path,
                        rows=count,
                        size_bytes=size,
                        fields=answer.fields,
                        database=database.name,
                    )
                )
        interruption.check()
        undo.pop_all()
    return selected


async def selected(
    selections: Iterable[Selection],
    databases: Mapping[str, DatabaseConfig],
    folder: Path,
    *,
    limits: SelectLimits = DEFAULT_LIMITS,
) -> Sequence[Selected]:
    """Call :func:`select` in a thread; when the caller is cancelled the query is ended, and then the thread is done."""
    interruption = Interruption()
    work = asyncio.ensure_future(
        to_its_end(asyncio.to_thread(select, selections, databases, folder, limits=limits, interruption=interruption))
    )
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        interruption.cancel()
        await asyncio.wait((work,))
        if not work.cancelled():
            work.exception()  # it is seen: that it was called off is what the caller knows
        raise


def open_tables(database: DatabaseConfig) -> Tables:
    """Open a database that has tables.

    Raises:
        QueryFailed: the client was installed without what reads it.
    """
    try:
        if database.kind is DatabaseKind.SQL:
            from runnel.client.data.servers import ServerTables

            return ServerTables(database)
        from runnel.client.data.files import FileTables

        return FileTables(database)
    except ModuleNotFoundError as error:
        raise _lacks(error, database) from error


def _lacks(error: ModuleNotFoundError, database: DatabaseConfig) -> QueryFailed:
    return QueryFailed(
        f"This client was installed without {error.name}, which reads the database {database.name!r}.",
        hint="Its operator installs it with: pip install 'runnel[client,data]'",
        database=database.name,
    )


def _require_language(database: DatabaseConfig, language: Language) -> None:
    if language in database.languages:
        return
    taken = ", ".join(sorted(each.value for each in database.languages)) or "none"
    raise PolicyRefused(
        f"The database {database.name!r} takes no selections in {language.value}.",
        hint=f"It takes {taken}.",
        rule=f"databases.{database.name}.languages",
    )


def _answers(
    selection: Selection, database: DatabaseConfig, interruption: Interruption
) -> Iterator[tuple[str, AbstractContextManager[Rows]]]:
    """Yield the name of each file and what fills it."""
    if selection.language is Language.SPARQL:
        from runnel.client.data.endpoints import Endpoint

        yield selection.name or database.name, Endpoint(database).answer(selection.query, interruption)
        return
    with contextlib.closing(open_tables(database)) as tables:
        if selection.language is Language.SQL:
            from runnel.client.data.statements import check_statement

            statement = check_statement(selection.query, tables)
            yield selection.name or database.name, tables.answer(statement, interruption)
            return
        from runnel.client.data.queries import read_query, statement_of

        # Every table is found before the first is read: a name that is wrong costs nothing.
        statements = [(each.file, statement_of(each, tables)) for each in read_query(selection.query)]
        for file, statement in statements:
            yield file, tables.answer(statement, interruption)
