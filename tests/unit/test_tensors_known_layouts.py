"""Small archives laid out like one that was read before are read like others."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runnel.common.errors import BadModel
from runnel.common.tensors import npz, open_npz
from runnel.common.tensors.known_layouts import KnownLayouts

pytestmark = pytest.mark.unit


def archive(*, w: float = 1.0, b: float = 2.0, **more: float) -> bytes:
    """An archive as numpy writes it: two tensors, and others of one element."""
    file = io.BytesIO()
    arrays: dict[str, Any] = {"w": np.full((2, 3), w, np.float32), "b": np.full(3, b, np.int64)}
    arrays |= {name: np.array([value], np.float32) for name, value in more.items()}
    np.savez(file, **arrays)
    return file.getvalue()


@pytest.fixture
def layouts(monkeypatch: pytest.MonkeyPatch) -> KnownLayouts:
    known = KnownLayouts(most=2)
    monkeypatch.setattr(npz, "_LAYOUTS", known)
    return known


def numbers(data: bytes | Path) -> dict[str, list[float]]:
    with open_npz(data, source="a client") as model:
        return {name: array.ravel().tolist() for name, array in model.arrays().items()}


def test_an_archive_of_a_known_layout_is_read_with_its_own_elements_and_checksums(
    layouts: KnownLayouts, tmp_path: Path
) -> None:
    numbers(archive())
    second = archive(w=-7.5, b=9.0)
    assert layouts.find(second) is not None
    file = tmp_path / "second.npz"
    file.write_bytes(second)
    for data in (second, file):
        assert numbers(data) == {"w": [-7.5] * 6, "b": [9.0] * 3}
        with open_npz(data, source="a client") as model:
            model.verify()
            assert [block.values.tolist() for block in model.blocks(2, check_crc=True)][-1] == [9]
            assert model.view("b").tolist() == [9, 9, 9]
            assert model.is_plain is isinstance(data, Path)


def test_one_that_differs_anywhere_but_in_elements_and_checksums_is_checked_anew(layouts: KnownLayouts) -> None:
    first = archive()
    numbers(first)
    found = layouts.find(first)
    assert found is not None
    layout, _ = found
    held = {at for part in layout.fixed for at in range(len(first))[part]}
    elements = 6 * 4 + 3 * 8
    checksums = 2 * 2 * 4
    assert len(first) - len(held) == elements + checksums
    for at in sorted(held):
        other = bytearray(first)
        other[at] ^= 0x11
        assert layouts.find(bytes(other)) is None
    assert layouts.find(first[:-1]) is None
    assert layouts.find(first + b"\0") is None


def test_a_checksum_that_contradicts_the_directory_is_refused(layouts: KnownLayouts) -> None:
    first = archive()
    numbers(first)
    own = zipfile.ZipFile(io.BytesIO(first)).infolist()[1].header_offset + 14
    other = bytearray(first)
    other[own] ^= 1
    assert layouts.find(bytes(other)) is None
    with pytest.raises(BadModel, match="contradicts the directory"):
        numbers(bytes(other))


def test_damaged_elements_are_found_by_their_checksum(layouts: KnownLayouts) -> None:
    first = archive()
    numbers(first)
    other = bytearray(first)
    at = other.index(np.full(3, 2, np.int64).tobytes())
    other[at] ^= 1
    with open_npz(bytes(other), source="a client") as model, pytest.raises(BadModel, match="'b' is damaged"):
        model.verify()
    with open_npz(bytes(other), source="a client") as model, pytest.raises(BadModel, match="'b' is damaged"):
        list(model.blocks(check_crc=True))


def test_not_a_number_is_found_in_an_archive_of_a_known_layout(layouts: KnownLayouts) -> None:
    numbers(archive())
    with open_npz(archive(w=np.nan), source="a client") as model, pytest.raises(BadModel, match="NaN"):
        model.require_finite()


def test_the_expected_schema_and_the_limit_hold_for_known_layouts(layouts: KnownLayouts) -> None:
    numbers(archive())
    with open_npz(archive(c=1.0), source="the model") as model:
        other = model.schema
    with pytest.raises(BadModel, match="the tensor 'c'"):
        open_npz(archive(), source="a client", expect=other)
    with pytest.raises(BadModel, match="the limit is 100"):
        open_npz(archive(), source="a client", max_bytes=100)


def test_deflated_archives_are_not_remembered_and_read(layouts: KnownLayouts, tmp_path: Path) -> None:
    file = tmp_path / "deflated.npz"
    np.savez_compressed(file, w=np.full((2, 3), 4.0, np.float32))
    for data in (file, file.read_bytes()):
        assert numbers(data) == {"w": [4.0] * 6}
    assert layouts.find(file.read_bytes()) is None


def test_archives_whose_sizes_follow_are_not_remembered(layouts: KnownLayouts) -> None:
    member = io.BytesIO()
    np.save(member, np.ones(2, np.float32))

    class Pipe(io.RawIOBase):
        """Takes bytes and can't go back, so that headers can't be filled in."""

        def __init__(self) -> None:
            self.taken = b""

        def writable(self) -> bool:
            return True

        def write(self, data: object) -> int:
            self.taken += bytes(data)  # type: ignore[call-overload]
            return len(bytes(data))  # type: ignore[call-overload]

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w") as written:
        written.writestr("w.npy", member.getvalue())
    assert numbers(pipe.taken) == {"w": [1.0, 1.0]}
    assert layouts.find(pipe.taken) is None


def test_a_few_layouts_are_remembered(layouts: KnownLayouts) -> None:
    archives = [archive(), archive(c=1.0), archive(c=1.0, d=2.0)]
    for each in (archives[0], archives[1], archives[0], archives[2]):
        numbers(each)
    assert [layouts.find(each) is not None for each in archives] == [True, False, True]


def test_the_checksum_of_a_member_is_its_own(layouts: KnownLayouts) -> None:
    numbers(archive())
    found = layouts.find(archive(b=5.0))
    assert found is not None
    header_and_elements = io.BytesIO()
    np.save(header_and_elements, np.full(3, 5, np.int64))
    assert found[1][1].crc == zlib.crc32(header_and_elements.getvalue())
