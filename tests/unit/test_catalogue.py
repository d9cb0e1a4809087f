"""What a site tells of its data: only what it publishes, and nothing that would harm who reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runnel.client.data import catalogue_of, read_databases
from runnel.client.data.validation import Finding, validate
from runnel.common.catalogue import MAX_CATALOGUE_BYTES, Catalogue, read_catalogue
from runnel.common.errors import BadSettings, InvalidInput

pytestmark = pytest.mark.unit

PUBLISHED = """
[databases.heart]
type = "folder"
path = "tables"
publish = true
tables = ["patients"]
minimum_rows = 7
title = "Heart study"
creator = "Ada"
contact = "data@example.org"
license = "CC-BY-4.0"
version = "2026-11"

[databases.heart.lookups.sex]
f = "female"
m = "male"

[databases.heart.dictionary.patients]
description = "one row for each"
fields = [
    {name = "age", type = "integer", label = "Age", constraints = {minimum = 0, required = true}},
    {name = "sex", type = "text", description = "as told", lookup = "sex"},
]

[databases.heart.dictionary.secret_visits]
fields = [{name = "day", type = "date"}]

[databases.own]
type = "sql"
uri = "postgresql://reader@db.example.org/own"
password_env = "OWN_PASSWORD"
title = "Nobody is to know"
"""
ENVIRON = {"OWN_PASSWORD": "s3cret/@"}


def databases(folder: Path, text: str = PUBLISHED) -> dict[str, Any]:
    (folder / "tables").mkdir(exist_ok=True)
    (folder / "tables" / "patients.csv").write_text("age,sex\n61,f\n62,x\n")
    (folder / "databases.toml").write_text(text)
    return read_databases(folder / "databases.toml", ENVIRON)


def test_what_is_published_is_what_the_file_says_and_nothing_else(tmp_path: Path) -> None:
    catalogue = catalogue_of(databases(tmp_path).values())
    assert json.loads(catalogue.as_json()) == {
        "datasets": [
            {
                "id": "heart",
                "title": "Heart study",
                "creator": "Ada",
                "contact": "data@example.org",
                "license": "CC-BY-4.0",
                "version": "2026-11",
                "tables": [
                    {
                        "name": "patients",
                        "description": "one row for each",
                        "fields": [
                            {
                                "name": "age",
                                "type": "integer",
                                "label": "Age",
                                "constraints": {"required": True, "minimum": 0.0},
                            },
                            {"name": "sex", "type": "text", "description": "as told", "lookup": "sex"},
                        ],
                    }
                ],
                "lookups": {"sex": {"f": "female", "m": "male"}},
            }
        ]
    }
    for never in (str(tmp_path), "db.example.org", "s3cret", "Nobody", "secret_visits", "7"):
        assert never not in catalogue.as_json().replace("2026-11", "")
    assert read_catalogue(catalogue.as_json(), source="site-1") == catalogue


def test_nothing_is_published_by_default(tmp_path: Path) -> None:
    assert catalogue_of(databases(tmp_path, PUBLISHED.replace("publish = true", "")).values()) == Catalogue()


def test_the_dictionary_that_is_published_is_the_one_that_data_are_checked_against(tmp_path: Path) -> None:
    database = databases(tmp_path)["heart"]
    told = catalogue_of([database]).datasets[0]
    found = [each for each in validate(database) if each.table == "patients"]
    assert [(each.field, each.finding, each.rows, each.first) for each in found] == [("sex", Finding.NOT_ONE_OF, 1, 2)]
    (tmp_path / "tables" / "patients.csv").write_text("sex,more\nf,1\n")
    found = [each for each in validate(database) if each.table == "patients"]
    assert {(each.field, each.finding) for each in found} == {
        ("age", Finding.MISSING_FIELD),
        ("more", Finding.UNEXPECTED_FIELD),
    }
    assert [each.name for each in told.tables[0].fields] == ["age", "sex"]


def test_a_catalogue_that_is_too_large_or_no_plain_text_ends_the_start(tmp_path: Path) -> None:
    long = PUBLISHED.replace("one row for each", "x" * 9_000)
    many = "".join(f'[databases.heart.dictionary.patients{n}]\ndescription = "{"y" * 9_000}"\n' for n in range(40))
    with pytest.raises(BadSettings, match=f"at most {MAX_CATALOGUE_BYTES:,} may be told"):
        catalogue_of(databases(tmp_path, long.replace('tables = ["patients"]', "") + many).values())
    with pytest.raises(BadSettings, match=r"datasets\.0\.title.*printable"):
        catalogue_of(databases(tmp_path, PUBLISHED.replace("Heart study", "Heart\\u202estudy")).values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('lookup = "six"', "names the lookup six; there is sex"),
        ('lookup = "sex", constraints = {one_of = ["f"]}', "a lookup or one_of"),
    ],
)
def test_a_lookup_that_is_not_there_is_an_error_of_the_file(tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(BadSettings, match=message):
        databases(tmp_path, PUBLISHED.replace('lookup = "sex"', change))


def _dataset(**said: Any) -> dict[str, Any]:
    return {"datasets": [{"id": "heart", "tables": [{"name": "t", "fields": [{"name": "f", "type": "text"}]}]} | said]}


@pytest.mark.parametrize(
    ("document", "where"),
    [
        (_dataset(id="../heart"), "datasets.0.id"),
        (_dataset(id="x" * 65), "datasets.0.id"),
        (_dataset(title="two\nlines"), "datasets.0.title"),
        (_dataset(description="\x1b[31mred"), "datasets.0.description"),
        (_dataset(description="\u202eesrever"), "datasets.0.description"),
        (_dataset(title="x" * 501), "datasets.0.title"),
        (_dataset(rows=12), "datasets.0.rows"),
        (_dataset(tables=[{"name": "t\0"}]), "datasets.0.tables.0.name"),
        (_dataset(tables=[{"name": ""}]), "datasets.0.tables.0.name"),
        (_dataset(tables=[{"name": "t"}, {"name": "t"}]), "two tables"),
        (_dataset(tables=[{"name": "t", "fields": [{"name": "f", "type": "blob"}]}]), "fields.0.type"),
        (_dataset(tables=[{"name": "t", "fields": [{"name": "f", "type": "text", "lookup": "no"}]}]), "no lookup"),
        ({"datasets": [{"id": "a"}, {"id": "a"}]}, "two datasets"),
        ({"datasets": [{"id": f"a{number}"} for number in range(257)]}, "datasets"),
        ([], "all of it"),
    ],
)
def test_what_a_hostile_site_tells_is_refused_by_where_it_is(document: Any, where: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_catalogue(json.dumps(document), source="site-1")
    assert where in caught.value.message
    assert len(caught.value.message) < 5_000


@pytest.mark.parametrize(
    "text", ["{" * 100_000, '{"datasets": [' + "[" * 5_000, '{"datasets": NaN}', " " * (MAX_CATALOGUE_BYTES + 1)]
)
def test_what_is_no_catalogue_at_all_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        read_catalogue(text, source="site-1")
