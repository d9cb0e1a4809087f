"""``runnel model convert``, which needs no network."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from runnel.cli.main import main

pytestmark = pytest.mark.unit


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_both_ways_and_numbered_keys(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = {
        "b.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a.bias": np.array([1.5], np.float32).astype(ml_dtypes.bfloat16),
    }
    save_file(named, here / "named.safetensors")
    assert main(["model", "convert", "named.safetensors", "plain.npz"]) == 0
    assert "7 parameters in 2 tensors" in capsys.readouterr().out
    with np.load(here / "plain.npz") as plain:
        assert plain["b.weight"].tolist() == named["b.weight"].tolist()
        assert plain["a.bias"].view(ml_dtypes.bfloat16).tolist() == [1.5]
    assert main(["model", "convert", "plain.npz", "numbers.npz", "--keys", "arr", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["tensors"][0] == {"name": "arr_0", "dtype": "float32", "shape": [2, 3]}
    assert told["n_params"] == 7
    arguments = ["model", "convert", "numbers.npz", "back", "--format", "safetensors", "--names-from", "plain.npz"]
    assert main(arguments) == 0
    back = load_file(here / "back")
    assert {name: array.tobytes() for name, array in back.items()} == {
        name: array.tobytes() for name, array in named.items()
    }


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["x.npz", "out"], "out ends with no model format"),
        (["x.npz", "out.npz", "--keys", "arr", "--names-from", "x.npz"], "give one of them"),
        (["nothing.npz", "out.npz"], "There is no model nothing.npz"),
        (["x.npz", "out.npz", "--names-from", "nothing.npz"], "There is no model nothing.npz"),
        (["x.npz", "out.safetensors"], "The model of x.npz cannot be read as .npz"),
        (["y.npz", "out.safetensors", "--names-from", "z.npz"], "has 1 tensors; the one with the names has 2"),
    ],
)
def test_what_can_not_be_done(here: Path, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "x.npz").write_bytes(b"no model")
    np.savez(here / "y.npz", w=np.zeros(1))
    np.savez(here / "z.npz", w=np.zeros(1), v=np.zeros(1))
    assert main(["model", "convert", *arguments]) != 0
    assert says in " ".join(capsys.readouterr().err.split())
    assert not [path for path in here.iterdir() if path.name.startswith("out")]
