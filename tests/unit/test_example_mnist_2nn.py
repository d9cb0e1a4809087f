"""The network and the splits of McMahan et al. 2017, on small data of the test's own."""

from __future__ import annotations

import gzip
import importlib
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from runnel.compute_package import describe

pytestmark = pytest.mark.unit

FOLDER = Path(__file__).parents[2] / "examples" / "mnist-2nn"
MODULES = ("network", "train", "validate", "build", "idx", "split")


@pytest.fixture(scope="module")
def example() -> Iterator[Any]:
    """The example's modules; they import each other by name from their folder, as the scripts do."""
    before = {name: sys.modules.pop(name) for name in MODULES if name in sys.modules}
    sys.path.insert(0, str(FOLDER))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    finally:
        sys.path.remove(str(FOLDER))
        for name in MODULES:
            sys.modules.pop(name, None)
        sys.modules.update(before)


def write_idx(path: Path, array: npt.NDArray[np.uint8]) -> None:
    raw = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def small_mnist(folder: Path, examples: int = 400) -> Path:
    """Images that show their digit as a bright row, under MNIST's names, some gzipped."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(1)
    for part, count, suffix in (("train", examples, ".gz"), ("t10k", 50, "")):
        labels = random.integers(0, 10, count).astype(np.uint8)
        images = random.integers(0, 60, (count, 28, 28)).astype(np.uint8)
        images[np.arange(count), 2 * labels + 3] = 250
        write_idx(folder / f"{part}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte{suffix}", labels)
    return folder


def test_the_model_is_that_of_the_paper(example: Any) -> None:
    model = example.network.new_model()
    assert sum(array.size for array in model.values()) == 199_210
    assert {array.dtype for array in model.values()} == {np.dtype(np.float32)}


def test_the_gradient_is_that_of_the_loss(example: Any) -> None:
    random = np.random.default_rng(3)
    x, y = random.random((6, 784)), random.integers(0, 10, 6)
    model = {name: array.astype(np.float64) for name, array in example.network.new_model().items()}
    # One step with all examples moves the model by the gradient, which small differences tell as well.
    trained = example.network.train(model, x, y, lr=1.0)
    for name, place in (("w1", (5, 3)), ("b1", (3,)), ("w2", (4, 7)), ("b2", (7,)), ("w3", (9, 2)), ("b3", (2,))):
        ahead, behind = ({key: array.copy() for key, array in model.items()} for _ in range(2))
        ahead[name][place] += 1e-6
        behind[name][place] -= 1e-6
        slope = (example.network.evaluate(ahead, x, y)["loss"] - example.network.evaluate(behind, x, y)["loss"]) / 2e-6
        assert model[name][place] - trained[name][place] == pytest.approx(slope, rel=1e-4, abs=1e-8)


def test_the_even_split_deals_out_every_example_once(example: Any) -> None:
    labels = np.random.default_rng(0).integers(0, 10, 60_000)
    parts = example.split.iid_parts(labels, 100)
    assert {len(part) for part in parts} == {600}
    assert sorted(np.concatenate(parts)) == list(range(60_000))
    assert all(len(set(labels[part])) == 10 for part in parts)


def test_the_split_by_shards_gives_most_sites_two_digits(example: Any) -> None:
    labels = np.random.default_rng(0).integers(0, 10, 60_000)
    parts = example.split.shard_parts(labels, 100)
    assert {len(part) for part in parts} == {600}
    assert sorted(np.concatenate(parts)) == list(range(60_000))
    digits = [len(set(labels[part])) for part in parts]
    assert max(digits) <= 4
    assert np.median(digits) == 2


@pytest.mark.parametrize("non_iid", [False, True])
def test_split_train_and_validate_work_together(example: Any, tmp_path: Path, non_iid: bool) -> None:
    sites = example.split.split(small_mnist(tmp_path / "mnist"), tmp_path / "sites", 4, non_iid=non_iid)
    example.build.main(tmp_path / "seed.npz")
    (tmp_path / "seed.npz-metadata").write_text('{"epochs": 5, "lr": 0.05, "unknown": 1}')
    losses = []
    for site in sites:
        example.train.main(tmp_path / "seed.npz", tmp_path / "out.npz", site)
        metadata = json.loads((tmp_path / "out.npz-metadata").read_text())
        assert metadata["num_examples"] == 100
        example.validate.main(tmp_path / "out.npz", tmp_path / "v.json", tmp_path / "sites" / "test.npz", "test")
        validation = json.loads((tmp_path / "v.json").read_text())
        assert (validation["num_examples"], validation["measured_on"]) == (50, "test")
        losses.append(metadata["training_loss"])
    example.validate.main(tmp_path / "seed.npz", tmp_path / "v.json", sites[0], "training")
    assert max(losses) < json.loads((tmp_path / "v.json").read_text())["loss"]


def test_each_round_has_its_own_order_and_keeps_it_when_repeated(example: Any, tmp_path: Path) -> None:
    site, *_ = example.split.split(small_mnist(tmp_path / "mnist"), tmp_path / "sites", 4)
    example.build.main(tmp_path / "seed.npz")
    trained = []
    for number, (seed, round_number) in enumerate([(0, 1), (0, 1), (0, 2), (1, 1)]):
        (tmp_path / "seed.npz-metadata").write_text(json.dumps({"seed": seed}))
        example.train.main(tmp_path / "seed.npz", tmp_path / f"{number}.npz", site, round_number)
        trained.append((tmp_path / f"{number}.npz").read_bytes())
    assert trained[0] == trained[1]
    assert len(set(trained)) == 3


def test_splitting_over_no_or_too_many_sites_is_refused(example: Any, tmp_path: Path) -> None:
    for clients in (0, 201):
        with pytest.raises(ValueError, match="clients should be from 1 to 200"):
            example.split.split(small_mnist(tmp_path / "mnist"), tmp_path / "sites", clients)


BAD_FILES = {
    "text": b"hello, world",
    "empty": b"",
    "of floats": struct.pack(">BBBBI", 0, 0, 0x0D, 1, 0),
    "short header": struct.pack(">BBBBI", 0, 0, 8, 3, 1),
    "too short": struct.pack(">BBBBI", 0, 0, 8, 1, 5) + b"1234",
    "too long": struct.pack(">BBBBI", 0, 0, 8, 1, 5) + b"123456",
    "overflowing": struct.pack(">BBBB4I", 0, 0, 8, 4, *[2**16] * 4),
}


@pytest.mark.parametrize("raw", BAD_FILES.values(), ids=BAD_FILES)
def test_a_file_that_is_no_idx_is_refused_by_name(example: Any, tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "labels").write_bytes(raw)
    with pytest.raises(ValueError, match="labels"):
        example.idx.read_idx(tmp_path / "labels")


def test_missing_or_unequal_files_are_refused_by_name(example: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="neither train-images-idx3-ubyte nor"):
        example.idx.read_part(tmp_path, "train")
    small_mnist(tmp_path)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.zeros(49, np.uint8))
    with pytest.raises(ValueError, match="50 images but 49 labels"):
        example.idx.read_part(tmp_path, "t10k")


def test_the_sites_get_what_they_run_and_no_more() -> None:
    description = describe(FOLDER)
    assert {file.name for file in description.files} == {
        ".runnelignore",
        "build.py",
        "network.py",
        "runnel.yaml",
        "train.py",
        "validate.py",
    }
    assert description.manifest.requirements is None
