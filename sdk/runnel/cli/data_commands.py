"""``runnel client data``: the databases of a site, as its people and as tasks see them."""

from __future__ import annotations

import csv
import itertools
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runnel.cli.desk import Desk, command, group

if TYPE_CHECKING:
    from runnel.client.data import DatabaseConfig, Selected
    from runnel.client.data.tables import Field

Data = Annotated[
    list[str] | None,
    typer.Option("--data", metavar="NAME=PATH", help="A database of this site, as `runnel client --data` has it."),
]
Databases = Annotated[
    Path | None,
    typer.Option("--databases", metavar="FILE", envvar="RUNNEL_CLIENT_DATABASES", help="The file of databases (TOML)."),
]
Name = Annotated[str, typer.Argument(metavar="DATABASE", help="Its label.")]

_SHOWN_ROWS = 20


def add_data(client: typer.Typer) -> None:
    """Add the commands below ``runnel client``."""
    data = group("The site's databases: list, show, check, try a selection.")
    command(data, "list", local=True)(list_databases)
    command(data, "show", local=True)(show)
    command(data, "check", local=True)(check)
    command(data, "try", local=True)(attempt)
    client.add_typer(data, name="data")


def list_databases(desk: Desk, data: Data = None, databases: Databases = None) -> None:
    """List the databases and what may be selected from them."""
    from runnel.cli.data_view import databases_table
    from runnel.client.data import catalogue_of

    found = _site(data, databases)
    catalogue_of(found.values())  # what the client would not start with is told here
    desk.answer([_document(each) for each in found.values()], lambda: databases_table(found.values()))


def show(desk: Desk, database: Name = "default", data: Data = None, databases: Databases = None) -> None:
    """Show the tables of a database, their fields and types, and what the dictionary says of them."""
    from runnel.cli.data_view import tables_parts
    from runnel.client.data import find_database

    found = find_database(_site(data, databases), database)
    tables = _tables(found)
    document = _document(found) | {
        "tables": {
            table: [{"name": each.name, "type": each.type.value, "native": each.native} for each in fields]
            for table, fields in tables.items()
        }
    }
    desk.answer(document, lambda: tables_parts(found, tables))


def check(desk: Desk, data: Data = None, databases: Databases = None) -> None:
    """Read the file, open each database, compare it with its dictionary; exit status 1 if something is wrong."""
    from runnel.cli.data_view import problems_parts
    from runnel.client.data import DatabaseKind
    from runnel.client.data.validation import Finding, Problem, reason, validate
    from runnel.common.errors import QueryFailed

    found = _site(data, databases)
    problems: dict[str, list[Problem]] = {}
    for name, each in found.items():
        if each.kind in (DatabaseKind.FILE, DatabaseKind.URL, DatabaseKind.SPARQL):
            problems[name] = []  # there is nothing to compare: no table, no dictionary
            continue
        try:
            _tables(each)
            problems[name] = list(validate(each))
        except QueryFailed as error:
            problems[name] = [Problem(table="", finding=Finding.UNREADABLE, detail=reason(error))]
    document = {
        name: [
            {
                "table": each.table,
                "field": each.field,
                "finding": each.finding.value,
                "rows": each.rows,
                "first": each.first,
                "detail": each.detail,
            }
            for each in listed
        ]
        for name, listed in problems.items()
    }
    desk.answer(document, lambda: problems_parts(problems))
    if any(problems.values()):
        raise typer.Exit(1)


def attempt(
    desk: Desk,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="As a task has it: { table { field field } }.")],
    database: Annotated[str, typer.Option("--database", metavar="NAME", help="Which one.")] = "default",
    language: Annotated[str, typer.Option("--language", metavar="graphql|sql|sparql")] = "graphql",
    output: Annotated[
        Path | None, typer.Option("--output", metavar="DIR", help="Keep the files, in a new folder.")
    ] = None,
    data: Data = None,
    databases: Databases = None,
) -> None:
    """Select as a task would, and show the first rows of what its container would find."""
    from runnel.cli.data_view import rows_parts
    from runnel.client.data import select
    from runnel.client.data.validation import reason
    from runnel.common.errors import InvalidInput, QueryFailed
    from runnel.common.tasks import Language, Selection

    if language not in {each.value for each in Language}:
        raise InvalidInput(f"--language: {language!r} came; expected was graphql, sql or sparql.")
    if output is not None:
        output.mkdir(parents=True)
    selection = Selection(query=query, language=Language(language), database=database)
    site = _site(data, databases)
    with tempfile.TemporaryDirectory() as folder:
        try:
            selected = select([selection], site, output or Path(folder))
        except QueryFailed as error:
            raise QueryFailed(reason(error)) from error
        shown = [(each, list(itertools.islice(_rows(each), _SHOWN_ROWS))) for each in selected]
    document = [
        {
            "name": each.name,
            "rows": each.rows,
            "size_bytes": each.size_bytes,
            "fields": list(each.fields),
            "first": rows,
            "path": None if output is None else str(each.path),
        }
        for each, rows in shown
    ]
    desk.answer(document, lambda: rows_parts(shown))


def _site(data: list[str] | None, databases: Path | None) -> Mapping[str, DatabaseConfig]:
    import os

    from runnel.cli.client_command import pairs
    from runnel.client.app import site_data

    return site_data(pairs("data", data) or {}, databases, os.environ)


def _tables(database: DatabaseConfig) -> dict[str, list[Field]]:
    import contextlib

    from runnel.client.data import open_tables

    with contextlib.closing(open_tables(database)) as tables:
        return {table: list(tables.fields(table)) for table in tables.names()}


def _document(database: DatabaseConfig) -> dict[str, Any]:
    return {
        "name": database.name,
        "type": database.kind.value,
        "where": str(database.where),
        "title": database.title,
        "description": database.description,
        "allowed": None if database.tables is None else list(database.tables),
        "publish": database.publish,
        "minimum_rows": database.minimum_rows,
        "languages": sorted(each.value for each in database.taken(database.minimum_rows)),
    }


def _rows(selected: Selected) -> Iterator[list[str]]:
    with selected.path.open(newline="", encoding="utf-8") as file:
        yield from itertools.islice(csv.reader(file), 1, None)
