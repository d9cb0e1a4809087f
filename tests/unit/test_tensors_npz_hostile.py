"""Archives of strangers: whatever they hold, the answer is a model or BadModel, and it says who and which member."""

from __future__ import annotations

import io
import os
import socket
import struct
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from runnel.common.errors import BadModel
from runnel.common.tensors import ModelSchema, TensorSpec, normalise, open_npz, write_npz
from runnel.common.tensors.zip_directory import MAX_MEMBERS

pytestmark = pytest.mark.unit

Arrays = dict[str, NDArray[Any]]


def npy(array: NDArray[Any]) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, array, allow_pickle=True)
    return out.getvalue()


def header(text: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    raw = text.encode("latin-1") + b"\n"
    size = len(raw).to_bytes(2 if version == b"\x01\x00" else 4, "little")
    return b"\x93NUMPY" + version + size + raw + data


def archive(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as out:
        for name, data in members.items():
            out.writestr(name, data)
    return path


def read_all(path: Path, **options: Any) -> Arrays:
    with open_npz(path, source="client mallory", **options) as model:
        model.verify()
        return model.arrays()


def refused(path: Path, words: str, **options: Any) -> BadModel:
    with pytest.raises(BadModel, match=words) as caught:
        read_all(path, **options)
    assert caught.value.fields["source"] == "client mallory"
    assert "client mallory" in str(caught.value)
    return caught.value


GOOD = npy(np.arange(6, dtype=np.float32))


# ---- not an archive


@pytest.mark.parametrize("data", [b"", b"no", b"not a zip archive" * 10, GOOD, b"PK\x05\x06", b"\x80\x04N."])
def test_other_files(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(data)
    refused(tmp_path / "m", "no zip archive")


def test_an_archive_without_arrays(tmp_path: Path) -> None:
    refused(archive(tmp_path / "m", {}), "no arrays")


def test_folders_pipes_and_sockets(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(tmp_path)  # the path of a socket must be short
        try:
            listener.bind("socket")
        finally:
            os.chdir(here)
        for name in ("pipe", "folder", "socket"):
            refused(tmp_path / name, "not a regular file")


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_npz(tmp_path / "nothing", source="client mallory")


def test_something_after_the_end(tmp_path: Path) -> None:
    path = archive(tmp_path / "m", {"w.npy": GOOD})
    path.write_bytes(path.read_bytes() + b"more")
    refused(path, "after its end")


def test_a_directory_that_claims_gigabytes(tmp_path: Path) -> None:
    path = archive(tmp_path / "m", {"w.npy": GOOD})
    raw = bytearray(path.read_bytes())
    raw[-10:-6] = struct.pack("<L", 1 << 31)
    path.write_bytes(raw)
    refused(path, "claims 2147483648 bytes")


# ---- members


@pytest.mark.parametrize("name", ["../w.npy", "/w.npy", "a/../../w.npy", "a\\w.npy", "C:w.npy", "w\nx.npy", ".npy"])
def test_names_with_path_tricks(name: str, tmp_path: Path) -> None:
    error = refused(archive(tmp_path / "m", {name: GOOD}), "name")
    assert error.fields["member"] == name


@pytest.mark.parametrize("name", ["w", "w.npz", "__main__.py", "w.npy\x00.txt"])
def test_members_that_are_not_named_like_arrays(name: str, tmp_path: Path) -> None:
    path = tmp_path / "m"
    with zipfile.ZipFile(path, "w") as out:
        info = zipfile.ZipInfo("placeholder")
        info.filename = name
        out.writestr(info, GOOD)
    refused(path, "not named like an array")


def test_a_member_that_is_there_twice(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(tmp_path / "m", "w") as out:
            out.writestr("w.npy", GOOD)
            out.writestr("w.npy", GOOD)
    refused(tmp_path / "m", "twice")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions(method: int, tmp_path: Path) -> None:
    refused(archive(tmp_path / "m", {"w.npy": GOOD}, method), f"method {method}")


def test_encrypted_members(tmp_path: Path) -> None:
    path = archive(tmp_path / "m", {"w.npy": GOOD})
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    raw[raw.index(b"PK\x03\x04") + 6] |= 1
    path.write_bytes(raw)
    refused(path, "encrypted")


def test_too_many_members(tmp_path: Path) -> None:
    path = tmp_path / "m"
    # The directory alone, so that the test is quick: the count is looked at before any member is.
    entry = struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 0, 0, 33, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0) + b"w.npy"
    count = MAX_MEMBERS + 1
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, count * len(entry), 0)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, count * len(entry), 1)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path.write_bytes(entry * count + end64 + locator + end)
    refused(path, f"{count} arrays")


def test_members_that_share_bytes(tmp_path: Path) -> None:
    path = archive(tmp_path / "m", {"a.npy": GOOD, "b.npy": GOOD})
    raw = bytearray(path.read_bytes())
    second = raw.rindex(b"PK\x01\x02")
    # The second entry points at the first member; its own header says so, too, by name.
    raw[second + 42 : second + 46] = struct.pack("<L", 0)
    raw[second + 46 : second + 51] = b"c.npy"
    path.write_bytes(raw)
    refused(path, "contradicts")
    whole = archive(tmp_path / "n", {"a.npy": GOOD, "b.npy": GOOD})
    raw = bytearray(whole.read_bytes())
    first = raw.index(b"PK\x01\x02")
    # The first member claims the bytes of the second: header, name and all.
    local = raw.index(b"PK\x03\x04", 4)
    size = local + 20
    for at in (first + 20, first + 24, 18, 22):
        raw[at : at + 4] = struct.pack("<L", size)
    whole.write_bytes(raw)
    refused(whole, "overlaps")


def test_a_member_whose_own_header_says_otherwise(tmp_path: Path) -> None:
    for at, value in ((4 + 2 + 2, b"\x08"), (14, b"\x00\x00\x00\x00"), (22, b"\x01\x00\x00\x00"), (30, b"x")):
        path = archive(tmp_path / "m", {"w.npy": GOOD})
        raw = bytearray(path.read_bytes())
        raw[at : at + len(value)] = value
        path.write_bytes(raw)
        refused(path, "contradicts")


def test_more_than_the_limit(tmp_path: Path) -> None:
    path = archive(tmp_path / "m", {"w.npy": npy(np.zeros(10_000))}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1000
    refused(path, "limit is 50000", max_bytes=50_000)


# ---- sizes that lie


def deflated(path: Path, member: bytes, told: int, crc: int | None = None, tail: bytes = b"") -> Path:
    """Write an archive by hand whose directory and header tell ``told`` bytes for ``member``, deflated."""
    squeezed = zlib.compressobj(9, zlib.DEFLATED, -15)
    raw = squeezed.compress(member) + squeezed.flush() + tail
    crc = zlib.crc32(member[:told]) if crc is None else crc
    local = struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, 0, 8, 0, 33, crc, len(raw), told, 5, 0) + b"w.npy" + raw
    entry = struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 8, 0, 33, crc, len(raw), told, 5, 0, 0, 0, 0, 0, 0)
    entry += b"w.npy"
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(entry), len(local), 0)
    path.write_bytes(local + entry + end)
    return path


