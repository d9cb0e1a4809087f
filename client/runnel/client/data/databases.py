"""The databases of a site: what each is, where it is, and what may be selected from it."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from runnel.common.catalogue import FieldType
from runnel.common.near import unknown
from runnel.common.tasks import Language


class DatabaseKind(Enum):
    """What a database is. Of a ``FILE`` and a ``URL`` nothing can be selected: containers open them themselves."""

    CSV = "csv"
    PARQUET = "parquet"
    FOLDER = "folder"
    SQL = "sql"
    SPARQL = "sparql"
    FILE = "file"
    URL = "url"


FILES = frozenset({DatabaseKind.CSV, DatabaseKind.PARQUET, DatabaseKind.FOLDER, DatabaseKind.FILE})
"""Kinds that are a path on the site's disk."""

LANGUAGES: Mapping[DatabaseKind, frozenset[Language]] = {
    DatabaseKind.CSV: frozenset({Language.GRAPHQL, Language.SQL}),
    DatabaseKind.PARQUET: frozenset({Language.GRAPHQL, Language.SQL}),
    DatabaseKind.FOLDER: frozenset({Language.GRAPHQL, Language.SQL}),
    DatabaseKind.SQL: frozenset({Language.GRAPHQL, Language.SQL}),
    DatabaseKind.SPARQL: frozenset({Language.SPARQL}),
    DatabaseKind.FILE: frozenset(),
    DatabaseKind.URL: frozenset(),
}
"""How a selection of each kind may be written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraints:
    """What the values of a field keep to; None or False: anything goes. Lengths are characters."""

    required: bool = False
    unique: bool = False
    minimum: float | str | None = None
    maximum: float | str | None = None
    minimum_length: int | None = None
    maximum_length: int | None = None
    pattern: str | None = None
    one_of: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldEntry:
    """What the dictionary says of one field; ``lookup``: which of the database's lookups its values are from."""

    name: str
    type: FieldType
    label: str = ""
    description: str = ""
    constraints: Constraints = Constraints()
    lookup: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TableEntry:
    """What the dictionary says of one table."""

    description: str = ""
    fields: tuple[FieldEntry, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseConfig:
    """One database.

    Args:
        name: its label.
        kind: what it is.
        path: of the file or folder; None: it has an address.
        uri: its address, without secrets where the file of databases gave it; else None.
        password: of the user that the address names, or None.
        token: that an endpoint wants as a bearer, or None.
        tables: patterns (``*``, ``?``) of the tables that may be selected from, ``schema.table`` for others than those
            of the default schema; None: all of the default schema.
        minimum_rows: a selection with fewer rows gives nothing.
        languages: in which a selection may be written; None: :func:`default_languages`.
        dictionary: tables by name.
        lookups: by name, values and what they mean.
        publish: whether the network is told of it: name, title, what its dictionary says; never where it is or what
            is in it.
        creator: who made it; ``contact``: whom to ask; ``license``, ``version``: of the data.
    """

    name: str
    kind: DatabaseKind
    path: Path | None = None
    uri: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    tables: tuple[str, ...] | None = None
    minimum_rows: int = 0
    languages: frozenset[Language] | None = None
    title: str = ""
    description: str = ""
    dictionary: Mapping[str, TableEntry] = field(default_factory=dict)
    lookups: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    publish: bool = False
    creator: str = ""
    contact: str = ""
    license: str = ""
    version: str = ""

    @property
    def where(self) -> Path | str:
        """Where it is: what entry points and containers are handed."""
        if self.path is not None:
            return self.path
        assert self.uri is not None
        return self.uri

    def taken(self, minimum_rows: int) -> frozenset[Language]:
        """Return in which languages a selection may be written where ``minimum_rows`` are the least that is given."""
        return default_languages(self.kind, minimum_rows) if self.languages is None else self.languages

    def allows(self, table: str) -> bool:
        """Tell whether a table, as :attr:`tables` name them, may be selected from."""
        return self.tables is None or any(fnmatch.fnmatchcase(table, pattern) for pattern in self.tables)


def default_languages(kind: DatabaseKind, minimum_rows: int) -> frozenset[Language]:
    """Return the languages of a database for which the site names none.

    With a minimum of rows SQL is not among them: a statement can make many rows of one person's.
    """
    languages = LANGUAGES[kind]
    return languages - {Language.SQL} if minimum_rows > 0 else languages


_SUFFIXES: Mapping[str, DatabaseKind] = {
    ".csv": DatabaseKind.CSV,
    ".csv.gz": DatabaseKind.CSV,
    ".tsv": DatabaseKind.CSV,
    ".parquet": DatabaseKind.PARQUET,
}
_SQLITE = (".db", ".sqlite", ".sqlite3")
_SQL_SCHEMES = frozenset({"postgresql", "postgres", "sqlite", "mysql", "mariadb", "mssql", "oracle"})


def database_of(name: str, where: Path | str) -> DatabaseConfig:
    """Return what ``--data NAME=WHERE`` describes: what it is is told from its suffix, or the scheme of its address."""
    if isinstance(where, str):
        scheme = where.partition("://")[0].partition("+")[0].lower()
        kind = DatabaseKind.SQL if scheme in _SQL_SCHEMES else DatabaseKind.URL
        return DatabaseConfig(name=name, kind=kind, uri=where)
    lowered = where.name.lower()
    if lowered.endswith(_SQLITE):
        return DatabaseConfig(
            name=name,
            kind=DatabaseKind.SQL,
            path=where,
            uri=f"sqlite:///{where}",
        )
    kind = table_kind(where) or (DatabaseKind.FOLDER if where.is_dir() else DatabaseKind.FILE)
    return DatabaseConfig(name=name, kind=kind, path=where)


def table_kind(path: Path) -> DatabaseKind | None:
    """Return ``CSV`` or ``PARQUET`` for a file with such a name, None for any other path.

    >>> table_kind(Path("/srv/patients.CSV.gz"))
    <DatabaseKind.CSV: 'csv'>
    """
    lowered = path.name.lower()
    return next((kind for suffix, kind in _SUFFIXES.items() if lowered.endswith(suffix)), None)


def table_name(path: Path) -> str:
    """Return the name of the table that a file is: its own without what says how it is written.

    >>> table_name(Path("/srv/patients.csv.gz"))
    'patients'
    """
    suffix = next((each for each in _SUFFIXES if path.name.lower().endswith(each)), path.suffix)
    return path.name[: len(path.name) - len(suffix)] if suffix else path.name


def find_database(databases: Mapping[str, DatabaseConfig] | Iterable[DatabaseConfig], name: str) -> DatabaseConfig:
    """Return the database of that name.

    Raises:
        UnknownData: there is none.
    """
    known = databases if isinstance(databases, Mapping) else {each.name: each for each in databases}
    if name not in known:
        raise unknown("database", name, known)
    return known[name]
