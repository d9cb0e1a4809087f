"""Models go to files and come back, through every way that an .npz may be written."""

from __future__ import annotations

import hashlib
import itertools
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from runnel.common.blobs import digest_file
from runnel.common.errors import BadModel, InvalidInput, StorageFull
from runnel.common.model_format import ModelFormat
from runnel.common.tensors import (
    BFLOAT16,
    DTYPES,
    AtomicFile,
    BackgroundWriter,
    ModelSchema,
    NpzWriter,
    TensorSpec,
    convert,
    normalise,
    open_npz,
    to_canonical,
    write_npz,
)
from tests.needs import needs

pytestmark = pytest.mark.unit

Arrays = dict[str, NDArray[Any]]
Save = Callable[[Path, Arrays], object]


def savez(path: Path, arrays: Arrays) -> None:
    with path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def savez_compressed(path: Path, arrays: Arrays) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


SAVES: list[Save] = [write_npz, savez, savez_compressed]

numbers = hnp.arrays(
    dtype=st.sampled_from([*(name for name in DTYPES if name != BFLOAT16), ">f4", ">i2"]).map(np.dtype),
    shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5),
)
models = st.dictionaries(
    st.text("ab0/é.", min_size=1, max_size=3).filter(lambda s: all(p.strip(".") for p in s.split("/"))),
    st.tuples(numbers, st.booleans()).map(lambda pair: np.asfortranarray(pair[0]) if pair[1] else pair[0]),
    min_size=1,
    max_size=4,
)


def mixed() -> Arrays:
    rng = np.random.default_rng(0)
    return {
        "0": rng.standard_normal((3, 4)).astype(np.float32),
        "conv/kernel": np.asfortranarray(rng.standard_normal((5, 7, 2))),
        "größe": np.array(3, np.int64),
        "mask": np.array([True, False]),
        "empty": np.zeros((0, 3), np.float16),
        "big_endian": np.arange(5, dtype=">i4"),
    }


def assert_same(came: Arrays, expected: Arrays) -> None:
    assert list(came) == list(expected)
    for name, array in expected.items():
        assert came[name].dtype == array.dtype.newbyteorder("=")
        assert came[name].shape == array.shape
        assert np.array_equal(came[name], array, equal_nan=array.dtype.kind == "f")


