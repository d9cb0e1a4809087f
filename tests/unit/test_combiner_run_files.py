"""Files of runs that a combiner could not pass on: they wait for the next attempt, and not for ever."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from runnel.combiner.domain import Membership
from runnel.combiner.runs import Runs
from runnel.common.errors import Forbidden, IllegalState, NotFound, RunnelError, Unreachable
from runnel.common.protocol import BlobRef, Member, NodeKind, TaskSettled
from runnel.transport import NodeIdentity, UplinkLink
from tests.eventually import eventually, let_pass

pytestmark = pytest.mark.unit

DATA = b"result"
REF = BlobRef(sha256=hashlib.sha256(DATA).hexdigest(), size_bytes=len(DATA))
SITE = NodeIdentity(name="site", node_id="id-site", kind=NodeKind.CLIENT)


class WayUp:
    """Takes files, unless ``fails`` says why not; while ``stuck`` is set it does not come to an end."""

    def __init__(self) -> None:
        self.fails: RunnelError | None = None
        self.stuck = False
        self.took: list[bytes] = []
        self.meanwhile: Callable[[], None] = lambda: None

    async def probe(self, run_id: str, ref: BlobRef, *, deadline_s: float) -> bool:
        self.meanwhile()
        return False

    async def push(self, run_id: str, source: Path, ref: BlobRef, *, deadline_s: float) -> None:
        if self.stuck:
            await asyncio.Event().wait()
        if self.fails is not None:
            raise self.fails
        self.took.append(source.read_bytes())


class Place:
    """A combiner's runs, with one client below that holds ``run-1``."""

    def __init__(self, folder: Path, keep_s: float = 60.0) -> None:
        self.folder = folder
        self.way = WayUp()
        membership = Membership("m")
        member = Member(name="site", node_id="id-site", kind=NodeKind.CLIENT, runs=("run-1",))
        membership.attach(member, [])
        self.runs = Runs(
            "m",
            membership=membership,
            link=cast(UplinkLink, self.way),
            send_down=lambda child, message: None,
            folder=folder,
            keep_s=keep_s,
        )

    async def push(self) -> None:
        file = await self.runs.open_push(SITE, "run-1", REF)
        assert file is not None
        if not file.verified:
            file.write(0, DATA)
        await self.runs.pushed(SITE, "run-1", REF, file.finish())

    async def fail(self) -> None:
        self.way.fails = Unreachable("Not attached.")
        with pytest.raises(Unreachable):
            await self.push()
        self.way.fails = None

    def files(self) -> list[Path]:
        return list(self.folder.iterdir())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "runs")


async def test_the_next_attempt_passes_on_what_waits(place: Place) -> None:
    await place.fail()
    assert len(place.files()) == 1
    file = await place.runs.open_push(SITE, "run-1", REF)
    assert file is not None
    assert file.verified
    await place.runs.pushed(SITE, "run-1", REF, file.finish())
    assert place.way.took == [DATA]
    assert place.files() == []


async def test_a_run_that_is_over_leaves_no_file(place: Place) -> None:
    await place.fail()
    place.runs.down(TaskSettled(run_id="run-2", client="site"))
    assert len(place.files()) == 1
    place.runs.down(TaskSettled(run_id="run-1", client="site", cancelled=True))
    assert place.files() == []
    with pytest.raises(Forbidden):
        await place.push()


async def test_a_push_in_part_goes_with_its_run(place: Place) -> None:
    file = await place.runs.open_push(SITE, "run-1", REF)
    assert file is not None
    file.write(0, DATA[:2])
    file.close()
    place.runs.down(TaskSettled(run_id="run-2", client="site"))
    assert len(place.files()) == 1
    place.runs.down(TaskSettled(run_id="run-1", client="site", cancelled=True))
    assert place.files() == []
    place.runs.left("site")
    assert place.files() == []


async def test_a_run_that_ends_while_those_above_are_asked_takes_no_file(place: Place) -> None:
    large = BlobRef(sha256=REF.sha256, size_bytes=1 << 20)
    place.way.meanwhile = lambda: place.runs.down(TaskSettled(run_id="run-1", client="site"))
    with pytest.raises(IllegalState, match="has ended"):
        await place.runs.open_push(SITE, "run-1", large)
    assert place.runs._spool._begun == {}


async def test_a_node_that_left_leaves_no_file(place: Place) -> None:
    await place.fail()
    place.runs.left("other")
    assert len(place.files()) == 1
    place.runs.left("site")
    assert place.files() == []


async def test_what_nobody_tries_again_goes(tmp_path: Path) -> None:
    place = Place(tmp_path / "runs")
    await place.fail()
    assert len(place.files()) == 1
    let_pass(61)
    await eventually(lambda: place.files() == [])
    await place.push()
    assert place.way.took == [DATA]


async def test_a_transfer_that_is_cut_off_leaves_a_file_for_a_while_and_none_of_a_run_that_is_over(
    tmp_path: Path,
) -> None:
    place = Place(tmp_path / "runs")
    place.way.stuck = True
    cut = asyncio.create_task(place.push())
    await eventually(lambda: any(path.suffix == ".whole" for path in place.files()))
    cut.cancel()
    await asyncio.wait([cut])
    assert cut.cancelled()
    assert len(place.files()) == 1
    let_pass(61)
    await eventually(lambda: place.files() == [])
    cut = asyncio.create_task(place.push())
    await eventually(lambda: any(path.suffix == ".whole" for path in place.files()))
    place.runs.down(TaskSettled(run_id="run-1", client="site"))
    cut.cancel()
    await asyncio.wait([cut])
    assert place.files() == []


async def test_a_file_that_went_while_its_push_was_answered_is_asked_for_again(place: Place) -> None:
    await place.fail()
    file = await place.runs.open_push(SITE, "run-1", REF)
    assert file is not None
    file.whole.unlink()
    with pytest.raises(NotFound, match="pushed again"):
        await place.runs.pushed(SITE, "run-1", REF, file.finish())
    await place.push()
    assert place.way.took == [DATA]
