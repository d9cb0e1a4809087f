"""The packages as a site runs them: real interpreters, arguments, files and environment variables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from runnel.compute_package import pack, read_manifest, unpack, write_template
from tests.needs import needs

pytestmark = pytest.mark.process

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = REPOSITORY / "examples"


def run(root: Path, *argv: str | Path, data: Mapping[str, Path] | None = None) -> str:
    """Run a command in ``root`` as a client does, with little more than its databases in the environment."""
    done = subprocess.run(
        [str(word) for word in argv],
        cwd=root,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONWARNINGS": "error",
            # Small matrices: more threads than one only get in each other's way.
            "OPENBLAS_NUM_THREADS": "1",
            **{name: str(path) for name, path in (data or {}).items()},
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def entry_point(root: Path, name: str, *arguments: Path, data: Mapping[str, Path] | None = None) -> None:
    argv = read_manifest(root).argv(name, [str(argument) for argument in arguments], python=sys.executable)
    run(root, *argv, data=data)


def unpacked(folder: Path, work: Path) -> Path:
    return unpack(pack(folder, work / "package.tar.gz").path, work / "package root")


def shapes(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[np.generic]]]:
    with np.load(path, allow_pickle=False) as model:
        return {name: (model[name].shape, model[name].dtype) for name in model.files}


def train_and_validate(root: Path, work: Path, data: Mapping[str, Path], settings: str) -> dict[str, float]:
    """Go through the contract once, with spaces in the paths, and return what validation says."""
    files = work / "of a round"
    files.mkdir()
    seed, model_in, model_out = files / "seed.npz", files / "model_in.npz", files / "model_out.npz"
    entry_point(root, "build", seed)
    model_in.write_bytes(seed.read_bytes())
    Path(f"{model_in}-metadata").write_text(settings)
    entry_point(root, "train", model_in, model_out, data=data)
    assert shapes(model_out) == shapes(seed)
    assert model_out.read_bytes() != seed.read_bytes()
    assert json.loads(Path(f"{model_out}-metadata").read_text())["num_examples"] > 0
    entry_point(root, "validate", model_out, files / "validation.json", data=data)
    metrics: dict[str, float] = json.loads((files / "validation.json").read_text())
    return metrics


def test_the_template_works_as_it_is(tmp_path: Path) -> None:
    write_template(tmp_path / "study")
    x = np.random.default_rng(0).normal(size=(200, 8))
    np.savez(tmp_path / "data.npz", x=x, y=(x.sum(1) > 0).astype("float32"))
    root = unpacked(tmp_path / "study", tmp_path)
    metrics = train_and_validate(root, tmp_path, {"RUNNEL_DATA": tmp_path / "data.npz"}, '{"epochs": 50}')
    assert metrics["accuracy"] > 0.9
    assert metrics["num_examples"] == 200


def test_the_digits_work_by_their_commands(tmp_path: Path) -> None:
    said = run(EXAMPLES / "digits", sys.executable, "data.py", tmp_path / "sites", "--clients", "3")
    assert said.count("to train") == 3
    root = unpacked(EXAMPLES / "digits", tmp_path)
    metrics = train_and_validate(root, tmp_path, {"RUNNEL_DATA": tmp_path / "sites" / "site-2.npz"}, "{}")
    assert metrics["accuracy"] > 0.8
    model = tmp_path / "of a round" / "model_out.npz"
    said = run(
        EXAMPLES / "digits", sys.executable, "central.py", tmp_path / "sites", "--passes", "10", "--model", model
    )
    compared = json.loads(said)
    assert set(compared) == {"accuracy", "accuracy_alone", "accuracy_central"}
    assert 0.8 < compared["accuracy"] < compared["accuracy_central"]


def test_training_imports_numpy_and_nothing_heavy() -> None:
    said = run(EXAMPLES / "digits", sys.executable, "-c", "import sys, train, validate; print(*sys.modules)")
    loaded = {name.partition(".")[0] for name in said.split()}
    assert "numpy" in loaded
    assert not loaded & {"runnel", "sklearn", "scipy", "grpc", "pydantic", "asyncio"}


def mnist() -> Path:
    folder = Path(os.environ.get("RUNNEL_TEST_MNIST", REPOSITORY.parent / "shared" / "data" / "mnist"))
    needs((folder / "train-images-idx3-ubyte.gz").is_file(), "MNIST's IDX files in the folder RUNNEL_TEST_MNIST")
    return folder


@pytest.mark.parametrize("non_iid", [False, True])
def test_mnist_2nn_learns_from_a_hundred_sites(tmp_path: Path, non_iid: bool) -> None:
    """Three rounds of ten sites each, E = 1, B = 10: the paper's first steps."""
    options = ["--non-iid"] if non_iid else []
    folder = EXAMPLES / "mnist-2nn"
    run(
        folder, sys.executable, "split.py", "--data", mnist(), "--clients", "100", "--out", tmp_path / "sites", *options
    )
    assert len(list((tmp_path / "sites").glob("site-*.npz"))) == 100
    root = unpacked(folder, tmp_path)
    test = {"RUNNEL_DATA_TEST": tmp_path / "sites" / "test.npz"}
    model = tmp_path / "model.npz"
    entry_point(root, "build", model)
    site = iter(range(1, 101))
    for _ in range(3):
        updates = []
        for _, number in zip(range(10), site, strict=False):
            out = tmp_path / f"update-{number}.npz"
            entry_point(root, "train", model, out, data={"RUNNEL_DATA": tmp_path / "sites" / f"site-{number}.npz"})
            assert json.loads(Path(f"{out}-metadata").read_text())["num_examples"] == 600
            with np.load(out) as arrays:
                updates.append(dict(arrays))
        np.savez(model, **{name: np.mean([update[name] for update in updates], 0) for name in updates[0]})
    entry_point(root, "validate", model, tmp_path / "v.json", data={"RUNNEL_DATA": tmp_path / "none.npz", **test})
    metrics = json.loads((tmp_path / "v.json").read_text())
    assert metrics["num_examples"] == 10_000
    assert metrics["measured_on"] == "test"
    assert metrics["accuracy"] > (0.4 if non_iid else 0.85)
