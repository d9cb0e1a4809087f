"""The examples for PyTorch and scikit-learn, as ``runnel package check`` runs them and as a client would."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runnel.client.rehearsal import Rehearsal, rehearse
from runnel.client.runtimes import EnvironmentCache, Guard, Installs
from runnel.compute_package import shim_source
from tests.doubles.client_packages import Listener
from tests.needs import needs

pytestmark = pytest.mark.process

EXAMPLES = Path(__file__).parents[2] / "examples"
TORCH = "torch==2.13.0"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of one site of three."""
    folder = tmp_path_factory.mktemp("sites")
    split = [sys.executable, str(EXAMPLES / "digits" / "data.py"), str(folder), "--clients", "3"]
    subprocess.run(split, check=True, capture_output=True, timeout=60)
    return folder / "site-1.npz"


@pytest.fixture(scope="module")
def kept() -> Path:
    """A folder that outlives the tests: torch takes long to unpack and import for the first time."""
    folder = Path(os.environ.get("RUNNEL_TEST_CACHE") or Path.home() / ".cache" / "runnel-tests")
    folder /= f"torch-2.13.0-{sys.implementation.cache_tag}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def wheels(kept: Path) -> Path:
    """A site's folder with a build of torch for processors alone, which is a tenth of the one in the package index."""
    folder = kept / "wheels"
    if not any(folder.glob("torch-*.whl")):
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
        ask = [*pip, "install", "--dry-run", "--ignore-installed", "--no-deps", "--report", "-", TORCH]
        asked = subprocess.run(ask, check=False, capture_output=True, text=True, timeout=120)
        needs(
            asked.returncode == 0 and json.loads(asked.stdout)["install"][0]["metadata"]["version"].endswith("+cpu"),
            f"a build of {TORCH} without CUDA that pip finds",
        )
        partial = kept / f"wheels-{os.getpid()}"
        subprocess.run([*pip, "download", "--no-deps", "-d", partial, TORCH], check=True, timeout=120)
        try:
            partial.rename(folder)
        except OSError:  # somebody else was faster
            shutil.rmtree(partial)
    return folder


def metrics(seen: Rehearsal, say: Listener) -> str:
    assert seen.ok, ([(step.name, step.detail, step.hint) for step in seen.steps], say.lines)
    assert not seen.warnings
    return {step.name: step.detail for step in seen.steps}["metrics"]


def accuracy(told: str) -> float:
    return float(told.partition("accuracy ")[2].partition(",")[0])


@pytest.mark.timeout(400)
async def test_torch_in_an_environment_with_a_site_s_own_build(site: Path, kept: Path, wheels: Path) -> None:
    say = Listener()
    seen = await rehearse(
        EXAMPLES / "torch-digits",
        data={"default": site},
        say=say,
        environments=kept / "environments",
        installs=Installs(find_links=(str(wheels),)),
    )
    assert accuracy(metrics(seen, say)) > 0.8
    assert seen.recognised["model_files"] == ".safetensors"
    assert seen.recognised["environment"] == "requirements.txt"


FEDN_TORCH = """
import json, sys
import numpy as np, torch
from fedn.utils.helpers.helpers import get_helper, save_metadata
from fedn.utils.pytorchhelper import PytorchHelper

def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))

def arrays(model):
    return {name: value.detach().numpy() for name, value in model.state_dict().items()}

def into(model, named):
    model.load_state_dict({name: torch.as_tensor(np.asarray(value)) for name, value in named.items()})
    return model

where = sys.argv[1]
new, old = get_helper("pytorchhelper"), PytorchHelper()
for number, (save, load) in enumerate([(new.save, new.load), (old.save_model, old.load_model)]):
    model = net()
    given = save(arrays(model), f"{where}/in-{number}.npz")
    model = into(net(), load(given))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loss = torch.nn.functional.cross_entropy(model(torch.ones(8, 4)), torch.zeros(8, dtype=torch.long))
    loss.backward()
    optimizer.step()
    # What a strategy keeps between rounds: torch reads it by default with weights_only, from 2.6 on.
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "round": 1}, f"{where}/kept.pt")
    kept = torch.load(f"{where}/kept.pt")
    optimizer.load_state_dict(kept["optimizer"])
    trained = save(arrays(into(net(), kept["model"])), f"{where}/out-{number}.npz")
    save_metadata({"num_examples": 8}, trained)
    same = all(torch.equal(one, two) for one, two in zip(into(net(), load(trained)).state_dict().values(),
                                                         model.state_dict().values(), strict=True))
    print(torch.__version__.partition("+")[0], list(np.load(trained)) == list(model.state_dict()), same)
"""


def ran(command: list[str], folder: Path, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.timeout(400)
async def test_fedns_torch_helpers_and_what_strategies_keep_with_torch_itself(
    kept: Path, wheels: Path, tmp_path: Path
) -> None:
    guard = Guard()
    try:
        environments = EnvironmentCache(
            kept / "environments", environ=os.environ, guard=guard, installs=Installs(find_links=(str(wheels),))
        )
        listing = EXAMPLES / "torch-digits" / "requirements.txt"
        python = await environments.prepare(listing, Listener(), root=listing.parent)
    finally:
        await guard.close()
    (tmp_path / "train.py").write_text(FEDN_TORCH)
    environ = {"PYTHONPATH": str(shim_source()), "PATH": os.environ["PATH"], "PYTHONWARNINGS": "error"}
    done = await asyncio.to_thread(ran, [str(python), "train.py", str(tmp_path)], tmp_path, environ)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["2.13.0 True True"] * 2
    assert json.loads((tmp_path / "out-0.npz-metadata").read_text()) == {"num_examples": 8}


async def test_scikit_learn(site: Path, tmp_path: Path) -> None:
    # With the client's own interpreter, which has scikit-learn here: to install it is not what is tried out.
    package = shutil.copytree(EXAMPLES / "sklearn-digits", tmp_path / "sklearn-digits")
    (package / "requirements.txt").unlink()
    say = Listener()
    seen = await rehearse(package, data={"default": site}, say=say)
    assert accuracy(metrics(seen, say)) > 0.8
    assert seen.recognised["model_files"] == ".npz"


@pytest.mark.parametrize(
    ("example", "wanted"),
    [("torch-digits", {"numpy", "safetensors", "torch"}), ("sklearn-digits", {"numpy", "sklearn"})],
)
def test_the_requirements_name_what_the_scripts_import(example: str, wanted: set[str]) -> None:
    lines = (EXAMPLES / example / "requirements.txt").read_text().split()
    required = {line.partition("=")[0].rstrip(">").replace("scikit-learn", "sklearn") for line in lines}
    scripts = "".join(path.read_text() for path in (EXAMPLES / example).glob("*.py"))
    assert required == wanted
    assert all(f"import {name}" in scripts or f"from {name}" in scripts for name in wanted)
