"""Selections from a PostgreSQL server and from a SPARQL endpoint."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from runnel.client.data import DatabaseConfig, DatabaseKind, SelectLimits, open_tables, selected
from runnel.common.errors import (
    BadQuery,
    DeadlineExceeded,
    QueryFailed,
    TooLarge,
    UnknownData,
)
from runnel.common.tasks import Language, Selection
from tests.doubles.database_site import DatabaseSite
from tests.eventually import eventually, eventually_blocking
from tests.postgresql import PASSWORD, USER, Cluster

pytestmark = [pytest.mark.network, pytest.mark.timeout(120)]


TABLES = """
CREATE TABLE patients (id BIGINT, "Age" INTEGER, weight NUMERIC(6, 2), sex TEXT, born DATE, seen TIMESTAMPTZ,
                       alive BOOLEAN, tags TEXT[], more JSONB, key UUID, "o:dd %s" TEXT);
INSERT INTO patients VALUES
 (1, 60, 70.50, 'f', '1960-01-02', '2026-05-06 07:08:09+02', true, '{a,b}', '{"x": [1, null]}',
  '6fa459ea-ee8a-4ca4-894e-db77e160355e', 'a:b %s "q"'),
 (2, NULL, NULL, 'm''s', NULL, NULL, NULL, NULL, NULL, NULL, NULL);
