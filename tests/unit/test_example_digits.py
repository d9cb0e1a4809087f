"""The demo's package: it learns, as well together as in one place, and always the same."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from runnel.compute_package import describe

pytestmark = pytest.mark.unit

FOLDER = Path(__file__).parents[2] / "examples" / "digits"
MODULES = ("network", "train", "validate", "build", "data", "central")


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


@pytest.fixture(scope="module")
def sites(example: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    paths: list[Path] = example.data.split(tmp_path_factory.mktemp("digits"), 6)
    return paths


def federated(example: Any, sites: list[Path], work: Path, rounds: int) -> Path:
    """Run the scripts' own functions as a network does, round after round."""
    model = work / "model-0.npz"
    example.build.main(model)
    for number in range(1, rounds + 1):
        updates, weights = [], []
        for site in sites:
            out = work / f"update-{number}-{site.stem}.npz"
            example.train.main(model, out, site)
            updates.append(example.network.load_model(out))
            weights.append(json.loads(Path(f"{out}-metadata").read_text())["num_examples"])
        model = work / f"model-{number}.npz"
        mean: dict[str, Any] = {
            name: np.average([update[name].astype(np.float64) for update in updates], 0, weights).astype(np.float32)
            for name in updates[0]
        }
        np.savez(model, **mean)
    return model


def test_federated_training_is_as_good_as_central_training(example: Any, sites: list[Path], tmp_path: Path) -> None:
    folder = sites[0].parent
    model = federated(example, sites, tmp_path, rounds=10)
    together = example.central.evaluate(model, folder / "test.npz")["accuracy"]
    central = example.central.evaluate(example.central.train_central(folder, 50), folder / "test.npz")["accuracy"]
    alone = example.central.evaluate(example.central.train_alone(folder, 50), folder / "test.npz")["accuracy"]
    assert together >= 0.93
    assert together >= central - 0.02
    assert together > alone


def test_federated_training_learns_from_sites_that_differ(example: Any, tmp_path: Path) -> None:
    sites = example.data.split(tmp_path / "sites", 6, non_iid=True)
    model = federated(example, sites, tmp_path, rounds=10)
    together = example.central.evaluate(model, tmp_path / "sites" / "test.npz")["accuracy"]
    alone = example.central.evaluate(example.central.train_alone(tmp_path / "sites", 50), tmp_path / "sites/test.npz")
    assert together >= 0.85
    assert together > alone["accuracy"] + 0.1


def test_validation_measures_on_what_was_held_out(example: Any, sites: list[Path], tmp_path: Path) -> None:
    example.build.main(tmp_path / "seed.npz")
    example.validate.main(tmp_path / "seed.npz", tmp_path / "validation.json", sites[0])
    metrics = json.loads((tmp_path / "validation.json").read_text())
    with np.load(sites[0]) as data:
        held_out = example.network.evaluate(example.network.new_model(), data["x_val"], data["y_val"])
        assert metrics == {**held_out, "num_examples": len(data["x_val"])}


def test_training_is_deterministic_and_takes_the_settings(example: Any, sites: list[Path], tmp_path: Path) -> None:
    example.build.main(tmp_path / "seed.npz")
    outcomes = []
    for settings in ("{}", "{}", '{"epochs": 1, "other": 3}', '{"seed": 1}', '{"lr": 0.0}', '{"batch_size": 64}'):
        (tmp_path / "seed.npz-metadata").write_text(settings)
        example.train.main(tmp_path / "seed.npz", tmp_path / "out.npz", sites[0])
        outcomes.append((tmp_path / "out.npz").read_bytes())
    assert outcomes[0] == outcomes[1]
    assert len(set(outcomes)) == 5
    assert outcomes[4] == (tmp_path / "seed.npz").read_bytes()


def test_the_gradient_is_that_of_the_loss(example: Any) -> None:
    random = np.random.default_rng(3)
    x, y = random.random((7, 64)), random.integers(0, 10, 7)
    model = {name: array.astype(np.float64) for name, array in example.network.new_model().items()}
    model["b1"] += 0.1
    # One step with all examples moves the model by the gradient, which small differences tell as well.
    trained = example.network.train(model, x, y, epochs=1, lr=1.0, batch_size=7)
    for name, place in (("w1", (5, 3)), ("b1", (3,)), ("w2", (4, 2)), ("b2", (2,))):
        ahead, behind = ({key: array.copy() for key, array in model.items()} for _ in range(2))
        ahead[name][place] += 1e-6
        behind[name][place] -= 1e-6
        slope = (example.network.evaluate(ahead, x, y)["loss"] - example.network.evaluate(behind, x, y)["loss"]) / 2e-6
        assert model[name][place] - trained[name][place] == pytest.approx(slope, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("non_iid", [False, True])
def test_each_digit_goes_to_one_place(example: Any, tmp_path: Path, non_iid: bool) -> None:
    sites = example.data.split(tmp_path, 5, non_iid=non_iid, seed=3)
    assert [site.name for site in sites] == [f"site-{n}.npz" for n in range(1, 6)]
    rows = []
    for path in [*sites, tmp_path / "test.npz"]:
        with np.load(path) as data:
            for x, y in (("x", "y"), ("x_val", "y_val")):
                if x in data:
                    assert data[x].dtype == np.float32
                    assert data[y].dtype == np.int64
                    assert len(data[x]) == len(data[y]) > 0
                    rows += [row.tobytes() for row in np.column_stack([data[x], data[y]])]
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    every = np.column_stack([(images / 16).astype(np.float32), labels])
    assert sorted(rows) == sorted(row.tobytes() for row in every)


def test_sites_that_differ_do_differ_and_none_is_empty(example: Any, tmp_path: Path) -> None:
    shares = {}
    for non_iid in (False, True):
        sites = example.data.split(tmp_path / str(non_iid), 12, non_iid=non_iid, alpha=0.1)
        counts = []
        for site in sites:
            with np.load(site) as data:
                counts.append(np.bincount(data["y"], minlength=10))
        assert min(count.sum() for count in counts) >= 8
        shares[non_iid] = np.mean([count.max() / count.sum() for count in counts])
    assert shares[True] > 2 * shares[False]


def test_splits_are_reproducible(example: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):
        example.data.split(tmp_path / name, 3, non_iid=True, seed=5)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@pytest.mark.parametrize("clients", [0, 144])
def test_too_many_or_no_sites_are_refused(example: Any, tmp_path: Path, clients: int) -> None:
    with pytest.raises(ValueError, match="clients should be from 1 to 143"):
        example.data.split(tmp_path, clients)


def test_comparing_without_data_says_what_to_do(example: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"run data\.py first"):
        example.central.train_central(tmp_path, 1)


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
    assert description.manifest.name == "digits"
    assert description.manifest.requirements is None
