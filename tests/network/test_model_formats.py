"""Models of packages that speak safetensors, through a whole network; bfloat16 among them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from runnel.cli.main import main
from runnel.common.tensors import open_npz
from runnel.sdk import Network
from tests.network.local_network import LocalNetwork, network, write_package

pytestmark = pytest.mark.network

TRAIN = """
import json, os, sys
import ml_dtypes, numpy as np
from safetensors.numpy import load_file, save_file

model_in, model_out = sys.argv[1:3]
assert model_in.endswith(".safetensors") and model_out.endswith(".safetensors"), sys.argv
step = float(open(os.environ["RUNNEL_DATA"]).read())
tensors = load_file(model_in)
tensors = {name: np.asarray(array + step).astype(array.dtype) for name, array in sorted(tensors.items())}
save_file(tensors, model_out)
with open(model_out + "-metadata", "w") as file:
    json.dump({"num_examples": 1}, file)
"""

VALIDATE = """
import json, sys
import ml_dtypes
from safetensors.numpy import load_file

with open(sys.argv[2], "w") as file:
    json.dump({"mean": float(load_file(sys.argv[1])["layer.weight"].astype("f8").mean())}, file)
"""


def seed() -> dict[str, NDArray[Any]]:
    """In no order that a library would write."""
    return {
        "steps": np.array(3, np.int64),
        "layer.weight": np.linspace(-2, 2, 600).astype(ml_dtypes.bfloat16).reshape(30, 20),
        "layer.bias": np.array([0.5, -0.5], np.float16),
    }


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[LocalNetwork]:
    """Two sites, which add 1 and 2: each round's mean adds 1.5."""
    async with network(tmp_path) as started:
        yield started


async def trained(net: LocalNetwork, package: str, model: str, **config: Any) -> dict[str, Any]:
    session = await net.start_session(package, model, min_clients=2, **{"retries": 0} | config)
    view = await net.until_ended(session)
    assert view["status"] == "finished", view["reason"]
    return view


async def model_of(net: LocalNetwork, view: dict[str, Any]) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    shown = (await net.http.get(f"/models/{view['model']}")).json()
    content = (await net.http.get(f"/models/{view['model']}/content")).content
    with open_npz(content, source="the reducer") as model:
        return shown, model.arrays()


async def test_a_seed_in_safetensors_makes_a_session_of_them(running: LocalNetwork, tmp_path: Path) -> None:
    package = await running.push_package(write_package(tmp_path / "package", train=TRAIN, validate=VALIDATE))
    save_file(seed(), tmp_path / "seed.safetensors", metadata={"format": "pt"})
    answer = await running.http.post("/models", content=(tmp_path / "seed.safetensors").read_bytes())
    assert answer.status_code == 201, answer.text
    pushed = answer.json()
    assert pushed["format"] == "safetensors"
    # What was uploaded is kept in one form only.
    blobs = [path for path in (tmp_path / "reducer" / "blobs").rglob("*") if path.is_file()]
    assert sorted(path.name for path in blobs) == sorted([package, pushed["digest"]])
    view = await trained(running, package, pushed["model"], rounds=2, validate_every=2)
    shown, arrays = await model_of(running, view)
    assert shown["format"] == "safetensors"
    assert {name: array.dtype.name for name, array in arrays.items()} == {
        name: array.dtype.name for name, array in seed().items()
    }
    # The means 1.5 and 3 are exact; in between bfloat16 rounds, at the sites and once in the mean.
    expected, weight = seed()["layer.weight"].astype(float), arrays["layer.weight"].astype(float)
    assert np.abs(weight - (expected + 3)).max() <= 3 * 2.0**-8 * 5
    assert arrays["layer.bias"].tolist() == [3.5, 2.5]
    assert arrays["steps"].tolist() == 6  # the mean of 4 and 5 is rounded to the even 4, that of 5 and 6 to 6
    assert view["rounds"][-1]["metrics"]["mean"] == pytest.approx(weight.mean())


async def test_a_manifest_decides_whatever_the_seed_is(running: LocalNetwork, tmp_path: Path) -> None:
    folder = write_package(tmp_path / "package", train=TRAIN, validate=VALIDATE)
    (folder / "runnel.yaml").write_text("model_format: safetensors\n")
    package = await running.push_package(folder)
    model = await running.push_model(seed())
    for config in ({"compress": "int8"}, {"strategy": "median"}):
        view = await trained(running, package, model, rounds=1, validate_every=0, **config)
        shown, arrays = await model_of(running, view)
        assert shown["format"] == "npz"
        assert list(arrays) == list(seed())
        change = arrays["layer.weight"].astype(float) - seed()["layer.weight"].astype(float)
        assert np.abs(change - 1.5).max() <= 0.04, config

    # Without it the same scripts are given .npz files, and say so.
    (folder / "runnel.yaml").write_text("model_format: npz\n")
    package = await running.push_package(folder)
    session = await running.start_session(package, model, rounds=1, min_clients=2, retries=0)
    view = await running.until_ended(session)
    assert view["status"] == "failed"


async def test_people_get_the_format_that_they_want(
    running: LocalNetwork, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file(seed(), tmp_path / "seed.safetensors")
    url = running.reducer.url

    def with_sdk() -> str:
        with Network(url) as sdk:
            model = sdk.models.push(tmp_path / "seed.safetensors").model
            sdk.models.get(model, tmp_path / "a.npz")
            sdk.models.get(model, tmp_path / "a.safetensors")
            sdk.models.get(model, tmp_path / "b", format="safetensors")
            return model

    model = await asyncio.to_thread(with_sdk)
    with np.load(tmp_path / "a.npz") as loaded:
        assert loaded["layer.weight"].view(ml_dtypes.bfloat16).tobytes() == seed()["layer.weight"].tobytes()
    for name in ("a.safetensors", "b"):
        came = load_file(tmp_path / name)
        assert {key: (array.dtype, array.tobytes()) for key, array in came.items()} == {
            key: (array.dtype, array.tobytes()) for key, array in seed().items()
        }
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]

    capsys.readouterr()
    for arguments in (["-o", "c"], ["-o", "c.npz"], ["-o", "d.npz", "--format", "safetensors"]):
        name = str(tmp_path / arguments[1])
        assert await asyncio.to_thread(main, ["model", "get", model, "-o", name, *arguments[2:], "--url", url]) == 0
    capsys.readouterr()
    assert (tmp_path / "c").read_bytes() == (tmp_path / "a.safetensors").read_bytes()  # the format of the seed
    assert (tmp_path / "c.npz").read_bytes() == (tmp_path / "a.npz").read_bytes()
    assert (tmp_path / "d.npz").read_bytes() == (tmp_path / "a.safetensors").read_bytes()


async def test_a_seed_that_is_no_model_leaves_nothing(running: LocalNetwork, tmp_path: Path) -> None:
    save_file({"w": np.array([1.0, np.inf])}, tmp_path / "inf")
    save_file({"w": np.zeros(9)}, tmp_path / "cut")
    cut = (tmp_path / "cut").read_bytes()[:-1]
    for body, says in (((tmp_path / "inf").read_bytes(), "NaN or infinity"), (cut, "71 follow the header")):
        answer = await running.http.post("/models", content=body)
        assert answer.status_code == 422 or answer.status_code == 400, answer.text
        problem = answer.json()
        assert "the seed model" in json.dumps(problem)
        assert says in json.dumps(problem)
    assert not [path for path in (tmp_path / "reducer" / "blobs").rglob("*") if path.is_file()]
