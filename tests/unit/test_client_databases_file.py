"""The file of a site's databases, what its people see of them, and whether they hold what their dictionary says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runnel.cli.main import main
from runnel.client.app import site_data
from runnel.client.data import Constraints, DatabaseConfig, DatabaseKind, FieldType, read_databases
from runnel.client.data.validation import Finding, validate
from runnel.common.errors import BadSettings
from runnel.common.tasks import Language

pytestmark = pytest.mark.unit

EVERYTHING = """
[databases.default]
type = "folder"
path = "tables"
tables = ["patients"]
minimum_rows = 5
title = "Heart study"
description = "Patients of 2026"

[databases.default.dictionary.patients]
description = "one row for each"
fields = [
    {name = "id", type = "integer", constraints = {required = true, unique = true, minimum = 1}},
    {name = "sex", type = "text", label = "Sex", description = "as told", constraints = {one_of = ["f", "m"]}},
    {name = "born", type = "date", constraints = {maximum = "2026-01-01"}},
    {name = "code", type = "text", constraints = {pattern = "[A-Z][0-9]+", minimum_length = 2, maximum_length = 3}},
]

[databases.server]
type = "sql"
uri = "postgresql://reader@db.example.org/heart"
password_env = "HEART_PASSWORD"
tables = ["public.*", "study.visits"]

[databases.graph]
type = "sparql"
uri = "https://graph.example.org/sparql"
token_file = "token"

