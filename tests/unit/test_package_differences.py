"""What is different between two versions of a package."""

from __future__ import annotations

from pathlib import Path

import pytest

from runnel.compute_package import differences, pack
from runnel.compute_package.differences import MAX_TEXT_BYTES

pytestmark = pytest.mark.unit


def package(folder: Path, **files: str | bytes) -> Path:
    folder.mkdir()
    for name, content in {"train.py": "import numpy\nprint(1)\n", **files}.items():
        path = folder / name.replace("__", ".")
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def test_text_is_compared_by_lines_and_the_rest_by_sizes(tmp_path: Path) -> None:
    manifest = "name: p\nversion: '{}'\nentry_points:\n  train: python train.py{}\nrequirements: needs.txt\n"
    old = package(
        tmp_path / "old",
        runnel__yaml=manifest.format(1, ""),
        needs__txt="numpy==2.4.0\n# a comment\nscipy\n",
        gone__py="1\n",
        table__bin=b"\0\1",
    )
    new = package(
        tmp_path / "new",
        train__py="import numpy\nprint(2)\n",
        runnel__yaml=manifest.format(2, " --fast") + "  \n",
        needs__txt="numpy==2.5.0\nscipy\n",
        table__bin=b"\0\1\2",
        new__bin=b"\xff",
        same__py="",
    )
    (old / "same.py").write_text("")
    found = differences(pack(old, tmp_path / "old.tar.gz").path, new)
    assert found.before.manifest.version == "1"
    assert found.entry_points == {"train": ("python train.py", "python train.py --fast")}
    assert found.requirements == (("numpy==2.4.0",), ("numpy==2.5.0",))
    by_name = {each.name: each for each in found.files}
    assert {name: each.kind for name, each in by_name.items()} == {
        "gone.py": "removed",
        "needs.txt": "changed",
        "new.bin": "added",
        "runnel.yaml": "changed",
        "table.bin": "changed",
        "train.py": "changed",
    }
    assert by_name["train.py"].diff == (
        "--- a/train.py",
        "+++ b/train.py",
        "@@ -1,2 +1,2 @@",
        " import numpy",
        "-print(1)",
        "+print(2)",
    )
    assert by_name["gone.py"].diff[1:] == ("+++ /dev/null", "@@ -1 +0,0 @@", "-1")
    table = by_name["table.bin"]
    assert (table.before, table.after, table.diff) == (2, 3, ())


def test_what_is_equal_is_not_told_and_what_is_too_large_not_compared_by_lines(tmp_path: Path) -> None:
    old, new = package(tmp_path / "old"), package(tmp_path / "new")
    same = differences(old, new)
    assert (same.files, same.entry_points, same.requirements) == ((), {}, ((), ()))
    assert same.before.digest == same.after.digest
    (new / "large.txt").write_text("x" * (MAX_TEXT_BYTES + 1))
    [large] = differences(old, new).files
    assert (large.kind, large.after, large.diff) == ("added", MAX_TEXT_BYTES + 1, ())


def test_a_link_is_where_it_leads(tmp_path: Path) -> None:
    old, new = package(tmp_path / "old", a__py="", b__py=""), package(tmp_path / "new", a__py="", b__py="")
    (old / "link.py").symlink_to("a.py")
    (new / "link.py").symlink_to("b.py")
    [link] = differences(old, new).files
    assert link.diff[-2:] == ("-link to a.py", "+link to b.py")
