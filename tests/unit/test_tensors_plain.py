"""Files of models that need only be checked, not written once more."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from runnel.common.errors import BadModel
from runnel.common.tensors import normalise

pytestmark = pytest.mark.unit

ARRAY = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)


def _stored(path: Path) -> None:
    np.savez(path, w=ARRAY, b=np.arange(3))


def _linked(path: Path) -> None:
    _stored(path)
    path.with_name("other.npz").hardlink_to(path)


def _with_a_gap(path: Path) -> None:
    member = zipfile.ZipInfo("w.npy")
    member.extra = struct.pack("<2H", 0xD935, 9_000) + bytes(9_000)
    data = io.BytesIO()
    np.save(data, ARRAY)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, data.getvalue())


NOT_PLAIN: dict[str, Callable[[Path], None]] = {
    "deflated": lambda path: np.savez_compressed(path, w=ARRAY),
    "in Fortran order": lambda path: np.savez(path, w=np.asfortranarray(ARRAY)),
    "big-endian": lambda path: np.savez(path, w=ARRAY.astype(">f4")),
    "boolean": lambda path: np.savez(path, w=ARRAY > 0.5),
    "under two names": _linked,
    "with a gap": _with_a_gap,
}


def test_a_plain_file_is_moved_as_it_is(tmp_path: Path) -> None:
    _stored(tmp_path / "a.npz")
    before = (tmp_path / "a.npz").stat()
    schema = normalise(tmp_path / "a.npz", tmp_path / "b.npz", source="the test", keep_plain=True)
    assert [spec.name for spec in schema.tensors] == ["w", "b"]
    assert (tmp_path / "b.npz").stat().st_ino == before.st_ino
    assert not (tmp_path / "a.npz").exists()


@pytest.mark.parametrize("write", NOT_PLAIN.values(), ids=NOT_PLAIN.keys())
def test_what_is_not_plain_is_written_anew(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path / "a.npz")
    normalise(tmp_path / "a.npz", tmp_path / "kept.npz", source="the test", keep_plain=True)
    normalise(tmp_path / "a.npz", tmp_path / "anew.npz", source="the test")
    assert (tmp_path / "kept.npz").read_bytes() == (tmp_path / "anew.npz").read_bytes()


@pytest.mark.parametrize("damage", ["not finite", "damaged"])
def test_a_plain_file_is_checked_like_any_other(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "a.npz"
    np.savez(file, w=ARRAY * (np.nan if damage == "not finite" else 1))
    if damage == "damaged":
        data = bytearray(file.read_bytes())
        data[data.index(ARRAY.tobytes()) + 5] ^= 1
        file.write_bytes(data)
    with pytest.raises(BadModel, match="NaN" if damage == "not finite" else "checksum"):
        normalise(file, tmp_path / "b.npz", source="the test", keep_plain=True)
    assert not (tmp_path / "b.npz").exists()
