"""What selections write: one CSV file for each table, exactly what was asked for, or nothing."""

from __future__ import annotations

import csv
import datetime as dt
import gzip
import re
import threading
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runnel.client.data import (
    DatabaseConfig,
    DatabaseKind,
    FieldEntry,
    FieldType,
    Interruption,
    Selected,
    SelectLimits,
    SiteSelector,
    TableEntry,
    database_of,
    select,
)
from runnel.client.data.csv_files import CsvLimits, write_csv
from runnel.client.data.queries import OPERATORS
from runnel.common.errors import (
    BadQuery,
    Cancelled,
    DeadlineExceeded,
    PolicyRefused,
    QueryFailed,
    RunnelError,
    TooFewRows,
    TooLarge,
    UnknownData,
)
from runnel.common.tasks import Language, Selection

pytestmark = pytest.mark.unit

PATIENTS = (
    "id,age,sex,born,zip,name\n"
    '1,60,f,1960-01-02,007,"O\'Hara, ""Pat"""\n'
    '2,61,m,1961-01-02,010,"two\nlines"\n'
    "3,,f,,,100%\n"
)


class Site:
    """A site with a folder of tables."""

    def __init__(self, folder: Path) -> None:
        self.tables = folder / "tables"
        self.tables.mkdir()
        (self.tables / "patients.csv").write_text(PATIENTS)
        (self.tables / "labs.csv").write_text("id,value\n1,2.5\n")
        (self.tables / "none.csv").write_text("a,b\n")
        self.databases = {"default": database_of("default", self.tables)}
        self.input = folder / "input"
        self.input.mkdir()

    def select(self, *queries: str, language: Language = Language.GRAPHQL, **options: Any) -> list[Selected]:
        selections = [Selection(query=each, language=language) for each in queries]
        return list(select(selections, self.databases, self.input, **options))

    def read(self, query: str, **options: Any) -> list[list[str]]:
        """Select one table and return what the csv module reads from its file, header first."""
        (found,) = self.select(query, **options)
        with found.path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file, strict=True))
        assert (len(rows) - 1, tuple(rows[0])) == (found.rows, found.fields)
        assert found.size_bytes == found.path.stat().st_size
        found.path.unlink()
        return rows

    def refuses(self, kind: type[RunnelError], query: str, **options: Any) -> str:
        with pytest.raises(kind) as caught:
            self.select(query, **options)
        assert list(self.input.iterdir()) == []
        return str(caught.value)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


# ---- forms of a query


@pytest.mark.parametrize(
    "query",
    [
        "{ patients { id sex } }",
        "{patients{id,sex}}",
        "patients { id sex }",
        "patients { id, sex, }",
        "query { patients { id sex } }",
        "query Mine { patients { id sex } }",
        "\ufeff{ patients {\n  id # who\n  sex\n} }\n",
    ],
)
def test_every_way_to_write_a_query(site: Site, query: str) -> None:
    (found,) = site.select(query)
    assert found.path == site.input / "patients.csv"
    assert found.path.read_bytes() == b"id,sex\r\n1,f\r\n2,m\r\n3,f\r\n"


def test_several_tables_fill_several_files(site: Site) -> None:
    found = site.select("{ patients { id } labs { value id } }", "{ old: patients(age: {ge: 61}) { id years: age } }")
    assert [(each.name, each.rows, each.fields) for each in found] == [
        ("patients", 3, ("id",)),
        ("labs", 1, ("value", "id")),
        ("old", 1, ("id", "years")),
    ]
    assert sorted(path.name for path in site.input.iterdir()) == ["labs.csv", "old.csv", "patients.csv"]


def test_text_is_quoted_and_a_header_is_there_without_rows(site: Site) -> None:
    assert site.read("{ patients { name zip } }") == [
        ["name", "zip"],
        ['O\'Hara, "Pat"', "007"],
        ["two\nlines", "010"],
        ["100%", ""],
    ]
    site.select("{ none { b a } }")
    assert (site.input / "none.csv").read_bytes() == b"b,a\r\n"


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        ('sex: "f"', "13"),
        ('sex: ["f", "m"], age: {ne: 60}', "2"),
        ("age: 60.0", "1"),
        ("age: null", "3"),
        ("where: {age: {ne: null}}", "12"),
        ("where: {age: {gt: 59, lt: 61}}", "1"),
        ("age: {gte: 60, lte: 60.5}", "1"),
        ('born: {gt: "1960-01-02"}', "2"),
        ('name: {contains: "%"}', "3"),
        ('name: {contains: "_"}', ""),
        ('name: {starts_with: "O\'H"}', "1"),
        ('name: {ends_with: "lines"}', "2"),
        ('sex: "f\' OR 1=1 --"', ""),
        ('where: {or: [{sex: "m"}, {age: {is_null: true}}]}', "23"),
        ('where: {not: {sex: "m"}}', "13"),
        ('where: {and: [{sex: "f"}, {not: {age: null}}]}', "1"),
        ('sex: {not_in: ["m"]}', "13"),
        ("sex: {in: []}", ""),
        ('order_by: "-id", limit: 2', "32"),
        ('order_by: ["sex", "-id"], offset: 1', "12"),
        ("order_by: age", "123"),
        ("limit: 0", ""),
        ("where: {}", "123"),
    ],
)
def test_filters(site: Site, filters: str, ids: str) -> None:
    assert [row[0] for row in site.read(f"{{ patients({filters}) {{ id }} }}")[1:]] == list(ids)


