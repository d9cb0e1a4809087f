"""SQL of strangers: one statement, which only reads tables that it may read.

What is not known to be harmless is refused: the tree of the statement may consist of the parts and call the functions
listed here and of no others. What is run is written anew from that tree, so an engine sees what was looked at, and no
comment, hint or trick of quoting that the parser reads in another way than it does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import sqlglot
from sqlglot import TokenType, exp
from sqlglot.errors import ErrorLevel, SqlglotError
from sqlglot.optimizer.normalize_identifiers import normalize_identifiers
from sqlglot.optimizer.qualify_columns import quote_identifiers
from sqlglot.optimizer.scope import Scope, traverse_scope

from runnel.client.data.sql_words import FUNCTIONS, PARTS, TYPES
from runnel.client.data.tables import Statement, Tables
from runnel.common.errors import BadQuery
from runnel.common.near import unknown

MAX_STATEMENT = 20_000
"""Characters of a statement."""

_BEGINNINGS = frozenset({TokenType.SELECT, TokenType.WITH, TokenType.FROM, TokenType.TABLE})


def check_statement(text: str, tables: Tables) -> Statement:
    """Return a statement that may be run.

    Args:
        text: of one SQL statement, in the dialect of the database.
        tables: of the database, those that may be read.

    Raises:
        BadQuery: it is no such statement; the message names the part that may not be used.
        UnknownData: it names a table or field that is not there for it.
        QueryFailed: the database does not answer.
    """
    if len(text) > MAX_STATEMENT:
        raise BadQuery(f"A statement has at most {MAX_STATEMENT:,} characters; {len(text):,} came.")
    try:
        tree = _parsed(text, tables.dialect)
        for node in tree.walk():
            _require_harmless(node)
        # Names are written as the engine would read them, and quoted: what is one name here is one name there.
        tree = normalize_identifiers(tree, dialect=tables.dialect)
        tree = quote_identifiers(tree, dialect=tables.dialect)
        scopes = list(traverse_scope(tree))
        read = _resolved(scopes, tables)
        if any(id(table) not in read for table in tree.find_all(exp.Table)):
            raise BadQuery("The statement reads a table in a place where it can't be told which.")
        _require_fields(tree, scopes, read, tables)
        tree.sql(tables.dialect, unsupported_level=ErrorLevel.RAISE)  # what can't be written anew can't be run
    except SqlglotError as error:
        raise BadQuery(f"The statement can't be read: {_said(error)}.") from error
    except RecursionError:
        raise BadQuery("The statement is nested too deeply.") from None
    return Statement(tree=tree, tables=frozenset(read.values()) - {""})


def _parsed(text: str, dialect: str) -> exp.Query:
    if "\0" in text:
        raise BadQuery("A statement has no NUL.")
    tokens = sqlglot.tokenize(text, dialect=dialect)
    while tokens and tokens[-1].token_type is TokenType.SEMICOLON:
        tokens.pop()
    first = next((each for each in tokens if each.token_type is not TokenType.L_PAREN), None)
    if first is None or any(each.token_type is TokenType.SEMICOLON for each in tokens):
        raise BadQuery("A selection is one statement.")
    if first.token_type not in _BEGINNINGS:
        raise BadQuery(f"A selection only reads: SELECT …, or WITH … SELECT …; {first.text[:50]!r} came.")
    found = [each for each in sqlglot.parse(text, dialect=dialect) if each and not isinstance(each, exp.Semicolon)]
    if len(found) != 1 or not isinstance(found[0], (exp.Select, exp.SetOperation, exp.Subquery)):
        raise BadQuery("A selection only reads: SELECT …, or WITH … SELECT ….")
    return found[0]


def _shown(node: exp.Expr) -> str:
    return repr(node.sql(unsupported_level=ErrorLevel.IGNORE)[:100])


def _said(error: SqlglotError) -> str:
    told = getattr(error, "errors", None)
    if told:
        return f"{told[0].get('description', '')} at line {told[0].get('line')}, column {told[0].get('col')}"
    return str(error).splitlines()[0][:300]


def _require_harmless(node: exp.Expr) -> None:
    part = type(node).__name__
    if isinstance(node, exp.Func) and part not in PARTS:
        names = sorted(name.lower() for name in node.sql_names())
        if not FUNCTIONS.intersection(names):
            raise BadQuery(f"The function {names[0].upper()} may not be used in a selection.", part=part)
    elif part not in PARTS:
        raise BadQuery(f"A selection may not have this: {_shown(node)}.", part=part)
    if isinstance(node, exp.Anonymous) and node.name.lower() not in FUNCTIONS:
        raise BadQuery(f"The function {node.name[:100]!r} may not be used in a selection.", part=part)
    if isinstance(node, exp.Select) and not node.expressions:
        raise BadQuery("A SELECT names what it selects.", part=part)
    if isinstance(node, exp.DataType) and node.this.name not in TYPES:
        raise BadQuery(f"The type {_shown(node)} may not be used in a selection.", part=part)
    if isinstance(node, exp.With) and node.recursive:
        raise BadQuery("A selection may not be recursive.", part=part)
    if isinstance(node, exp.Table) and (not isinstance(node.this, exp.Identifier) or node.args.get("catalog")):
        raise BadQuery(f"A selection reads tables by their names; {_shown(node)} is none.", part=part)


def _resolved(scopes: Sequence[Scope], tables: Tables) -> Mapping[int, str]:
    """Give each table that is read the name under which the database knows it; return these by the nodes' ids.

    Names that the statement itself gives (WITH) are left as they are.
    """
    known = tables.names()
    found: dict[int, str] = {}
    for scope in scopes:
        for table in scope.tables:
            if isinstance(scope.sources.get(table.alias_or_name), Scope) and not table.db:
                found[id(table)] = ""
                continue
            name = _known_name(table, known, tables.schema)
            bare, schema = tables.reference(name)
            if not table.alias:
                table.set("alias", exp.TableAlias(this=exp.to_identifier(table.name, quoted=True)))
            table.set("this", exp.to_identifier(bare, quoted=True))
            table.set("db", exp.to_identifier(schema, quoted=True) if schema else None)
            found[id(table)] = name
    return found


def _known_name(table: exp.Table, known: Collection[str], schema: str) -> str:
    asked = f"{table.db}.{table.name}" if table.db and table.db != schema else table.name
    if asked in known:
        return asked
    alike = [each for each in known if each.lower() == asked.lower()]
    if len(alike) == 1:
        return alike[0]
    raise unknown("table", asked, known, inside="the database")


def _require_fields(tree: exp.Query, scopes: Sequence[Scope], read: Mapping[int, str], tables: Tables) -> None:
    """Require that columns are fields of what they are taken from, as far as the statement tells that."""
    fields = {name: {field.name.lower() for field in tables.fields(name)} for name in set(read.values()) - {""}}
    named = {each.alias.lower() for each in tree.find_all(exp.Alias)}
    named |= {each.name.lower() for alias in tree.find_all(exp.TableAlias) for each in alias.args.get("columns") or ()}
    anywhere = named.union(*fields.values())
    for scope in scopes:
        for column in scope.columns:
            source = scope.sources.get(column.table) if column.table else None
            there, place = anywhere, "the tables of the statement"
            if isinstance(source, exp.Table):
                table = read[id(source)]
                there, place = fields[table], f"the table {table!r}"
            elif isinstance(source, Scope):
                selects = source.expression.named_selects if isinstance(source.expression, exp.Query) else ["*"]
                if "*" in selects:
                    continue
                there, place = {*map(str.lower, selects), *named}, f"{column.table!r}"
            if column.name.lower() not in there and not isinstance(column.this, exp.Star):
                raise unknown("field", column.name, there, inside=place)
