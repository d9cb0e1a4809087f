"""Payloads whose digest is told at their end."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from blake3 import blake3

from runnel.common.blobs import Leftovers, Spool
from runnel.common.errors import CorruptData
from runnel.common.protocol import BlobRef

pytestmark = pytest.mark.unit

NAMED = BlobRef(blake3=blake3(b"update").hexdigest(), size_bytes=6)
BEFORE = BlobRef(sha256=hashlib.sha256(b"update").hexdigest(), size_bytes=6)  # by a node of an earlier version
UNNAMED = BlobRef(size_bytes=6)


def files(spool: Spool) -> list[bytes]:
    return [path.read_bytes() for path in spool.root.iterdir()]


@pytest.mark.parametrize("named", [NAMED, BEFORE], ids=["BLAKE3", "SHA-256"])
def test_it_is_verified_by_the_name_that_it_is_given(named: BlobRef, tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    file = spool.open("o", UNNAMED)
    file.write(0, b"update")
    file.name(named)
    assert file.ref == named
    assert file.finish().read_bytes() == b"update"
    assert spool.open("o", named).verified


def test_without_a_name_it_is_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    file = spool.open("o", UNNAMED)
    file.write(0, b"update")
    with pytest.raises(CorruptData):
        file.finish()
    assert files(spool) == []


@pytest.mark.parametrize("named", [NAMED, BEFORE], ids=["BLAKE3", "SHA-256"])
def test_another_name_drops_it(named: BlobRef, tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    file = spool.open("o", UNNAMED)
    file.write(0, b"UPDATE")
    file.name(named)
    with pytest.raises(CorruptData, match=named.name):
        file.finish()
    assert files(spool) == []


@pytest.mark.parametrize("ref", [UNNAMED, NAMED], ids=["another length", "a second name"])
def test_a_name_that_does_not_fit_is_refused(ref: BlobRef, tmp_path: Path) -> None:
    file = Spool(tmp_path).open("o", ref)
    other = BlobRef(sha256=NAMED.blake3, size_bytes=6 if ref.name else 7)
    with pytest.raises(CorruptData, match="announced with 6 bytes"):
        file.name(other)
    assert file.ref == ref


@pytest.mark.parametrize("restarted", [False, True])
def test_what_came_without_a_name_is_gone_on_with_under_one(restarted: bool, tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    begun = spool.open("o", UNNAMED)
    begun.write(0, b"upd")
    begun.close()
    spool = Spool(tmp_path) if restarted else spool
    assert spool.open("another", NAMED).held == 0
    rest = spool.open("o", NAMED)
    assert rest.held == 3
    rest.write(3, b"ate")
    assert rest.finish().read_bytes() == b"update"


def test_what_is_gone_on_with_and_was_something_else_is_found(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    begun = spool.open("o", UNNAMED)
    begun.write(0, b"abc")
    begun.close()
    rest = spool.open("o", NAMED)
    rest.write(3, b"ate")
    with pytest.raises(CorruptData, match=NAMED.blake3):
        rest.finish()
    assert spool.open("o", NAMED).held == 0


def test_without_a_name_it_begins_anew_and_is_never_there_already(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    begun = spool.open("o", UNNAMED)
    begun.write(0, b"abc")
    begun.close()
    assert spool.open("o", UNNAMED).held == 0
    whole = spool.open("o", UNNAMED)
    whole.write(0, b"update")
    whole.name(NAMED)
    kept = whole.finish()
    again = spool.open("o", UNNAMED)
    assert (again.held, again.verified) == (0, False)
    again.write(0, b"abcdef")
    again.close()
    assert kept.read_bytes() == b"update"


def test_who_comes_back_goes_on_with_what_had_no_name(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    left = Leftovers(spool, 60.0)
    begun = spool.open("o", UNNAMED)
    begun.write(0, b"upd")
    begun.close()
    left.leave("o", "c1")
    left.take_up("o2", "another", NAMED.blake3)
    assert spool.open("o2", NAMED).held == 0
    left.take_up("o3", "c1", NAMED.blake3)
    rest = spool.open("o3", NAMED)
    assert rest.held == 3
    rest.write(3, b"ate")
    assert rest.finish().read_bytes() == b"update"
    assert files(spool) == [b"update"]
