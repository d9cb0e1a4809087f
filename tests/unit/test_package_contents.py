"""What a ``runnel.yaml`` says of the archive and of where it runs."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from runnel.common.errors import BadPackage
from runnel.compute_package import pack, read_manifest, unpack

pytestmark = pytest.mark.unit


def write(root: Path, *names: str, manifest: str = "") -> Path:
    for name in ("train.py", *names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (root / "runnel.yaml").write_text(manifest or "name: study\n")
    return root


def packed(folder: Path) -> list[str]:
    written = pack(folder, folder.parent / "out" / "p.tar.gz")
    with tarfile.open(written.path) as archive:
        names = archive.getnames()
    assert names == [file.name for file in written.files]
    return [name for name in names if name not in ("train.py", "runnel.yaml")]


def test_what_is_elsewhere_is_included_under_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "metrics.py").write_text("f = 1")
    write(tmp_path / "lib", "mine.py", "sub/more.py", "__pycache__/x.pyc")
    manifest = f"include: [../shared/metrics.py, {tmp_path / 'lib'}]"
    folder = write(tmp_path / "study", "own.py", manifest=manifest)
    assert packed(folder) == [
        "lib/mine.py",
        "lib/runnel.yaml",
        "lib/sub/more.py",
        "lib/train.py",
        "metrics.py",
        "own.py",
    ]
    root = unpack(tmp_path / "out" / "p.tar.gz", tmp_path / "unpacked")
    assert (root / "metrics.py").read_text() == "f = 1"
    assert read_manifest(root).name, "at a site, where there is nothing to include, it is read as well"


@pytest.mark.parametrize(
    ("name", "goes_in"),
    [
        ("patients.csv", False),
        ("deep/patients.csv", False),
        ("units.csv", True),
        ("secret/key.txt", False),
        ("secret/public.txt", True),
        (".env", False),
        ("notes.txt", True),
        ("ignored.txt", False),
        ("kept.txt", True),
    ],
)
def test_what_is_forced_goes_in_whatever_leaves_it_out(tmp_path: Path, name: str, goes_in: bool) -> None:
    manifest = 'exclude: ["*.csv", secret/]\nforce_include: [units.csv, secret/public.txt, kept.txt]\n'
    folder = write(tmp_path / "study", name, manifest=manifest)
    (folder / ".runnelignore").write_text("ignored.txt\nkept.txt\n.runnelignore\n")
    assert packed(folder) == ([name] if goes_in else [])


def test_a_link_in_an_included_folder_stays_in_it(tmp_path: Path) -> None:
    write(tmp_path / "lib", "mine.py")
    (tmp_path / "lib" / "again.py").symlink_to("mine.py")
    folder = write(tmp_path / "study", manifest="include: [../lib]")
    assert "lib/again.py" in packed(folder)
    (tmp_path / "outside.py").touch()
    (tmp_path / "lib" / "out.py").symlink_to("../outside.py")
    with pytest.raises(BadPackage, match=r"lib/out\.py"):
        packed(folder)


@pytest.mark.parametrize(
    ("manifest", "says"),
    [
        ("include: [../gone.py]", "'../gone.py', which is not there"),
        ("include: [../link.py]", "which is a link"),
        ("include: [../lib]", "the package has another lib"),
        ("include: [train.py]", "is in the package already"),
        ("include: [..]", "has the package in it"),
        ("include: ../lib", "include should be a list of texts but is text"),
        ("exclude: [1]", "exclude should be a list of texts but has a number"),
        ("force_include: ['']", "force_include should be a list of texts"),
    ],
)
def test_what_can_not_be_packed_is_named(tmp_path: Path, manifest: str, says: str) -> None:
    write(tmp_path / "lib")
    (tmp_path / "link.py").symlink_to("lib")
    folder = write(tmp_path / "study", "lib", manifest=manifest)
    with pytest.raises(BadPackage) as caught:
        packed(folder)
    assert says in str(caught.value)


def test_the_python_and_the_packages_of_the_system(tmp_path: Path) -> None:
    manifest = read_manifest(write(tmp_path / "p", manifest='python: "3.11"\napt: [libgomp1, "r-base=4.2.2-1"]'))
    assert (manifest.python, manifest.apt) == ("3.11", ("libgomp1", "r-base=4.2.2-1"))
    assert manifest.needs_image
    assert manifest.asked_python == ("3.11", "runnel.yaml")
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "pyproject.toml").write_text('[project]\nrequires-python = ">=3.9"')
    assert read_manifest(write(tmp_path / "q")).asked_python == (">=3.9", "pyproject.toml")
    assert not read_manifest(tmp_path / "q").needs_image


@pytest.mark.parametrize(
    ("manifest", "says"),
    [
        ("python: 3.11", "python should be text but is a number. Put it in quotation marks."),
        ('python: ">=3.9"', 'should be a version like "3.11"'),
        ("apt: libgomp1", "apt should be a list of names but is text"),
        ("apt: ['x; reboot']", "should name packages of Debian"),
        ("apt: ['--allow-unauthenticated']", "should name packages of Debian"),
        ("apt: [libgomp1]\nimage: python:3.11", "apt is for packages without an image"),
    ],
)
def test_what_is_no_need_is_refused(tmp_path: Path, manifest: str, says: str) -> None:
    with pytest.raises(BadPackage) as caught:
        read_manifest(write(tmp_path / "p", manifest=manifest))
    assert says in str(caught.value)
