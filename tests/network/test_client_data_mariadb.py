"""Selections from a real MariaDB server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runnel.client.data import DatabaseConfig, DatabaseKind, Interruption, SelectLimits, open_tables, selected
from runnel.client.data.tables import Statement
from runnel.common.errors import BadQuery, DeadlineExceeded, QueryFailed, RunnelError, TooLarge, UnknownData
from runnel.common.tasks import Language, Selection
from tests.doubles.database_site import DatabaseSite
from tests.eventually import eventually, eventually_blocking
from tests.mariadb import DATABASE, PASSWORD, USER, MariaDB, running_mariadb

pytestmark = [pytest.mark.network, pytest.mark.timeout(120)]

TABLES = """
CREATE TABLE patients (id BIGINT UNSIGNED, `Age` INT, weight DECIMAL(6, 2), ratio DOUBLE, sex VARCHAR(20), born DATE,
                       seen TIMESTAMP(3) NULL, noted DATETIME, at TIME, alive BOOLEAN, kind ENUM('a', 'b'),
                       raw VARBINARY(4), more JSON, `o:dd %s` TEXT) ENGINE=InnoDB;
INSERT INTO patients VALUES
 (18446744073709551615, 60, 70.50, 0.25, 'f', '1960-01-02', '2026-05-06 07:08:09.250', '2026-05-06 07:08:09',
  '07:08:09', true, 'a', x'00ff', '{"x": [1, null]}', 'a:b %s "q" \\\\');
