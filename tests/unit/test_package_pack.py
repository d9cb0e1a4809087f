from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import random
import socket
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runnel.common.errors import BadPackage, NotFound
from runnel.compute_package import pack, unpack

pytestmark = pytest.mark.unit

# Of the package that `known_package` makes. Packages are named by their digest: one that changes here changes at
# everybody who rebuilds a package to compare it.
KNOWN_SHA256 = "c8c7c77fe7a9287d29bbbe3ee401093c447f254533bbf053a21e529fafb79fc8"

_PART = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/\\"), min_size=1, max_size=12)
_NAMES = st.lists(_PART, min_size=1, max_size=3).map("/".join)
_TREES = st.dictionaries(_NAMES, st.tuples(st.binary(max_size=600), st.booleans()), max_size=8)


def travels(name: str) -> bool:
    """Leave out names that mean something to the packer or to a file system."""
    parts = name.split("/")
    return (
        all(part not in (".", "..") and len(part.encode()) < 200 for part in parts)
        and name[1:2] != ":"
        and parts[0] not in ("runnel.yaml", "fedn.yaml", "requirements.txt", "train.py")
    )


def write(folder: Path, files: dict[str, tuple[bytes, bool]]) -> None:
    for name, (content, executable) in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        if executable:
            path.chmod(0o777)


def read(folder: Path) -> dict[str, tuple[bytes, bool]]:
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), bool(path.stat().st_mode & stat.S_IXUSR))
        for path in folder.rglob("*")
        if path.is_file()
    }


def consistent(tree: dict[str, tuple[bytes, bool]]) -> bool:
    """No name is a file and a folder as well."""
    return not any(other.startswith(f"{name}/") for name in tree for other in tree)


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def known_package(folder: Path) -> Path:
    write(
        folder,
        {
            "train.py": (b"print('train')\n", False),
            "run.sh": (b"#!/bin/sh\n", True),
            "sub/" + "long" * 40 + ".txt": (b"long name", False),
            "sub/grün.txt": ("größer".encode(), False),
            "data.bin": (bytes(range(256)) * 600, False),
        },
    )
    (folder / "link").symlink_to("sub/grün.txt")
    return folder


def names(archive: Path) -> list[str]:
    with tarfile.open(archive) as tar:
        return tar.getnames()


@settings(max_examples=40, deadline=None)
@given(
    tree=_TREES.map(lambda tree: {n: c for n, c in tree.items() if travels(n)}).filter(consistent),
    seed=st.integers(0, 1000),
    mask=st.sampled_from([0o000, 0o022, 0o077]),
)
def test_unpacking_gives_what_was_packed_and_the_digest_depends_on_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, tree: dict[str, tuple[bytes, bool]], seed: int, mask: int
) -> None:
    top = tmp_path_factory.mktemp("pack")
    tree = {**tree, "train.py": (b"pass", False), ".runnelignore": (b"!*\n", False)}
    shuffled = list(tree.items())
    random.Random(seed).shuffle(shuffled)
    write(top / "one", tree)
    with umask(mask):
        write(top / "other", dict(shuffled))
        for path in (top / "other").rglob("*"):
            os.utime(path, (seed, seed))
    first, second = pack(top / "one", top / "a.tar.gz"), pack(top / "other", top / "b.tar.gz")
    assert first.ref == second.ref
    assert (top / "a.tar.gz").read_bytes() == (top / "b.tar.gz").read_bytes()
    root = unpack(first.path, top / "out")
    assert read(root) == tree
    assert {file.name: file.size_bytes for file in first.files} == {n: len(c) for n, (c, _) in tree.items()}


def test_the_digest_of_a_known_package_never_changes(tmp_path: Path) -> None:
    packed = pack(known_package(tmp_path / "known"), tmp_path / "known.tar.gz")
    assert packed.ref.sha256 == KNOWN_SHA256


