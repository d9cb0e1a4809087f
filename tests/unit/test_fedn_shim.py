"""The stand-in for FEDn writes and reads what FEDn does, under all the names that packages import."""

from __future__ import annotations

import importlib
import io
import json
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from runnel.compute_package import shim_digest, shim_source, write_shim_wheel

pytestmark = pytest.mark.unit

WEIGHTS: list[Any] = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.array(3, np.int64),
    np.array([0.5, -1.5], np.float16),
    *(np.full(2, float(number)) for number in range(9)),
]


def shim(name: str) -> ModuleType:
    """Import ``fedn.NAME`` from its source, not as the top-level package that it is where it is installed."""
    return importlib.import_module(f"runnel.compute_package.fedn_shim.fedn.{name}".rstrip("."))


def helper(name: str) -> Any:
    return shim("utils.helpers.helpers").get_helper(name)


def same(one: list[Any], two: list[Any]) -> None:
    assert len(one) == len(two)
    for left, right in zip(one, two, strict=True):
        assert np.asarray(left).dtype == np.asarray(right).dtype
        np.testing.assert_array_equal(left, right)


NAMES = {
    "": ["__version__"],
    "common.log_config": ["logger"],
    "utils.helpers": ["HelperBase", "get_helper", "load_metadata", "save_metadata", "save_metrics"],
    "utils.helpers.helpers": ["get_helper", "load_metadata", "save_metadata", "save_metrics"],
    "utils.helpers.helperbase": ["HelperBase"],
    "utils.kerashelper": ["KerasHelper"],
    "utils.pytorchhelper": ["PytorchHelper"],
    "utils.plugins.kerashelper": ["Helper"],
    "utils.plugins.pytorchhelper": ["Helper"],
    "utils.plugins.androidhelper": ["Helper"],
    "utils.plugins.helperbase": ["HelperBase"],
    "network.combiner.hooks.serverfunctionsbase": ["ServerFunctionsBase"],
    "network.combiner.hooks.allowed_import": ["Dict", "List", "ServerFunctionsBase", "Tuple", "logger", "np", "random"],
}


@pytest.mark.parametrize("module", NAMES)
def test_the_names_that_packages_import_are_there(module: str) -> None:
    assert all(hasattr(shim(module), name) for name in NAMES[module])


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("", "APIClient"),
        ("", "FednClient"),
        ("network.clients.fedn_client", "GrpcConnectionOptions"),
        ("network.api.client", "APIClient"),
        ("network.combiner.hooks.allowed_import", "api_client"),
    ],
)
def test_what_talks_to_fedns_servers_says_how_to_get_it(module: str, name: str) -> None:
    with pytest.raises(ImportError, match="--fedn real"):
        getattr(shim(module), name)
    assert not hasattr(shim(module), "something_else")


def test_nothing_but_numpy_is_imported_at_the_top() -> None:
    allowed = {"numpy", "fedn"}
    standard = {"abc", "collections", "importlib", "io", "json", "logging", "os", "random", "sys", "tempfile", "typing"}
    for path in shim_source().rglob("*.py"):
        for line in path.read_text().splitlines():
            if line.startswith(("import ", "from ")) and not line.startswith("from ."):
                assert line.split()[1].split(".")[0] in allowed | standard, f"{path}: {line}"


@pytest.mark.parametrize("name", ["numpyhelper", "kerashelper"])
def test_a_list_of_arrays_is_an_npz_with_numbered_keys(name: str, tmp_path: Path) -> None:
    path = str(tmp_path / "model.npz")
    assert helper(name).save(WEIGHTS, path) == path
    with np.load(path) as arrays:
        assert arrays.files == [str(number) for number in range(len(WEIGHTS))]
    same(helper(name).load(path), WEIGHTS)
    np.savez_compressed(path, **{str(number): array for number, array in enumerate(WEIGHTS)})
    same(helper(name).load(path), WEIGHTS)


def test_numpy_appends_the_suffix_that_is_missing(tmp_path: Path) -> None:
    helper("numpyhelper").save(WEIGHTS, str(tmp_path / "model"))
    assert [path.name for path in tmp_path.iterdir()] == ["model.npz"]


def test_named_keys_are_no_numpyhelper_model_and_nothing_is_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "named.npz", weight=WEIGHTS[0])
    with pytest.raises(KeyError):
        helper("numpyhelper").load(tmp_path / "named.npz")
    np.savez(tmp_path / "objects.npz", **{"0": np.array([{}], object)})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pickle"):
        helper("numpyhelper").load(tmp_path / "objects.npz")


def test_a_state_dict_keeps_its_names_and_their_order(tmp_path: Path) -> None:
    state = {"fc2.weight": WEIGHTS[0], "fc1.bias": WEIGHTS[2], "steps": WEIGHTS[1]}
    for saver, loader in (
        (helper("pytorchhelper").save, helper("pytorchhelper").load),
        (
            shim("utils.pytorchhelper").PytorchHelper().save_model,
            shim("utils.pytorchhelper").PytorchHelper().load_model,
        ),
    ):
        path = saver(state, str(tmp_path / "model.npz"))
        assert np.load(path).files == list(state)
        loaded = loader(path)
        assert list(loaded) == list(state)
        same(list(loaded.values()), list(state.values()))