INSERT INTO patients (id, sex) VALUES (2, 'm''s');
CREATE VIEW old AS SELECT id FROM patients WHERE `Age` > 50;
CREATE TABLE visits (id BIGINT, day DATE) ENGINE=InnoDB;
INSERT INTO visits SELECT seq, '2026-01-01' + INTERVAL seq DAY FROM seq_1_to_5000;
CREATE TABLE secrets (password TEXT) ENGINE=InnoDB;
INSERT INTO secrets VALUES ('hidden');
CREATE FUNCTION steal() RETURNS INT NOT DETERMINISTIC MODIFIES SQL DATA BEGIN DELETE FROM secrets; RETURN 1; END
"""


@pytest.fixture(scope="module")
def mariadb() -> Iterator[MariaDB]:
    with running_mariadb() as running:
        running.query("SET GLOBAL log_bin_trust_function_creators = 1")
        statements = TABLES.split(";\n")
        for statement in statements:
            # As who loads a dump would have it, whatever the server's own time and mode.
            running.query(
                f"SET STATEMENT time_zone = '+00:00', sql_mode = '' FOR {statement}" if _loads(statement) else statement
            )
        yield running


def _loads(statement: str) -> bool:
    return statement.strip().startswith("INSERT")


@pytest.fixture
def server(mariadb: MariaDB) -> DatabaseConfig:
    return DatabaseConfig(
        name="default",
        kind=DatabaseKind.SQL,
        uri=f"mysql://{USER}@127.0.0.1:{mariadb.port}/{DATABASE}",
        password=PASSWORD,
        tables=("patients", "old", "visits"),
        languages=frozenset({Language.GRAPHQL, Language.SQL}),
    )


@pytest.fixture
def graphql(tmp_path: Path, server: DatabaseConfig) -> DatabaseSite:
    return DatabaseSite(tmp_path, server, Language.GRAPHQL)


@pytest.fixture
def sql(tmp_path: Path, server: DatabaseConfig) -> DatabaseSite:
    return DatabaseSite(tmp_path, server, Language.SQL)


def test_every_type_of_a_server(graphql: DatabaseSite) -> None:
    rows = graphql.lines("{ patients { id Age weight ratio born seen noted at alive kind raw more o_dd__s } }")
    assert rows[1] == [
        "18446744073709551615",
        "60",
        "70.50",
        "0.25",
        "1960-01-02",
        "2026-05-06T07:08:09.250000",
        "2026-05-06T07:08:09",
        "07:08:09",
        "1",
        "a",
        "00ff",
        '{"x": [1, null]}',
        'a:b %s "q" \\',
    ]
    assert rows[2] == ["2", *[""] * 12]


def test_filters_of_a_server(graphql: DatabaseSite) -> None:
    for filters, found in {
        "Age: {ge: 60}": "f",
        "Age: {gt: 59.5}, weight: 70.5": "f",
        "id: {lt: 9000000000000000000}": "m's",
        'sex: "m\'s"': "m's",
        'sex: {contains: "\'"}': "m's",
        'born: "1960-01-02"': "f",
        'seen: {lt: "2026-05-06T07:30:00"}': "f",
        'seen: {lt: "2026-05-06T09:00:00+02:00"}': "",
        'at: {ge: "07:00:00"}': "f",
        "alive: 1": "f",
        "alive: null": "m's",
        'kind: "a"': "f",
        'o_dd__s: {contains: ":b %s"}': "f",
        'o_dd__s: {ends_with: "\\\\"}': "f",
        'sex: {starts_with: "%"}': "",
        'order_by: "-Age", limit: 1': "f",
        'order_by: "Age", limit: 1, offset: 1': "m's",
    }.items():
        rows = graphql.lines(f"{{ patients({filters}) {{ sex }} }}")
        assert [row[0] for row in rows[1:]] == [found][: bool(found)], filters


def test_tables_and_statements(graphql: DatabaseSite, sql: DatabaseSite) -> None:
    assert graphql.lines("{ visits(limit: 1) { day } }") == [["day"], ["2026-01-02"]]
    assert sql.lines("SELECT count(*) AS n FROM visits v JOIN patients p ON p.id = v.id") == [["n"], ["1"]]
    assert sql.lines("SELECT `Age` + 1 AS next FROM patients WHERE `o:dd %s` LIKE 'a:%'") == [["next"], ["61"]]
    # What a quote or a backslash means is not the server's setting's to say.
    assert sql.lines("SELECT \"it's\" AS a, 'x\\'y' AS b") == [["a", "b"], ["it's", "x'y"]]
    # What MariaDB would run of a comment it never sees.
    assert sql.lines("SELECT /*!50000 password FROM secrets -- */ 1 AS n") == [["n"], ["1"]]
    assert "There are old, patients, visits." in graphql.refuses(UnknownData, "{ secrets { password } }")
    for text in (
        "SELECT * FROM secrets",
        f"SELECT * FROM {DATABASE}.secrets",
        "SELECT * FROM mysql.user",
        "SELECT * FROM information_schema.tables",
        "SELECT * FROM patients UNION SELECT password, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1 FROM secrets",
    ):
        sql.refuses(UnknownData, text)
    for text in (
        "SELECT load_file('/etc/passwd')",
        "SELECT * FROM patients INTO OUTFILE '/tmp/x'",
        "SELECT steal()",
        "SELECT sleep(5)",
        "DELETE FROM visits",
        "SELECT 1; DELETE FROM visits",
        "SELECT @@datadir",
        "SELECT @x := 1",
    ):
        with pytest.raises(RunnelError) as caught:
            sql.lines(text)
        assert isinstance(caught.value, (BadQuery, QueryFailed, UnknownData)), text


def test_a_transaction_that_only_reads(server: DatabaseConfig, mariadb: MariaDB) -> None:
    import sqlglot

    for text in (
        "INSERT INTO secrets VALUES ('x')",
        "DELETE FROM secrets",
        "SELECT steal() AS n",
        "CREATE TABLE mine (a INT)",
        "TRUNCATE TABLE secrets",
    ):
        tree: Any = sqlglot.parse_one(text, dialect="mysql")
        with (
            contextlib.closing(open_tables(server)) as tables,
            pytest.raises(QueryFailed) as caught,
            tables.answer(Statement(tree=tree, tables=frozenset()), Interruption()) as rows,
        ):
            list(rows.batches)
        assert "SQLSTATE 25006" in str(caught.value), text
    assert mariadb.query("SELECT * FROM secrets") == [("hidden",)]


LONG = "SELECT count(*) AS n FROM visits a, visits b, visits c"


def test_a_statement_that_takes_too_long_is_ended_at_the_server(sql: DatabaseSite, mariadb: MariaDB) -> None:
    sql.refuses(DeadlineExceeded, LONG, limits=SelectLimits(time_s=0.5))
    eventually_blocking(lambda: _running(mariadb) == [])


async def test_a_statement_is_called_off(server: DatabaseConfig, mariadb: MariaDB, tmp_path: Path) -> None:
    task = asyncio.create_task(_select(Selection(query=LONG, language=Language.SQL), server, tmp_path))
    await eventually(lambda: len(_running(mariadb)) == 1, timeout_s=30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(lambda: _running(mariadb) == [])
    assert list(tmp_path.iterdir()) == []


async def _select(selection: Selection, database: DatabaseConfig, folder: Path) -> None:
    await selected([selection], {"default": database}, folder)


def test_what_is_too_much_is_not_read_to_its_end(sql: DatabaseSite, mariadb: MariaDB) -> None:
    """25 million rows: who reads on until they are all there takes far longer."""
    endless = "SELECT a.id AS a, b.id AS b FROM visits a, visits b"
    sql.refuses(TooLarge, endless, limits=SelectLimits(rows=10, time_s=15))
    eventually_blocking(lambda: _running(mariadb) == [])


def _running(mariadb: MariaDB) -> list[Any]:
    return list(
        mariadb.query(f"SELECT id FROM information_schema.processlist WHERE user = '{USER}' AND info LIKE 'SELECT%'")
    )


def test_what_a_server_says_about_values_is_not_passed_on(
    sql: DatabaseSite, server: DatabaseConfig, tmp_path: Path
) -> None:
    told = sql.refuses(QueryFailed, "SELECT exp(id) AS n FROM patients")  # too large a number, which MariaDB quotes
    assert "SQLSTATE 22003" in told
    assert "18446744073709551615" not in told
    wrong = DatabaseConfig(name="default", kind=DatabaseKind.SQL, uri=server.uri, password="wrong/secret")
    told = DatabaseSite(tmp_path, wrong, Language.GRAPHQL).refuses(QueryFailed, "{ patients { id } }")
    assert "can't answer: OperationalError" in told
    assert "wrong/secret" not in told