def test_the_reference_names_the_bytes_of_the_file(tmp_path: Path) -> None:
    packed = pack(known_package(tmp_path / "known"), tmp_path / "new" / "known.tar.gz")
    raw = packed.path.read_bytes()
    assert (packed.ref.sha256, packed.ref.size_bytes) == (hashlib.sha256(raw).hexdigest(), len(raw))
    assert [path.name for path in packed.path.parent.iterdir()] == ["known.tar.gz"]


def test_every_tar_program_reads_it(tmp_path: Path) -> None:
    packed = pack(known_package(tmp_path / "known"), tmp_path / "known.tar.gz")
    assert len(gzip.decompress(packed.path.read_bytes())) > 150_000
    with tarfile.open(packed.path) as tar:
        members = tar.getmembers()
    assert [member.name for member in members] == sorted(file.name for file in packed.files)
    assert {(member.mtime, member.uid, member.gid, member.uname, member.gname) for member in members} == {
        (0, 0, 0, "", "")
    }
    assert {member.mode for member in members if member.isreg()} == {0o644, 0o755}


def test_a_content_of_exactly_full_blocks_is_packed(tmp_path: Path) -> None:
    # 1,024 bytes of end, 512 of each header: with this size the tar fills stored blocks of 65,535 bytes exactly.
    write(tmp_path / "p", {"train.py": (b"x" * (65535 * 512 - 1536), False)})
    packed = pack(tmp_path / "p", tmp_path / "p.tar.gz")
    assert len(gzip.decompress(packed.path.read_bytes())) == 65535 * 512
    assert read(unpack(packed.path, tmp_path / "out")) == read(tmp_path / "p")


def test_caches_version_control_and_secrets_stay_at_home(tmp_path: Path) -> None:
    rubbish = ["__pycache__/a.pyc", "b.pyc", ".git/config", ".venv/bin/python", "sub/.DS_Store", ".env", "x.egg-info/y"]
    write(tmp_path / "p", dict.fromkeys(["train.py", "sub/model.py", *rubbish], (b"", False)))
    assert names(pack(tmp_path / "p", tmp_path / "p.tar.gz").path) == ["sub/model.py", "train.py"]


@pytest.mark.parametrize("ignore_file", [".runnelignore", ".fednignore"])
def test_ignore_files_have_the_patterns_of_gitignore(tmp_path: Path, ignore_file: str) -> None:
    patterns = b"# data\n*.csv\n!keep.csv\n/top.txt\nsecret/\n!.env\n"
    files = ["train.py", "a.csv", "keep.csv", "sub/b.csv", "top.txt", "sub/top.txt", "secret/x", "sub/secret/y", ".env"]
    write(tmp_path / "p", {**dict.fromkeys(files, (b"", False)), ignore_file: (patterns, False)})
    assert names(pack(tmp_path / "p", tmp_path / "p.tar.gz").path) == sorted(
        [".env", ignore_file, "keep.csv", "sub/top.txt", "train.py"]
    )


def test_the_archive_goes_above_the_present_folder_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "work" / "study", {"train.py": (b"", False)})
    monkeypatch.chdir(tmp_path / "work" / "study")
    assert pack(Path()).path == tmp_path / "work" / "study.tar.gz"
    assert (tmp_path / "work" / "study.tar.gz").is_file()


def test_an_archive_inside_the_folder_is_not_packed_into_itself(tmp_path: Path) -> None:
    write(tmp_path / "p", {"train.py": (b"", False)})
    first = pack(tmp_path / "p", tmp_path / "p" / "p.tar.gz")
    second = pack(tmp_path / "p", tmp_path / "p" / "p.tar.gz")
    assert first.ref == second.ref
    assert names(second.path) == ["train.py"]


def test_links_within_the_package_stay_links(tmp_path: Path) -> None:
    root = known_package(tmp_path / "known")
    (root / "sub" / "up").symlink_to("../train.py")
    (root / "folder").symlink_to("sub")
    out = unpack(pack(root, tmp_path / "p.tar.gz").path, tmp_path / "out")
    assert {p.name: p.readlink().as_posix() for p in out.rglob("*") if p.is_symlink()} == {
        "link": "sub/grün.txt",
        "up": "../train.py",
        "folder": "sub",
    }


