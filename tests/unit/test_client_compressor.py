"""What lossy updates leave out: carried once, whichever updates count, whenever the client dies."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from runnel.client.compressor import SESSIONS_KEPT, Compressor
from runnel.client.outbox import Outbox, Update
from runnel.common.compression import decoded_update, parse_compression
from runnel.common.errors import InvalidInput
from runnel.common.protocol import AssignmentKey, Failure, Outcome, Work
from runnel.common.tensors import open_npz, write_npz

pytestmark = pytest.mark.unit

COUNT = 2_000
HOW = "top-k:0.01"
OUTCOME = Outcome(client="a")


def key_of(number: int, session: str = "ses-1") -> AssignmentKey:
    return AssignmentKey(session_id=session, round=number, work=Work.TRAIN)


class Site:
    """A client's folder, and a ledger of what counted of its updates; each difference is drawn at random."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.random = np.random.default_rng(1)
        self.base = folder / "base.npz"
        write_npz(self.base, {"w": np.zeros(COUNT)})
        self.told: dict[AssignmentKey, NDArray[Any]] = {}
        self.counted: NDArray[Any] = np.zeros(COUNT)
        self.start()

    def start(self) -> None:
        """Begin as after a kill: nothing is known but what lies on the disk."""
        self.outbox = Outbox(self.folder / "outbox")
        self.compressor = Compressor(self.folder / "leftovers", self.outbox)

    def compress(self, key: AssignmentKey) -> Update:
        workdir = Path(tempfile.mkdtemp(dir=self.folder))
        self.told[key] = self.random.normal(size=COUNT)
        update = workdir / "update.npz"
        write_npz(update, {"w": self.told[key]})
        return self.compressor.compress(key, update, how=HOW, base=self.base, workdir=workdir)

    def keep(self, key: AssignmentKey, update: Update) -> None:
        self.outbox.keep(key, OUTCOME, update.file, left=update.left, carried=update.carried)
        self.compressor.kept(key)

    def train(self, key: AssignmentKey) -> None:
        self.keep(key, self.compress(key))

    def settle(self, key: AssignmentKey, *, counted: bool) -> None:
        held = self.outbox.get(key)
        assert held is not None
        assert held.file is not None
        if counted:
            self.counted += self.told[key] - self.arrived(held.file)
        self.compressor.settled(key, counted=counted)

    def arrived(self, file: Path) -> NDArray[Any]:
        how = parse_compression(HOW)
        with (
            decoded_update(file, compression=how, base=self.base, source="a") as plain,
            open_npz(plain, source="a") as opened,
        ):
            return opened.arrays()["w"]

    def left(self) -> NDArray[Any]:
        """Sum of what is kept for coming updates."""
        files = list((self.folder / "leftovers").glob("*/*"))
        return np.sum([np.load(file)["w"] for file in files], axis=0) if files else np.zeros(COUNT)

    def require_balance(self) -> None:
        """What counted updates were to tell, and did not, is what is left."""
        np.testing.assert_allclose(self.left(), self.counted, atol=1e-9)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_what_a_counted_update_left_is_carried_by_the_next(site: Site) -> None:
    site.train(key_of(1))
    assert not site.left().any()
    site.settle(key_of(1), counted=True)
    site.require_balance()
    first = site.left()
    assert np.count_nonzero(first) == COUNT * 0.99
    update = site.compress(key_of(2))
    assert len(update.carried) == 1
    site.keep(key_of(2), update)
    site.settle(key_of(2), counted=True)
    site.require_balance()
    assert not np.array_equal(site.left(), first)
    assert len(list((site.folder / "leftovers").glob("*/*"))) == 1


def test_an_update_that_does_not_count_leaves_all_as_it_was(site: Site) -> None:
    site.train(key_of(1))
    site.settle(key_of(1), counted=True)
    before = site.left()
    site.train(key_of(2))
    site.settle(key_of(2), counted=False)
    assert np.array_equal(site.left(), before)
    update = site.compress(key_of(3))
    assert len(update.carried) == 1
    site.keep(key_of(3), update)
    site.settle(key_of(3), counted=True)
    site.require_balance()


def test_an_update_that_could_not_be_kept_frees_what_it_carried(site: Site) -> None:
    site.train(key_of(1))
    site.settle(key_of(1), counted=True)
    update = site.compress(key_of(2))
    assert site.compress(key_of(3)).carried == ()
    site.outbox.keep(key_of(2), Outcome(client="a", failure=Failure(code="storage_full", message="")), None)
    site.compressor.kept(key_of(2))
    assert site.compress(key_of(4)).carried == update.carried