@pytest.mark.parametrize(
    ("query", "kind", "told"),
    [
        ("{ patiens { id } }", UnknownData, "no table 'patiens' in the database. Did you mean 'patients'?"),
        ("{ patients { idd } }", UnknownData, "no field 'idd' in the table 'patients'. Did you mean 'id'?"),
        ("{ patients(shoe: 3) { id } }", UnknownData, "There are age, born, id, name, sex, zip."),
        ("{ patients(age: {over: 3}) { id } }", UnknownData, "no operator 'over' in filters of 'age'"),
        ('{ patients(age: "old") { id } }', BadQuery, "'age' is compared with \"old\"; it holds integer values"),
        ('{ patients(born: "May") { id } }', BadQuery, 'it holds date values, such as "2026-05-06"'),
        ("{ patients(age: true) { id } }", BadQuery, "compared with true"),
        ("{ patients(age: 1e400) { id } }", BadQuery, "'age' is compared with"),
        ('{ patients(age: {contains: "6"}) { id } }', BadQuery, "only text is searched for text"),
        ("{ patients { id ", BadQuery, "found <EOF> at line 1"),
        ("{ patients(limit: -1) { id } }", BadQuery, "limit is a number of rows"),
        ("{ patients(sex: {eq: [1]}) { id } }", BadQuery, "no text, number, true, false or null"),
        ('{ patients(sex: "a\\u0000b") { id } }', BadQuery, "has a NUL"),
        ("{ patients(where: 3) { id } }", BadQuery, "A filter is an object"),
        ("{ patients }", BadQuery, "does not say which fields of 'patients' it wants"),
        ("{ patients { id { x } } }", BadQuery, "plain fields only; 'id' is more"),
        ("{ patients { id id } }", BadQuery, "'id' is there twice"),
        ("{ patients(limit: 1, limit: 2) { id } }", BadQuery, "'limit' is there twice"),
        ("{ ...f }", BadQuery, "no fragments"),
        ("{ patients @skip(if: true) { id } }", BadQuery, "has a directive"),
        ("query($x: Int) { patients { id } }", BadQuery, "neither variables nor directives"),
        ("{ patients { id } } { labs { id } }", BadQuery, "one query; 2 definitions came"),
        ("{ patients { id", BadQuery, "can't be read: Syntax Error: Expected Name, found <EOF>"),
        ("{ a: patients { id } A: labs { id } }", BadQuery, "Two tables of the query would both fill A.csv"),
        ("{ a(where: " + "{not: " * 900 + "{}" + "}" * 900 + ") { id } }", BadQuery, "nested too deeply"),
        ("{" * 5000, BadQuery, "can't be read"),
        (" ", BadQuery, "names no table"),
    ],
)
def test_what_is_wrong_is_named(site: Site, query: str, kind: type[RunnelError], told: str) -> None:
    assert told in site.refuses(kind, query.replace("{ a(", "{ patients("))


def test_the_name_of_an_unknown_database(site: Site) -> None:
    with pytest.raises(UnknownData, match=r"no database 'defualt'\. Did you mean 'default'"):
        select([Selection(query="{ a { b } }", database="defualt")], site.databases, site.input)


def test_the_operators_that_the_documentation_has() -> None:
    text = (Path(__file__).parents[2] / "docs" / "data-provider.md").read_text()
    listed = text.partition("<!-- operators -->")[2].partition(".")[0]
    assert re.findall(r"`(\w+)`", listed) == list(OPERATORS)
    assert (SelectLimits().time_s, SelectLimits().rows, SelectLimits().bytes) == (600, 10_000_000, 4 << 30)
    assert "may take ten minutes, and give 10,000,000 rows a table and 4 GiB" in text


# ---- what is not given


