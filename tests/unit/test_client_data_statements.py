"""SQL of strangers: what only reads allowed tables is run, anything else is refused before an engine sees it."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import sqlglot
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.dialects import mssql, mysql, oracle, postgresql
from sqlalchemy.dialects.sqlite import dialect as sqlite_dialect

from runnel.client.data import DatabaseConfig, DatabaseKind, FieldType, Interruption, database_of
from runnel.client.data.files import FileTables
from runnel.client.data.queries import statement_of
from runnel.client.data.servers import ServerTables, with_parameters
from runnel.client.data.statements import MAX_STATEMENT, check_statement
from runnel.client.data.tables import Field, Rows, Statement, Tables
from runnel.common.errors import BadQuery, QueryFailed, RunnelError, UnknownData
from runnel.common.tasks import Language
from runnel.common.tasks.queries import read_query

pytestmark = pytest.mark.unit

SQLGLOT = {"mssql": "tsql", "oracle": "oracle", "mysql": "mysql", "postgresql": "postgres", "sqlite": "sqlite"}
DIALECT_CLASSES = {
    "mssql": mssql.dialect,
    "oracle": oracle.dialect,
    "mysql": mysql.dialect,
    "postgresql": postgresql.dialect,
    "sqlite": sqlite_dialect,
}
DIALECTS = ["duckdb", "postgres", "sqlite", "mysql", "tsql"]


class Known:
    """Two tables of any dialect, of which none can be asked."""

    schema = ""

    def __init__(self, dialect: str) -> None:
        self.dialect = dialect

    def names(self) -> Sequence[str]:
        return ("patients", "labs", "study.visits")

    def reference(self, table: str) -> tuple[str, str | None]:
        schema, _, name = table.rpartition(".")
        return name, schema or None

    def fields(self, table: str) -> Sequence[Field]:
        return [Field(name=name, type=FieldType.TEXT) for name in ("id", "age", "sex", "born")]

    def answer(self, statement: Statement, interruption: Interruption) -> contextlib.AbstractContextManager[Rows]:
        raise AssertionError("nothing is asked")

    def close(self) -> None:
        pass


READS = [
    "SELECT id, age FROM patients",
    "SELECT count(*) AS n, avg(age) AS mean FROM patients WHERE sex = 'f' GROUP BY sex HAVING count(*) > 3 ORDER BY 1",
    "SELECT p.id FROM patients AS p JOIN labs AS l ON p.id = l.id LEFT JOIN study.visits AS v ON v.id = p.id",
    "WITH old AS (SELECT id FROM patients WHERE age > 60) SELECT o.id FROM old AS o",
    "SELECT id FROM patients UNION ALL SELECT id FROM labs",
    "SELECT id FROM patients WHERE id IN (SELECT id FROM labs) AND EXISTS (SELECT 1 FROM labs AS l WHERE l.id = 3)",
    "SELECT CASE WHEN age > 60 THEN 'old' ELSE 'young' END AS what, coalesce(sex, '?') AS s FROM patients",
    "SELECT row_number() OVER (PARTITION BY sex ORDER BY age) AS n FROM patients",
    "SELECT upper(substring(sex, 1, 1)) AS s, CAST(age AS DECIMAL(10, 2)) AS a FROM patients;",
    "SELECT id FROM patients -- a comment; DROP TABLE patients",
    "SELECT ';' AS semicolon, '--' AS dashes, 'it''s' AS quote FROM patients",
]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("text", READS)
def test_what_reads_is_taken(dialect: str, text: str) -> None:
    statement = check_statement(text, Known(dialect))
    assert statement.tables <= {"patients", "labs", "study.visits"}
    written = statement.tree.sql(dialect, comments=False)
    assert "DROP" not in written.upper()
    assert len(sqlglot.parse(written, dialect=dialect)) == 1


HOSTILE = """
DROP TABLE patients
DELETE FROM patients
UPDATE patients SET age = 0
INSERT INTO labs VALUES (1)
INSERT INTO labs SELECT * FROM patients
MERGE INTO labs USING patients ON labs.id = patients.id WHEN MATCHED THEN DELETE
CREATE TABLE x AS SELECT * FROM patients
CREATE VIEW x AS SELECT 1
ALTER TABLE patients ADD COLUMN x INT
TRUNCATE TABLE patients
GRANT ALL ON patients TO PUBLIC
SELECT * INTO x FROM patients
SELECT 1; DROP TABLE patients
SELECT 1;; SELECT 2
/* */ DROP TABLE patients
; DROP TABLE patients
WITH gone AS (DELETE FROM patients RETURNING *) SELECT * FROM gone
WITH gone AS (INSERT INTO labs VALUES (1) RETURNING *) SELECT * FROM gone
WITH RECURSIVE t AS (SELECT 1 AS n UNION ALL SELECT n FROM t) SELECT n FROM t
COPY patients TO '/tmp/stolen.csv'
COPY patients FROM PROGRAM 'id'
COPY (SELECT * FROM patients) TO PROGRAM 'sh'
ATTACH '/tmp/x.db' AS x
ATTACH DATABASE '/etc/passwd' AS x
DETACH x
PRAGMA table_list
PRAGMA writable_schema = 1
INSTALL httpfs
LOAD httpfs
SET enable_external_access = true
SET search_path TO secret
RESET ALL
CALL pragma_version()
EXPLAIN ANALYZE SELECT * FROM patients
EXPORT DATABASE '/tmp/x'
IMPORT DATABASE '/tmp/x'
CHECKPOINT
VACUUM
BEGIN
COMMIT
LISTEN x
NOTIFY x
DO $$ BEGIN PERFORM 1; END $$
PREPARE x AS SELECT 1
EXECUTE x
LOCK TABLE patients
SELECT * FROM patients FOR UPDATE
SELECT * FROM patients FOR SHARE
SELECT * FROM secrets
SELECT * FROM secret.patients
SELECT * FROM other.study.visits
SELECT * FROM information_schema.tables
SELECT * FROM pg_catalog.pg_shadow
SELECT * FROM pg_shadow
SELECT * FROM sqlite_master
SELECT * FROM main.sqlite_schema
SELECT * FROM mysql.user
SELECT * FROM duckdb_settings()
SELECT * FROM '/etc/passwd'
SELECT * FROM "/etc/passwd"
SELECT * FROM 'https://example.org/x.csv'
SELECT * FROM read_csv('/etc/passwd')
SELECT * FROM read_csv_auto('/etc/passwd')
SELECT * FROM read_text('/etc/passwd')
SELECT * FROM read_blob('/etc/*')
SELECT * FROM read_parquet('s3://x/y')
SELECT * FROM read_json('/etc/passwd')
SELECT * FROM glob('/*')
SELECT * FROM parquet_scan('x')
SELECT * FROM sqlite_scan('x', 'y')
SELECT * FROM query('DROP TABLE patients')
SELECT * FROM query_table('secrets')
SELECT * FROM generate_series(1, 1000000000000)
SELECT * FROM range(1000000000000)
SELECT * FROM dblink('dbname=x', 'select 1') AS t(a int)
SELECT * FROM xmltable('/' PASSING x COLUMNS a int)
SELECT * FROM json_each('[]')
SELECT * FROM pragma_table_info('patients')
SELECT * FROM LATERAL (SELECT * FROM secrets) AS x
SELECT * FROM patients, LATERAL read_text('/etc/passwd')
SELECT * FROM (SELECT * FROM secrets) AS x
SELECT (SELECT password FROM secrets) FROM patients
SELECT id FROM patients WHERE id IN (SELECT id FROM secrets)
SELECT id FROM patients WHERE EXISTS (SELECT 1 FROM secrets)
SELECT id FROM patients ORDER BY (SELECT password FROM secrets)
SELECT id FROM patients UNION SELECT password FROM secrets
SELECT id FROM patients JOIN secrets ON TRUE
WITH secrets AS (SELECT * FROM secrets) SELECT * FROM secrets
WITH x AS (SELECT 1 AS a) SELECT * FROM x, secrets
SELECT * FROM (WITH secrets AS (SELECT 1 AS a) SELECT a FROM secrets) AS x, secrets
WITH "SECRETS" AS (SELECT 1 AS a), y AS (SELECT 2 AS b) SELECT * FROM secrets, sec
VALUES (1)
TABLE secrets
DESCRIBE patients
SHOW TABLES
SUMMARIZE patients
SELECT pg_read_file('/etc/passwd')
SELECT pg_ls_dir('/')
SELECT pg_sleep(100)
SELECT lo_import('/etc/passwd')
SELECT lo_export(1, '/tmp/x')
SELECT set_config('transaction_read_only', 'off', false)
SELECT current_setting('data_directory')
SELECT query_to_xml('SELECT * FROM secrets', true, true, '')
SELECT table_to_xml('secrets', true, true, '')
SELECT dblink_exec('x', 'DROP TABLE patients')
SELECT nextval('x')
SELECT pg_terminate_backend(1)
SELECT pg_advisory_lock(1)
SELECT load_extension('/tmp/x.so')
SELECT readfile('/etc/passwd')
SELECT writefile('/tmp/x', 'y')
SELECT load_file('/etc/passwd')
SELECT sleep(100)
SELECT benchmark(1000000000, md5('x'))
SELECT getenv('HOME')
SELECT current_user
SELECT session_user
SELECT version()
SELECT current_database()
SELECT inet_server_addr()
SELECT random()
SELECT repeat('x', 1000000000)
SELECT lpad('x', 1000000000)
SELECT zeroblob(1000000000)
SELECT randomblob(1000000000)
SELECT error('x')
SELECT pg_catalog.pg_read_file('/etc/passwd')
SELECT secret.steal(id) FROM patients
SELECT 'secrets'::regclass
SELECT CAST('secrets' AS regclass)
SELECT CAST('<a/>' AS xml)
SELECT @@version
SELECT @x
SELECT $1
SELECT ?
SELECT {fn pg_sleep(1)}
SELECT xmin FROM patients
SELECT ctid FROM patients
SELECT rowid FROM patients
SELECT p.rowid FROM patients AS p
SELECT p.secret FROM patients AS p
SELECT x.secret FROM (SELECT id FROM patients) AS x
SELECT secret FROM patients
SELECT patients FROM patients
SELECT * FROM patients TABLESAMPLE SYSTEM (1)
SELECT id INTO OUTFILE '/tmp/x' FROM patients
SELECT id INTO DUMPFILE '/tmp/x' FROM patients
SELECT * FROM patients PROCEDURE ANALYSE()
SELECT * FROM OPENROWSET('x', 'y', 'z')
EXEC xp_cmdshell 'dir'
SELECT
FROM
)
'
"
$$
/*
""".strip().splitlines()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_does_more_or_reads_more_is_refused(dialect: str) -> None:
    taken = []
    for text in HOSTILE:
        try:
            check_statement(text, Known(dialect))
        except (BadQuery, UnknownData):
            continue
        taken.append(text)
    assert taken == []


def test_what_is_refused_is_named() -> None:
    for text, told in {
        "DROP TABLE patients": "A selection only reads",
        "SELECT 1; SELECT 2": "one statement",
        "SELECT pg_sleep(1)": "The function 'pg_sleep' may not be used",
        "SELECT * FROM patients FOR UPDATE": "may not have this",
        "SELECT 'x'::json": "The type 'JSON'",
        "SELECT * FROM patiens": "no table 'patiens' in the database. Did you mean 'patients'?",
        "SELECT p.agge FROM patients p": "no field 'agge' in the table 'patients'. Did you mean 'age'?",
        "SELECT agge FROM patients": "Did you mean 'age'?",
        "SELECT ((1)": "can't be read: Expecting )",
        f"SELECT {'1 + ' * MAX_STATEMENT}1": f"at most {MAX_STATEMENT:,} characters",
        f"SELECT {'(' * 4000}1{')' * 4000}": "nested too deeply",
        "SELECT '\0'": "no NUL",
    }.items():
        with pytest.raises(RunnelError) as caught:
            check_statement(text, Known("postgres"))
        assert told in str(caught.value), text


def test_names_are_those_that_the_engine_would_read() -> None:
    # A name in quotes is not the one that PostgreSQL reads without them: the table is secrets, not what WITH made.
    with pytest.raises(UnknownData, match="no table 'secrets'"):
        check_statement('WITH "SECRETS" AS (SELECT 1 AS a) SELECT * FROM SECRETS', Known("postgres"))
    statement = check_statement("SELECT Patients.ID FROM Patients", Known("postgres"))
    assert statement.tree.sql("postgres") == 'SELECT "patients"."id" FROM "patients" AS "patients"'
    statement = check_statement("SELECT v.id FROM study.visits v", Known("postgres"))
    assert statement.tree.sql("postgres") == 'SELECT "v"."id" FROM "study"."visits" AS "v"'


_WORDS = """
    SELECT FROM WHERE WITH AS ( ) , ; * ' " UNION JOIN ON IN EXISTS VALUES INTO x y 1 'a' = :: . -- /* */ $$
    patients labs secrets id age count read_text pg_read_file DELETE COPY ATTACH PRAGMA LATERAL LIMIT
