"""Files whose memory in the system's cache is given to what is written next."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import numpy as np
import pytest

from runnel.common.blobs import BlobStore
from runnel.common.protocol import BlobRef, PayloadKind
from runnel.common.storage import leave_memory, sync_file
from runnel.common.tensors import write_npz
from runnel.reducer.engine.reduction import Reduction
from runnel.reducer.store.tables import PartialRow
from tests.needs import needs

pytestmark = pytest.mark.unit

PAGES = 64


def pages_in_memory(path: Path) -> int:
    size = path.stat().st_size
    found = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    with path.open("rb") as file:
        start = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
    try:
        assert libc.mincore(ctypes.c_void_p(start), ctypes.c_size_t(size), found) == 0
    finally:
        libc.munmap(ctypes.c_void_p(start), ctypes.c_size_t(size))
    return sum(each & 1 for each in found)


@pytest.fixture(autouse=True)
def _disk(tmp_path: Path) -> None:
    """Nothing of this can be seen where the temporary folder is itself in memory."""
    needs(hasattr(os, "posix_fadvise"), "a system with posix_fadvise")
    probe = tmp_path / "probe"
    probe.write_bytes(bytes(mmap.PAGESIZE))
    sync_file(probe)
    with probe.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    needs(not pages_in_memory(probe), "a temporary folder that is not in memory")


def test_a_file_on_the_disk_leaves_the_memory_and_is_read_as_before(tmp_path: Path) -> None:
    data = os.urandom(PAGES * mmap.PAGESIZE)
    file = tmp_path / "file"
    file.write_bytes(data)
    sync_file(file)
    assert pages_in_memory(file) == PAGES
    leave_memory(file)
    assert pages_in_memory(file) == 0
    assert file.read_bytes() == data


def test_a_file_that_is_not_there_is_nothing_to_do(tmp_path: Path) -> None:
    leave_memory(tmp_path / "none")


@pytest.mark.parametrize("needed", ["", "base", "buffered"])
def test_the_model_before_leaves_the_memory_to_the_next_one_unless_it_is_read(needed: str, tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path / "blobs")

    def model(value: float) -> BlobRef:
        write_npz(tmp_path / "model.npz", {"w": np.full(PAGES * mmap.PAGESIZE // 4, value, np.float32)})
        return blobs.adopt(tmp_path / "model.npz")

    before, base = model(1.0), model(2.0)
    whole = pages_in_memory(blobs.path(before))
    assert whole >= PAGES
    (tmp_path / "sum").write_bytes(np.full(PAGES * mmap.PAGESIZE // 4, 6.0).tobytes())
    row = PartialRow(filename="sum", kind=PayloadKind.WEIGHTED_SUM.value, weight=2.0, child="c", round=1)
    made = Reduction(
        blobs=blobs,
        folder=tmp_path,
        base=before if needed == "base" else base,
        optimizer_state=None,
        superseded=before,
    ).run(
        [row],
        strategy="fedavg",
        options={},
        weights={},
        round_number=1,
        bases={1: before if needed == "buffered" else base},
    )
    assert made.model == model(3.0)
    assert pages_in_memory(blobs.path(before)) == (whole if needed else 0)