def test_fewer_rows_than_the_site_gives_out(site: Site) -> None:
    config = DatabaseConfig(
        name="default",
        kind=DatabaseKind.FOLDER,
        path=site.tables,
        minimum_rows=3,
        languages=frozenset({Language.GRAPHQL}),
    )
    site.databases = {"default": config}
    assert len(site.read("{ patients { id } }")) == 4
    for query in ("{ patients { id } labs { id } }", "{ none { a } }", "{ patients(limit: 2) { id } }"):
        told = site.refuses(TooFewRows, query)
        assert "At least 3 are needed" in told
        assert not {"0", "1", "2"} & set(told)
    assert "takes no selections in sql. It takes graphql." in site.refuses(
        PolicyRefused, "SELECT * FROM patients", language=Language.SQL
    )


async def test_the_policy_may_want_more_rows_than_a_database(site: Site) -> None:
    selector = SiteSelector(site.databases)
    await selector([Selection(query="{ patients { id } }")], site.input, minimum_rows=3)
    (site.input / "patients.csv").unlink()
    with pytest.raises(TooFewRows, match="At least 4"):
        await selector([Selection(query="{ patients { id } }")], site.input, minimum_rows=4)
    many = "SELECT p.id FROM patients p, patients q"
    with pytest.raises(PolicyRefused, match="no selections in sql"):
        await selector([Selection(query=many, language=Language.SQL)], site.input, minimum_rows=4)
    await selector([Selection(query=many, language=Language.SQL)], site.input, minimum_rows=0)
    assert [path.name for path in site.input.iterdir()] == ["default.csv"]


def test_tables_that_are_not_allowed_are_not_there(site: Site) -> None:
    config = DatabaseConfig(
        name="default",
        kind=DatabaseKind.FOLDER,
        path=site.tables,
        tables=("pat*",),
        languages=frozenset({Language.GRAPHQL, Language.SQL}),
    )
    site.databases = {"default": config}
    assert "There are patients." in site.refuses(UnknownData, "{ xyz { id } }")
    site.refuses(UnknownData, "{ labs { id } }")
    site.refuses(UnknownData, "SELECT * FROM labs", language=Language.SQL)


def test_more_than_the_limits(site: Site) -> None:
    assert "more than 2 rows" in site.refuses(TooLarge, "{ labs { id } patients { id } }", limits=SelectLimits(rows=2))
    assert "more than 11 bytes" in site.refuses(TooLarge, "{ patients { id } }", limits=SelectLimits(bytes=11))
    site.refuses(TooLarge, "{ patients { id } labs { id } }", limits=SelectLimits(bytes=14))
    site.refuses(TooLarge, "{ patients { id } labs { id } }", limits=SelectLimits(files=1))


LONG = "SELECT count(*) FROM " + ", ".join(f"patients AS p{number}" for number in range(30))


def test_a_query_that_takes_too_long_is_ended(site: Site) -> None:
    told = site.refuses(DeadlineExceeded, LONG, language=Language.SQL, limits=SelectLimits(time_s=0.2))
    assert "longer than 0.2 s" in told


def test_a_query_is_called_off_from_another_thread(site: Site) -> None:
    interruption = Interruption()
    timer = threading.Timer(0.2, interruption.cancel)
    timer.start()
    try:
        site.refuses(Cancelled, LONG, language=Language.SQL, interruption=interruption)
        site.refuses(Cancelled, "{ labs { id } }", interruption=interruption)
    finally:
        timer.join()


# ---- files


def test_types_are_those_that_all_values_have(site: Site) -> None:
    rows = "".join(f"{number},{number},2020-01-{number % 9 + 1:02},1\n" for number in range(30_000))
    (site.tables / "late.csv").write_text(f"n,mixed,day,us\n{rows}9,x,2020-02-30,01/02/2026\n")
    assert site.read("{ late(n: {ge: 29999}) { n mixed day us } }")[1:] == [["29999", "29999", "2020-01-03", "1"]]
    assert site.read('{ late(mixed: "x") { us day } }')[1:] == [["01/02/2026", "2020-02-30"]]


def test_the_dictionary_says_what_a_field_is(site: Site) -> None:
    (site.tables / "codes.csv").write_text("code,flag\n12,true\n13,false\n")
    entry = TableEntry(
        fields=(
            FieldEntry(name="code", type=FieldType.TEXT),
            FieldEntry(name="flag", type=FieldType.BOOLEAN),
            FieldEntry(name="missing", type=FieldType.DATE),
        )
    )
    config = DatabaseConfig(
        name="default",
        kind=DatabaseKind.FOLDER,
        path=site.tables,
        dictionary={"codes": entry},
        languages=frozenset({Language.GRAPHQL}),
    )
    assert site.read("{ codes(code: {gt: 12}) { code } }") == [["code"], ["13"]]
    site.databases = {"default": config}
    assert site.read('{ codes(code: {starts_with: "1"}, flag: true) { code flag } }')[1:] == [["12", "true"]]