"""
WORDS = st.sampled_from(_WORDS.split())


@settings(max_examples=300, deadline=None)
@given(st.lists(WORDS, max_size=14).map(lambda words: f"SELECT {' '.join(words)}"), st.sampled_from(DIALECTS))
def test_whatever_comes_is_read_or_refused(text: str, dialect: str) -> None:
    with contextlib.suppress(BadQuery, UnknownData):
        statement = check_statement(text, Known(dialect))
        assert statement.tables <= {"patients", "labs"}
        assert "secrets" not in {table.name for table in statement.tree.find_all(sqlglot.exp.Table)} - {
            each.alias for each in statement.tree.find_all(sqlglot.exp.CTE)
        }


# ---- the engines, if a statement had passed that should not have


@pytest.fixture
def files(tmp_path: Path) -> Iterator[FileTables]:
    (tmp_path / "patients.csv").write_text("id,age\n1,60\n")
    (tmp_path / "secrets.csv").write_text("password\nx\n")
    config = DatabaseConfig(name="d", kind=DatabaseKind.FOLDER, path=tmp_path, tables=("patients",))
    with contextlib.closing(FileTables(config)) as tables:
        yield tables


def run(tables: Tables, text: str, read: frozenset[str] = frozenset({"patients"})) -> list[Sequence[object]]:
    """Run a statement that nobody checked."""
    tables.names()
    tree = sqlglot.parse_one(text, dialect=tables.dialect)
    statement = Statement(tree=tree, tables=read)  # type: ignore[arg-type]
    with tables.answer(statement, Interruption()) as rows:
        return [row for batch in rows.batches for row in batch]


def test_an_engine_of_files_opens_nothing_else(files: FileTables, tmp_path: Path) -> None:
    assert run(files, "SELECT age FROM patients") == [(60,)]
    for text in (
        f"SELECT * FROM read_csv('{tmp_path / 'secrets.csv'}')",
        f"SELECT * FROM '{tmp_path / 'secrets.csv'}'",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM glob('/*')",
        "SELECT * FROM secrets",
        "SELECT * FROM read_csv('http://127.0.0.1:9/x.csv')",
        f"COPY (SELECT 1) TO '{tmp_path / 'out.csv'}'",
        f"COPY patients TO '{tmp_path / 'patients.csv'}'",
        f"ATTACH '{tmp_path / 'x.db'}' AS x",
        "SET enable_external_access = true",
        "SET lock_configuration = false",
        "SET allowed_directories = ['/']",
        "INSTALL httpfs",
    ):
        with pytest.raises(QueryFailed):
            run(files, text)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["patients.csv", "secrets.csv"]


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[ServerTables]:
    path = tmp_path / "site.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            'CREATE TABLE patients (id INTEGER, age REAL, sex TEXT, born DATE, "o:dd %" TEXT, raw BLOB);'
            "INSERT INTO patients VALUES (1, 60.5, 'f', '1960-01-02', 'a:b%', x'00ff'), (2, NULL, 'm', NULL, '', NULL);"
            "CREATE TABLE secrets (password TEXT);"
            "CREATE VIEW ages AS SELECT age FROM patients;"
            "CREATE VIEW stolen AS SELECT password FROM secrets;"
        )
    config = DatabaseConfig(
        name="d", kind=DatabaseKind.SQL, path=path, uri=f"sqlite:///{path}", tables=("patients", "ages")
    )
    with contextlib.closing(ServerTables(config)) as tables:
        yield tables


def test_sqlite_reads_allowed_tables_only(sqlite: ServerTables, tmp_path: Path) -> None:
    assert list(sqlite.names()) == ["ages", "patients"]
    assert [(each.name, each.type.value) for each in sqlite.fields("patients")] == [
        ("id", "integer"),
        ("age", "decimal"),
        ("sex", "text"),
        ("born", "text"),
        ("o:dd %", "text"),
        ("raw", "other"),
    ]
    assert run(sqlite, "SELECT age FROM ages", frozenset({"ages"})) == [(60.5,), (None,)]
    assert run(sqlite, 'SELECT "o:dd %" FROM patients WHERE "o:dd %" LIKE \'a:%\'') == [("a:b%",)]
    for text in (
        "SELECT * FROM secrets",
        "SELECT * FROM stolen",
        "SELECT * FROM sqlite_master",
        "SELECT * FROM pragma_table_info('patients')",
        "INSERT INTO patients (id) VALUES (3)",
        "DELETE FROM patients",
        "DROP TABLE patients",
        f"ATTACH '{tmp_path / 'x.db'}' AS x",
        "PRAGMA query_only = OFF",
        "SELECT load_extension('x')",
    ):
        with pytest.raises(QueryFailed):
            run(sqlite, text)
    assert len(run(sqlite, "SELECT id FROM patients")) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["site.sqlite"]


def test_what_an_engine_says_about_values_stays_here(files: FileTables, sqlite: ServerTables, tmp_path: Path) -> None:
    (tmp_path / "patients.csv").write_text("id,name\n1,Ada Secret\n")
    with pytest.raises(QueryFailed) as caught:
        run(files, "SELECT CAST(name AS INT) FROM patients")
    assert "ConversionException" in str(caught.value)
    assert "Ada" not in str(caught.value)
    assert "Ada" in str(caught.value.__cause__)


def test_a_database_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"no database at all, but long enough to be taken for one" * 100)
    with contextlib.closing(ServerTables(database_of("x", tmp_path / "x.db"))) as tables, pytest.raises(QueryFailed):
        tables.names()
    with pytest.raises(QueryFailed, match="is none of"):
        ServerTables(database_of("x", "foo://x"))


def test_the_languages_of_databases_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"")
    assert database_of("x", tmp_path / "x.bin").taken(0) == frozenset()
    assert database_of("x", tmp_path).kind is DatabaseKind.FOLDER
    assert database_of("x", "https://example.org/data").kind is DatabaseKind.URL
    assert database_of("x", "postgresql://db/x").taken(0) == {Language.SQL, Language.GRAPHQL}
    assert database_of("x", tmp_path / "a.db").where == tmp_path / "a.db"
    assert "secret" not in repr(database_of("x", "postgresql://u:secret@db/x"))


# ---- servers that no test has: what they would be asked is what SQLAlchemy's dialects take


@pytest.mark.parametrize("name", ["mssql", "oracle", "mysql", "postgresql", "sqlite"])
def test_filters_are_compiled_for_every_dialect(name: str) -> None:
    dialect = DIALECT_CLASSES[name]()
    (asked,) = read_query(
        '{ labs(sex: ["f", "m"], age: {contains: "x"}, order_by: "-id", limit: 5, offset: 2) { id } }'
    )
    statement = statement_of(asked, Known(SQLGLOT[name]))
    compiled = with_parameters(statement, SQLGLOT[name]).compile(dialect=dialect)
    assert compiled.params.keys() == statement.parameters.keys()
    text = str(compiled)
    assert "'f'" not in text
    assert sqlglot.parse_one(text.replace("%s", "?"), dialect=SQLGLOT[name]).find(sqlglot.exp.Table).name == "labs"  # type: ignore[union-attr]
    quoted = {"mssql": "[labs]", "mysql": "`labs`"}.get(name, '"labs"')
    assert quoted in text
    rows = {"mssql": "FETCH", "oracle": "FETCH"}.get(name, "LIMIT")
    assert rows in text
