"""What is small is done on the loop, and only that."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from runnel.client.run_folders import few_bytes
from runnel.common.blobs import SMALL_BYTES, by_size


@pytest.mark.parametrize(("nbytes", "is_here"), [(0, True), (SMALL_BYTES, True), (SMALL_BYTES + 1, False)])
async def test_only_small_files_are_read_here(nbytes: int, is_here: bool) -> None:
    assert (await by_size(nbytes, threading.get_ident) == threading.get_ident()) is is_here


pytestmark = pytest.mark.unit


def test_what_a_run_left_is_small_if_its_files_are_few_and_small(tmp_path: Path) -> None:
    (tmp_path / "model_out.npz").write_bytes(b"x" * 4096)
    (tmp_path / "elsewhere").symlink_to("/")
    assert 4096 < few_bytes(tmp_path) < SMALL_BYTES
    (tmp_path / "large").write_bytes(b"x" * SMALL_BYTES)
    assert few_bytes(tmp_path) > SMALL_BYTES


@pytest.mark.parametrize("folders", [True, False])
def test_folders_and_many_files_are_not_small(tmp_path: Path, folders: bool) -> None:
    for number in range(1 if folders else 20):
        place = tmp_path / f"{number}"
        place.mkdir() if folders else place.touch()
    assert few_bytes(tmp_path) > SMALL_BYTES
