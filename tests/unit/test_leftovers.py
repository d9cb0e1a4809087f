"""Pushes that a lost connection cut in half: kept for their sender, for a while, and for nobody else."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from runnel.common.blobs import Leftovers, Spool
from runnel.common.protocol import BlobRef

pytestmark = pytest.mark.unit

DATA = b"x" * 1000
REF = BlobRef(sha256=hashlib.sha256(DATA).hexdigest(), size_bytes=len(DATA))


class Clock:
    """Stands still until told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Place:
    """A spool with leftovers that are kept for ten seconds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = Clock()
        self.spool = Spool(folder, durable=False)
        self.left = Leftovers(self.spool, 10.0, clock=self.clock)

    def begin(self, order: str, name: str, ref: BlobRef = REF, size: int = 600) -> None:
        """Push the first bytes of ``ref`` and lose the connection."""
        file = self.spool.open(f"{order}/{name}", ref)
        file.write(file.held, DATA[file.held : size])
        file.close()
        self.left.leave(f"{order}/{name}", name)

    def held(self, order: str, name: str, ref: BlobRef = REF) -> int:
        """How much is there when the node pushes under this order."""
        self.left.take_up(f"{order}/{name}", name, ref.sha256)
        return self.spool.open(f"{order}/{name}", ref).held

    def files(self) -> int:
        return sum(1 for _ in self.folder.iterdir())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def other(number: int) -> BlobRef:
    return BlobRef(sha256=hashlib.sha256(bytes([number])).hexdigest(), size_bytes=len(DATA))


def test_a_push_goes_on_under_another_order_and_is_verified_whole(place: Place) -> None:
    place.begin("ord-1", "a")
    assert place.held("ord-2", "a") == 600
    file = place.spool.open("ord-2/a", REF)
    file.write(600, DATA[600:])
    assert file.finish().read_bytes() == DATA
    place.clock.now += 60
    place.left.expire()
    assert file.whole.exists()


def test_it_may_be_cut_off_again(place: Place) -> None:
    place.begin("ord-1", "a")
    place.left.take_up("ord-2/a", "a", REF.sha256)
    place.begin("ord-2", "a", size=800)
    assert place.held("ord-3", "a") == 800


def test_nobody_else_and_nothing_else_takes_it_up(place: Place) -> None:
    place.begin("ord-1", "a")
    assert place.held("ord-2", "b") == 0
    assert place.held("ord-2", "a", other(1)) == 0
    assert place.held("ord-3", "a") == 600


def test_what_is_under_way_already_is_not_replaced(place: Place) -> None:
    place.begin("ord-1", "a")
    file = place.spool.open("ord-2/a", REF)
    file.write(0, DATA[:700])
    file.close()
    assert place.held("ord-2", "a") == 700


def test_what_nobody_comes_back_for_is_removed(place: Place) -> None:
    place.begin("ord-1", "a")
    place.clock.now += 9
    place.begin("ord-1", "b")
    place.left.expire()
    assert place.files() == 2
    place.clock.now += 2
    place.left.expire()
    assert place.files() == 1
    assert place.held("ord-2", "a") == 0
    place.clock.now += 9
    place.left.expire()
    assert place.files() == 0


def test_a_node_leaves_only_its_newest_few(place: Place) -> None:
    for number in range(9):
        place.begin(f"ord-{number}", "a", other(number))
    place.begin("ord-0", "b")
    assert place.files() == 5
    assert [place.held("ord-9", "a", other(number)) for number in (4, 8)] == [0, 600]


def test_a_node_that_had_begun_nothing_leaves_nothing(place: Place) -> None:
    place.spool.open("ord-1/a", REF)
    place.left.leave("ord-1/a", "a")
    assert place.files() == 0