[databases.picture]
type = "file"
path = "tables/patients.csv"
"""

ENVIRON = {"HEART_PASSWORD": "s3cret/@"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "patients.csv").write_text("id,sex,born,code\n1,f,1990-01-02,A1\n")
    (tmp_path / "token").write_text("t0ken\n")
    (tmp_path / "databases.toml").write_text(EVERYTHING)
    return tmp_path


def read(folder: Path, text: str) -> dict[str, DatabaseConfig]:
    (folder / "databases.toml").write_text(text)
    return read_databases(folder / "databases.toml", ENVIRON)


def test_a_file_with_every_key(folder: Path) -> None:
    found = read(folder, EVERYTHING)
    default, server, graph = found["default"], found["server"], found["graph"]
    assert (default.kind, default.path, default.where) == (DatabaseKind.FOLDER, folder / "tables", folder / "tables")
    assert (default.minimum_rows, default.tables, default.title) == (5, ("patients",), "Heart study")
    assert default.taken(default.minimum_rows) == {Language.GRAPHQL}  # a statement could make many rows of one
    fields = {each.name: each for each in default.dictionary["patients"].fields}
    assert fields["id"].constraints == Constraints(required=True, unique=True, minimum=1)
    assert (fields["sex"].label, fields["sex"].type, fields["sex"].constraints.one_of) == (
        "Sex",
        FieldType.TEXT,
        ("f", "m"),
    )
    assert (server.password, server.where) == ("s3cret/@", "postgresql://reader@db.example.org/heart")
    assert server.taken(0) == {Language.GRAPHQL, Language.SQL}
    assert (server.allows("public.patients"), server.allows("study.secrets")) == (True, False)
    assert (graph.token, graph.password, set(graph.taken(0))) == ("t0ken", None, {Language.SPARQL})
    assert found["picture"].taken(0) == frozenset()
    assert "s3cret" not in repr(found)
    assert "t0ken" not in repr(found)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[database.x]", "database is no key. Did you mean databases?"),
        ("[databases.x]\npath = 'tables'", "databases.x.type is needed."),
        ("[databases.x]\ntype = 'excel'", 'databases.x.type = "excel" is wrong: it is one of csv, parquet, folder'),
        ("[databases.x]\ntype = 'folder'\npth = 'tables'", "databases.x.pth is no key. Did you mean path?"),
        ("[databases.x]\ntype = 'folder'\nuri = 'http://x'", "databases.x: a database of the type folder has a path"),
        ("[databases.x]\ntype = 'csv'", "a database of the type csv has a path"),
        ("[databases.x]\ntype = 'sparql'\npath = 'tables'", "a database of the type sparql has a uri"),
        ("[databases.x]\ntype = 'sparql'\nuri = 'ftp://x'", "begins with http:// or https://"),
        ("[databases.x]\ntype = 'sql'\nuri = 'postgresql://u:pw@h/d'", "the uri has a password"),
        ("[databases.x]\ntype = 'sql'\nuri = 'nowhere'", "uri is an address"),
        ("[databases.x]\ntype = 'folder'\npath = 'tables'\npassword_env = 'A'", "password_env is for a sql or sparql"),
        (
            "[databases.x]\ntype = 'folder'\npath = 'tables'\nminimum_rows = -1",
            "minimum_rows = -1 is wrong",
        ),
        ("[databases.x]\ntype = 'folder'\npath = 'tables'\nminimum_rows = '5'", "should be a valid integer"),
        ("[databases.x]\ntype = 'folder'\npath = 'tables'\nlanguages = ['sparql']", "its languages are graphql, sql"),
        ("[databases.x]\ntype = 'folder'\npath = 'gone'", "there is no such folder"),
        ("[databases.x]\ntype = 'csv'\npath = 'gone.csv'", "there is no such file"),
        ("[databases.'a b']\ntype = 'folder'\npath = 'tables'", "the name 'a b' is to have"),
        ("[databases.x]\ntype = 'sql'\nuri = 'postgresql://h/d'\npassword_env = 'NONE'", "variable NONE, which is not"),
        ("[databases.x]\ntype = 'sql'\nuri = 'postgresql://h/d'\npassword_file = 'none'", "which can't be read"),
        (
            "[databases.x]\ntype = 'folder'\npath = 'tables'\n[[databases.x.dictionary.t.fields]]\nnme = 'a'",
            "databases.x.dictionary.t.fields.0.nme is no key. Did you mean name?",
        ),
        (
            "[databases.x]\ntype = 'folder'\npath = 'tables'\n[[databases.x.dictionary.t.fields]]\nname = 'a'\n"
            "type = 'text'\nconstraints = {pattern = '('}",
            "it is no regular expression",
        ),
        ("[databases", "is not TOML"),
    ],
)
def test_a_file_that_is_wrong_names_key_and_what_was_expected(folder: Path, text: str, told: str) -> None:
    with pytest.raises(BadSettings) as caught:
        read(folder, text)
    assert told in str(caught.value)
    assert "pw" not in str(caught.value)


def test_databases_of_the_command_line_and_of_the_file(folder: Path) -> None:
    file = folder / "databases.toml"
    assert sorted(site_data({"more": str(folder)}, file, ENVIRON)) == ["default", "graph", "more", "picture", "server"]
    with pytest.raises(BadSettings, match="The databases default are in"):
        site_data({"default": str(folder)}, file, ENVIRON)


ROWS = """id,sex,code,extra
1,f,A1,x
1,x,a1,x
,m,A,x
two,,A123,x
0,f,A2,x
"""


def test_what_is_wrong_with_a_table_is_told_by_field_and_row(folder: Path) -> None:
    (folder / "tables" / "patients.csv").write_text(ROWS)
    found = validate(read(folder, EVERYTHING)["default"])
    assert [(each.field, each.finding, each.rows, each.first) for each in found] == [
        ("born", Finding.MISSING_FIELD, 0, 0),
        ("extra", Finding.UNEXPECTED_FIELD, 0, 0),
        ("id", Finding.NOT_UNIQUE, 1, 2),
        ("id", Finding.EMPTY, 1, 3),
        ("id", Finding.WRONG_TYPE, 1, 4),
        ("id", Finding.TOO_SMALL, 1, 5),
        ("sex", Finding.NOT_ONE_OF, 1, 2),
        ("code", Finding.NO_MATCH, 2, 2),
        ("code", Finding.TOO_SHORT, 1, 3),
        ("code", Finding.TOO_LONG, 1, 4),
    ]


def test_tables_that_are_not_there_or_can_not_be_read(folder: Path) -> None:
    config = read(folder, EVERYTHING)["default"]
    assert validate(config) == []
    (folder / "tables" / "patients.csv").write_bytes(b"id,sex\n1,\xff\n")
    (problem,) = validate(config)
    assert (problem.finding, "utf-8" in problem.detail) == (Finding.UNREADABLE, True)
    (folder / "tables" / "patients.csv").unlink()
    assert [each.finding for each in validate(config)] == [Finding.MISSING_TABLE]
    (folder / "tables" / "patients.csv").write_text("id,sex,born,code\n1,f,2026-05-06,A1\n2,f,6.5.2026,A1\n")
    assert [(each.field, each.finding) for each in validate(config)] == [
        ("born", Finding.TOO_LARGE),
        ("born", Finding.WRONG_TYPE),
    ]


# ---- the commands


def runnel(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    status = main(["client", "data", *arguments])
    captured = capsys.readouterr()
    return status, captured.out + captured.err


def test_the_commands_of_the_people_of_a_site(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (folder / "databases.toml").write_text(EVERYTHING.split("[databases.server]")[0].replace("= 5", "= 1"))
    site = ("--databases", str(folder / "databases.toml"))
    status, said = runnel(capsys, "list", *site)
    assert status == 0
    assert "default folder no graphql 1 patients" in " ".join(said.split())
    status, said = runnel(capsys, "show", *site, "--json")
    assert json.loads(said)["tables"]["patients"][2] == {"name": "born", "type": "date", "native": "DATE"}
    assert "Sex. as told" in runnel(capsys, "show", "default", *site)[1]
    assert runnel(capsys, "check", *site) == (0, "Nothing is wrong with default.\n")
    status, said = runnel(capsys, "try", "{ patients { id sex } }", *site, "--output", str(folder / "out"))
    assert (status, "patients.csv: 1 rows, 13 B" in said) == (0, True)
    assert (folder / "out" / "patients.csv").read_text() == "id,sex\n1,f\n"
    status, said = runnel(capsys, "try", "{ patients(limit: 0) { id } }", *site, "--json")
    assert (status, json.loads(said)["error"]["code"]) == (1, "too_few_rows")
    (folder / "tables" / "patients.csv").write_text(ROWS)
    status, said = runnel(capsys, "check", *site)
    assert status == 1
    assert "not one of" in said
    status, said = runnel(capsys, "try", "SELECT 1", "--data", str(folder / "tables"), "--language", "english")
    assert (status, "expected was graphql, sql or sparql" in said) == (1, True)
    assert "There are no databases" in runnel(capsys, "list")[1]
