"""The schema of a model says exactly where another one differs."""

from __future__ import annotations

import doctest
from dataclasses import replace

import pytest

from runnel.common import tensors
from runnel.common.errors import BadModel
from runnel.common.tensors import DTYPES, ModelSchema, TensorSpec, casting, dtypes, npy_header, numpy_dtype, schema

pytestmark = pytest.mark.unit

W = TensorSpec(name="w", shape=(2, 3), dtype="float32")
B = TensorSpec(name="b", shape=(3,), dtype="float32")
STEPS = TensorSpec(name="steps", shape=(), dtype="int64")
MODEL = ModelSchema(tensors=(W, B, STEPS))


@pytest.mark.parametrize("module", [schema, casting, dtypes, npy_header])
def test_the_documented_examples_hold(module: object) -> None:
    result = doctest.testmod(module)  # type: ignore[arg-type]
    assert result.attempted > 0
    assert result.failed == 0


def test_public_names() -> None:
    assert all(hasattr(tensors, name) for name in tensors.__all__)
    assert {"open_npz", "write_npz", "normalise", "NpzWriter", "NpzModel", "ModelSchema"} <= set(tensors.__all__)


def test_sizes_and_offsets() -> None:
    assert (MODEL.n_params, MODEL.nbytes, MODEL.offsets) == (10, 44, (0, 6, 9))


def test_spans_cover_everything_once_and_never_cross_a_tensor() -> None:
    spans = [(s.tensor, s.start, s.count) for s in MODEL.spans(4)]
    assert spans == [(0, 0, 4), (0, 4, 2), (1, 6, 3), (2, 9, 1)]


def test_same_schema_passes() -> None:
    MODEL.require_same(ModelSchema(tensors=(W, B, STEPS)), source="client a")


@pytest.mark.parametrize(
    ("other", "tensor", "words"),
    [
        ((W, STEPS), "b", "missing"),
        ((W, B, STEPS, replace(B, name="c")), "c", "not part"),
        ((replace(W, shape=(3, 2)), B, STEPS), "w", "float32[3, 2]"),
        ((W, replace(B, dtype="float64"), STEPS), "b", "float64[3]"),
        ((B, W, STEPS), "b", "number 0"),
    ],
)
def test_the_first_difference_is_named(other: tuple[TensorSpec, ...], tensor: str, words: str) -> None:
    with pytest.raises(BadModel) as caught:
        MODEL.require_same(ModelSchema(tensors=other), source="client a")
    assert caught.value.fields == {"source": "client a", "tensor": tensor}
    assert words in str(caught.value)
    assert "client a" in str(caught.value)


@pytest.mark.parametrize("name", ["", "/etc/passwd", "a/../b", "./a", "a//b", "a\\b", "C:x", "a\nb", "\ud800"])
def test_names_with_path_tricks_are_refused(name: str) -> None:
    with pytest.raises(BadModel):
        TensorSpec(name=name, shape=(), dtype="float32")


@pytest.mark.parametrize("name", ["0", "dense/kernel", "layer.0.weight", "größe", "mlp/~/linear_0", "..a"])
def test_names_of_frameworks_are_accepted(name: str) -> None:
    assert TensorSpec(name=name, shape=(), dtype="float32").name == name


@pytest.mark.parametrize("dtype", ["object", "complex64", "str", "datetime64[s]", "float128", "void"])
def test_other_dtypes_are_refused(dtype: str) -> None:
    with pytest.raises(BadModel, match="accepted are"):
        TensorSpec(name="w", shape=(), dtype=dtype)


def test_impossible_shapes_empty_models_and_double_names_are_refused() -> None:
    for shape in [(-1,), (1,) * 33]:
        with pytest.raises(BadModel):
            TensorSpec(name="w", shape=shape, dtype="float32")
    with pytest.raises(BadModel, match="at least one"):
        ModelSchema(tensors=())
    with pytest.raises(BadModel, match="Two tensors"):
        ModelSchema(tensors=(W, W))


def test_item_sizes_are_those_of_numpy() -> None:
    assert all(numpy_dtype(name).itemsize == size for name, size in DTYPES.items())