CREATE VIEW old AS SELECT id FROM patients WHERE "Age" > 50;
CREATE TABLE secrets (password TEXT);
INSERT INTO secrets VALUES ('hidden');
CREATE FUNCTION steal() RETURNS TEXT LANGUAGE sql AS 'DELETE FROM secrets RETURNING password';
CREATE SCHEMA study;
CREATE TABLE study.visits (id BIGINT, day DATE);
INSERT INTO study.visits SELECT n, DATE '2026-01-01' + n::int FROM generate_series(1, 5000) AS n;
CREATE TABLE study.private (id BIGINT);
"""


@pytest.fixture(scope="module")
def server(cluster: Cluster) -> DatabaseConfig:
    name = cluster.new_database().rpartition("/")[2]
    for statement in TABLES.split(";\n"):
        if statement.strip():
            cluster.query(name, statement)
    return DatabaseConfig(
        name="default",
        kind=DatabaseKind.SQL,
        uri=f"postgresql://{USER}@127.0.0.1:{cluster.port}/{name}",
        password=PASSWORD,
        tables=("public.patients", "old", "study.visits"),
        languages=frozenset({Language.GRAPHQL, Language.SQL}),
    )


@pytest.fixture
def graphql(tmp_path: Path, server: DatabaseConfig) -> DatabaseSite:
    return DatabaseSite(tmp_path, server, Language.GRAPHQL)


@pytest.fixture
def sql(tmp_path: Path, server: DatabaseConfig) -> DatabaseSite:
    return DatabaseSite(tmp_path, server, Language.SQL)


def test_every_type_of_a_server(graphql: DatabaseSite) -> None:
    (rows,) = graphql.select("{ patients { id Age weight born seen alive tags more key o_dd__s } }")
    assert rows[1] == [
        "1",
        "60",
        "70.50",
        "1960-01-02",
        "2026-05-06T05:08:09+00:00",
        "true",
        '["a", "b"]',
        '{"x": [1, null]}',
        "6fa459ea-ee8a-4ca4-894e-db77e160355e",
        'a:b %s "q"',
    ]
    assert rows[2] == ["2", *[""] * 9]


def test_filters_of_a_server(graphql: DatabaseSite) -> None:
    for filters, ids in {
        "Age: {ge: 60}": "1",
        "Age: {gt: 59.5}, weight: 70.5": "1",
        "id: {lt: 9000000000000000000}": "12",
        'sex: "m\'s"': "2",
        'sex: {contains: "\'"}': "2",
        'born: "1960-01-02"': "1",
        'seen: {lt: "2026-05-06T06:00:00"}': "1",
        'seen: "2026-05-06T05:08:09+00:00"': "1",
        "alive: true": "1",
        "alive: null": "2",
        'key: "6fa459ea-ee8a-4ca4-894e-db77e160355e"': "1",
        'o_dd__s: {contains: ":b %s"}': "1",
        'o_dd__s: {starts_with: "\\\\"}': "",
        'order_by: "-id", limit: 1': "2",
    }.items():
        (rows,) = graphql.select(f"{{ patients({filters}) {{ id }} }}")
        assert [row[0] for row in rows[1:]] == list(ids), filters


def test_tables_of_schemas_and_views(graphql: DatabaseSite, sql: DatabaseSite) -> None:
    assert graphql.select("{ old { id } study_visits(limit: 1) { day } }") == [
        [["id"], ["1"]],
        [["day"], ["2026-01-02"]],
    ]
    assert sql.select("SELECT count(*) AS n FROM study.visits v JOIN public.patients p ON p.id = v.id") == [
        [["n"], ["2"]]
    ]
    assert sql.select('SELECT "Age" + 1 AS next FROM Patients WHERE "o:dd %s" LIKE \'a:%\'') == [[["next"], ["61"]]]
    told = graphql.refuses(UnknownData, "{ secrets { password } }")
    assert "There are old, patients, study.visits." in told
    for text in (
        "SELECT * FROM secrets",
        "SELECT * FROM study.private",
        "SELECT * FROM pg_catalog.pg_shadow",
        "SELECT * FROM information_schema.tables",
        "SELECT age FROM secrets, patients",
    ):
        sql.refuses(UnknownData, text)
    sql.refuses(BadQuery, "SELECT pg_read_file('/etc/passwd')")


def test_what_a_server_says_about_values_is_not_passed_on(sql: DatabaseSite) -> None:
    told = sql.refuses(QueryFailed, "SELECT CAST(sex AS INT) AS n FROM patients")
    assert "SQLSTATE 22P02" in told
    assert "'f'" not in told
    assert "does not take the query" in sql.refuses(QueryFailed, "SELECT sex + 1 AS n FROM patients")


def test_a_transaction_that_only_reads(server: DatabaseConfig) -> None:
    import sqlglot

    from runnel.client.data import Interruption
    from runnel.client.data.tables import Statement

    for text, told in {
        "INSERT INTO secrets VALUES ('x') RETURNING password": "syntax error",  # a cursor has SELECTs only
        "WITH gone AS (DELETE FROM secrets RETURNING password) SELECT * FROM gone": "SQLSTATE 0A000",
        "SELECT steal()": "SQLSTATE 25006",
    }.items():
        tree: Any = sqlglot.parse_one(text, dialect="postgres")
        with (
            contextlib.closing(open_tables(server)) as tables,
            pytest.raises(QueryFailed) as caught,
            tables.answer(Statement(tree=tree, tables=frozenset()), Interruption()) as rows,
        ):
            list(rows.batches)
        assert told in str(caught.value)


LONG = "SELECT count(*) AS n FROM study.visits a, study.visits b, study.visits c"


def test_a_statement_that_takes_too_long_is_ended_at_the_server(sql: DatabaseSite, cluster: Cluster) -> None:
    sql.refuses(DeadlineExceeded, LONG, limits=SelectLimits(time_s=0.5))
    eventually_blocking(lambda: _running(cluster) == [])


async def test_a_statement_is_called_off(server: DatabaseConfig, cluster: Cluster, tmp_path: Path) -> None:
    selection = Selection(query=LONG, language=Language.SQL)
    task = asyncio.create_task(_select(selection, server, tmp_path))
    await eventually(lambda: len(_running(cluster)) == 1, timeout_s=30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(lambda: _running(cluster) == [])
    assert list(tmp_path.iterdir()) == []


async def _select(selection: Selection, database: DatabaseConfig, folder: Path) -> None:
    await selected([selection], {"default": database}, folder)


def _running(cluster: Cluster) -> list[tuple[object, ...]]:
    return cluster.query(
        "postgres",
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'runnel' AND state = 'active'",
    )


def test_a_server_that_is_not_there(tmp_path: Path, server: DatabaseConfig, cluster: Cluster) -> None:
    wrong = DatabaseConfig(
        name="default",
        kind=DatabaseKind.SQL,
        uri=server.uri,
        password="wrong/secret",
        languages=frozenset({Language.GRAPHQL}),
    )
    told = DatabaseSite(tmp_path, wrong, Language.GRAPHQL).refuses(QueryFailed, "{ patients { id } }")
    assert "can't answer: OperationalError" in told
    assert "wrong/secret" not in told


# ---- SPARQL

RESULTS = {
    "head": {"vars": ["s", "n", "t"]},
    "results": {
        "bindings": [
            {
                "s": {"type": "uri", "value": "http://example.org/1"},
                "n": {
                    "type": "literal",
                    "datatype": "http://www.w3.org/2001/XMLSchema#decimal",
                    "value": "1.50",
                },
                "t": {"type": "literal", "xml:lang": "en", "value": 'a "q", b'},
            },
            {"s": {"type": "bnode", "value": "b0"}},
        ]
    },
}
Answer = Callable[[], tuple[int, str, bytes]]


class Endpoint:
    """A SPARQL endpoint on the loopback; ``asked`` has the queries and headers that came."""

    def __init__(self) -> None:
        self.answer: Answer = lambda: (200, "application/sparql-results+json", json.dumps(RESULTS).encode())
        self.asked: list[tuple[str, Mapping[str, str]]] = []
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                endpoint.asked.append((parse_qs(body)["query"][0], dict(self.headers)))
                status, kind, data = endpoint.answer()
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(data)))
                self.send_header("Location", "http://127.0.0.1:9/")
                self.end_headers()
                with contextlib.suppress(OSError):  # the client ended it
                    self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = False

    def config(self, **changes: Any) -> DatabaseConfig:
        port = self.server.server_address[1]
        told = {"uri": f"http://reader@127.0.0.1:{port}/sparql", "languages": frozenset({Language.SPARQL})}
        return DatabaseConfig(name="default", kind=DatabaseKind.SPARQL, **(told | changes))


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.05,))
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


QUERY = "SELECT ?s ?n ?t WHERE { ?s <http://example.org/n> ?n OPTIONAL { ?s <http://example.org/t> ?t } }"


def test_an_endpoint_answers(endpoint: Endpoint, tmp_path: Path) -> None:
    site = DatabaseSite(tmp_path, endpoint.config(password="pw", minimum_rows=2), Language.SPARQL)
    assert site.select(QUERY) == [
        [["s", "n", "t"], ["http://example.org/1", "1.50", 'a "q", b'], ["b0", "", ""]],
    ]
    query, headers = endpoint.asked[0]
    assert query == QUERY
    assert headers["Authorization"].startswith("Basic ")
    DatabaseSite(tmp_path, endpoint.config(token="t0ken"), Language.SPARQL).select(QUERY)
    assert endpoint.asked[1][1]["Authorization"] == "Bearer t0ken"


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("SELECT * WHERE { SERVICE <http://example.org/x> { ?s ?p ?o } }", "SERVICE"),
        ("SELECT * WHERE { { OPTIONAL { SERVICE SILENT ?x { ?s ?p ?o } } } UNION { ?a ?b ?c } }", "SERVICE"),
        ("SELECT * WHERE { ?s ?p ?o FILTER EXISTS { SERVICE <http://x> { ?s ?p ?o } } }", "SERVICE"),
        ("SELECT * WHERE { { SELECT * WHERE { SERVICE <http://x> { ?s ?p ?o } } } }", "SERVICE"),
        ("SELECT * FROM <http://example.org/x> WHERE { ?s ?p ?o }", "FROM"),
        ("SELECT * FROM NAMED <file:///etc/passwd> WHERE { ?s ?p ?o }", "FROM"),
        ("CONSTRUCT { ?s ?p ?o } WHERE { ?s ?p ?o }", "CONSTRUCT came"),
        ("ASK { ?s ?p ?o }", "ASK came"),
        ("DESCRIBE <http://example.org/x>", "DESCRIBE came"),
        ("INSERT DATA { <http://x> <http://y> 1 }", "can't be read"),
        ("DROP ALL", "can't be read"),
        ("LOAD <http://example.org/x>", "can't be read"),
        ("SELECT * WHERE { ?s ?p ?o }; DROP ALL", "can't be read"),
        ("SELECT", "can't be read"),
    ],
)
def test_an_endpoint_is_asked_selects_only(endpoint: Endpoint, tmp_path: Path, query: str, told: str) -> None:
    assert told in DatabaseSite(tmp_path, endpoint.config(), Language.SPARQL).refuses(BadQuery, query)
    assert endpoint.asked == []


def test_an_endpoint_that_answers_otherwise(endpoint: Endpoint, tmp_path: Path) -> None:
    site = DatabaseSite(tmp_path, endpoint.config(), Language.SPARQL)
    for status, kind, data, told in [
        (500, "text/plain", b"secret", "answered 500"),
        (302, "text/plain", b"", "answered 302"),
        (200, "text/html", b"<html>", "SPARQL results as JSON were expected"),
        (200, "application/json", b"[1]", "can't be read"),
        (200, "application/json", b"{", "can't be read"),
    ]:
        answer = (status, kind, data)
        endpoint.answer = lambda answer=answer: answer  # type: ignore[misc]
        said = site.refuses(QueryFailed, QUERY)
        assert told in said
        assert "secret" not in said
    endpoint.answer = lambda: (200, "application/json", b'{"head": {}, "boolean": true}')
    assert "can't be read" in site.refuses(QueryFailed, QUERY)
    endpoint.answer = lambda: (200, "application/sparql-results+json", json.dumps(RESULTS).encode())
    site.refuses(TooLarge, QUERY, limits=SelectLimits(bytes=30))


def test_an_endpoint_that_takes_too_long(endpoint: Endpoint, tmp_path: Path) -> None:
    released = threading.Event()

    def answer() -> tuple[int, str, bytes]:
        released.wait(30)
        return 200, "application/json", b""

    endpoint.answer = answer
    try:
        site = DatabaseSite(tmp_path, endpoint.config(), Language.SPARQL)
        site.refuses(DeadlineExceeded, QUERY, limits=SelectLimits(time_s=0.3))
    finally:
        released.set()
