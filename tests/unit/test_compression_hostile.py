"""Compressed updates of strangers: refused with the sender's name, before they take more room than an honest one."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from numpy.typing import NDArray

from runnel.common.compression import decode_in_place, decode_update, encode_update, parse_compression
from runnel.common.errors import BadModel
from runnel.common.tensors import open_npz, write_npz

pytestmark = pytest.mark.unit

Parts = dict[str, NDArray[Any]]

COUNT = 100_000
KEPT = 1_000


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.npz"
    write_npz(path, {"w": np.zeros(COUNT, "float32"), "n": np.zeros(3, "int64")})
    return path


def encoded(tmp_path: Path, base: Path, how: str) -> Path:
    """An honest one."""
    random = np.random.default_rng(0)
    write_npz(tmp_path / "update.npz", {"w": random.normal(size=COUNT).astype("float32"), "n": np.arange(3)})
    path = tmp_path / "encoded"
    encode_update(tmp_path / "update.npz", path, compression=parse_compression(how), base=base)
    return path


def with_parts(path: Path, change: Callable[[Parts], None]) -> None:
    with np.load(path) as loaded:
        parts = {name: loaded[name].copy() for name in loaded.files}
    change(parts)
    file = io.BytesIO()
    np.savez(file, **parts)
    path.write_bytes(file.getvalue())


def refused(path: Path, base: Path, how: str) -> BadModel:
    """Require that it is refused and leaves nothing; return why."""
    before = path.read_bytes()
    target = path.with_name("plain")
    names = {each.name for each in path.parent.iterdir()}
    compression = parse_compression(how)
    with pytest.raises(BadModel) as caught:
        decode_update(path, target, compression=compression, base=base, source="mallory")
    with pytest.raises(BadModel):
        decode_in_place(path, compression=compression, base=base, source="mallory")
    assert "mallory" in str(caught.value)
    assert caught.value.fields["source"] == "mallory"
    assert {each.name for each in path.parent.iterdir()} == names
    assert path.read_bytes() == before
    return caught.value


def put(name: str, where: Any, value: Any) -> Callable[[Parts], None]:
    def change(parts: Parts) -> None:
        parts[name][where] = value

    return change


def cast(name: str, dtype: str) -> Callable[[Parts], None]:
    def change(parts: Parts) -> None:
        parts[name] = parts[name].astype(dtype)

    return change


def cut(name: str, count: int) -> Callable[[Parts], None]:
    def change(parts: Parts) -> None:
        parts[name] = np.resize(parts[name], count)

    return change


def without(name: str) -> Callable[[Parts], None]:
    def change(parts: Parts) -> None:
        del parts[name]

    return change


def more(parts: Parts) -> None:
    parts["2/exact"] = np.zeros(5)


BAD: list[tuple[str, Callable[[Parts], None], str]] = [
    ("fp16", put("0/fp16", 7, np.nan), "NaN or infinity"),
    ("fp16", put("0/fp16", -1, np.inf), "NaN or infinity"),
    ("fp16", cast("0/fp16", "float32"), "not compressed by fp16"),
    ("bf16", put("0/bf16", 7, 0x7F80), "NaN or infinity"),
    ("bf16", put("0/bf16", 7, 0xFFC1), "NaN or infinity"),
    ("int8", put("0/scale", 3, np.nan), "scale"),
    ("int8", put("0/scale", 3, -1.0), "scale"),
    ("int8", put("0/scale", 97, np.inf), "scale"),
    ("int8", cut("0/scale", 97), "not compressed by int8"),
    ("int8", cut("0/int8", COUNT + 1), "not compressed by int8"),
    ("int8", without("1/exact"), "not compressed by int8"),
    ("int8", more, "not compressed by int8"),
    ("top-k", put("0/gap", 5, 0), "do not increase"),
    ("top-k", put("0/gap", 5, 2**32 - 1), "do not increase, or leave"),
    ("top-k", put("0/gap", slice(None), COUNT // KEPT + 1), "keeps element"),
    ("top-k", put("0/gap", 0, COUNT), "keeps element"),
    ("top-k", put("0/value", 9, -np.inf), "NaN or infinity"),
    ("top-k", cut("0/value", KEPT - 1), "not compressed by top-k:0.01"),
    ("top-k", cut("0/gap", KEPT + 1), "not compressed by top-k:0.01"),
    ("top-k", cast("0/gap", "int64"), "not compressed by top-k:0.01"),
]


@pytest.mark.parametrize(("how", "change", "told"), BAD)
def test_lies_about_numbers_and_lengths(
    tmp_path: Path, base: Path, how: str, change: Callable[[Parts], None], told: str
) -> None:
    path = encoded(tmp_path, base, how)
    with_parts(path, change)
    assert told in str(refused(path, base, how))


def test_the_last_element_may_be_kept(tmp_path: Path, base: Path) -> None:
    path = encoded(tmp_path, base, "top-k")
    with_parts(path, put("0/gap", slice(None), COUNT // KEPT))
    decode_update(path, tmp_path / "plain", compression=parse_compression("top-k"), base=base, source="a")
    with open_npz(tmp_path / "plain", source="a") as opened:
        assert np.flatnonzero(opened.arrays()["w"])[-1] == COUNT - 1


@pytest.mark.parametrize("how", ["fp16", "int8", "top-k"])
def test_a_plain_model_is_no_compressed_one(tmp_path: Path, base: Path, how: str) -> None:
    encoded(tmp_path, base, how)
    error = refused(tmp_path / "update.npz", base, how)
    assert "another version" in error.hint


def test_deflated_members(tmp_path: Path, base: Path) -> None:
    path = encoded(tmp_path, base, "int8")
    with np.load(path) as loaded:
        parts = dict(loaded)
    with path.open("wb") as file:
        np.savez_compressed(file, **parts)
    assert "deflated" in str(refused(path, base, "int8"))


def test_objects_are_never_unpickled(tmp_path: Path, base: Path) -> None:
    path = encoded(tmp_path, base, "int8")
    with_parts(path, lambda parts: parts.update({"1/exact": np.array([print, 1, 2], dtype=object)}))
    assert "pickle" in str(refused(path, base, "int8"))


@pytest.mark.parametrize("how", ["zstd", "int8+zstd"])
class TestZstd:
    def test_a_bomb_is_stopped_at_the_size_of_an_update(self, tmp_path: Path, base: Path, how: str) -> None:
        path = encoded(tmp_path, base, how)
        path.write_bytes(zstandard.compress(bytes(1 << 28)))
        assert path.stat().st_size < 1 << 15
        assert "unpacks to more than" in str(refused(path, base, how))

    def test_a_window_that_takes_memory(self, tmp_path: Path, base: Path, how: str) -> None:
        path = encoded(tmp_path, base, how)
        parameters = zstandard.ZstdCompressionParameters(window_log=27)
        packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
        path.write_bytes(packer.compress(bytes(1000)) + packer.flush())
        assert "too much memory" in str(refused(path, base, how))

    @pytest.mark.parametrize("bytes_of", ["", "cut", "garbage", "flipped", "trailing", "two", "plain"])
    def test_a_frame_that_is_none(self, tmp_path: Path, base: Path, how: str, bytes_of: str) -> None:
        path = encoded(tmp_path, base, how)
        good = path.read_bytes()
        flipped = bytearray(good)
        flipped[-2] ^= 1  # in the checksum
        path.write_bytes(
            {
                "": b"",
                "cut": good[:-100],
                "garbage": b"garbage",
                "flipped": bytes(flipped),
                "trailing": good + b"more",
                "two": good + good,
                "plain": zstandard.ZstdDecompressor().decompress(good),
            }[bytes_of]
        )
        refused(path, base, how)

    def test_what_is_inside_is_checked_as_well(self, tmp_path: Path, base: Path, how: str) -> None:
        path = encoded(tmp_path, base, how)
        write_npz(tmp_path / "other", {"w": np.zeros(COUNT // 2, "float32")})
        path.write_bytes(zstandard.compress((tmp_path / "other").read_bytes()))
        refused(path, base, how)

    def test_deflate_inside_zstd_unpacks_to_no_more(self, tmp_path: Path, base: Path, how: str) -> None:
        path = encoded(tmp_path, base, how)
        with (tmp_path / "other").open("wb") as file:
            np.savez_compressed(file, w=np.zeros(50 * COUNT, "float32"))
        path.write_bytes(zstandard.compress((tmp_path / "other").read_bytes()))
        refused(path, base, how)


def test_any_byte_may_be_wrong(tmp_path: Path, base: Path) -> None:
    """Whatever comes out is a model of the right schema, or a refusal: never anything else."""
    path = encoded(tmp_path, base, "top-k")
    good = path.read_bytes()
    random = np.random.default_rng(5)
    compression = parse_compression("top-k")
    for at in random.integers(0, len(good), 150):
        bad = bytearray(good)
        bad[at] = random.integers(0, 256)
        path.write_bytes(bytes(bad))
        try:
            decode_update(path, tmp_path / "plain", compression=compression, base=base, source="mallory")
        except BadModel:
            continue
        with open_npz(base, source="base") as wanted, open_npz(tmp_path / "plain", source="a") as came:
            assert came.schema == wanted.schema