def test_the_hand_made_archive_is_good_when_it_does_not_lie(tmp_path: Path) -> None:
    came = read_all(deflated(tmp_path / "m", GOOD, len(GOOD)))
    assert came["w"].tolist() == [0, 1, 2, 3, 4, 5]


def test_deflated_members_that_hold_more_less_or_others(tmp_path: Path) -> None:
    refused(deflated(tmp_path / "m", GOOD + b"more", len(GOOD)), "lies about its size")
    refused(deflated(tmp_path / "m", GOOD[:-4], len(GOOD)), "lies about its size")
    refused(deflated(tmp_path / "m", GOOD, len(GOOD), tail=b"more"), "lies about its size")
    refused(deflated(tmp_path / "m", GOOD, len(GOOD), crc=1), "checksum")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("data", [GOOD[:-1], GOOD + b"x", GOOD[:20], GOOD[:11]])
def test_headers_that_disagree_with_the_member(data: bytes, method: int, tmp_path: Path) -> None:
    error = refused(archive(tmp_path / "m", {"w.npy": data}, method), "lies about its size|too short")
    assert error.fields["member"] == "w"


@pytest.mark.parametrize(("fields", "words"), [((20,), "or [0-9]+ bytes"), ((20, 24), "goes on after")])
def test_stored_members_that_claim_more(fields: tuple[int, ...], words: str, tmp_path: Path) -> None:
    path = archive(tmp_path / "m", {"w.npy": GOOD})
    raw = bytearray(path.read_bytes())
    entry = raw.index(b"PK\x01\x02")
    for field in fields:  # in the directory and, two bytes earlier, in the member's own header
        for at in (entry + field, field - 2):
            raw[at : at + 4] = struct.pack("<L", len(GOOD) + 20)
    path.write_bytes(raw)
    refused(path, words)


def test_stored_members_are_verified_when_asked(tmp_path: Path) -> None:
    path = archive(tmp_path / "m", {"w.npy": GOOD})
    raw = bytearray(path.read_bytes())
    raw[raw.index(GOOD) + len(GOOD) - 1] ^= 1
    path.write_bytes(raw)
    with open_npz(path, source="client mallory") as model:
        model.arrays()
        with pytest.raises(BadModel, match="checksum"):
            model.verify()
    with pytest.raises(BadModel, match="checksum"):
        normalise(path, tmp_path / "n", source="client mallory")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_file_that_is_cut_off_while_it_is_open(method: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = archive(tmp_path / "m", {"w.npy": npy(rng.standard_normal(500_000))}, method)
    with open_npz(path, source="client mallory") as model:
        blocks = model.blocks()
        next(blocks)
        os.truncate(path, 1_000_000)
        with pytest.raises(BadModel, match="cut off"):
            list(blocks)


# ---- headers of arrays


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_pickles_are_never_opened(method: int, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "boom"),))

    for array in (np.array([Bomb()]), np.array([(1, Bomb())], dtype=[("a", int), ("b", object)])):
        refused(archive(tmp_path / "m", {"w.npy": npy(array)}, method), "pickle is never used")
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize(
    "array",
    [
        np.array([1j]),
        np.array(["text"]),
        np.array([b"text"]),
        np.array(["2020-01-01"], "M8[D]"),
        np.array([1], "m8[s]"),
        np.zeros(1, [("a", "i4")]),
        np.zeros(1, "V4"),
        np.zeros(1, np.longdouble),
    ],
    ids=lambda a: str(a.dtype),
)
def test_other_dtypes(array: NDArray[Any], tmp_path: Path) -> None:
    refused(archive(tmp_path / "m", {"w.npy": npy(array)}), "dtype|\\.npy array of version")


