from __future__ import annotations

import errno
import gc
import gzip
import io
import os
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runnel.common.errors import BadPackage, Conflict, HostileArchive, NotFound, StorageFull
from runnel.compute_package import UnpackLimits, unpack
from runnel.compute_package import unpack as unpack_function

pytestmark = pytest.mark.unit

TIGHT = UnpackLimits(max_members=20, max_total_bytes=1 << 20, max_ratio=50.0, ratio_from_bytes=200_000)
Entry = tuple[tarfile.TarInfo, bytes]


def entry(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, **fields: object) -> Entry:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


TRAIN = entry("train.py", b"pass")


def tar(path: Path, *entries: Entry, mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for info, content in entries:
            archive.addfile(info, io.BytesIO(content))
    return path


def zipped(path: Path, *entries: tuple[zipfile.ZipInfo | str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for info, content in entries:
            archive.writestr(info, content, zipfile.ZIP_DEFLATED)
    return path


def zip_info(name: str, mode: int = 0o100644) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    info.create_system = 3
    return info


def nothing_was_left(folder: Path, archive: Path) -> bool:
    return sorted(path for path in folder.rglob("*")) == [archive]


# ---- what is unpacked


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2"])
def test_tar_is_told_by_its_content_not_its_name(tmp_path: Path, mode: str) -> None:
    archive = tar(tmp_path / "package.zip", TRAIN, entry("sub/data", b"x" * 10_000), mode=mode)
    root = unpack(archive, tmp_path / "out")
    assert root == tmp_path / "out"
    assert (root / "sub" / "data").read_bytes() == b"x" * 10_000


def test_zip_is_told_by_its_content_not_its_name(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "p.tar.gz", ("client/", b""), ("client/train.py", b"pass"), ("client/a/b", b"c"))
    root = unpack(archive, tmp_path / "out")
    assert root == tmp_path / "out" / "client"
    assert (root / "a" / "b").read_bytes() == b"c"


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_all_tar_dialects_are_read(tmp_path: Path, tar_format: int) -> None:
    name = "a" * 60 + "/" + "b" * 90
    with tarfile.open(tmp_path / "p.tgz", "w:gz", format=tar_format) as archive:
        for info, content in (TRAIN, entry(name, b"long")):
            archive.addfile(info, io.BytesIO(content))
    assert (unpack(tmp_path / "p.tgz", tmp_path / "out") / name).read_bytes() == b"long"


def test_a_package_that_was_packed_with_its_dot_folder_is_read(tmp_path: Path) -> None:
    folder = entry("./", kind=tarfile.DIRTYPE)
    archive = tar(tmp_path / "p.tgz", folder, entry("./train.py", b"1"), entry("./a//b", b"2"))
    assert (unpack(archive, tmp_path / "out") / "a" / "b").read_bytes() == b"2"


ROOTS = {
    "at the top": (["train.py"], "."),
    "in one folder": (["client/train.py"], "client"),
    "manifest in one folder": (["client/fedn.yaml", "README"], "client"),
    "the top goes before what is below": (["train.py", "examples/fedn.yaml"], "."),
    "a manifest goes before a script beside": (["a/train.py", "b/runnel.yaml"], "b"),
    "by name among equals": (["b/train.py", "a/train.py"], "a"),
    "deep": (["x/y/z/runnel.yaml"], "x/y/z"),
    "not the archiver's own folder": (["__MACOSX/train.py", "client/train.py"], "client"),
}


@pytest.mark.parametrize(("names", "root"), ROOTS.values(), ids=ROOTS)
def test_the_root_is_where_the_package_is(tmp_path: Path, names: list[str], root: str) -> None:
    archive = tar(tmp_path / "p.tgz", *(entry(name) for name in names))
    assert unpack(archive, tmp_path / "out") == tmp_path / "out" / root


def test_links_within_the_package_work(tmp_path: Path) -> None:
    archive = tar(
        tmp_path / "p.tgz",
        entry("client/train.py", b"pass", mode=0o755),
        entry("client/sub/soft", kind=tarfile.SYMTYPE, linkname="../train.py"),
        entry("client/folder", kind=tarfile.SYMTYPE, linkname="sub"),
        entry("client/hard", kind=tarfile.LNKTYPE, linkname="client/train.py"),
    )
    root = unpack(archive, tmp_path / "out")
    assert (root / "folder" / "soft").read_bytes() == (root / "hard").read_bytes() == b"pass"
    assert (root / "sub" / "soft").readlink() == Path("../train.py")
    assert os.access(root / "hard", os.X_OK)


def test_permissions_are_plain_ones(tmp_path: Path) -> None:
    archive = tar(
        tmp_path / "p.tgz",
        entry("train.py", mode=0o000),
        entry("tool", mode=0o6755),
        entry("open", mode=0o1777 & ~0o111),
        entry("folder", kind=tarfile.DIRTYPE, mode=0o2000),
    )
    root = unpack(archive, tmp_path / "out")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in root.iterdir()}
    assert modes == {"train.py": 0o644, "tool": 0o755, "open": 0o644, "folder": 0o755}


def test_permissions_of_a_zip_are_plain_ones(tmp_path: Path) -> None:
    archive = zipped(
        tmp_path / "p.zip",
        ("train.py", b""),
        (zip_info("tool", 0o104755), b""),
        (zip_info("link", 0o120777), b"tool"),
    )
    root = unpack(archive, tmp_path / "out")
    assert stat.S_IMODE((root / "tool").stat().st_mode) == 0o755
    assert (root / "link").readlink() == Path("tool")


def test_an_empty_folder_may_be_the_destination(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert unpack(tar(tmp_path / "p.tgz", TRAIN), tmp_path / "out") == tmp_path / "out"


# ---- what is refused

LINK = {"kind": tarfile.SYMTYPE}
HARD = {"kind": tarfile.LNKTYPE}
HOSTILE_TARS: dict[str, tuple[list[Entry], str, str]] = {
    "absolute": ([entry("/etc/evil")], "/etc/evil", "absolute path"),
    "above": ([entry("../evil")], "../evil", ".. in it"),
    "above from within": ([entry("a/../../evil")], "a/../../evil", ".. in it"),
    "up and down again": ([entry("a/../b")], "a/../b", ".. in it"),
    "backslash": ([entry("..\\evil")], "..\\\\evil", "backslash"),
    "drive": ([entry("C:evil")], "C:evil", "drive letter"),
    "NUL": ([entry("a", pax_headers={"path": "a\0b"})], "a\\x00b", "control character"),
    "newline": ([entry("a\nb")], "a\\nb", "control character"),
    "no UTF-8": ([entry("gr\udcfcn")], "gr\\udcfcn", "not UTF-8"),
    "long": ([entry("x" * 256)], "x" * 200, "too long"),
    "deep": ([entry("x/" * 65 + "y")], "x/x/", "nested too deeply"),
    "soft link out": ([entry("a", linkname="../b", **LINK)], "a", "link out of the package"),
    "soft link to the root": ([entry("a", linkname="/etc/passwd", **LINK)], "a", "link out of the package"),
    "soft link from within": ([entry("s/a", linkname="../../b", **LINK)], "s/a", "link out of the package"),
    "soft link in a roundabout way": ([entry("a", linkname="b/../../c", **LINK)], "a", "in the middle of its target"),
    "soft link by a link": (
        [entry("s/t/up", linkname="../..", **LINK), entry("s/t/out", linkname="up/../evil", **LINK)],
        "s/t/out",
        "in the middle of its target",
    ),
    "soft link to nothing": ([entry("a", linkname="", **LINK)], "a", "link to nothing"),
    "file below a link": (
        [entry("d", linkname="sub", **LINK), entry("d/evil", b"x")],
        "d",
        "is a folder and something else",
    ),
    "file over a link": ([entry("d", linkname="sub", **LINK), entry("d", b"x")], "d", "appears twice"),
    "link over a folder": ([entry("d/x"), entry("d", linkname="sub", **LINK)], "d", "appears twice"),
    "hard link out": ([entry("a", linkname="../b", **HARD)], "../b", ".. in it"),
    "hard link to the root": ([entry("a", linkname="/etc/passwd", **HARD)], "/etc/passwd", "absolute path"),
    "hard link to nothing": ([entry("a", linkname="b", **HARD)], "a", "no earlier file"),
    "hard link to a link": (
        [entry("l", linkname="train.py", **LINK), entry("a", linkname="l", **HARD)],
        "a",
        "no earlier file",
    ),
    "character device": ([entry("null", kind=tarfile.CHRTYPE, devmajor=1, devminor=3)], "null", "device"),
    "block device": ([entry("disk", kind=tarfile.BLKTYPE, devmajor=8)], "disk", "device"),
    "pipe": ([entry("pipe", kind=tarfile.FIFOTYPE)], "pipe", "pipe"),
    "unknown kind": ([entry("odd", kind=b"V")], "odd", "no file or folder"),
    "twice": ([entry("a", b"1"), entry("a", b"2")], "a", "appears twice"),
    "twice, spelt differently": ([entry("a", b"1"), entry(".//a", b"2")], "a", "appears twice"),
    "file and folder": ([entry("a", b"1"), entry("a/b", b"2")], "a", "is a folder and something else"),
    "too many": ([entry(f"f{n:02}") for n in range(30)], "f19", "one too many: at most 20"),
    "too many folders": ([entry("/".join("abcdefghijklmnopqrstuvwxyz"))], "a/b/", "one too many"),
    "too large": ([entry("big", os.urandom(2 << 20))], "", "larger than 1048576 bytes"),
    "bomb": ([entry("bomb", bytes(900_000))], "bomb", "more than 50 times"),
    "bomb of hard links": (
        [entry("r", os.urandom(150_000)), *(entry(f"h{n}", linkname="r", **HARD) for n in range(9))],
        "h",
        "unpacked size above 1048576",
    ),
}


@pytest.mark.parametrize(("entries", "member", "what"), HOSTILE_TARS.values(), ids=HOSTILE_TARS)
def test_a_hostile_tar_is_refused_by_member_and_leaves_nothing(
    tmp_path: Path, entries: list[Entry], member: str, what: str
) -> None:
    archive = tar(tmp_path / "p.tgz", TRAIN, *entries)
    with pytest.raises(HostileArchive) as caught:
        unpack(archive, tmp_path / "out", TIGHT)
    assert what in str(caught.value)
    assert caught.value.fields["member"].startswith(member)
    assert str(caught.value).isprintable()
    assert nothing_was_left(tmp_path, archive)


@pytest.mark.parametrize("name", ["p.tgz", "p.zip"])
def test_a_refused_archive_is_not_held_open(tmp_path: Path, name: str) -> None:
    archive = tmp_path / name
    if name == "p.zip":
        zipped(archive, ("../evil", b"x"))
    else:
        tar(archive, entry("../evil", b"x"))
    gc.collect()  # what earlier tests left to it must not be closed in between
    before = len(list(Path("/dev/fd").iterdir()))
    with pytest.raises(HostileArchive) as caught:
        unpack(archive, tmp_path / "out")
    assert len(list(Path("/dev/fd").iterdir())) == before
    assert caught.value.fields["archive"] == name


def sparse_tar(path: Path) -> Path:
    """A file of one byte that says it is a gigabyte."""
    header = bytearray(entry("holes", b"x")[0].tobuf(tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[386:410] = b"00000000000\x0000000000001\x00"
    header[483:495] = b"10000000000\x00"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\x00 " % sum(header)
    path.write_bytes(
        TRAIN[0].tobuf() + b"pass".ljust(512, b"\0") + bytes(header) + b"x".ljust(512, b"\0") + bytes(1024)
    )
    return path


def test_a_sparse_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HostileArchive, match="member holes is stored with holes"):
        unpack(sparse_tar(tmp_path / "p.tar"), tmp_path / "out")


def test_headers_that_would_fill_the_memory_are_refused(tmp_path: Path) -> None:
    archive = tar(tmp_path / "p.tgz", TRAIN, entry("a", pax_headers={"comment": "x" * 5_000_000}))
    with pytest.raises(HostileArchive, match="headers take more than 1048576 bytes for one member"):
        unpack(archive, tmp_path / "out")


def test_headers_upon_headers_are_refused(tmp_path: Path) -> None:
    global_header = entry("x")[0].create_pax_global_header({"comment": "y"})
    raw = TRAIN[0].tobuf() + b"pass".ljust(512, b"\0") + global_header * 600 + bytes(1024)
    (tmp_path / "p.tar").write_bytes(raw)
    with pytest.raises(HostileArchive, match="nested too deeply"):
        unpack(tmp_path / "p.tar", tmp_path / "out")


HOSTILE_ZIPS: dict[str, tuple[list[tuple[zipfile.ZipInfo | str, bytes]], str, str]] = {
    "absolute": ([("/etc/evil", b"")], "/etc/evil", "absolute path"),
    "above": ([("../evil", b"")], "../evil", ".. in it"),
    "backslash": ([("a\\evil", b"")], "a\\\\evil", "backslash"),
    "drive": ([("c:/evil", b"")], "c:/evil", "drive letter"),
    "soft link out": ([(zip_info("a", 0o120777), b"../../etc/passwd")], "a", "link out of the package"),
    "soft link too long": ([(zip_info("a", 0o120777), b"x" * 100_000)], "a", "too long"),
    "file below a link": (
        [(zip_info("d", 0o120777), b"sub"), ("d/evil", b"x")],
        "d",
        "is a folder and something else",
    ),
    "device": ([(zip_info("null", 0o020666), b"")], "null", "no file, folder or link"),
    "twice": ([("A", b"1"), ("./A", b"2")], "A", "appears twice"),
    "too many": ([(f"f{n:02}", b"") for n in range(30)], "f19", "one too many"),
    "bomb": ([("bomb", bytes(900_000))], "bomb", "more than 50 times"),
    "bomb of many": ([(f"f{n}", bytes(80_000)) for n in range(10)], "f", "more than 50 times"),
}


@pytest.mark.parametrize(("entries", "member", "what"), HOSTILE_ZIPS.values(), ids=HOSTILE_ZIPS)
def test_a_hostile_zip_is_refused_by_member_and_leaves_nothing(
    tmp_path: Path, entries: list[tuple[zipfile.ZipInfo | str, bytes]], member: str, what: str
) -> None:
    archive = zipped(tmp_path / "p.zip", ("train.py", b"pass"), *entries)
    with pytest.raises(HostileArchive) as caught:
        unpack(archive, tmp_path / "out", TIGHT)
    assert what in str(caught.value)
    assert caught.value.fields["member"].startswith(member)
    assert nothing_was_left(tmp_path, archive)


def patched(archive: Path, old: bytes, new: bytes) -> Path:
    raw = archive.read_bytes()
    assert len(old) == len(new)
    assert old in raw
    archive.write_bytes(raw.replace(old, new))
    return archive


@pytest.mark.parametrize("name", [b"trai\0.py", b"\0rain.py"])
def test_a_nul_in_a_zip_is_seen(tmp_path: Path, name: bytes) -> None:
    archive = patched(zipped(tmp_path / "p.zip", ("train.py", b"x")), b"train.py", name)
    with pytest.raises(HostileArchive, match=r"x00.*has (a control character|no name)"):
        unpack(archive, tmp_path / "out")


def test_a_zip_that_lies_about_a_size_is_refused(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "p.zip", ("train.py", b"x"), ("bomb", bytes(900_000)))
    patched(archive, struct.pack("<L", 900_000), struct.pack("<L", 10))
    with pytest.raises(BadPackage, match=r"damaged: Bad CRC-32 for file .bomb"):
        unpack(archive, tmp_path / "out", TIGHT)
    assert nothing_was_left(tmp_path, archive)


def test_a_zip_with_an_endless_directory_is_refused_before_it_is_read(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "p.zip", *((f"{n:0250}", b"") for n in range(400)))
    with pytest.raises(HostileArchive, match=r"directory of \d+ bytes is too large"):
        unpack(archive, tmp_path / "out", TIGHT)


def test_zip64_is_refused(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "p.zip", ("train.py", b""))
    raw = archive.read_bytes()
    archive.write_bytes(raw[:-22] + b"PK\x06\x07" + bytes(16) + raw[-22:])
    with pytest.raises(HostileArchive, match="zip64"):
        unpack(archive, tmp_path / "out")


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "p.zip", ("train.py", b""))
    raw = bytearray(archive.read_bytes())
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(raw)
    with pytest.raises(BadPackage, match=r"encrypted member, 'train\.py'"):
        unpack(archive, tmp_path / "out")


def test_an_uncommon_compression_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "p.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("train.py", b"")
    with pytest.raises(BadPackage, match=r"method 14, 'train\.py'"):
        unpack(tmp_path / "p.zip", tmp_path / "out")


# ---- what is damaged, and what is none


def plain_tar(folder: Path) -> bytes:
    return tar(folder / "whole.tar", TRAIN, entry("b", b"x" * 1000), entry("c", b"y"), mode="w").read_bytes()


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut within a file": lambda raw: raw[: 1024 + 700],
    "cut between members": lambda raw: raw[:1024],
    "cut within a header": lambda raw: raw[: 1024 + 100],
    "no end": lambda raw: raw[: 1024 + 1536 + 1024],
    "a header that is none": lambda raw: raw[:1024] + b"\x01" * 512 + raw[1536:],
    "something behind the end": lambda raw: raw + b"evil",
    "gzip cut short": lambda raw: gzip.compress(raw)[:-12],
    "gzip without its end": lambda raw: gzip.compress(raw)[:-8],
    "gzip with a wrong sum": lambda raw: gzip.compress(raw)[:-8] + bytes(8),
    "gzip of noise": lambda raw: gzip.compress(raw)[:20] + b"\xff" * 50,
    "gzip of nothing": lambda raw: gzip.compress(b""),
    "gzip of text": lambda raw: gzip.compress(b"hello" * 1000),
    "bzip2 of noise": lambda raw: b"BZh9" + b"\xff" * 50,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_tar_is_refused_whole(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    raw = plain_tar(tmp_path)
    (tmp_path / "whole.tar").unlink()
    archive = tmp_path / "p.tar"
    archive.write_bytes(damage(raw))
    with pytest.raises(BadPackage, match=r"The archive p\.tar is damaged: "):
        unpack(archive, tmp_path / "out")
    assert nothing_was_left(tmp_path, archive)


def test_a_damaged_zip_is_refused_whole(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "p.zip", ("train.py", b"hello " * 100))
    raw = bytearray(archive.read_bytes())
    raw[45] ^= 0xFF
    archive.write_bytes(raw)
    with pytest.raises(BadPackage, match="damaged"):
        unpack(archive, tmp_path / "out")
    archive.write_bytes(raw[:60])
    with pytest.raises(BadPackage, match="damaged: it has no directory"):
        unpack(archive, tmp_path / "out")
    assert nothing_was_left(tmp_path, archive)


@pytest.mark.parametrize("raw", [b"", b"hello", b"\x7fELF" + bytes(1000), b"\xfd7zXZ\x00" + bytes(600)])
def test_what_is_no_archive_is_refused(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "p.tgz").write_bytes(raw)
    with pytest.raises(BadPackage, match="neither a tar"):
        unpack(tmp_path / "p.tgz", tmp_path / "out")


@settings(deadline=None)
@given(data=st.data())
def test_no_change_of_bytes_gets_past_the_typed_errors(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    kind = data.draw(st.sampled_from(["tar", "tgz", "zip"]))
    archive = folder / f"p.{kind}"
    if kind == "zip":
        zipped(archive, ("train.py", b"pass"), ("d/e", b"x" * 300))
    else:
        soft = entry("s", linkname="train.py", **LINK)
        tar(archive, TRAIN, entry("d/e", b"x" * 300), soft, mode="w" if kind == "tar" else "w:gz")
    raw = bytearray(archive.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, min(len(raw), 4000) - 1))] = data.draw(st.integers(0, 255))
    archive.write_bytes(raw)
    try:
        unpack(archive, folder / "out", TIGHT)
    except BadPackage:
        assert nothing_was_left(folder, archive)
    else:
        assert {path.relative_to(folder).parts[0] for path in folder.rglob("*")} == {"out", archive.name}


def test_an_archive_without_a_package_says_what_is_missing(tmp_path: Path) -> None:
    archive = tar(tmp_path / "p.tgz", entry("README"))
    with pytest.raises(BadPackage, match=r"no folder in it has train\.py"):
        unpack(archive, tmp_path / "out")
    assert nothing_was_left(tmp_path, archive)


def test_a_missing_archive_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        unpack(tmp_path / "p.tgz", tmp_path / "out")


def test_nothing_is_unpacked_over_something(tmp_path: Path) -> None:
    archive = tar(tmp_path / "p.tgz", TRAIN)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(Conflict):
        unpack(archive, tmp_path / "out")
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(Conflict):
        unpack(archive, tmp_path / "link")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


class FullDisk:
    """Takes the place of ``open`` where the module writes files: the first write finds no room."""

    def __call__(self, descriptor: int, mode: str) -> FullDisk:
        os.close(descriptor)
        return self

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def write(self, block: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tar(tmp_path / "p.tgz", TRAIN)
    monkeypatch.setitem(unpack_function.__globals__, "open", FullDisk())
    with pytest.raises(StorageFull, match=r"no room to unpack p\.tgz"):
        unpack(archive, tmp_path / "out")
    assert nothing_was_left(tmp_path, archive)
