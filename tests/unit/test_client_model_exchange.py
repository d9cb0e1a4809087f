"""Which files a package is given, and what is taken from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from runnel.client.model_exchange import ModelExchange
from runnel.common.errors import BadModel
from runnel.common.model_format import ModelFormat
from runnel.common.tensors import ModelSchema, open_npz, write_npz
from runnel.compute_package import Manifest, ManifestKind

pytestmark = pytest.mark.unit

NPZ, SAFETENSORS = ModelFormat.NPZ, ModelFormat.SAFETENSORS
ARRAYS = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(4)}
SCHEMA = ModelSchema.of(ARRAYS)


def manifest(wanted: ModelFormat | None, kind: ManifestKind = ManifestKind.RUNNEL) -> Manifest:
    return Manifest(name="p", version="", entry_points={"train": "python train.py"}, kind=kind, model_format=wanted)


def test_the_package_decides_and_then_the_seed() -> None:
    assert ModelExchange.of(manifest(SAFETENSORS)).form is SAFETENSORS
    assert ModelExchange.of(manifest(None), SAFETENSORS).form is SAFETENSORS
    assert ModelExchange.of(manifest(NPZ), SAFETENSORS).form is NPZ
    assert ModelExchange.of(manifest(None)).form is NPZ


def test_a_package_made_for_fedn_knows_no_other_format_than_fedn_s() -> None:
    assert ModelExchange.of(manifest(None, ManifestKind.FEDN), SAFETENSORS).form is NPZ


def test_a_safetensors_file_is_made_for_each_run_and_never_lent(tmp_path: Path) -> None:
    exchange = ModelExchange(form=SAFETENSORS)
    assert exchange.suffix == ".safetensors"
    assert not exchange.lends
    assert ModelExchange().lends
    write_npz(tmp_path / "global.npz", ARRAYS)
    exchange.give(tmp_path / "global.npz", tmp_path / "model_in.safetensors")
    came = load_file(tmp_path / "model_in.safetensors")
    assert {name: array.tolist() for name, array in came.items()} == {n: a.tolist() for n, a in ARRAYS.items()}
    save_file({"w": came["w"] + 1, "n": came["n"]}, tmp_path / "model_out.safetensors")
    out = tmp_path / "model_out.safetensors"
    exchange.take(out, tmp_path / "update.npz", source="the entry point train", expect=SCHEMA, keep_plain=True)
    with open_npz(tmp_path / "update.npz", source="here", expect=SCHEMA) as update:
        assert update.arrays()["w"].tolist() == (ARRAYS["w"] + 1).tolist()
        assert update.is_plain


def test_another_format_than_was_agreed_is_refused_with_who_wrote_it(tmp_path: Path) -> None:
    write_npz(tmp_path / "m.npz", ARRAYS)
    save_file(ARRAYS, tmp_path / "m.safetensors")
    source = "the entry point train"
    with pytest.raises(BadModel, match=f"{source} cannot be read as .safetensors: it is a zip archive"):
        ModelExchange(form=SAFETENSORS).take(tmp_path / "m.npz", tmp_path / "u", source=source, expect=SCHEMA)
    with pytest.raises(BadModel, match=f"{source} cannot be read as .npz") as caught:
        ModelExchange().take(tmp_path / "m.safetensors", tmp_path / "u", source=source, expect=SCHEMA)
    assert "model_format: safetensors" in caught.value.hint
    assert not (tmp_path / "u").exists()
