"""What a task's selections give: one CSV file for each table, or nothing at all."""

from __future__ import annotations

import asyncio
import contextlib
import functools
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
    minimum_rows: int = 0,
    limits: SelectLimits = DEFAULT_LIMITS,
    interruption: Interruption | None = None,
) -> Sequence[Selected]:
    """Write a CSV file into ``folder`` for each table that is selected; blocks, so it is called in a thread.

    Args:
        selections: of a task.
        databases: those of the site that the task may select from, by label.
        folder: is there; holds none of the files yet. After an error it holds none either.
        minimum_rows: that every table has at least; a database may want more.
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
            least = max(minimum_rows, database.minimum_rows)
            _require_language(database, selection.language, least)
            for name, rows in _answers(selection, database, limits, interruption):
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
                if count < least:
                    raise TooFewRows(
                        f"The selection for {path.name} has fewer rows than the database {database.name!r} gives out.",
                        hint=f"At least {least} are needed.",
                        database=database.name,
                        minimum_rows=least,
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
    minimum_rows: int = 0,
    limits: SelectLimits = DEFAULT_LIMITS,
) -> Sequence[Selected]:
    """Call :func:`select` in a thread; when the caller is cancelled the query is ended, and then the thread is done."""
    interruption = Interruption()
    ask = functools.partial(select, minimum_rows=minimum_rows, limits=limits, interruption=interruption)
    work = asyncio.ensure_future(to_its_end(asyncio.to_thread(ask, selections, databases, folder)))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        interruption.cancel()
        await asyncio.wait((work,))
        if not work.cancelled():
            work.exception()  # it is seen: that it was called off is what the caller knows
        raise


class SiteSelector:
    """Selects from a site's databases for its runs.

    Args:
        databases: by label.
        limits: of the selections of one run.
    """

    def __init__(self, databases: Mapping[str, DatabaseConfig], limits: SelectLimits = DEFAULT_LIMITS) -> None:
        self._databases = databases
        self._limits = limits

    async def __call__(self, selections: Sequence[Selection], folder: Path, *, minimum_rows: int) -> None:
        """Write a CSV file for each selected table into ``folder``; errors are those of :func:`select`."""
        await selected(selections, self._databases, folder, minimum_rows=minimum_rows, limits=self._limits)


def open_tables(database: DatabaseConfig, *, time_s: float = DEFAULT_LIMITS.time_s) -> Tables:
    """Open a database that has tables; a server ends what takes longer than ``time_s`` by itself too.

    Raises:
        QueryFailed: the client was installed without what reads it.
    """
    try:
        if database.kind is DatabaseKind.SQL:
            from runnel.client.data.servers import ServerTables

            return ServerTables(database, time_s=time_s)
        from runnel.client.data.files import FileTables

        return FileTables(database)
    except ModuleNotFoundError as error:
        raise _lacks(error, database) from error


_EXTRAS = {"psycopg": "postgresql", "pymysql": "mariadb"}


def _lacks(error: ModuleNotFoundError, database: DatabaseConfig) -> QueryFailed:
    extras = ",".join(("client", "data", *filter(None, [_EXTRAS.get(error.name or "")])))
    return QueryFailed(
        f"This client was installed without {error.name}, which reads the database {database.name!r}.",
        hint=f"Its operator installs it with: pip install 'runnel[{extras}]'",
        database=database.name,
    )


def _require_language(database: DatabaseConfig, language: Language, minimum_rows: int) -> None:
    if language in database.taken(minimum_rows):
        return
    taken = ", ".join(sorted(each.value for each in database.taken(minimum_rows))) or "none"
    raise PolicyRefused(
        f"The database {database.name!r} takes no selections in {language.value}.",
        hint=f"It takes {taken}.",
        rule=f"databases.{database.name}.languages",
    )


def _answers(
    selection: Selection, database: DatabaseConfig, limits: SelectLimits, interruption: Interruption
) -> Iterator[tuple[str, AbstractContextManager[Rows]]]:
    """Yield the name of each file and what fills it."""
    if selection.language is Language.SPARQL:
        try:
            from runnel.client.data.endpoints import Endpoint
        except ModuleNotFoundError as error:
            raise _lacks(error, database) from error

        endpoint = Endpoint(database, time_s=limits.time_s)
        yield selection.name or database.name, endpoint.answer(selection.query, interruption)
        return
    with contextlib.closing(open_tables(database, time_s=limits.time_s)) as tables:
        if selection.language is Language.SQL:
            from runnel.client.data.statements import check_statement

            statement = check_statement(selection.query, tables)
            yield selection.name or database.name, tables.answer(statement, interruption)
            return
        from runnel.client.data.queries import statement_of
        from runnel.common.tasks.queries import read_query

        # Every table is found before the first is read: a name that is wrong costs nothing.
        statements = [(each.file, statement_of(each, tables)) for each in read_query(selection.query)]
        for file, statement in statements:
            yield file, tables.answer(statement, interruption)
