"""Packages that were made for FEDn run as they are, whichever of its forms they have."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from runnel.client.rehearsal import Rehearsal, rehearse
from runnel.client.runtimes import FednSource, Installs
from runnel.common.tensors import write_npz
from tests.doubles.client_packages import Listener
from tests.doubles.fedn_packages import NEWEST, OLDEST, WITH_ENTRYPOINT, flat, write_archive
from tests.doubles.wheels import sha256, write_installed_wheel

pytestmark = pytest.mark.process

OFFLINE = {"UV_NO_INDEX": "1"}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A site's folder with all that these packages need."""
    folder = tmp_path_factory.mktemp("wheels")
    for project in ("numpy", "pyyaml"):
        write_installed_wheel(folder, project)
    return str(folder)


@pytest.fixture(scope="module")
def environments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for environments, as the state of a client has one: whoever comes second finds it built."""
    return tmp_path_factory.mktemp("environments")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A site's database: a folder with ``train.csv``, whose mean is 2."""
    folder = tmp_path / "site data"
    folder.mkdir()
    (folder / "train.csv").write_text("1,2,3\n1,2,3\n")
    return folder


def steps(seen: Rehearsal) -> dict[str, str]:
    assert seen.ok, [(step.name, step.detail, step.hint) for step in seen.steps]
    return {step.name: step.detail for step in seen.steps}


async def check(package: Path, say: Listener, **options: object) -> Rehearsal:
    environ = dict(os.environ) | OFFLINE
    return await rehearse(package, say=say, environ=environ, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("folder", ["", "client"])
async def test_the_newest_form_in_an_environment_of_numpys_size(
    tmp_path: Path, wheels: str, environments: Path, data: Path, folder: str
) -> None:
    say = Listener()
    archive = write_archive(tmp_path / "package.tgz", NEWEST, folder=folder)
    seen = await check(
        archive,
        say,
        data={"default": data / "train.csv"},
        settings={"step": 0.5},
        environments=environments,
        installs=Installs(find_links=(wheels,)),
    )
    told = steps(seen)
    assert told["metadata"] == "weight 6, step 1"
    assert told["metrics"] == "mean 1"
    assert list(told)[-1] == "predict"
    assert say.said("stdout") == ["startup found 6 numbers, splits 2", "[INFO] trained"]
    assert dict(seen.recognised) == {
        "kind": "fedn",
        "manifest": "fedn.yaml",
        "layout": f"files in {folder}/" if folder else "files at the top",
        "environment": "python_env.yaml",
        "model_files": ".npz",
        "helper": "numpyhelper",
        "fedn": "light stand-in",
    }
    assert seen.warnings == ()
    (environment,) = environments.iterdir()
    (site_packages,) = environment.glob("lib/python*/site-packages")
    installed = {path.name.partition("-")[0].lower() for path in site_packages.glob("*.dist-info")}
    assert installed == {"fedn", "numpy", "pyyaml"}
    assert _bytes(site_packages / "fedn") < 200_000


async def test_the_stand_in_joins_requirements_that_all_have_hashes(tmp_path: Path, wheels: str) -> None:
    found = {path.name.split("-")[0]: path for path in Path(wheels).iterdir()}
    listed = [f"{name}=={path.name.split('-')[1]} --hash=sha256:{sha256(path)}" for name, path in found.items()]
    package = {
        "train.py": "from fedn.utils.helpers.helpers import get_helper",
        "requirements.txt": "\n".join(["fedn", *listed]),
    }
    seen = await check(
        write_archive(tmp_path / "package.tgz", package), Listener(), installs=Installs(find_links=(wheels,))
    )
    assert [step.name for step in seen.steps if step.ok] == ["unpack", "manifest", "environment"]


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


async def test_an_entrypoint_of_an_image_with_options_and_named_keys(tmp_path: Path) -> None:
    say = Listener()
    archive = write_archive(tmp_path / "package.tar.gz", WITH_ENTRYPOINT, folder="client")
    seen = await check(archive, say, variables={"ENTRYPOINT_OPTS": "--rate=0.25"})
    told = steps(seen)
    assert told["metadata"] == "weight 5, batch_size 32"
    assert told["metrics"] == "bias 0.25"
    assert "predict" in told
    assert seen.recognised["helper"] == "pytorchhelper"
    assert seen.recognised["environment"] == "the client's own Python"


async def test_the_oldest_form_without_manifest_environment_and_metadata(tmp_path: Path, data: Path) -> None:
    say = Listener()
    archive = write_archive(tmp_path / "package.tgz", OLDEST, folder="client")
    write_npz(tmp_path / "seed.npz", {"0": np.zeros((2, 2)), "1": np.zeros(2, np.float32)})
    seen = await check(archive, say, data={"default": data}, seed=tmp_path / "seed.npz")
    told = steps(seen)
    assert told["metadata"] == "weight 1", "nobody said another"
    assert told["metrics"] == "mean 4", "found in ../data"
    assert seen.recognised["kind"] == "plain"
    assert seen.recognised["helper"] == "kerashelper"
    assert seen.recognised["fedn"] == "light stand-in"
    assert any("no num_examples" in warning for warning in seen.warnings)


@pytest.mark.parametrize(
    ("helper", "dtype", "said"),
    [("binaryhelper", "<f8", "plain float64"), ("androidhelper", "<f4", "plain float32")],
)
async def test_models_that_are_nothing_but_numbers(tmp_path: Path, helper: str, dtype: str, said: str) -> None:
    seen = await check(write_archive(tmp_path / "package.tgz", flat(helper, dtype)), Listener())
    told = steps(seen)
    assert told["metrics"] == "first 1.5"
    assert seen.recognised["model_files"] == said


async def test_numbers_of_another_length_are_refused(tmp_path: Path) -> None:
    files = flat("binaryhelper", "<f8")
    files["train.py"] = files["train.py"].replace("part + 1.5", "part[:4]")
    seen = await check(write_archive(tmp_path / "package.tgz", files), Listener())
    assert not seen.ok
    assert seen.steps[-1].name == "update"
    assert "5 numbers of 8 bytes (float64) was expected" in seen.steps[-1].detail
    assert "wrote 32 bytes" in seen.steps[-1].detail


async def test_without_the_stand_in_a_package_gets_what_is_installed(tmp_path: Path) -> None:
    say = Listener()
    archive = write_archive(tmp_path / "package.tgz", WITH_ENTRYPOINT)
    seen = await check(archive, say, installs=Installs(fedn=FednSource.REAL))
    assert not seen.ok
    assert any("No module named 'fedn'" in line for line in say.said("stderr"))
    assert seen.recognised["fedn"] == "whatever is installed beside the client"


def test_the_stand_in_is_not_on_the_path_of_a_runnel_process() -> None:
    code = "import runnel.client.app, runnel.compute_package, importlib.util as u; print(u.find_spec('fedn'))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "None\n"