def test_parquet_with_every_type(site: Site) -> None:
    with duckdb.connect() as engine:
        engine.execute(
            "COPY (SELECT 1::TINYINT AS small, 1234567890123456789::BIGINT AS huge, 0.1::DOUBLE AS part,"
            " 1.50::DECIMAL(6, 2) AS exact, TRUE AS yes, DATE '2026-05-06' AS day,"
            " TIMESTAMP '2026-05-06 07:08:09.5' AS moment, TIME '07:08:09' AS clock, 'a\xff'::BLOB AS raw,"
            " [1, 2] AS listed, {'a': 1, 'b': NULL} AS record, NULL::INTEGER AS nothing, '' AS empty,"
            " 'é, \"q\"' AS word, INTERVAL 90 SECOND AS span,"
            " '6fa459ea-ee8a-4ca4-894e-db77e160355e'::UUID AS id)"
            f" TO '{site.tables / 'all.parquet'}' (FORMAT parquet)".replace("\xff", "")
        )
    fields = "small huge part exact yes day moment clock raw listed record nothing empty word span id"
    assert dict(zip(fields.split(), site.read(f"{{ all {{ {fields} }} }}")[1], strict=True)) == {
        "small": "1",
        "huge": "1234567890123456789",
        "part": "0.1",
        "exact": "1.50",
        "yes": "true",
        "day": "2026-05-06",
        "moment": "2026-05-06T07:08:09.500000",
        "clock": "07:08:09",
        "raw": "61",
        "listed": "[1, 2]",
        "record": '{"a": 1, "b": null}',
        "nothing": "",
        "empty": "",
        "word": 'é, "q"',
        "span": "90.0",
        "id": "6fa459ea-ee8a-4ca4-894e-db77e160355e",
    }
    assert len(site.read('{ all(yes: true, moment: {lt: "2026-05-07"}, clock: {gt: "07:00:00"}) { small } }')) == 2
    assert len(site.read('{ all(id: "6fa459ea-ee8a-4ca4-894e-db77e160355e", exact: 1.5) { small } }')) == 2


@pytest.mark.parametrize(
    ("data", "told"),
    [(b"", "can't be answered"), (b"a,b\n\xff,1\n", "can't be answered"), (b"a,b\n1\n1,2,3\n", "can't be answered")],
)
def test_a_file_that_is_no_csv(site: Site, data: bytes, told: str) -> None:
    (site.tables / "bad.csv").write_bytes(data)
    assert told in site.refuses(QueryFailed, "{ bad { a } }")


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_other_delimiters_and_compressed_files(site: Site, delimiter: str) -> None:
    text = f'a{delimiter}"b,;c"\n1{delimiter}"x\ty|z"\n'
    with gzip.open(site.tables / "more.csv.gz", "wt", encoding="utf-8-sig") as file:
        file.write(text)
    assert site.read("{ more { a b__c } }") == [["a", "b__c"], ["1", "x\ty|z"]]


def test_names_that_a_query_can_not_write(site: Site, tmp_path: Path) -> None:
    (site.tables / "body-mass.2026.csv").write_text("body mass,a-b,a.b\n70,1,2\n")
    assert site.read("{ body_mass_2026 { body_mass } }") == [["body_mass"], ["70"]]
    assert "no field 'a_b'" in site.refuses(UnknownData, "{ body_mass_2026 { a_b } }")
    assert site.read('SELECT "a-b" FROM "body-mass.2026"', language=Language.SQL) == [["a-b"], ["1"]]
    (site.tables / "many*.csv").write_text("a\n1\n")
    site.refuses(UnknownData, "{ many_ { a } }")


def test_one_file_is_one_table(site: Site) -> None:
    site.databases = {"default": database_of("default", site.tables / "labs.csv")}
    assert site.read("{ labs { value } }") == [["value"], ["2.5"]]
    site.refuses(UnknownData, "{ patients { id } }")


# ---- CSV


CELLS = st.one_of(
    st.none(),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    st.integers(),
    st.floats(allow_nan=False),
    st.booleans(),
    st.dates(),
    st.datetimes(),
    st.decimals(allow_nan=False, allow_infinity=False, places=3),
)


def text_of(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, (dt.date, dt.datetime)):
        return value.isoformat()
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4).flatmap(lambda width: st.lists(st.lists(CELLS, min_size=width, max_size=width), min_size=1)))
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, rows: list[list[object]]) -> None:
    path = tmp_path_factory.mktemp("csv") / "table.csv"
    fields = [f"f{number}" for number in range(len(rows[0]))]
    count, size = write_csv(path, fields, iter([rows[:2], rows[2:]]), CsvLimits(rows=1000, bytes=1 << 20))
    assert (count, size) == (len(rows), path.stat().st_size)
    with path.open(newline="", encoding="utf-8") as file:
        read = list(csv.reader(file, strict=True))
    assert read == [fields, *([text_of(value) for value in row] for row in rows)]
