"""The wheel has everything and runs in an environment that knows nothing of this checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PORTIONS = [ROOT / each for each in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]]
# Alembic runs these, inside of a migration; they are no modules to import.
_SCRIPTS = ("/migrations/",)


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "RUNNEL_", "PIP_"))}
    result = subprocess.run(command, cwd="/", env=clean, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def names(wheel: Path) -> list[str]:
    return zipfile.ZipFile(wheel).namelist()


@pytest.fixture(scope="module")
def scripts(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into a new environment; return the folder of its programs."""
    venv = tmp_path_factory.mktemp("installed") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    python = venv / "bin" / "python"
    run(sys.executable, "-m", "pip", f"--python={python}", "install", "--quiet", "--no-deps", "--no-index", wheel)
    # The dependencies are those of this environment. The .pth files of a folder that a .pth file adds are not read, so
    # the editable installation of this checkout stays out.
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    return venv / "bin"


def test_it_has_every_file_of_the_source_tree(names: list[str]) -> None:
    expected = {
        f"runnel/{path.relative_to(portion)}"
        for portion in PORTIONS
        for path in portion.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert sorted(expected - set(names)) == []


def test_it_has_the_stubs_the_example_and_the_licence(names: list[str]) -> None:
    version = PROJECT["project"]["version"]
    assert {
        "runnel/rpc/v1/uplink_pb2_grpc.py",
        "runnel/rpc/v1/uplink_pb2.pyi",
        "runnel/examples/digits/train.py",
        "runnel/examples/digits/validate.py",
        f"runnel-{version}.dist-info/licenses/LICENSE",
    } <= set(names)


def test_it_has_nothing_else(names: list[str]) -> None:
    assert sorted({name.split("/")[0].split("-")[0] for name in names}) == ["runnel"]
    assert [name for name in names if "__pycache__" in name or name.endswith((".pyc", ".npz", ".tar.gz"))] == []


def test_it_leaves_the_namespace_open_and_is_typed(names: list[str]) -> None:
    assert "runnel/__init__.py" not in names
    packages = {name.split("/")[1] for name in names if name.startswith("runnel/") and name.count("/") > 1}
    assert {f"runnel/{package}/py.typed" for package in packages - {"examples"}} <= set(names)


def test_the_command_runs(scripts: Path) -> None:
    assert "session" in run(scripts / "runnel", "--help").stdout
    assert PROJECT["project"]["version"] in run(scripts / "runnel", "version").stdout


IMPORT_ALL = """
import importlib, json, pathlib, sys
for name in json.loads(pathlib.Path(sys.argv[1]).read_text()):
    module = importlib.import_module(name)
    assert module.__file__.startswith(sys.prefix), module.__file__
"""


def test_every_module_can_be_imported_and_comes_from_the_wheel(scripts: Path, names: list[str], tmp_path: Path) -> None:
    files = [name for name in names if name.endswith(".py") and not name.startswith("runnel/examples/")]
    modules = [
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in files
        if not any(part in name for part in _SCRIPTS) and not name.endswith("/__main__.py")
    ]
    (listed := tmp_path / "modules.json").write_text(json.dumps(modules))
    run(scripts / "python", "-c", IMPORT_ALL, listed)
