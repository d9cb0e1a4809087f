"""Names and order of what is converted, and the one form in which models travel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from runnel.common.errors import BadModel, InvalidInput
from runnel.common.model_format import ModelFormat
from runnel.common.tensors import (
    Arrange,
    ModelSchema,
    convert,
    like,
    named,
    numbered,
    open_npz,
    to_canonical,
    write_npz,
)

pytestmark = pytest.mark.unit

Arrays = dict[str, NDArray[Any]]
NPZ, SAFETENSORS = ModelFormat.NPZ, ModelFormat.SAFETENSORS


def layers(names: list[str]) -> Arrays:
    """One array for each name; the place is in the shape and in the numbers."""
    return {name: np.full(place + 1, place, np.float32) for place, name in enumerate(names)}


def converted(folder: Path, arrays: Arrays, arrange: Arrange, target: ModelFormat = NPZ) -> Arrays:
    write_npz(folder / "in", arrays)
    convert(folder / "in", folder / "out", target, source="the input", arrange=arrange)
    if target is SAFETENSORS:
        convert(folder / "out", folder / "out", NPZ, source="the output")
    with open_npz(folder / "out", source="the output") as model:
        return model.arrays()


def places(arrays: Arrays) -> dict[str, int]:
    return {name: array.size - 1 for name, array in arrays.items()}


NAMES = ["conv.weight", "conv.bias", *(f"layer/{number}" for number in range(9))]


@pytest.mark.parametrize("target", [NPZ, SAFETENSORS])
@pytest.mark.parametrize("prefix", ["", "arr_"])
def test_names_become_numbers_and_numbers_become_names(tmp_path: Path, prefix: str, target: ModelFormat) -> None:
    arrays = layers(NAMES)
    by_number = converted(tmp_path, arrays, numbered(prefix), target)
    assert places(by_number) == {f"{prefix}{place}": place for place in range(11)}
    shuffled = dict(sorted(by_number.items()))  # "10" before "2", as many writers have it
    assert list(places(shuffled).values()) != list(range(11))
    again = converted(tmp_path, shuffled, named(ModelSchema.of(arrays)), target)
    assert places(again) == {name: place for place, name in enumerate(NAMES)}
    assert list(again) == NAMES


def test_keys_that_are_no_row_of_numbers_stay_in_their_order(tmp_path: Path) -> None:
    for names in (["2", "1"], ["0", "arr_0"], ["01", "00"], ["1", "w"]):
        assert list(places(converted(tmp_path, layers(names), numbered())).values()) == [0, 1]
    assert list(places(converted(tmp_path, layers(["1", "0"]), numbered())).values()) == [1, 0]


def test_names_go_by_place_and_need_the_same_shapes(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match="has 2 tensors; the one with the names has 3"):
        converted(tmp_path, layers(["a", "b"]), named(ModelSchema.of(layers(["x", "y", "z"]))))
    other = ModelSchema.of({"x": np.zeros(1, np.float32), "y": np.zeros(3, np.float32)})
    with pytest.raises(BadModel, match=r"number 1 of the input is 'b' float32\[2\]; the one with the names has 'y'"):
        converted(tmp_path, layers(["a", "b"]), named(other))
    assert not (tmp_path / "out").exists()


def test_what_has_the_tensors_in_another_order_is_put_in_the_model_s(tmp_path: Path) -> None:
    """The safetensors library sorts by dtype and name; a session's model has an order."""
    arrays = {"b": np.arange(3, dtype=np.float32), "mask": np.array([True]), "a": np.arange(2.0)}
    save_file(arrays, tmp_path / "in")
    schema = to_canonical(
        tmp_path / "in", tmp_path / "out.npz", SAFETENSORS, source="site", expect=ModelSchema.of(arrays)
    )
    assert [spec.name for spec in schema.tensors] == ["b", "mask", "a"]
    with open_npz(tmp_path / "out.npz", source="here") as model:
        assert {name: array.tolist() for name, array in model.arrays().items()} == {
            name: array.tolist() for name, array in arrays.items()
        }


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"w": np.zeros(2, np.float32)}, "'b' float32.* is missing"),
        ({"w": np.zeros(2, np.float32), "b": np.zeros(1, np.float32), "c": np.zeros(1)}, "'c' .* is not part"),
        ({"w": np.zeros(2, np.float64), "b": np.zeros(1, np.float32)}, "expected was 'w' float32"),
        ({"w": np.zeros((2, 1), np.float32), "b": np.zeros(1, np.float32)}, "expected was 'w' float32"),
        ({"w": np.array([0, np.nan], np.float32), "b": np.zeros(1, np.float32)}, "NaN or infinity in the tensor 'w'"),
        ({"w": np.zeros(2, np.float32), "b": np.array([np.inf], np.float32)}, "NaN or infinity in the tensor 'b'"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, changed: Arrays, words: str) -> None:
    expect = ModelSchema.of({"w": np.zeros(2, np.float32), "b": np.zeros(1, np.float32)})
    save_file(changed, tmp_path / "in")
    with pytest.raises(BadModel, match=words) as caught:
        to_canonical(tmp_path / "in", tmp_path / "out.npz", SAFETENSORS, source="client mallory", expect=expect)
    assert "client mallory" in caught.value.message
    assert not (tmp_path / "out.npz").exists()


def test_an_order_that_is_made_by_name(tmp_path: Path) -> None:
    arrays = layers(["a", "b", "c"])
    expect = ModelSchema.of({name: arrays[name] for name in ("c", "a", "b")})
    assert list(converted(tmp_path, arrays, like(expect))) == ["c", "a", "b"]


def test_formats_by_name() -> None:
    assert ModelFormat.of_name(Path("a.NPZ")) is NPZ
    assert ModelFormat.of_name(Path("x.npz.safetensors")) is SAFETENSORS
    assert ModelFormat.of_name(Path("npz")) is None
    assert ModelFormat.parse("safetensors", field="format") is SAFETENSORS
    with pytest.raises(InvalidInput, match="format: there is no model format 'pt'; there are npz, safetensors"):
        ModelFormat.parse("pt", field="format")
