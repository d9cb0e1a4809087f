"""Digests of files that still grow."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from blake3 import blake3

from runnel.common.tensors.growing_digest import GrowingDigest

pytestmark = pytest.mark.unit

DATA = bytes(range(256)) * 12_000  # three pieces


@pytest.mark.parametrize("steps", [(), (0,), (1, 2_000_000), (len(DATA),)], ids=len)
def test_it_is_that_of_the_whole_whenever_it_was_advanced(steps: tuple[int, ...], tmp_path: Path) -> None:
    with (tmp_path / "file").open("x+b", buffering=0) as file:
        digest = GrowingDigest(file.fileno())
        written = 0
        for until in steps:
            file.write(DATA[written:until])
            written = until
            digest.advance(until)
        file.write(DATA[written:])
        found = digest.finish(len(DATA))
        assert (found.sha256, found.blake3) == (hashlib.sha256(DATA).hexdigest(), blake3(DATA).hexdigest())
        assert found.size_bytes == len(DATA)
        digest.close()
        digest.close()


def test_what_could_not_be_read_is_told_though_all_after_it_can(tmp_path: Path) -> None:
    with (tmp_path / "file").open("x+b", buffering=0) as file:
        digest = GrowingDigest(file.fileno())
        digest.advance(10)
        with pytest.raises(EOFError, match="10 bytes at 0"):
            digest.finish(10)
        file.write(b"0123456789")
        digest.advance(10)
        with pytest.raises(EOFError, match="10 bytes at 0"):
            digest.finish(10)
        digest.close()
