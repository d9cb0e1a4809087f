"""MNIST's files and the example that trains on them, for the benchmarks that want real data."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from runnel.common.errors import NotFound
from runnel.demo.processes import ONE_THREAD

EXAMPLE = Path(__file__).parents[1] / "examples" / "mnist-2nn"
VARIABLE = "RUNNEL_TEST_MNIST"
IMAGES = 60_000
_NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


class NoMnist(NotFound):
    """A benchmark that is about MNIST has no MNIST."""

    code = "no_mnist"


def mnist_folder(given: Path | None = None) -> Path | None:
    """Return where MNIST's files are, if anywhere: ``given``, or $RUNNEL_TEST_MNIST, or ../shared/data/mnist."""
    folder = _named(given)
    return folder if not _missing(folder) else None


def required_mnist_folder(given: Path | None = None) -> Path:
    """Return :func:`mnist_folder`.

    Raises:
        NoMnist: it lacks a file, and which.
    """
    folder = _named(given)
    if missing := _missing(folder):
        raise NoMnist(
            f"MNIST's four IDX files, gzipped or not, should be in {folder}; there is no {', no '.join(missing)}.",
            hint=f"Name the folder that has them: --mnist FOLDER, or {VARIABLE}=FOLDER.",
            path=str(folder),
        )
    return folder


def run_script(script: str, *arguments: object, **environ: str) -> None:
    """Run a script of the example."""
    subprocess.run(
        [sys.executable, script, *map(str, arguments)],
        cwd=EXAMPLE,
        env=os.environ | ONE_THREAD | environ,
        stdout=subprocess.DEVNULL,
        check=True,
    )


def example_network() -> Any:
    """Return the example's module of the 2NN."""
    spec = importlib.util.spec_from_file_location("mnist_2nn_network", EXAMPLE / "network.py")
    if spec is None or spec.loader is None:
        raise AssertionError("it is a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _named(given: Path | None) -> Path:
    if given is not None:
        return given
    named = os.environ.get(VARIABLE)
    return Path(named) if named else Path(__file__).parents[2] / "shared" / "data" / "mnist"


def _missing(folder: Path) -> list[str]:
    return [name for name in _NAMES if not any((folder / f"{name}{end}").is_file() for end in ("", ".gz"))]