BAD_LINKS = {
    "absolute": ("/etc/passwd", "link out of the package"),
    "above": ("../outside", "link out of the package"),
    "around": ("../p/train.py", "link out of the package"),
    "by way of": ("sub/../train.py", r"\.\. in the middle"),
    "to nothing": ("nowhere", "which is not in the package"),
    "to what is ignored": ("x.pyc", "which is not in the package"),
}


@pytest.mark.parametrize(("target", "message"), BAD_LINKS.values(), ids=BAD_LINKS)
def test_a_link_that_would_not_work_elsewhere_is_refused(tmp_path: Path, target: str, message: str) -> None:
    write(tmp_path, {"outside": (b"", False)})
    write(tmp_path / "p", {"train.py": (b"", False), "sub/a": (b"", False), "x.pyc": (b"", False)})
    (tmp_path / "p" / "shortcut").symlink_to(target)
    with pytest.raises(BadPackage, match=f"shortcut.*{message}"):
        pack(tmp_path / "p", tmp_path / "p.tar.gz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outside", "p"]


def test_a_link_through_a_link_out_of_the_package_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "p", {"train.py": (b"", False), ".runnelignore": (b"door\n", False)})
    write(tmp_path / "outside", {"secret": (b"", False)})
    (tmp_path / "p" / "door").symlink_to("../outside")
    (tmp_path / "p" / "shortcut").symlink_to("door/secret")
    with pytest.raises(BadPackage, match="shortcut is a link out of the package"):
        pack(tmp_path / "p", tmp_path / "p.tar.gz")


def test_what_is_no_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"train.py": (b"", False)})
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind("socket")
        with pytest.raises(BadPackage, match="socket is none of them"):
            pack(tmp_path, tmp_path.parent / "p.tar.gz")


@pytest.mark.parametrize(
    ("name", "message"),
    [(b"gr\xfcn", "is not UTF-8"), (b"a\\b", "has a backslash"), (b"a\nb", "has a control character")],
)
def test_a_name_that_does_not_travel_is_refused(tmp_path: Path, name: bytes, message: str) -> None:
    write(tmp_path / "p", {"train.py": (b"", False)})
    (tmp_path / "p" / os.fsdecode(name)).touch()
    with pytest.raises(BadPackage, match=message) as caught:
        pack(tmp_path / "p", tmp_path / "p.tar.gz")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(("ignored", "missing"), [("train.py", "train.py"), ("*.txt", "requirements.txt")])
def test_an_ignore_file_may_not_take_what_the_package_needs(tmp_path: Path, ignored: str, missing: str) -> None:
    files = {"train.py": b"", "requirements.txt": b"", ".runnelignore": ignored.encode()}
    write(tmp_path / "p", {name: (content, False) for name, content in files.items()})
    with pytest.raises(BadPackage, match=f"needs {missing}, but an ignore file"):
        pack(tmp_path / "p", tmp_path / "p.tar.gz")


def test_a_folder_without_train_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadPackage, match=r"train\.py"):
        pack(tmp_path, tmp_path / "p.tar.gz")
    with pytest.raises(NotFound):
        pack(tmp_path / "nowhere")


def test_a_failed_packing_leaves_the_old_archive(tmp_path: Path) -> None:
    write(tmp_path / "p", {"train.py": (b"", False)})
    old = pack(tmp_path / "p", tmp_path / "p.tar.gz")
    (tmp_path / "p" / "shortcut").symlink_to("/etc")
    with pytest.raises(BadPackage):
        pack(tmp_path / "p", tmp_path / "p.tar.gz")
    assert hashlib.sha256(old.path.read_bytes()).hexdigest() == old.ref.sha256
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p", "p.tar.gz"]
