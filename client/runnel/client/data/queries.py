"""Selections of the form ``{ patients(sex: "f") { age sex } }``: GraphQL's syntax, with tables as fields.

Arguments of a table are filters: ``sex: "f"`` (equal), ``sex: ["f", "m"]`` (one of), ``age: {gt: 60, le: 80}``
(:data:`OPERATORS`), the same inside ``where: {…}`` with ``and``, ``or`` and ``not``, and ``order_by: "age"`` (or
``"-age"``, or a list), ``limit`` and ``offset``. An alias names the file (``old: patients(…)``) or the column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from graphql.language import ast

from runnel.client.data.tables import Field, Statement, Tables
from runnel.client.data.values import comparable
from runnel.common.catalogue import FieldType
from runnel.common.errors import BadQuery
from runnel.common.near import unknown
from runnel.common.tasks.queries import TableQuery, find_name

if TYPE_CHECKING:
    from sqlglot import exp

_MOST_DEPTH = 50
_MOST_ROWS = 2**62
_LIKE_ESCAPE = "!"


# ---- from the query to a statement


def statement_of(query: TableQuery, tables: Tables) -> Statement:
    """Return the statement that answers a query of one table.

    Raises:
        UnknownData: there is no such table or field.
        BadQuery: a filter does not fit its field.
        QueryFailed: the database does not answer.
    """
    from sqlglot import exp

    table = find_name("table", query.table, tables.names(), inside="the database")
    fields = {field.name: field for field in tables.fields(table)}
    place = f"the table {table!r}"
    build = _Filters(fields, place)
    columns = [exp.alias_(build.column(build.field(name)), column, quoted=True) for name, column in query.fields]
    name, schema = tables.reference(table)
    tree = exp.select(*columns).from_(exp.table_(name, db=schema, quoted=True))
    condition, rest = None, dict(query.arguments)
    order, limit, offset = rest.pop("order_by", None), rest.pop("limit", None), rest.pop("offset", None)
    where = rest.pop("where", None)
    simple = ast.ObjectValueNode(
        fields=tuple(ast.ObjectFieldNode(name=ast.NameNode(value=name), value=value) for name, value in rest.items())
    )
    for each in (where, simple):
        found = build.condition(each) if each is not None else None
        condition = found if condition is None else condition if found is None else exp.and_(condition, found)
    if condition is not None:
        tree = tree.where(condition)
    if order is not None:
        tree = tree.order_by(*build.order(order))
    if limit is not None:
        tree = tree.limit(_count("limit", limit))
    if offset is not None:
        tree = tree.offset(_count("offset", offset))
    return Statement(tree=tree, tables=frozenset({table}), parameters=build.parameters)


class _Filters:
    """Conditions on the fields of one table; their values go beside the statement, never into its text."""

    def __init__(self, fields: Mapping[str, Field], place: str) -> None:
        self._fields = fields
        self._place = place
        self.parameters: dict[str, object] = {}

    def field(self, name: str) -> Field:
        return self._fields[find_name("field", name, self._fields, inside=self._place)]

    def column(self, field: Field) -> exp.Column:
        from sqlglot import exp

        return exp.column(field.name, quoted=True)

    def order(self, value: ast.ValueNode) -> Iterator[exp.Ordered]:
        from sqlglot import exp

        for each in value.values if isinstance(value, ast.ListValueNode) else (value,):
            if not isinstance(each, (ast.StringValueNode, ast.EnumValueNode)):
                raise BadQuery('order_by is a field, as "age" or, downwards, "-age", or a list of them.')
            column = self.column(self.field(each.value.removeprefix("-")))
            yield exp.Ordered(this=column, desc=each.value.startswith("-"), nulls_first=False)

    def condition(self, value: ast.ValueNode, depth: int = 0) -> exp.Condition | None:
        """Return what an object of filters asks for, all together; None if it is empty."""
        from sqlglot import exp

        if not isinstance(value, ast.ObjectValueNode):
            raise BadQuery("A filter is an object, as {age: {gt: 60}}.")
        if depth > _MOST_DEPTH:
            raise BadQuery("The filters are nested too deeply.")
        found: list[exp.Condition] = []
        for part in value.fields:
            name = part.name.value
            if name in ("and", "or") and name not in self._fields:
                items = part.value.values if isinstance(part.value, ast.ListValueNode) else (part.value,)
                inner = [each for each in (self.condition(item, depth + 1) for item in items) if each is not None]
                if not inner:
                    raise BadQuery(f"{name!r} has a list of filters; an empty one came.")
                found.append(exp.paren((exp.and_ if name == "and" else exp.or_)(*inner)))
            elif name == "not" and name not in self._fields:
                negated = self.condition(part.value, depth + 1)
                if negated is not None:
                    found.append(exp.Not(this=exp.paren(negated)))
            else:
                found.extend(self._on_field(self.field(name), part.value))
        return exp.and_(*found) if found else None

    def _on_field(self, field: Field, value: ast.ValueNode) -> Iterator[exp.Condition]:
        if isinstance(value, ast.ObjectValueNode):
            for part in value.fields:
                name = part.name.value
                if name not in OPERATORS:
                    raise unknown("operator", name, OPERATORS, inside=f"filters of {field.name!r}")
                yield OPERATORS[name](self, field, part.value)
        elif isinstance(value, ast.ListValueNode):
            yield OPERATORS["in"](self, field, value)
        else:
            yield OPERATORS["eq"](self, field, value)

    def compared(self, field: Field) -> exp.Expression:
        from sqlglot import exp

        column = self.column(field)
        return exp.cast(column, "TEXT") if field.type is FieldType.OTHER else column

    def parameter(self, value: object) -> exp.Placeholder:
        from sqlglot import exp

        name = f"p{len(self.parameters)}"
        self.parameters[name] = value
        return exp.Placeholder(this=name)

    def value(self, field: Field, node: ast.ValueNode) -> exp.Placeholder:
        return self.parameter(comparable(_scalar(node, field.name), field.type, field=field.name))


Operator = Callable[["_Filters", Field, ast.ValueNode], "exp.Condition"]


def _comparison(kind: str, negated: str = "") -> Operator:
    def operator(build: _Filters, field: Field, node: ast.ValueNode) -> exp.Condition:
        from sqlglot import exp

        if isinstance(node, ast.NullValueNode) and negated:
            empty = exp.Is(this=build.column(field), expression=exp.Null())
            return empty if kind == "EQ" else exp.Not(this=empty)
        made: exp.Condition = getattr(exp, kind)(this=build.compared(field), expression=build.value(field, node))
        return made

    return operator


def _among(negated: bool) -> Operator:
    def operator(build: _Filters, field: Field, node: ast.ValueNode) -> exp.Condition:
        from sqlglot import exp

        items = node.values if isinstance(node, ast.ListValueNode) else (node,)
        if not items:
            return exp.false() if not negated else exp.true()
        among = exp.In(this=build.compared(field), expressions=[build.value(field, item) for item in items])
        return exp.Not(this=among) if negated else among

    return operator


def _like(before: str, after: str) -> Operator:
    def operator(build: _Filters, field: Field, node: ast.ValueNode) -> exp.Condition:
        from sqlglot import exp

        if field.type not in (FieldType.TEXT, FieldType.OTHER) or not isinstance(node, ast.StringValueNode):
            raise BadQuery(f"The field {field.name!r} holds {field.type.value} values; only text is searched for text.")
        text = node.value
        for special in (_LIKE_ESCAPE, "%", "_"):
            text = text.replace(special, _LIKE_ESCAPE + special)
        like = exp.Like(this=build.compared(field), expression=build.parameter(f"{before}{_text(text)}{after}"))
        return exp.Escape(this=like, expression=exp.Literal.string(_LIKE_ESCAPE))

    return operator


def _empty(build: _Filters, field: Field, node: ast.ValueNode) -> exp.Condition:
    from sqlglot import exp

    if not isinstance(node, ast.BooleanValueNode):
        raise BadQuery(f"is_null of {field.name!r} is true or false.")
    empty = exp.Is(this=build.column(field), expression=exp.Null())
    return empty if node.value else exp.Not(this=empty)


OPERATORS: Mapping[str, Operator] = {
    "eq": _comparison("EQ", negated="NEQ"),
    "ne": _comparison("NEQ", negated="EQ"),
    "gt": _comparison("GT"),
    "ge": _comparison("GTE"),
    "gte": _comparison("GTE"),
    "lt": _comparison("LT"),
    "le": _comparison("LTE"),
    "lte": _comparison("LTE"),
    "in": _among(negated=False),
    "not_in": _among(negated=True),
    "contains": _like("%", "%"),
    "starts_with": _like("", "%"),
    "ends_with": _like("%", ""),
    "is_null": _empty,
}
"""What a field is compared by. ``gte`` and ``lte`` are other words for ``ge`` and ``le``."""


def _scalar(node: ast.ValueNode, field: str) -> str | bool | None:
    if isinstance(node, ast.BooleanValueNode):
        return node.value
    if isinstance(node, ast.NullValueNode):
        return None
    if isinstance(node, (ast.StringValueNode, ast.IntValueNode, ast.FloatValueNode)):
        return _text(node.value)
    raise BadQuery(f"The field {field!r} is compared with something that is no text, number, true, false or null.")


def _text(text: str) -> str:
    if "\0" in text or any("\ud800" <= each <= "\udfff" for each in text):
        raise BadQuery("A text of the query has a NUL or half a character.")
    return text


def _count(name: str, node: ast.ValueNode) -> int:
    if isinstance(node, ast.IntValueNode) and len(node.value) < 20 and 0 <= int(node.value) < _MOST_ROWS:
        return int(node.value)
    raise BadQuery(f"{name} is a number of rows, as {name}: 100.")