@pytest.mark.parametrize(
    "text",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (True,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (6.0,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': 6}",
        "{'descr': '<f4', 'fortran_order': 0, 'shape': (6,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (6L,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 99999999999999999999)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': " + str((1,) * 40) + "}",
        "{'descr': '<f4', 'fortran_order': False}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (6,), 'x': 1}",
        "{'descr': 'nonsense', 'fortran_order': False, 'shape': (6,)}",
        "{'descr': '<f4,<f4', 'fortran_order': False, 'shape': (3,)}",
        "{'descr': ['<f4'], 'fortran_order': False, 'shape': (6,)}",
        "{'descr': '|a4', 'fortran_order': False, 'shape': (6,)}",
        "__import__('os').getcwd()",
        "(" * 3000,
        "-" * 9000 + "1",
        "'\\d'",
        "{",
        "",
    ],
)
@pytest.mark.parametrize("version", [b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\xff\x00"])
def test_headers_that_make_no_sense(text: str, version: bytes, tmp_path: Path) -> None:
    member = header(text, bytes(24), version)
    refused(archive(tmp_path / "m", {"w.npy": member}), "header|shape|dtype|version|lies|too short")


def test_a_header_of_gigabytes(tmp_path: Path) -> None:
    member = b"\x93NUMPY\x02\x00" + (1 << 31).to_bytes(4, "little") + bytes(100)
    refused(archive(tmp_path / "m", {"w.npy": member}), "the limit is")


def test_booleans_that_are_neither(tmp_path: Path) -> None:
    member = header("{'descr': '|b1', 'fortran_order': False, 'shape': (3,)}", b"\x00\x02\xff")
    came = read_all(archive(tmp_path / "m", {"w.npy": member}))
    assert came["w"].view(np.uint8).tolist() == [0, 1, 1]


def test_version_2_headers_are_read(tmp_path: Path) -> None:
    member = header("{'descr': '<i2', 'fortran_order': False, 'shape': (2,)}", b"\x01\x00\x02\x00", b"\x02\x00")
    assert read_all(archive(tmp_path / "m", {"w.npy": member}))["w"].tolist() == [1, 2]


def test_the_expected_schema_is_required(tmp_path: Path) -> None:
    expect = ModelSchema(tensors=(TensorSpec(name="w", shape=(2, 3), dtype="float32"),))
    error = refused(archive(tmp_path / "m", {"w.npy": GOOD}), r"float32\[2, 3\].*float32\[6\]", expect=expect)
    assert error.fields["tensor"] == "w"


# ---- anything else


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The same model as it is written by us, by numpy and by numpy compressed."""
    folder = tmp_path_factory.mktemp("samples")
    arrays: Arrays = {
        "0": np.arange(12, dtype=np.float32).reshape(3, 4),
        "dense/kernel": np.asfortranarray(np.arange(70.0).reshape(5, 14)),
        "größe": np.array(3),
        "mask": np.array([True, False]),
    }
    write_npz(folder / "a", arrays)
    with (folder / "b").open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    with (folder / "c").open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return [(folder / name).read_bytes() for name in "abc"]


def read_or_refuse(path: Path, data: bytes) -> bool:
    path.write_bytes(data)
    try:
        read_all(path)
    except BadModel:
        return False
    return True


@given(data=st.data())
@settings(deadline=None, max_examples=400)
def test_damaged_bytes_never_give_another_error(
    data: st.DataObject, samples: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    raw = bytearray(data.draw(st.sampled_from(samples)))
    places = st.integers(0, len(raw) - 1)
    for at, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=4)):
        raw[at] = value
    read_or_refuse(tmp_path_factory.getbasetemp() / "damaged.npz", bytes(raw))


def test_every_byte_damaged_once(samples: list[bytes], tmp_path: Path) -> None:
    accepted = 0
    for raw in samples:
        for at in range(len(raw)):
            damaged = bytearray(raw)
            damaged[at] ^= 0xFF
            accepted += read_or_refuse(tmp_path / "m", bytes(damaged))
    # Time stamps, versions and attributes carry nothing; everything else must show.
    assert accepted < 0.2 * sum(map(len, samples))


def test_truncated_anywhere(samples: list[bytes], tmp_path: Path) -> None:
    for raw in samples:
        assert not any(read_or_refuse(tmp_path / "m", raw[:end]) for end in range(len(raw)))
