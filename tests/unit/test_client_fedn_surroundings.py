"""What a package of FEDn finds beside it, and models that are nothing but numbers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runnel.client.fedn_surroundings import SeedPlaces, fedn_variables, lay_data_beside
from runnel.client.raw_models import read_raw, write_raw
from runnel.common.errors import BadModel
from runnel.common.tensors import ModelSchema, open_npz, write_npz
from runnel.compute_package import FednUse, Manifest, ManifestKind

pytestmark = pytest.mark.unit

FEDN = Manifest(name="p", version="", entry_points={"train": "python train.py"}, kind=ManifestKind.FEDN)
PLAIN = Manifest(name="p", version="", entry_points={"train": "python train.py"})
OLD = Manifest(name="p", version="", entry_points={}, fedn=FednUse(imports=True))
ENV = {"RUNNEL_DATA": "/data/site.csv", "RUNNEL_CLIENT_NAME": "site-1"}


@pytest.mark.parametrize("manifest", [FEDN, OLD])
def test_a_package_of_fedn_sees_the_variables_that_it_reads(manifest: Manifest) -> None:
    assert fedn_variables(manifest, ENV) == ENV | {"FEDN_DATA_PATH": "/data/site.csv", "HOSTNAME": "site-1"}
    assert fedn_variables(manifest, {}) == {}
    own = ENV | {"FEDN_DATA_PATH": "/elsewhere", "HOSTNAME": "h"}
    assert fedn_variables(manifest, own) == own, "the site's own words stay"
    assert fedn_variables(PLAIN, ENV) == ENV


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "digest" / "package"
    path.mkdir(parents=True)
    return path


def test_a_folder_is_the_data_beside_and_a_file_is_in_it(tmp_path: Path, root: Path) -> None:
    folder, other, file = tmp_path / "folder", tmp_path / "other", tmp_path / "mnist.npz"
    folder.mkdir()
    other.mkdir()
    file.write_text("numbers")
    beside = root.parent / "data"
    for where in (folder, folder, other):
        lay_data_beside(FEDN, root, {"RUNNEL_DATA": str(where)})
        assert beside.readlink() == where
    lay_data_beside(FEDN, root, {"RUNNEL_DATA": str(file)})
    assert (root / "../data/mnist.npz").read_text() == "numbers"
    assert sorted(path.name for path in root.parent.iterdir()) == ["data", "package"]


@pytest.mark.parametrize("env", [{}, {"RUNNEL_DATA": "postgresql://host/db"}])
def test_without_a_path_there_is_none_beside(tmp_path: Path, root: Path, env: dict[str, str]) -> None:
    lay_data_beside(FEDN, root, {"RUNNEL_DATA": str(tmp_path)})
    lay_data_beside(FEDN, root, env)
    assert not (root.parent / "data").is_symlink()
    lay_data_beside(PLAIN, root, {"RUNNEL_DATA": str(tmp_path)})
    assert [path.name for path in root.parent.iterdir()] == ["package"]


def test_what_the_archive_has_there_stays(tmp_path: Path, root: Path) -> None:
    (root.parent / "data").mkdir()
    (root.parent / "data" / "own.csv").write_text("own")
    lay_data_beside(FEDN, root, {"RUNNEL_DATA": str(tmp_path)})
    assert (root / "../data/own.csv").read_text() == "own"


def test_the_seed_is_what_build_wrote_and_not_what_was_there(tmp_path: Path, root: Path) -> None:
    (root / "seed.npz").write_text("shipped")
    places = SeedPlaces.of(root)
    assert places.written(tmp_path) == tmp_path
    (root.parent / "seed.npz").write_text("new")
    assert places.written(tmp_path) == root.parent / "seed.npz"
    os.utime(root / "seed.npz", (1, 1))  # some clocks of files tick seldom, and the other has as many bytes
    places = SeedPlaces.of(root)
    (root / "seed.npz").write_text("another")
    assert places.written(tmp_path) == root / "seed.npz"


MODEL: dict[str, Any] = {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "steps": np.array(4, np.int64),
    "b": np.ones(2),
}


@pytest.mark.parametrize("dtype", ["<f8", "<f4"])
def test_numbers_keep_their_order_and_become_the_model_again(tmp_path: Path, dtype: str) -> None:
    model, raw, back = (tmp_path / name for name in ("model.npz", "raw", "back.npz"))
    write_npz(model, MODEL)
    write_raw(model, raw, dtype)
    assert np.fromfile(raw, dtype).tolist() == [0, 1, 2, 3, 4, 5, 4, 1, 1]
    read_raw(raw, back, dtype, schema=ModelSchema.of(MODEL), source="test")
    assert back.read_bytes() == model.read_bytes()
    read_raw(raw, back, dtype, schema=None, source="test")
    with open_npz(back, source="test") as opened:
        assert [(spec.name, spec.shape, spec.dtype) for spec in opened.schema.tensors] == [
            ("0", (9,), np.dtype(dtype).name)
        ]


@pytest.mark.parametrize("size_bytes", [0, 8, 71, 73, 144])
def test_another_number_of_bytes_is_no_such_model(tmp_path: Path, size_bytes: int) -> None:
    (tmp_path / "raw").write_bytes(bytes(size_bytes))
    with pytest.raises(BadModel, match=rf"9 numbers of 8 bytes \(float64\) was expected, and it wrote {size_bytes} "):
        read_raw(tmp_path / "raw", tmp_path / "back", "<f8", schema=ModelSchema.of(MODEL), source="it")
    assert not (tmp_path / "back").exists()