@pytest.mark.parametrize("save", SAVES)
@given(arrays=models)
@settings(deadline=None, max_examples=60)
def test_what_was_written_is_read(save: Save, arrays: Arrays, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("models") / "m.npz"
    save(path, arrays)
    with open_npz(path, source="here") as model:
        assert model.schema == ModelSchema.of(arrays)
        assert_same(model.arrays(), arrays)
        model.verify()
        flat = list(model.blocks(block_params=3))
    assert [start for _, start, _ in flat] == [s.start for s in model.schema.spans(3)]
    assert [tensor for tensor, _, _ in flat] == [s.tensor for s in model.schema.spans(3)]
    assert [len(values) for _, _, values in flat] == [s.count for s in model.schema.spans(3)]


@given(arrays=models)
@settings(deadline=None, max_examples=60)
def test_numpy_reads_what_we_write(arrays: Arrays, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("models") / "m.npz"
    write_npz(path, arrays)
    with np.load(path) as archive:
        assert_same(dict(archive.items()), arrays)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


@pytest.mark.parametrize("save", SAVES)
def test_every_writing_of_one_model_normalises_to_the_same_bytes(save: Save, tmp_path: Path) -> None:
    write_npz(tmp_path / "canonical.npz", mixed())
    save(tmp_path / "m.npz", mixed())
    schema = normalise(tmp_path / "m.npz", tmp_path / "m.npz", source="here", expect=ModelSchema.of(mixed()))
    assert schema == ModelSchema.of(mixed())
    assert (tmp_path / "m.npz").read_bytes() == (tmp_path / "canonical.npz").read_bytes()


def test_the_bytes_of_a_model_never_change(tmp_path: Path) -> None:
    # Digests name models on all sites of a network, whatever numpy they have; another digest here breaks that.
    write_npz(tmp_path / "m.npz", {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([True])})
    digest = hashlib.sha256((tmp_path / "m.npz").read_bytes()).hexdigest()
    assert digest == "69822295be6850f9e61b030e7d3fa55a4bda3950195d75a2fdd41817097a878b"


def test_elements_begin_at_multiples_of_64_bytes(tmp_path: Path) -> None:
    arrays: Arrays = {f"layer{i}" * (i + 1): np.arange(7, dtype=np.float64) + i for i in range(20)}
    write_npz(tmp_path / "m.npz", arrays)
    with open_npz(tmp_path / "m.npz", source="here") as model:
        for name, array in arrays.items():
            view = model.view(name)
            assert view.ctypes.data % 64 == 0
            assert not view.flags.writeable
            assert np.array_equal(view, array)


def test_views(tmp_path: Path) -> None:
    savez(tmp_path / "stored.npz", mixed())
    with open_npz(tmp_path / "stored.npz", source="here") as model:
        for name, array in mixed().items():
            assert np.array_equal(model.view(name), array)
        with pytest.raises(BadModel, match="no tensor 'x'"):
            model.view("x")
    savez_compressed(tmp_path / "deflated.npz", mixed())
    with open_npz(tmp_path / "deflated.npz", source="here") as model, pytest.raises(BadModel, match="deflated"):
        model.view("0")


@pytest.mark.parametrize("zip64_from", [1, 300, 1000])
def test_zip64(zip64_from: int, tmp_path: Path) -> None:
    arrays = {name: np.ascontiguousarray(array) for name, array in mixed().items()}
    schema = ModelSchema.of(arrays)
    with NpzWriter(tmp_path / "m.npz", schema, zip64_from=zip64_from) as writer:
        for array in arrays.values():
            writer.append(array.reshape(-1))
    assert b"PK\x06\x06" in (tmp_path / "m.npz").read_bytes()
    with np.load(tmp_path / "m.npz") as archive:
        assert_same(dict(archive.items()), arrays)
    with open_npz(tmp_path / "m.npz", source="here", expect=schema) as model:
        model.verify()
        assert_same(model.arrays(), arrays)


LARGE_AND_NONE = {
    "none first": np.zeros((0, 3), np.float32),
    "large": np.arange(700_000, dtype=np.float32),
    "small": np.arange(3, dtype=np.int8),
    "none between": np.zeros(0),
    "large too": np.arange(400_000, dtype=np.float64),
    "none last": np.zeros(0, np.bool_),
}


@pytest.mark.parametrize("arrays", [LARGE_AND_NONE, {"none": np.zeros(0)}, {"small": np.ones(3)}], ids=len)
@pytest.mark.parametrize("zip64_from", [1, 0xFFFFFFFF])
def test_a_digest_that_is_found_while_writing_is_that_of_the_file(
    arrays: Arrays, zip64_from: int, tmp_path: Path
) -> None:
    schema = ModelSchema.of(arrays)
    with NpzWriter(tmp_path / "m.npz", schema, digest=True, early_sync=True, zip64_from=zip64_from) as writer:
        with BackgroundWriter(writer, blocks_behind=2) as behind:
            for array in arrays.values():
                for at in range(0, array.size, 65_536):
                    behind.append(array.reshape(-1)[at : at + 65_536])
            behind.finish()
        with pytest.raises(ValueError, match="once it was written"):
            _ = writer.blob
    assert writer.blob == digest_file(tmp_path / "m.npz")
    with NpzWriter(tmp_path / "plain.npz", schema, zip64_from=zip64_from) as plain:
        for array in arrays.values():
            plain.append(array.reshape(-1))
    assert (tmp_path / "plain.npz").read_bytes() == (tmp_path / "m.npz").read_bytes()
    with pytest.raises(ValueError, match="with one"):
        _ = plain.blob
    with open_npz(tmp_path / "m.npz", source="here") as model:
        model.verify()
        assert_same(model.arrays(), arrays)


def test_what_fails_behind_is_told_and_leaves_no_file(tmp_path: Path) -> None:
    schema = ModelSchema(tensors=(TensorSpec(name="w", shape=(30_000,), dtype="float32"),))

    def write(blocks: int) -> None:
        with NpzWriter(tmp_path / "m.npz", schema) as writer, BackgroundWriter(writer, blocks_behind=2) as behind:
            for _ in range(blocks):
                behind.append(np.zeros(20_000, np.float32))
            behind.finish()

    # Of blocks that are not written at once.
    for blocks in (2, 9):  # told at the end, and before
        with pytest.raises(InvalidInput, match="elements are left"):
            write(blocks)
    assert list(tmp_path.iterdir()) == []


def test_float64_blocks_are_cast_by_the_rule(tmp_path: Path) -> None:
    schema = ModelSchema(
        tensors=(
            TensorSpec(name="i", shape=(2,), dtype="uint8"),
            TensorSpec(name="b", shape=(2,), dtype="bool"),
            TensorSpec(name="h", shape=(1,), dtype="float16"),
        )
    )
    with NpzWriter(tmp_path / "m.npz", schema) as writer:
        for block in ([2.5, 999.0], [0.5, 0.4], [0.1]):
            writer.append(np.array(block))
    with open_npz(tmp_path / "m.npz", source="here") as model:
        came = {name: array.tolist() for name, array in model.arrays().items()}
    assert came == {"i": [2, 255], "b": [True, False], "h": [float(np.float16(0.1))]}


def test_a_writer_refuses_what_does_not_fit_and_leaves_no_file(tmp_path: Path) -> None:
    schema = ModelSchema(tensors=(TensorSpec(name="w", shape=(3,), dtype="float32"),))
    bad: list[list[NDArray[Any]]] = [[np.zeros(4)], [np.zeros(3, np.int32)], [np.zeros((1, 3))], [np.zeros(2)]]

    def write(blocks: list[NDArray[Any]]) -> None:
        with NpzWriter(tmp_path / "m.npz", schema) as writer:
            for block in blocks:
                writer.append(block)

    for blocks in bad:
        with pytest.raises(InvalidInput):
            write(blocks)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_writing_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    write_npz(tmp_path / "m.npz", {"w": np.zeros(3)})
    before = (tmp_path / "m.npz").read_bytes()
    savez(tmp_path / "nan.npz", {"w": np.array([np.nan])})
    with pytest.raises(BadModel, match="NaN"):
        normalise(tmp_path / "nan.npz", tmp_path / "m.npz", source="here")
    assert (tmp_path / "m.npz").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


def test_objects_are_never_written(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match="object"):
        write_npz(tmp_path / "m.npz", {"w": np.array([None])})


@pytest.mark.parametrize("save", SAVES)
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_found_and_named(save: Save, number: float, tmp_path: Path) -> None:
    weights = np.ones(200_000, np.float32)
    weights[150_000:150_003] = number
    save(tmp_path / "m.npz", {"first": np.ones(3), "w": weights})
    with open_npz(tmp_path / "m.npz", source="client a") as model, pytest.raises(BadModel) as caught:
        model.require_finite()
    assert caught.value.fields == {"source": "client a", "tensor": "w"}
    assert ": 3 of a block" in str(caught.value)


def test_the_largest_magnitude_is_told(tmp_path: Path) -> None:
    write_npz(tmp_path / "m.npz", {"a": np.array([1.0, -7.0]), "b": np.array([-3], np.int8), "c": np.array([True])})
    with open_npz(tmp_path / "m.npz", source="here") as model:
        assert model.require_finite() == 7.0


@pytest.mark.parametrize("save", SAVES)
def test_memory_is_some_blocks(save: Save, tmp_path: Path) -> None:
    save(tmp_path / "m.npz", {"w": np.zeros(8_000_000, np.float32)})
    tracemalloc.start()
    try:
        normalise(tmp_path / "m.npz", tmp_path / "n.npz", source="here")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4_000_000


LARGE = np.repeat(np.arange(5001, dtype=np.float32), 3400).reshape(5001, 3400)  # 68 MB


@pytest.mark.parametrize("save", [savez, savez_compressed])
def test_a_tensor_in_fortran_order_takes_no_more_memory_than_is_allowed(save: Save, tmp_path: Path) -> None:
    save(tmp_path / "m.npz", {"b": np.zeros(3), "w": np.asfortranarray(LARGE)})
    tracemalloc.start()
    try:
        with pytest.raises(BadModel, match="'w' in Fortran order, 68,013,600 bytes") as caught:
            normalise(tmp_path / "m.npz", tmp_path / "n.npz", source="client a")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4_000_000
    assert caught.value.fields == {"source": "client a", "tensor": "w"}
    assert not (tmp_path / "n.npz").exists()


def test_where_a_model_is_made_it_may_be_in_any_order(tmp_path: Path) -> None:
    savez(tmp_path / "f.npz", {"w": np.asfortranarray(LARGE)})
    write_npz(tmp_path / "c.npz", {"w": LARGE})
    to_canonical(tmp_path / "f.npz", tmp_path / "canonical.npz", ModelFormat.NPZ, source="the entry point")
    convert(tmp_path / "f.npz", tmp_path / "converted.npz", ModelFormat.NPZ, source="a person")
    assert digest_file(tmp_path / "canonical.npz") == digest_file(tmp_path / "c.npz")
    assert digest_file(tmp_path / "converted.npz") == digest_file(tmp_path / "c.npz")


def test_a_disk_that_is_full_while_sealing(tmp_path: Path) -> None:
    needs(Path("/dev/full").exists(), "/dev/full")
    out = AtomicFile(tmp_path / "m")
    out.file.close()
    out.file = Path("/dev/full").open("wb")  # noqa: SIM115
    out.write(b"small enough for the buffer")
    with pytest.raises(StorageFull):
        out.commit()
    assert list(tmp_path.iterdir()) == []


def test_two_writers_of_one_path_do_not_meet(tmp_path: Path) -> None:
    with AtomicFile(tmp_path / "m") as one, AtomicFile(tmp_path / "m") as two:
        one.write(b"one")
        two.write(b"two")
        one.commit()
        two.commit()
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"two"]


def test_order_is_that_of_the_archive(tmp_path: Path) -> None:
    for keys in itertools.permutations(["10", "2", "0"]):
        savez(tmp_path / "m.npz", {key: np.zeros(1) for key in keys})
        with open_npz(tmp_path / "m.npz", source="here") as model:
            assert [spec.name for spec in model.schema.tensors] == list(keys)
