"""Selections of the form ``{ patients(sex: "f") { age sex } }`` as they are written: GraphQL's syntax, with tables as
fields. Sites read them before they select, the reducer to look whether what they name is published.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from graphql import GraphQLError, parse
from graphql.language import ast

from runnel.common.errors import BadQuery
from runnel.common.near import unknown

_MOST_TOKENS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TableQuery:
    """What is asked of one table.

    Args:
        file: name of what it fills.
        table: as the query names it.
        fields: field and name of the column, in order.
        arguments: by name, as parsed.
    """

    file: str
    table: str
    fields: tuple[tuple[str, str], ...]
    arguments: Mapping[str, ast.ValueNode]


def read_query(text: str) -> list[TableQuery]:
    """Return what a query asks for; outer braces may be left out, commas are blanks.

    Raises:
        BadQuery: it is no such query; the message says where.
    """
    document = _document(text)
    if len(document.definitions) != 1:
        raise BadQuery(f"A selection is one query; {len(document.definitions)} definitions came.")
    operation = document.definitions[0]
    if not isinstance(operation, ast.OperationDefinitionNode) or operation.operation.value != "query":
        raise BadQuery(f"A selection is a query that reads; {_what(operation)} came.", hint=_FORM)
    if operation.variable_definitions or operation.directives:
        raise BadQuery("A selection has neither variables nor directives.", hint=_FORM)
    asked = [_table(node) for node in operation.selection_set.selections]
    if not asked:
        raise BadQuery("The query names no table.", hint=_FORM)
    names: set[str] = set()
    for each in asked:
        if each.file.lower() in names:
            raise BadQuery(
                f"Two tables of the query would both fill {each.file}.csv.",
                hint="Give one an alias: other: table { … }.",
            )
        names.add(each.file.lower())
    return asked


_FORM = "It is written { table { field field } }."


def _document(text: str) -> ast.DocumentNode:
    bare = text.strip().removeprefix("\ufeff")
    wrapped = f"{{ {bare} }}"
    # A query can be told from a bare list of tables by how it begins, except a table that is called so itself.
    attempts = (bare, wrapped) if bare.startswith(("{", "query")) else (wrapped,)
    problem: BadQuery | None = None
    for attempt in attempts:
        try:
            return parse(attempt, no_location=True, max_tokens=_MOST_TOKENS)
        except GraphQLError as error:
            place = error.locations[0] if error.locations else None
            where = f" at line {place.line}, column {place.column}" if place else ""
            problem = problem or BadQuery(f"The query can't be read: {error.message.rstrip('.')}{where}.", hint=_FORM)
        except RecursionError:
            problem = problem or BadQuery("The query is nested too deeply.", hint=_FORM)
    assert problem is not None
    raise problem


def _what(node: ast.Node) -> str:
    return f"a {node.operation.value}" if isinstance(node, ast.OperationDefinitionNode) else "something else"


def _table(node: ast.SelectionNode) -> TableQuery:
    if not isinstance(node, ast.FieldNode):
        raise BadQuery("A selection has no fragments.", hint=_FORM)
    table = node.name.value
    if node.directives:
        raise BadQuery(f"The table {table!r} has a directive; a selection has none.", hint=_FORM)
    if node.selection_set is None:
        raise BadQuery(f"The query does not say which fields of {table!r} it wants.", hint=_FORM)
    fields: list[tuple[str, str]] = []
    for field in node.selection_set.selections:
        if not isinstance(field, ast.FieldNode) or field.selection_set or field.arguments or field.directives:
            what = repr(field.name.value) if isinstance(field, ast.FieldNode) else "a fragment"
            raise BadQuery(f"Below the table {table!r} there are plain fields only; {what} is more.", hint=_FORM)
        fields.append((field.name.value, (field.alias or field.name).value))
    _no_two((column for _, column in fields), f"The columns of {table!r}", "is there twice")
    arguments = [(each.name.value, each.value) for each in node.arguments or ()]
    _no_two((name for name, _ in arguments), f"The arguments of {table!r}", "is there twice")
    return TableQuery(
        file=(node.alias or node.name).value, table=table, fields=tuple(fields), arguments=dict(arguments)
    )


def _no_two(names: Iterable[str], what: str, problem: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise BadQuery(f"{what}: {name!r} {problem}.")
        seen.add(name)


def query_name(name: str) -> str:
    """Return how a query of the first kind writes a name that has other characters than letters, digits and ``_``.

    >>> query_name("public.body-mass")
    'public_body_mass'
    """
    return re.sub(r"\W", "_", name)


def find_name(kind: str, name: str, there: Collection[str], *, inside: str) -> str:
    """Return which of the names ``there`` is meant: that name, or the only one written so in a query.

    Raises:
        UnknownData: none is.
    """
    if name in there:
        return name
    alike = [each for each in there if query_name(each) == name]
    if len(alike) == 1:
        return alike[0]
    raise unknown(kind, name, there, inside=inside)
