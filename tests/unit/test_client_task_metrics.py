"""What a client counts of the runs of tasks."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from runnel.client.tasks.book import Ended, HeldRun
from runnel.client.tasks.contract import Produced
from runnel.client.tasks.measures import HELD, OUTCOMES, SLOTS
from runnel.client.tasks.site_tasks import SiteTasks
from runnel.client.tasks.work import Voice
from runnel.common.protocol import Failure
from tests.doubles.task_network import TaskNetwork, order, plain, site
from tests.eventually import eventually

pytestmark = pytest.mark.unit


class HeldBack:
    """Carries a run out once its gate is open; those with "bad" in their id fail, the others give out for review."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()

    async def run(self, held: HeldRun, folder: Path, voice: Voice) -> Ended:
        await self.gate.wait()
        if "bad" in held.run_id:
            return Ended(failure=Failure(code="exit_status", message="It failed."), exit_code=1)
        made = folder / "stdout"
        await asyncio.to_thread(made.write_bytes, b"3")
        return Ended(exit_code=0, produced=[Produced(name="stdout", media_type="text/plain", path=made)], reviewed=True)


def read(tasks: SiteTasks) -> dict[tuple[str, ...], object]:
    return {(each.metric.name, *each.labels): each.value for each in tasks.samples()}


async def test_runs_are_counted_by_how_far_they_are(tmp_path: Path) -> None:
    runner = HeldBack()
    async with site(tmp_path, TaskNetwork(), runner=runner) as tasks:
        for run_id in ("run-good-1", "run-bad-1", "run-good-2"):
            tasks.received(order(run_id, plain("a:1")))
        await eventually(lambda: [read(tasks)[HELD.name, state] for state in ("running", "waiting")] == [2, 1])
        assert read(tasks)[SLOTS.name,] == 0  # there is no engine
        runner.gate.set()
        # A run has ended in the book, and then is counted.
        await eventually(lambda: [read(tasks)[OUTCOMES.name, end] for end in ("done", "failed")] == [2, 1])
        values = read(tasks)
    assert values[HELD.name, "awaiting-release"] == 2
    assert {values[HELD.name, state] for state in ("waiting", "running")} == {0}
    assert values[HELD.name, "ended"] == 1
    assert {key[1]: number for key, number in values.items() if key[0] == OUTCOMES.name} == {
        "done": 2,
        "failed": 1,
        "rejected": 0,
    }
