"""How a site's databases and selections look to its people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from runnel.cli.site_view import printable
from runnel.cli.tables import facts, size, table

if TYPE_CHECKING:
    from runnel.client.data import DatabaseConfig, Selected
    from runnel.client.data.tables import Field
    from runnel.client.data.validation import Problem

_SHOWN_CHARACTERS = 60


def databases_table(databases: Iterable[DatabaseConfig]) -> RenderableType:
    """Return databases, one a row."""
    made = table(
        "database",
        "type",
        "published",
        "selected by",
        "least rows",
        "tables",
        "where",
        right=("least rows",),
        fold=("where",),
    )
    for each in databases:
        made.add_row(
            printable(each.name),
            each.kind.value,
            _published(each),
            ", ".join(sorted(language.value for language in each.taken(each.minimum_rows))) or "nobody",
            str(each.minimum_rows),
            "all" if each.tables is None else printable(", ".join(each.tables)),
            printable(str(each.where)),
        )
    return made if made.row_count else Text("There are no databases: give --data or --databases.")


def _published(database: DatabaseConfig) -> str:
    """Tell of how many tables the network is told; one without a dictionary is published by its name alone."""
    if not database.publish:
        return "no"
    told = sum(database.allows(table) for table in database.dictionary)
    return f"{told} table{'' if told == 1 else 's'}" if told else "its name"


def tables_parts(database: DatabaseConfig, tables: Mapping[str, Sequence[Field]]) -> RenderableType:
    """Return a database with its tables and fields."""
    head = facts(
        [
            ("database", printable(database.name)),
            ("title", printable(database.title) or None),
            ("description", printable(database.description) or None),
        ]
    )
    made = table("table", "field", "type", "in the database", "meaning", fold=("meaning",))
    for name, fields in tables.items():
        entry = database.dictionary.get(name)
        told = {} if entry is None else {each.name: each for each in entry.fields}
        for field in fields:
            known = told.get(field.name)
            meaning = "" if known is None else ". ".join(filter(None, (known.label, known.description)))
            made.add_row(
                printable(name), printable(field.name), field.type.value, printable(field.native), printable(meaning)
            )
    return Group(head, Text(), made)


def problems_parts(problems: Mapping[str, Sequence[Problem]]) -> RenderableType:
    """Return what is wrong with databases, or that nothing is."""
    if not any(problems.values()):
        return Text(f"Nothing is wrong with {', '.join(map(printable, problems)) or 'no database'}.")
    made = table("database", "table", "field", "problem", "rows", "first", right=("rows", "first"), fold=("problem",))
    for name, listed in problems.items():
        for each in listed:
            what = f"{each.finding.value}: {each.detail}" if each.detail else each.finding.value
            made.add_row(
                printable(name),
                printable(each.table),
                printable(each.field),
                printable(what),
                str(each.rows or ""),
                str(each.first or ""),
            )
    return made


def rows_parts(selected: Sequence[tuple[Selected, Sequence[Sequence[str]]]]) -> RenderableType:
    """Return the first rows of files."""
    parts: list[RenderableType] = []
    for each, rows in selected:
        more = f", the first {len(rows)} of them:" if each.rows > len(rows) else ":"
        parts.append(Text(f"{each.name}.csv: {each.rows} rows, {size(each.size_bytes)}{more}"))
        made = table(*map(printable, each.fields), fold=tuple(map(printable, each.fields)))
        for row in rows:
            made.add_row(*(printable(value[:_SHOWN_CHARACTERS]) for value in row))
        parts += [made, Text()]
    return Group(*parts[:-1])
