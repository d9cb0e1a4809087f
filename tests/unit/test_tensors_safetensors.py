"""safetensors files: what the library of the field writes we read, and the other way round; strangers' are refused."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from runnel.common.errors import BadModel, InvalidInput
from runnel.common.model_format import ModelFormat
from runnel.common.tensors import (
    DTYPES,
    ModelSchema,
    SafetensorsWriter,
    convert,
    find_format,
    numpy_dtype,
    open_npz,
    open_safetensors,
    write_npz,
)
from runnel.common.tensors.safetensors_header import MAX_HEADER_BYTES
from runnel.common.tensors.schema import name_fault

pytestmark = pytest.mark.unit

Arrays = dict[str, NDArray[Any]]


def mixed() -> Arrays:
    rng = np.random.default_rng(0)
    return {
        "mask": np.array([True, False, True]),
        "conv.weight": rng.standard_normal((5, 7, 2)),
        "scalar": np.array(3, np.int64),
        "half": rng.standard_normal(9).astype(np.float16),
        "empty": np.zeros((0, 3), np.float32),
        "bf": rng.standard_normal((3, 5)).astype(ml_dtypes.bfloat16),
        "größe/ä b": np.arange(70_000, dtype=np.uint16),
        "odd\"'{}": np.array([-1], np.int8),
        "0": np.array([1, 2], np.uint64),
    }


def read(path: Path) -> Arrays:
    with open_safetensors(path, source="here") as model:
        return {
            spec.name: np.concatenate([np.empty(0, numpy_dtype(spec.dtype)), *model.tensor_blocks(place)]).reshape(
                spec.shape
            )
            for place, spec in enumerate(model.schema.tensors)
        }


def write(path: Path, arrays: Arrays) -> Path:
    with SafetensorsWriter(path, ModelSchema.of(arrays)) as writer:
        for array in arrays.values():
            flat = array.reshape(-1)
            for at in range(0, flat.size, 1000):
                writer.append(flat[at : at + 1000])
    return path


def assert_same(came: Arrays, arrays: Arrays) -> None:
    assert set(came) == set(arrays)
    for name, array in arrays.items():
        assert (came[name].dtype, came[name].shape) == (array.dtype, array.shape)
        assert came[name].tobytes() == array.tobytes()


# ---- beside the library


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    save_file(mixed(), tmp_path / "m.safetensors", metadata={"format": "pt"})
    assert_same(read(tmp_path / "m.safetensors"), mixed())
    assert find_format(tmp_path / "m.safetensors") is ModelFormat.SAFETENSORS


def test_what_is_written_the_library_reads(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", mixed())
    assert_same(load_file(path), mixed())
    with safe_open(path, framework="numpy") as opened:  # maps the file, so each tensor has to be aligned
        assert set(opened.keys()) == set(mixed())
    assert list(read(path)) == list(mixed())
    with open_safetensors(path, source="here") as model:
        offsets = model._offsets
    for spec, offset in zip(ModelSchema.of(mixed()).tensors, offsets, strict=True):
        assert offset % DTYPES[spec.dtype] == 0


def test_equal_models_have_equal_bytes_and_unfinished_ones_leave_no_file(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a", mixed()), write(tmp_path / "b", mixed())
    assert first.read_bytes() == second.read_bytes()
    with (
        pytest.raises(InvalidInput, match="elements of 'w' float32"),
        SafetensorsWriter(tmp_path / "c", ModelSchema.of({"w": np.zeros(2, np.float32)})) as writer,
    ):
        writer.append(np.zeros(1, np.float32))
    with (
        pytest.raises(InvalidInput, match="int64 cannot be written"),
        SafetensorsWriter(tmp_path / "c", ModelSchema.of({"w": np.zeros(2, np.float32)})) as writer,
    ):
        writer.append(np.zeros(2, np.int64))
    with (
        pytest.raises(InvalidInput, match="2 elements are left"),
        SafetensorsWriter(tmp_path / "c", ModelSchema.of({"w": np.zeros(2, np.float32)})) as writer,
    ):
        writer.append(np.zeros(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


# ---- laws

PLAIN = [name for name in DTYPES if name != "bfloat16"]
numbers = st.one_of(
    hnp.arrays(
        dtype=st.sampled_from(PLAIN).map(np.dtype),
        shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    ),
    hnp.arrays(dtype=np.uint16, shape=hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=4)).map(
        lambda bits: bits.view(ml_dtypes.bfloat16)
    ),
)
names = st.text("ab0/é.\"'{}[]:,_ 名", min_size=1, max_size=4).filter(lambda name: name_fault(name) is None)
models = st.dictionaries(names, numbers, min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(models)
def test_round_trips_are_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, arrays: Arrays) -> None:
    """Specials, NaN included, empty tensors, scalars and odd names: npz to safetensors and back gives the same file."""
    folder = tmp_path_factory.mktemp("trip")
    write_npz(folder / "a.npz", arrays)
    convert(folder / "a.npz", folder / "b", ModelFormat.SAFETENSORS, source="here")
    assert_same(read(folder / "b"), arrays)
    convert(folder / "b", folder / "c.npz", ModelFormat.NPZ, source="here")
    assert (folder / "c.npz").read_bytes() == (folder / "a.npz").read_bytes()
    convert(folder / "c.npz", folder / "c.npz", ModelFormat.SAFETENSORS, source="here")
    assert (folder / "c.npz").read_bytes() == (folder / "b").read_bytes()


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_damage_to_a_header_is_refused_or_harmless(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    folder = tmp_path_factory.mktemp("damage")
    raw = bytearray(write(folder / "m", {"w": np.arange(4, dtype=np.float32), "b": np.zeros((), np.int8)}).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 18))] = data.draw(st.integers(0, 255))
    (folder / "m").write_bytes(raw)
    try:
        with open_safetensors(folder / "m", source="mallory") as model:
            assert sum(spec.nbytes for spec in model.schema.tensors) == 17
            for place in range(len(model.schema.tensors)):
                list(model.tensor_blocks(place))
    except BadModel as error:
        assert "mallory" in error.message  # noqa: PT017


# ---- strangers


def raw_file(path: Path, header: object, data: bytes = b"", *, nbytes: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if nbytes is None else nbytes) + text + data)
    return path


def refused(path: Path, words: str) -> BadModel:
    with pytest.raises(BadModel, match=words) as caught, open_safetensors(path, source="client mallory"):
        pass
    assert caught.value.fields["source"] == "client mallory"
    assert "client mallory" in str(caught.value)
    assert len(str(caught.value)) < 2000
    return caught.value


def entry(dtype: object = "F32", shape: object = (1,), offsets: object = (0, 4), **more: object) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets} | more


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"", "no JSON object"),
        (b"[]", "no JSON object"),
        (b"{", "no JSON object"),
        (b'{"w":\xff}', "no JSON object"),
        (b' {"w":1}', "no JSON object"),
        (b'{"a":' * 5000, "no JSON object"),
        (b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"w":{}}', "names something twice"),
        (b'{"w":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', "names something twice"),
        ({}, "no tensors"),
        ({"__metadata__": {"a": "b"}}, "no tensors"),
        ({"w": 3}, "not described"),
        ({"w": {"dtype": "F32", "shape": [1]}}, "not described"),
        ({"w": entry(more=1)}, "not described"),
        ({"w": entry(dtype="F8_E4M3")}, "accepted are BOOL"),
        ({"w": entry(dtype=["F32"])}, "accepted are BOOL"),
        ({"w": entry(dtype="x" * 100_000)}, "accepted are BOOL"),
        ({"w": entry(shape=1)}, "no sizes"),
        ({"w": entry(shape=[1.0])}, "no sizes"),
        ({"w": entry(shape=[True])}, "no sizes"),
        ({"w": entry(shape=[-1, -1])}, "no sizes"),
        ({"w": entry(shape=[1 << 70])}, "no sizes"),
        ({"w": entry(shape=[0, 1 << 50], offsets=[0, 0])}, "larger than any array"),
        ({"w": entry(shape=[1] * 33)}, "dimensions"),
        ({"w": entry(offsets=[0])}, "no sizes"),
        ({"w": entry(offsets=[0, -4])}, "no sizes"),
        ({"w": entry(offsets=[0, 8])}, "lies about its size"),
        ({"w": entry(offsets=[4, 0])}, "lies about its size"),
        ({"w": entry(offsets=[4, 8])}, "begins at byte 4"),
        ({"w": entry(), "v": entry()}, "begins at byte 0"),
        ({"w": entry(), "v": entry(offsets=[8, 12])}, "begins at byte 8"),
        ({"w": entry(shape=[2], offsets=[0, 8])}, "take 8 bytes, and 4 follow"),
        ({"w": entry("U8", [1], [0, 1])}, "take 1 bytes, and 4 follow"),
        ({"../w": entry()}, "name"),
        ({"": entry()}, "name"),
        ({"a\\b": entry()}, "backslash"),
        ({"a\nb": entry()}, "control"),
        ({"\ud800": entry()}, "control"),
        ({"x" * 5000: entry()}, "4,096 bytes"),
    ],
)
def test_malformed_headers(tmp_path: Path, header: object, words: str) -> None:
    refused(raw_file(tmp_path / "m", header, bytes(4)), words)


def test_headers_that_cost_more_than_they_should(tmp_path: Path) -> None:
    refused(raw_file(tmp_path / "m", {"w": entry()}, nbytes=MAX_HEADER_BYTES + 1), "the limit is 8388608")
    refused(raw_file(tmp_path / "m", {"w": entry()}, nbytes=1 << 63), "the limit is 8388608")
    refused(raw_file(tmp_path / "m", b'{"a":[' + b"{}," * 500_000 + b"{}]}"), "more tensors than")
    many = {f"{number}": 0 for number in range(100_001)}
    refused(raw_file(tmp_path / "m", json.dumps(many).encode()), "100001 tensors")


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 20, -1, -15])
def test_files_that_were_cut_off(tmp_path: Path, kept: int) -> None:
    whole = write(tmp_path / "m", {"w": np.arange(4, dtype=np.float32)}).read_bytes()
    (tmp_path / "m").write_bytes(whole[:kept])
    refused(tmp_path / "m", "cut off|follow the header")


def test_a_file_that_is_cut_off_while_it_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "m", {"w": np.zeros(200_000, np.float32)})
    with open_safetensors(path, source="client mallory") as model:
        blocks = model.tensor_blocks(0)
        next(blocks)
        os.truncate(path, 300_000)
        with pytest.raises(BadModel, match=r"client mallory .* cut off while"):
            list(blocks)


def test_other_files(tmp_path: Path) -> None:
    write_npz(tmp_path / "m", {"w": np.zeros(1)})
    refused(tmp_path / "m", "zip archive")
    assert find_format(tmp_path / "m") is ModelFormat.NPZ
    (tmp_path / "m").write_bytes(b"\x80\x04N." * 100)
    refused(tmp_path / "m", "the limit is")
    with pytest.raises(BadModel, match="zip archive"), open_npz(tmp_path / "m", source="client mallory"):
        pass
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "regular file")
    refused(tmp_path, "regular file")
    with pytest.raises(FileNotFoundError):
        open_safetensors(tmp_path / "nothing", source="here")


def test_a_format_is_not_mistaken_for_another_by_the_length_of_a_header(tmp_path: Path) -> None:
    """A header of 0x4B50 bytes begins with the letters of a zip archive."""
    names = [f"{number:04}" for number in range(300)]
    save_file({name: np.zeros(1, np.uint8) for name in names}, tmp_path / "m", metadata={"fill": ""})
    short = struct.unpack("<Q", (tmp_path / "m").read_bytes()[:8])[0]
    metadata = {"fill": "x" * (0x4B50 - short)}
    save_file({name: np.zeros(1, np.uint8) for name in names}, tmp_path / "m", metadata=metadata)
    assert (tmp_path / "m").read_bytes()[:3] == b"PK\x00"
    assert find_format(tmp_path / "m") is ModelFormat.SAFETENSORS
    assert len(read(tmp_path / "m")) == 300


def test_names_that_the_format_keeps_for_itself(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match="__metadata__"):
        SafetensorsWriter(tmp_path / "m", ModelSchema.of({"__metadata__": np.zeros(1)}))
    assert not list(tmp_path.iterdir())
