"""A policy file is read again when it has changed and rests, or when somebody asks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from runnel.client.policy_file import SitePolicy, read_policy
from runnel.client.policy_watch import PolicyWatch, on_hangup
from runnel.common.errors import BadSettings, CorruptData
from tests.eventually import eventually

pytestmark = pytest.mark.unit

LOOK_S = 0.01


class Following:
    """A watch and what it told; ``broken``: nothing can be written down."""

    def __init__(self, path: Path) -> None:
        self.taken: list[SitePolicy] = []
        self.problems: list[str] = []
        self.reads = 0
        self.refused = 0
        self.broken = False
        self._path = path
        self.watch = PolicyWatch(path, read=self._read, adopt=self._adopt, reject=self._reject, look_s=LOOK_S)

    def _read(self) -> SitePolicy:
        self.reads += 1
        return read_policy(self._path)

    async def _adopt(self, site: SitePolicy) -> None:
        if self.broken:
            self.refused += 1
            raise CorruptData("The log was changed.")
        if site.policy.limits.pids == 1:
            raise BadSettings("pids of a cage should be at least 4 but is 1.")
        self.taken.append(site)

    async def _reject(self, problem: str) -> None:
        self.problems.append(problem)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    written = tmp_path / "policy.toml"
    written.write_text('approve = "signed"\n')
    return written


@pytest.fixture
async def following(path: Path) -> AsyncIterator[Following]:
    made = Following(path)
    task = asyncio.create_task(made.watch.run())
    await eventually(lambda: len(made.taken) == 1)
    yield made
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_what_has_changed_is_taken_over_once(path: Path, following: Following) -> None:
    path.write_text('approve = "anything"\n')
    await eventually(lambda: len(following.taken) == 2)
    assert following.taken[-1].policy.approve.value == "anything"
    os.utime(path)
    await eventually(lambda: following.reads >= 3)


@pytest.mark.parametrize(
    ("text", "problem"),
    [("aprove = 1", "aprove is no key"), ("[limits]\npids = 1", "at least 4"), (None, "can't be read")],
)
async def test_what_is_wrong_is_told_and_not_taken_over(
    path: Path, following: Following, text: str | None, problem: str
) -> None:
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    await eventually(lambda: bool(following.problems))
    assert problem in following.problems[0]
    path.write_text('approve = "reviewed"\n')
    await eventually(lambda: len(following.taken) == 2)
    assert len(following.problems) == 1, "it is told once"


async def test_a_file_that_is_being_written_is_not_read(path: Path) -> None:
    made = Following(path)
    for lines in range(4):
        path.write_text('approve = "anything"\n' + "\n" * lines)
        await made.watch.look()
    assert made.reads == 0, "it was another one at each look"
    await made.watch.look()
    await made.watch.look()
    assert made.reads == 1


async def test_a_policy_that_can_not_be_written_down_is_not_taken_over(path: Path, following: Following) -> None:
    following.broken = True
    path.write_text('approve = "anything"\n')
    await eventually(lambda: following.refused == 1)
    following.broken = False
    following.watch.look_now()
    await eventually(lambda: len(following.taken) == 2)


async def test_a_hangup_asks_for_it(following: Following) -> None:
    before = signal.getsignal(signal.SIGHUP)
    with on_hangup(following.watch.look_now):
        os.kill(os.getpid(), signal.SIGHUP)
        await eventually(lambda: following.reads == 2)
    assert signal.getsignal(signal.SIGHUP) is before
