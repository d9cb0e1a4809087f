"""Tables that are files: CSV, Parquet, or a folder of both, read by DuckDB.

Each selection has an engine of its own, in memory. It is told about the tables that the statement reads, and then that
it may open these files and nothing else, neither another file nor the network, and that this is not to be changed.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
from sqlglot import exp

from runnel.client.data.databases import DatabaseConfig, DatabaseKind, table_kind, table_name
from runnel.client.data.tables import Field, Rows, Statement
from runnel.common.catalogue import FieldType
from runnel.common.errors import QueryFailed

if TYPE_CHECKING:
    from runnel.client.data.interruption import Interruption

_BATCH_ROWS = 2048
_MOST_HEADER_BYTES = 1 << 20
_GLOB = frozenset("*?[")  # the engine would read other files by such a name
_TYPES: Mapping[FieldType, str] = {
    FieldType.INTEGER: "HUGEINT",
    FieldType.DECIMAL: "DOUBLE",
    FieldType.TEXT: "VARCHAR",
    FieldType.BOOLEAN: "BOOLEAN",
    FieldType.DATE: "DATE",
    FieldType.DATETIME: "TIMESTAMP",
    FieldType.TIME: "TIME",
    FieldType.OTHER: "VARCHAR",
}
_FIELD_TYPES: Mapping[str, FieldType] = {
    **dict.fromkeys(("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT"), FieldType.INTEGER),
    **dict.fromkeys(("UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "UHUGEINT"), FieldType.INTEGER),
    **dict.fromkeys(("FLOAT", "DOUBLE", "DECIMAL"), FieldType.DECIMAL),
    "VARCHAR": FieldType.TEXT,
    "BOOLEAN": FieldType.BOOLEAN,
    "DATE": FieldType.DATE,
    "TIME": FieldType.TIME,
    **dict.fromkeys(
        ("TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS", "TIMESTAMP WITH TIME ZONE"), FieldType.DATETIME
    ),
}
# Errors of these say what is wrong with the statement; what others say may quote the data.
_ABOUT_THE_STATEMENT = (duckdb.BinderException, duckdb.CatalogException, duckdb.ParserException)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """What an engine may take of this machine."""

    memory_bytes: int = 1 << 30
    threads: int = 2


DEFAULT_ENGINE = EngineLimits()


class FileTables:
    """The tables of a database that is a file or a folder."""

    dialect = "duckdb"
    schema = ""

    def __init__(self, database: DatabaseConfig, limits: EngineLimits = DEFAULT_ENGINE) -> None:
        assert database.path is not None
        self._database = database
        self._path = database.path
        self._limits = limits

    def names(self) -> Mapping[str, Path]:
        """Return the tables that may be selected from, with their files."""
        if self._database.kind is not DatabaseKind.FOLDER:
            paths = [self._path]
        else:
            try:
                paths = sorted(each for each in self._path.iterdir() if table_kind(each) and each.is_file())
            except OSError as error:
                raise QueryFailed(
                    f"The database {self._database.name!r} can't be read: {error.strerror}.",
                    database=self._database.name,
                ) from error
        named = {table_name(path): path for path in reversed(paths) if not _GLOB & set(str(path))}
        return {name: named[name] for name in sorted(named) if self._database.allows(name)}

    def reference(self, table: str) -> tuple[str, str | None]:
        """Return the name; there are no schemas."""
        return table, None

    def fields(self, table: str) -> Sequence[Field]:
        """Return the fields of a table: of CSV the types that all its values have, or those of the dictionary."""
        return self._described(table, self.names()[table]).fields

    @contextlib.contextmanager
    def answer(self, statement: Statement, interruption: Interruption) -> Iterator[Rows]:
        """Run a statement in an engine that has its tables and nothing else."""
        files = {table: path for table, path in self.names().items() if table in statement.tables}
        with (
            self._errors(""),
            contextlib.closing(_engine(self._limits)) as engine,
            interruption.ended_by(engine.interrupt),
        ):
            for table, path in files.items():
                view = exp.to_identifier(table, quoted=True).sql("duckdb")
                engine.execute(f"CREATE VIEW {view} AS {self._described(table, path).reading}")
            engine.execute("SET allowed_paths = $1", [[str(path) for path in files.values()]])
            engine.execute("SET enable_external_access = false")
            engine.execute("SET lock_configuration = true")
            text = statement.tree.sql("duckdb", comments=False)
            cursor = engine.execute(text, dict(statement.parameters) or None)
            names = tuple(column[0] for column in cursor.description or ())
            yield Rows(fields=names, batches=_batches(cursor.fetchmany))

    def close(self) -> None:
        """Nothing stays open."""

    def _described(self, table: str, path: Path) -> _Described:
        entry = self._database.dictionary.get(table)
        declared = {} if entry is None else {each.name: _TYPES[each.type] for each in entry.fields}
        with self._errors(table):
            state = path.stat()
            look = _look_at_csv if (table_kind(path) or self._database.kind) is DatabaseKind.CSV else _look_at_parquet
            return look(str(path), state.st_size, state.st_mtime_ns, tuple(sorted(declared.items())), self._limits)

    @contextlib.contextmanager
    def _errors(self, table: str) -> Iterator[None]:
        place = f"The table {table!r} of" if table else "A query of"
        try:
            yield
        except _ABOUT_THE_STATEMENT as error:
            said = str(error).strip().splitlines()[0]
            raise QueryFailed(f"{place} the database {self._database.name!r} failed: {said}.") from error
        except duckdb.Error as error:
            raise QueryFailed(
                f"{place} the database {self._database.name!r} can't be answered: {type(error).__name__}.",
                hint="What the engine said about it stays at the site, where `runnel client data check` shows it.",
                database=self._database.name,
            ) from error
        except OSError as error:
            raise QueryFailed(
                f"{place} the database {self._database.name!r} can't be read: {error.strerror}.",
                database=self._database.name,
            ) from error


def _engine(limits: EngineLimits) -> duckdb.DuckDBPyConnection:
    return duckdb.connect(
        ":memory:",
        config={
            "memory_limit": f"{limits.memory_bytes}B",
            "threads": str(limits.threads),
            "temp_directory": "",
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "python_enable_replacements": "false",
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Described:
    """What a look at a file told: the statement that reads it, and its fields."""

    reading: str
    fields: tuple[Field, ...]


# A file is looked at again when it has changed: its size and time of change are among what it is remembered by.


@functools.lru_cache(maxsize=512)
def _look_at_csv(
    path: str, size: int, changed_ns: int, declared: tuple[tuple[str, str], ...], limits: EngineLimits
) -> _Described:
    """Look at all of a CSV file: each field has the type that all its values have, and is text if they have none.

    Dates are ISO ones only: whether 01/02/2026 is in January or in February, nobody knows.
    """
    delimiter = _delimiter(Path(path))
    with contextlib.closing(_engine(limits)) as engine:
        found = engine.execute(
            "SELECT Columns FROM sniff_csv($1, sample_size = -1, header = true, skip = 0, delim = $2, quote = '\"',"
            " escape = '\"', nullstr = '', dateformat = '%Y-%m-%d',"
            " auto_type_candidates = ['BIGINT', 'HUGEINT', 'DOUBLE', 'DATE', 'TIMESTAMP', 'VARCHAR'])",
            [path, delimiter],
        ).fetchone()
    assert found is not None
    types = {each["name"]: each["type"] for each in found[0]}
    types |= {name: native for name, native in declared if name in types}
    listed = ", ".join(f"{_text(name)}: {_text(native)}" for name, native in types.items())
    return _Described(
        reading=f"FROM read_csv({_text(path)}, auto_detect = false, header = true, delim = {_text(delimiter)},"
        f" quote = '\"', escape = '\"', nullstr = '', dateformat = '%Y-%m-%d', columns = {{{listed}}})",
        fields=tuple(Field(name=name, type=_type(native), native=native) for name, native in types.items()),
    )


@functools.lru_cache(maxsize=512)
def _look_at_parquet(
    path: str, size: int, changed_ns: int, declared: tuple[tuple[str, str], ...], limits: EngineLimits
) -> _Described:
    """Look at what a Parquet file says of itself; its types are its own."""
    reading = f"FROM read_parquet({_text(path)})"
    with contextlib.closing(_engine(limits)) as engine:
        described = engine.execute(f"DESCRIBE {reading}").fetchall()
    fields = (Field(name=name, type=_type(native), native=native) for name, native, *_ in described)
    return _Described(reading=reading, fields=tuple(fields))


def _delimiter(path: Path) -> str:
    """Return what parts the fields of a CSV file: of the usual ones that which its header has most of.

    Guessed from all of a file that has lines of unequal lengths, it would be one that the file does not have.
    """
    with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as file:
        header = file.readline(_MOST_HEADER_BYTES).decode("utf-8-sig", "replace")
    unquoted = "".join(header.split('"')[::2])
    return max(",;\t|", key=unquoted.count)


def _text(value: str) -> str:
    return exp.Literal.string(value).sql("duckdb")


def _type(native: str) -> FieldType:
    return _FIELD_TYPES.get(native.partition("(")[0], FieldType.OTHER)


def _batches(fetch: Callable[[int], list[Any]]) -> Iterator[list[Any]]:
    while batch := fetch(_BATCH_ROWS):
        yield batch
