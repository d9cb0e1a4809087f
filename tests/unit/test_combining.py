"""Results of sites, put together."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runnel.common.errors import EntryPointFailed, InvalidInput
from runnel.sdk.combining import SitePart, put_together, run_script

pytestmark = pytest.mark.unit


def part(root: Path, site: str, files: dict[str, str]) -> SitePart:
    folder = root / site
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text.encode())
    return SitePart(site=site, state="done", folder=folder)


def table(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_rows_are_labelled_by_site(tmp_path: Path) -> None:
    parts = [
        part(tmp_path, "north", {"counts.csv": "gene,n\r\nBRCA1,3\r\n", "sub/more.csv": "a\n1\n"}),
        SitePart(site="east", state="failed", failure="exit code 1"),
        part(tmp_path, "south", {"counts.csv": 'gene,n,note\nBRCA2,5,"a, b"\n\n'}),
    ]
    written = put_together(parts, tmp_path / "all")
    assert [path.relative_to(tmp_path / "all").as_posix() for path in written] == ["counts.csv", "sub/more.csv"]
    assert table(written[0]) == [
        ["site", "gene", "n", "note"],
        ["north", "BRCA1", "3", ""],
        ["south", "BRCA2", "5", "a, b"],
    ]
    assert table(written[1]) == [["site", "a"], ["north", "1"]]


def test_a_table_without_rows_keeps_its_columns(tmp_path: Path) -> None:
    (written,) = put_together([part(tmp_path, "north", {"t.csv": "a,b\n"})], tmp_path / "all")
    assert table(written) == [["site", "a", "b"]]


@settings(max_examples=30)
@given(
    rows=st.lists(
        st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r")), min_size=2, max_size=2)
    )
)
def test_any_text_comes_back(tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]) -> None:
    root = tmp_path_factory.mktemp("any")
    (root / "one").mkdir()
    with (root / "one" / "t.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["a", "b"], *rows])
    (written,) = put_together([SitePart(site="one", state="done", folder=root / "one")], root / "all")
    assert table(written)[1:] == [["one", *row] for row in rows]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "begins with nothing"),
        ("site,a\nx,1\n", "none of them 'site'"),
        ("a,a\n1,2\n", "all different"),
        ("a,b\n1\n", "Row 1 of t.csv of north has 1 values for 2 columns"),
        ('a\n"open', "no CSV in UTF-8"),
    ],
)
def test_what_is_no_table_is_told_with_its_site(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        put_together([part(tmp_path, "north", {"t.csv": text})], tmp_path / "all")


def test_other_encodings_are_told(tmp_path: Path) -> None:
    (tmp_path / "north").mkdir()
    (tmp_path / "north" / "t.csv").write_bytes("name\nMüller\n".encode("latin-1"))
    with pytest.raises(InvalidInput, match=r"t\.csv of north is no CSV in UTF-8"):
        put_together([SitePart(site="north", state="done", folder=tmp_path / "north")], tmp_path / "all")


def test_a_script_sees_the_folder_and_every_site(tmp_path: Path) -> None:
    script = tmp_path / "post.py"
    script.write_text(
        "import json, os, pathlib, sys\n"
        "sites = json.loads(os.environ['RUNNEL_SITES'])\n"
        "rows = [pathlib.Path(each['folder'], 'n.txt').read_text() for each in sites.values() if each['folder']]\n"
        "pathlib.Path(sys.argv[1], 'sum.json').write_text(json.dumps([sum(map(int, rows)), sites['east']]))\n"
    )
    parts = [
        part(tmp_path, "north", {"n.txt": "3"}),
        SitePart(site="east", state="failed", failure="exit code 1"),
        part(tmp_path, "south", {"n.txt": "4"}),
    ]
    run_script(script, parts, tmp_path)
    total, east = json.loads((tmp_path / "sum.json").read_text())
    assert total == 7
    assert east == {"state": "failed", "folder": None, "failure": "exit code 1"}


def test_a_script_that_fails_is_told(tmp_path: Path) -> None:
    script = tmp_path / "post.py"
    script.write_text("raise SystemExit(3)\n")
    with pytest.raises(EntryPointFailed, match="status 3"):
        run_script(script, [], tmp_path)
    with pytest.raises(InvalidInput, match="no script"):
        run_script(tmp_path / "none.py", [], tmp_path)
