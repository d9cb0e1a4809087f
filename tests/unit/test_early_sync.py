"""What is on the disk before a file has come to its end."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from pathlib import Path

import pytest

from runnel.common.blobs import SpoolFile
from runnel.common.blobs.early_sync import EarlySync
from runnel.common.protocol import BlobRef
from tests.needs import needs

pytestmark = pytest.mark.unit

DATA = bytes(range(256)) * 40
REF = BlobRef(sha256=hashlib.sha256(DATA).hexdigest(), size_bytes=len(DATA))


class Disk:
    """Notes how long the file is at each flush; holds each up until it is told to go on, or fails."""

    def __init__(self, *, failure: int | None = None) -> None:
        self.lengths: list[int] = []
        self.may_end = threading.Event()
        self._failure = failure

    def __call__(self, descriptor: int) -> None:
        self.may_end.wait()
        self.lengths.append(os.fstat(descriptor).st_size)
        if self._failure is not None:
            raise OSError(self._failure, os.strerror(self._failure))


def test_each_step_is_flushed_beside_what_comes_next(tmp_path: Path) -> None:
    disk = Disk()
    path = tmp_path / "growing"
    early = EarlySync(path, step_bytes=10, flush=disk)
    with path.open("ab", buffering=0) as file:
        for _ in range(4):  # the flush begins with the second; no other does before it ends, and nothing waits for it
            file.write(b"12345")
            early.appended(file.fileno(), 5)
    disk.may_end.set()
    early.wait()
    assert disk.lengths == [20]
    with path.open("ab", buffering=0) as file:
        file.write(b"12345")
        early.appended(file.fileno(), 5)
        early.wait()
    assert disk.lengths == [20, 25]


def test_a_file_of_which_a_flush_failed_is_never_taken_for_one_that_is_on_the_disk(tmp_path: Path) -> None:
    disk = Disk(failure=errno.EIO)
    path = tmp_path / "growing"
    early = EarlySync(path, step_bytes=1, flush=disk)
    with path.open("ab", buffering=0) as file:
        file.write(b"12345")
        early.appended(file.fileno(), 5)
    disk.may_end.set()
    for _ in range(2):
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            early.wait()
    assert not path.exists()


def test_a_payload_of_which_a_flush_failed_is_dropped_and_comes_again(tmp_path: Path) -> None:
    needs(Path("/dev/null").exists(), "/dev/null")
    partial = tmp_path / "partial"
    partial.symlink_to("/dev/null")  # it takes bytes, and can't be flushed
    file = SpoolFile(partial=partial, whole=tmp_path / "whole", ref=REF, step_bytes=100)
    file.write(0, DATA[:200])
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        file.finish()
    assert file.held == 0
    assert list(tmp_path.iterdir()) == []
    file.write(0, DATA)
    assert file.finish().read_bytes() == DATA


@pytest.mark.parametrize("durable", [True, False])
def test_a_payload_in_many_steps_is_whole_either_way(tmp_path: Path, durable: bool) -> None:
    file = SpoolFile(partial=tmp_path / "partial", whole=tmp_path / "whole", ref=REF, durable=durable, step_bytes=256)
    for at in range(0, len(DATA), 128):
        file.write(at, DATA[at : at + 128])
        if at % 1024 == 0:
            file.close()  # a flush under way has a descriptor of its own
    assert file.finish().read_bytes() == DATA