def test_a_refused_update_frees_what_it_carried(site: Site) -> None:
    site.train(key_of(1))
    site.settle(key_of(1), counted=True)
    with pytest.raises(InvalidInput):
        site.compressor.compress(key_of(2), site.base, how="gzip", base=site.base, workdir=site.folder)
    (site.folder / "bad.npz").write_bytes(b"")
    with pytest.raises(InvalidInput):
        site.compressor.compress(key_of(2), site.folder / "bad.npz", how=HOW, base=site.base, workdir=site.folder)
    assert site.compress(key_of(3)).carried == ()
    site.compressor.kept(key_of(2))
    assert len(site.compress(key_of(4)).carried) == 1


def test_a_report_is_offered_again_as_it_was(site: Site) -> None:
    site.train(key_of(1))
    site.settle(key_of(1), counted=True)
    site.train(key_of(2))
    held = site.outbox.get(key_of(2))
    assert held is not None
    assert held.file is not None
    before = held.file.read_bytes()
    site.start()
    again = site.outbox.get(key_of(2))
    assert again == held
    assert held.file.read_bytes() == before


@pytest.mark.parametrize("meanwhile", [False, True])
@pytest.mark.parametrize("done", [1, 2])
def test_a_death_while_the_leftovers_change_hands(site: Site, done: int, meanwhile: bool) -> None:
    site.train(key_of(1))
    site.settle(key_of(1), counted=True)
    site.train(key_of(2))
    held = site.outbox.get(key_of(2))
    assert held is not None
    assert held.left is not None
    assert held.file is not None
    site.counted += site.told[key_of(2)] - site.arrived(held.file)
    # What settled() does, up to a point.
    (folder,) = (site.folder / "leftovers").iterdir()
    (carried,) = held.carried
    held.left.replace(folder / site.compressor._folder(key_of(0, str(key_of(2)))).name)
    if done == 2:
        (folder / carried).unlink()
    site.start()
    if meanwhile:  # the network has not yet said it again
        update = site.compress(key_of(3))
        assert len(update.carried) == 1
        assert carried not in update.carried
        site.keep(key_of(3), update)
    site.compressor.settled(key_of(2), counted=True)
    if meanwhile:
        site.settle(key_of(3), counted=True)
    site.require_balance()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=st.lists(st.tuples(st.sampled_from(["train", "count", "drop", "kill"]), st.integers(0, 9)), max_size=14))
def test_the_balance_holds_in_any_order(plan: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        site = Site(Path(folder))
        numbers = itertools.count(1)
        held: list[AssignmentKey] = []
        for what, which in [*plan, *[("count", 0)] * 14]:
            if what == "train":
                held.append(key_of(next(numbers)))
                site.train(held[-1])
            elif what == "kill":
                site.start()
            elif held:
                site.settle(held.pop(which % len(held)), counted=what == "count")
        site.require_balance()
        assert site.outbox.held() == []


def test_work_that_is_done_again_may_carry_what_it_left_the_first_time(site: Site) -> None:
    # As by a reducer that was restored from a backup of before it counted.
    for _ in range(2):
        site.train(key_of(1))
        site.settle(key_of(1), counted=True)
        site.require_balance()
        assert site.left().any()


def test_what_is_torn_is_dropped(site: Site) -> None:
    site.train(key_of(1))
    site.settle(key_of(1), counted=True)
    (file,) = (site.folder / "leftovers").glob("*/*")
    file.write_bytes(file.read_bytes()[:-100])
    assert site.compress(key_of(2)).carried == ()
    assert not file.exists()


def test_sessions_are_apart_and_only_the_newest_are_kept(site: Site) -> None:
    for number in range(SESSIONS_KEPT + 3):
        key = key_of(1, f"ses-{number}")
        assert site.compress(key).carried == ()
        site.train(key)
        site.settle(key, counted=True)
    assert len(list((site.folder / "leftovers").iterdir())) == SESSIONS_KEPT
    assert site.compress(key_of(2, "ses-0")).carried == ()
    assert len(site.compress(key_of(2, f"ses-{SESSIONS_KEPT + 2}")).carried) == 1


def test_without_compression_nothing_is_made(site: Site) -> None:
    update = site.folder / "update.npz"
    write_npz(update, {"w": np.ones(COUNT)})
    made = site.compressor.compress(key_of(1), update, how="none", base=site.base, workdir=site.folder)
    assert made == Update(file=update)