def test_flat_numbers_are_files_of_nothing_else(tmp_path: Path) -> None:
    flat = np.array([1.5, -2.0, 0.1])
    for name, dtype in (("binaryhelper", "<f8"), ("androidhelper", "<f4")):
        path = helper(name).save(flat, str(tmp_path / name))
        assert (tmp_path / name).read_bytes() == flat.astype(dtype).tobytes()
        loaded = helper(name).load(path)
        if name == "binaryhelper":
            (loaded,) = loaded
        assert loaded.dtype == np.float64
        np.testing.assert_array_equal(loaded, flat.astype(dtype).astype(np.float64))
    parts = [np.ones((2, 2), np.float32), np.zeros(1, np.float32)]
    (strung,) = helper("binaryhelper").load(helper("binaryhelper").save(parts, str(tmp_path / "parts")))
    assert strung.tolist() == [1, 1, 1, 1, 0]
    assert helper("binaryhelper").load(io.BytesIO(strung.tobytes()))[0].tolist() == strung.tolist()
    assert helper("androidhelper").load(io.BytesIO(np.float32([2.0]).tobytes())) == 2.0  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "suffix"), [("numpyhelper", ".npz"), ("binaryhelper", ".npz"), ("androidhelper", "")])
def test_temporary_files_have_the_suffix_of_their_kind(name: str, suffix: str) -> None:
    path = Path(helper(name).get_tmp_path())
    path.unlink()
    assert path.suffix == suffix


def test_means_are_those_of_fedn() -> None:
    one, two = [np.array([1.0, 2.0])], [np.array([3.0, 6.0])]
    np.testing.assert_allclose(helper("numpyhelper").increment_average(one, two, 1, 4), [[1.5, 3.0]])
    np.testing.assert_allclose(helper("androidhelper").increment_average(one[0], two[0], 1, 4), [1.5, 3.0])
    np.testing.assert_allclose(helper("androidhelper").increment_average_add(one[0], two[0], 1, 4), [1.5, 3.0])
    np.testing.assert_allclose(shim("utils.kerashelper").KerasHelper().increment_average(one, two, 2), [[2.0, 4.0]])
    named = shim("utils.pytorchhelper").PytorchHelper().increment_average({"w": one[0]}, {"w": two[0]}, 2)
    np.testing.assert_allclose(named["w"], [2.0, 4.0])
    assert helper("splitlearninghelper").increment_average({"a": 1}, {"b": 2}) == {"a": 1, "b": 2}


def test_arithmetic_of_lists() -> None:
    it = helper("numpyhelper")
    one, two = [np.array([4.0, -9.0])], [np.array([2.0, 3.0])]
    assert it.add(one, two, 1.0, 2.0)[0].tolist() == [8.0, -3.0]
    assert it.subtract(one, two)[0].tolist() == [2.0, -12.0]
    assert it.multiply(one, two)[0].tolist() == [8.0, -27.0]
    assert it.divide(one, two)[0].tolist() == [2.0, -3.0]
    assert it.power(one, 2)[0].tolist() == [16.0, 81.0]
    assert it.sqrt([np.array([4.0])])[0].tolist() == [2.0]
    assert it.sign(one)[0].tolist() == [1.0, -1.0]
    assert it.ones(one, 3)[0].tolist() == [3.0, 3.0]
    assert it.norm(one) == 13.0
    with pytest.raises(ValueError, match="not 'hdf5'"):
        it.check_supported_file_type("hdf5")


def test_metadata_and_metrics_are_json_where_they_belong(tmp_path: Path) -> None:
    functions, model = shim("utils.helpers.helpers"), str(tmp_path / "model.npz")
    functions.save_metadata({"num_examples": 3}, model)
    assert json.loads((tmp_path / "model.npz-metadata").read_text()) == {"num_examples": 3}
    assert functions.load_metadata(model) == {"num_examples": 3}
    functions.save_metrics({"report": "good"}, str(tmp_path / "out"))
    assert json.loads((tmp_path / "out").read_text()) == {"report": "good"}


def test_models_in_memory_are_those_of_files(tmp_path: Path) -> None:
    keras, torch = shim("utils.kerashelper").KerasHelper(), shim("utils.pytorchhelper").PytorchHelper()
    same(keras.load_model_from_BytesIO(keras.serialize_model_to_BytesIO(WEIGHTS).read()), WEIGHTS)
    back = torch.load_model_from_BytesIO(torch.serialize_model_to_BytesIO({"w": WEIGHTS[0]}).read())
    same(list(back.values()), WEIGHTS[:1])
    same(keras.load_model(keras.save_model(WEIGHTS, str(tmp_path / "m.npz"))), WEIGHTS)


def test_the_wheel_is_the_same_each_time_and_holds_the_package(tmp_path: Path) -> None:
    wheel = write_shim_wheel(tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read("fedn-0.33.0+runnel.dist-info/METADATA").decode()
    assert wheel.name == "fedn-0.33.0+runnel-py3-none-any.whl"
    assert {"fedn/__init__.py", "fedn/utils/helpers/plugins/numpyhelper.py"} <= set(names)
    assert [line for line in metadata.splitlines() if line.startswith("Requires-Dist")] == [
        "Requires-Dist: numpy",
        "Requires-Dist: pyyaml",
    ]
    before = shim_digest(), wheel.read_bytes()
    assert (shim_digest(), write_shim_wheel(tmp_path).read_bytes()) == before
