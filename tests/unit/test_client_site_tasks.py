"""A client's runs between the network and its disk: held, begun, told, settled, and what waits for people."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from datetime import UTC, datetime, time
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from runnel.client.audit import AUDIT_FILE, AuditLog
from runnel.client.domain.policy import ANYTHING, Hours, Policy
from runnel.client.domain.task_policy import Pull, TaskPolicy
from runnel.client.tasks import site_tasks as site_tasks_module
from runnel.client.tasks.book import Ended, HeldRun, RunBook
from runnel.client.tasks.contract import Layout, Produced, TaskSite
from runnel.client.tasks.images import TaskImage
from runnel.client.tasks.plain import PlainContract
from runnel.client.tasks.release import Decision, Decisions, find_waiting, record_decision, waiting_results
from runnel.client.tasks.runner import TaskRunner
from runnel.client.tasks.site_facts import SiteFacts
from runnel.client.tasks.surroundings import Groups
from runnel.client.tasks.task_engine import EngineSettings, TaskEngine
from runnel.client.tasks.work import Voice
from runnel.common.errors import Conflict, NotFound, StorageFull, TooLarge
from runnel.common.protocol import Failure, RunState, TaskOrder, TaskRelease, TaskSettled
from runnel.common.tasks import Contract, TaskSpec
from tests.doubles.task_network import CLIENT, TaskNetwork, order, plain, site
from tests.eventually import eventually

pytestmark = pytest.mark.unit

SPEC = plain("a")


class Runner:
    """Ends each run when it is let go, with one file; ``reviewed``: that has to wait for somebody.

    ``clean_up``: what a run that is called off comes to, or raises, in place of its cancellation.
    """

    def __init__(self, *, reviewed: bool = False) -> None:
        self.begun: list[str] = []
        self.attempts: list[int] = []
        self.cancelled: list[str] = []
        self.reviewed = reviewed
        self.clean_up: Ended | StorageFull | None = None
        self.go = asyncio.Event()

    async def run(self, held: HeldRun, folder: Path, voice: Voice) -> Ended:
        self.begun.append(held.run_id)
        self.attempts.append(held.attempt)
        voice.state(RunState.RUNNING)
        voice.line("stdout", f"line of {held.run_id}")
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled.append(held.run_id)
            if isinstance(self.clean_up, Ended):
                return self.clean_up
            raise self.clean_up or asyncio.CancelledError from None
        path = folder / "out"
        await asyncio.to_thread(path.write_text, f"result of {held.run_id}")
        file = Produced(name="output", media_type="text/plain", path=path)
        return Ended(exit_code=0, produced=[file], reviewed=self.reviewed)


async def test_without_an_engine_there_is_no_room_and_a_run_says_why(tmp_path: Path) -> None:
    network = TaskNetwork()
    async with site(tmp_path / "s", network) as tasks:
        assert tasks.slots == 0
        tasks.received(order("run-1", SPEC))
        end = await network.ended("run-1")
    assert end.state is RunState.FAILED
    assert end.result is not None
    assert end.result.failure is not None
    assert end.result.failure.code == "no_engine"
    assert "No Docker engine answers at unix://" in end.result.failure.message


@pytest.mark.parametrize(
    ("policy", "spec", "state", "code", "word"),
    [
        (dataclasses.replace(ANYTHING, tasks=None), SPEC, RunState.REJECTED, "policy_refused", "tasks"),
        (
            dataclasses.replace(ANYTHING, tasks=TaskPolicy(images=("org/.*:.*",))),
            plain("evil/org/a:1"),
            RunState.REJECTED,
            "policy_refused",
            "images",
        ),
        (ANYTHING, '{"executors": [{"image": "a; rm"}]}', RunState.FAILED, "invalid_input", "image"),
        (ANYTHING, "no json", RunState.FAILED, "invalid_input", "org/ada"),
    ],
)
async def test_what_may_not_run_ends_by_its_rule_and_is_in_the_log(
    tmp_path: Path, policy: Policy, spec: object, state: RunState, code: str, word: str
) -> None:
    network = TaskNetwork()
    async with site(tmp_path / "s", network, policy=policy) as tasks:
        tasks.received(order("run-1", spec))  # type: ignore[arg-type]
        end = await network.ended("run-1")
    assert end.state is state
    assert end.result is not None
    assert end.result.failure is not None
    assert end.result.failure.code == code
    assert word in end.result.failure.message
    refused = [record.data for record in AuditLog(tmp_path / "s" / AUDIT_FILE).records()]
    assert [data["rule"] for data in refused] == ([word] if state is RunState.REJECTED else [])


class Mistaken(PlainContract):
    """A contract that has not thought of something."""

    def lay_out(self, order: TaskOrder, spec: TaskSpec, folder: Path, site: TaskSite) -> Layout:
        raise IndexError("oh")


class OpenAnyway(TaskEngine):
    """An engine that has every image, and is never asked for more."""

    async def open(self) -> Any:
        return self

    @property
    def images(self) -> Any:
        return self

    async def get(self, name: str, pull: Pull, tell: object, *, run_id: str) -> TaskImage:
        return TaskImage(name=name, id="sha256:1", digests=frozenset({"sha256:1"}))

    async def let_go(self, run_id: str, pull: Pull) -> None:
        pass


async def test_a_mistake_of_this_program_ends_one_run_and_not_the_client(tmp_path: Path) -> None:
    settings = EngineSettings(client="c", state=tmp_path, environ={})
    facts = SiteFacts(
        name=CLIENT,
        policy=lambda: ANYTHING,
        contracts={Contract.PLAIN: Mistaken()},
        groups=Groups(tmp_path / "groups"),
    )
    network, audit = TaskNetwork(), AuditLog(tmp_path / AUDIT_FILE)
    runner = TaskRunner(site=facts, engine=OpenAnyway(settings), fetch=network.fetch, audit=audit)
    async with site(tmp_path / "s", network, runner=runner) as tasks:
        for name in ("run-1", "run-2"):
            tasks.received(order(name, SPEC))
            end = await network.ended(name)
            assert end.result is not None
            assert end.result.failure is not None
            assert (end.result.failure.code, "IndexError" in end.result.failure.message) == ("internal", True)


async def test_a_client_that_takes_no_tasks_says_so(tmp_path: Path) -> None:
    network, runner = TaskNetwork(), Runner()
    async with site(tmp_path / "s", network, runner=runner, parallel=0) as tasks:
        tasks.received(order("run-1", SPEC))
        end = await network.ended("run-1")
    assert end.state is RunState.REJECTED
    assert not runner.begun


async def test_what_expired_before_it_began_does_not_begin(tmp_path: Path) -> None:
    network, runner = TaskNetwork(), Runner()
    async with site(tmp_path / "s", network, runner=runner) as tasks:
        tasks.received(order("run-1", SPEC, expires_at_ms=1))
        end = await network.ended("run-1")
        assert end.result is not None
        assert end.result.failure is not None
        assert end.result.failure.code == "expired"
        assert not runner.begun


async def test_the_oldest_begin_and_those_that_runs_ask_for_have_room_of_their_own(tmp_path: Path) -> None:
    network, runner = TaskNetwork(), Runner()
    async with site(tmp_path / "s", network, runner=runner, parallel=2) as tasks:
        for number in range(4):
            tasks.received(order(f"run-{number}", SPEC))
        await eventually(lambda: sorted(runner.begun) == ["run-0", "run-1"])
        tasks.received(order("run-sub", SPEC, parent_run="run-0"))
        await eventually(lambda: runner.begun[2:] == ["run-sub"])
        assert network.states("run-2") == [RunState.ASSIGNED]
        runner.go.set()
        await eventually(lambda: len(runner.begun) == 5)
        assert sorted(runner.begun[3:]) == ["run-2", "run-3"]
        for number in range(4):
            await network.ended(f"run-{number}")


@pytest.mark.parametrize("clean_up", [Ended(failure=Failure(code="storage_full", message="x")), StorageFull("x")])
async def test_called_off_a_run_ends_though_its_clean_up_and_its_site_find_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean_up: Ended | StorageFull
) -> None:
    def full(*_: object, **__: object) -> HeldRun:
        raise StorageFull("No room.")

    for name in ("end", "replace_result"):
        monkeypatch.setattr(RunBook, name, full)
    monkeypatch.setattr(site_tasks_module, "_AGAIN_S", 0.01)
    network, runner = TaskNetwork(), Runner()
    runner.clean_up = clean_up
    async with site(tmp_path / "s", network, runner=runner) as tasks:
        tasks.received(order("run-1", SPEC))
        await eventually(lambda: runner.begun == ["run-1"])
        tasks.received(TaskSettled(run_id="run-1", client=CLIENT, cancelled=True, reason="not wanted"))
        await eventually(lambda: tasks.holding() == () and tasks.working == 0)
        assert (runner.begun, runner.cancelled) == (["run-1"], ["run-1"])
        tasks.received(order("run-2", SPEC))
        await eventually(lambda: runner.begun[1:] == ["run-2"])


@pytest.mark.parametrize("under_way", [True, False])
async def test_a_run_that_is_called_off_does_not_begin_while_it_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, under_way: bool
) -> None:
    """As when another run ends meanwhile, and the next one is looked for."""
    drop, forgetting, may_forget = RunBook.drop, threading.Event(), threading.Event()

    def slowly(self: RunBook, run_id: str) -> None:
        forgetting.set()
        may_forget.wait(30)
        drop(self, run_id)

    monkeypatch.setattr(RunBook, "drop", slowly)
    network, runner = TaskNetwork(), Runner()
    async with site(tmp_path / "s", network, runner=runner, parallel=1 + under_way) as tasks:
        for run in ("run-1", "run-2"):
            tasks.received(order(run, SPEC))
        await eventually(lambda: len(runner.begun) == 1 + under_way and len(tasks.holding()) == 2)
        tasks.received(TaskSettled(run_id="run-2", client=CLIENT, cancelled=True))
        await eventually(forgetting.is_set)
        runner.go.set()
        await network.ended("run-1")
        may_forget.set()
        await eventually(lambda: tasks.holding() == ("run-1",) and tasks.working == 0)
        assert runner.begun == ["run-1", "run-2"][: 1 + under_way]


async def test_an_order_that_comes_again_begins_nothing_and_tells_the_newest(tmp_path: Path) -> None:
    network, runner = TaskNetwork(), Runner()
    async with site(tmp_path / "s", network, runner=runner) as tasks:
        tasks.received(order("run-1", SPEC))
        await eventually(lambda: network.states("run-1")[-1:] == [RunState.RUNNING])
        count = len(network.news)
        tasks.received(order("run-1", SPEC))
        await eventually(lambda: [news.state for news in network.news[count:] if not news.lines] == [RunState.RUNNING])
        assert runner.begun == ["run-1"]
        runner.go.set()
        await network.ended("run-1")


async def test_what_was_not_heard_is_told_after_the_next_attachment_with_its_files(tmp_path: Path) -> None:
    network, runner = TaskNetwork(), Runner()
    async with site(tmp_path / "s", network, runner=runner) as tasks:
        network.attached = False
        tasks.received(order("run-1", SPEC))
        await eventually(lambda: runner.begun)
        network.attached = True
        tasks.attached()
        await eventually(lambda: network.states("run-1")[-1:] == [RunState.RUNNING])
        network.attached = False
        runner.go.set()
        await eventually(lambda: tasks.working == 0)
        network.attached = True
        tasks.attached()
        end = await network.ended("run-1")
        assert network.content(end, "output") == b"result of run-1"
        pushed = network.pushes
        network.news.clear()
        tasks.attached()
        await network.ended("run-1")
        assert network.pushes == pushed + 1


async def test_a_settled_run_is_forgotten_and_what_goes_on_of_it_ends(tmp_path: Path) -> None:
    network, runner = TaskNetwork(), Runner()
    async with site(tmp_path / "s", network, runner=runner) as tasks:
        tasks.received(order("run-1", SPEC))
        await eventually(lambda: runner.begun)
        tasks.received(TaskSettled(run_id="run-1", client=CLIENT, cancelled=True))
        tasks.received(TaskSettled(run_id="run-unknown", client=CLIENT))
        await eventually(lambda: runner.cancelled == ["run-1"])
        await eventually(lambda: tasks.holding() == ())
        tasks.attached()
        assert network.end("run-1") is None


async def test_a_client_that_starts_again_goes_on_where_it_was(tmp_path: Path) -> None:
    network, runner = TaskNetwork(), Runner()
    async with site(tmp_path / "s", network, runner=runner) as tasks:
        for name in ("run-1", "run-2"):
            tasks.received(order(name, SPEC))
        await eventually(lambda: len(runner.begun) == 2)
        network.attached = False
        tasks.received(TaskSettled(run_id="run-1", client=CLIENT))
        await eventually(lambda: tasks.holding() == ("run-2",))
    again = Runner()
    async with site(tmp_path / "s", network, runner=again) as tasks:
        await eventually(lambda: again.begun == ["run-2"])
        assert again.attempts == [2]
        again.go.set()
        await eventually(lambda: tasks.working == 0)
    network.attached = True
    async with site(tmp_path / "s", network, runner=Runner()) as tasks:
        end = await network.ended("run-2")
        assert tasks.holding() == ("run-2",)
    assert end.result is not None
    assert end.result.attempt == 2


async def test_refused_files_make_a_run_fail_and_no_room_above_is_waited_for(tmp_path: Path) -> None:
    network, runner = TaskNetwork(), Runner()
    runner.go.set()
    network.refusing = TooLarge("Too large.")
    async with site(tmp_path / "s", network, runner=runner) as tasks:
        tasks.received(order("run-1", SPEC))
        end = await network.ended("run-1")
        assert end.result is not None
        assert end.result.failure is not None
        assert (end.result.failure.code, end.result.files) == ("too_large", ())
        network.refusing = StorageFull("No room above.")
        tasks.received(order("run-2", SPEC))
        await eventually(lambda: any(news.detail == "No room above." for news in network.news))
        assert network.end("run-2") is None


async def test_outside_of_the_hours_of_the_site_a_run_waits(tmp_path: Path) -> None:
    hours = Hours(days=frozenset(range(7)), begin=time(8), end=time(9), zone=ZoneInfo("UTC"))
    policy = dataclasses.replace(ANYTHING, hours=(hours,))
    now = [datetime(2026, 1, 1, 7, tzinfo=UTC)]
    network, runner = TaskNetwork(), Runner()
    async with site(tmp_path / "s", network, runner=runner, policy=policy, clock=lambda: now[0]) as tasks:
        tasks.received(order("run-1", SPEC))
        await eventually(lambda: any("08:00" in news.detail for news in network.news))
        assert not runner.begun
        now[0] = datetime(2026, 1, 1, 8, 30, tzinfo=UTC)
        await eventually(lambda: runner.begun)
        runner.go.set()
        await network.ended("run-1")


REVIEWED = dataclasses.replace(ANYTHING, tasks=TaskPolicy(review=True, remote_review=frozenset({"custodian"})))


def decide(state: Path, run_id: str, *, release: bool) -> None:
    decision = Decision(release=release, by="people", at=datetime.now(UTC), reason="because")
    record_decision(AuditLog(state / AUDIT_FILE), Decisions(state / "runs"), run_id, decision)


@pytest.mark.parametrize("release", [True, False])
async def test_results_wait_for_a_decision_that_is_made_once(tmp_path: Path, release: bool) -> None:
    network, runner, state = TaskNetwork(), Runner(reviewed=True), tmp_path / "s"
    runner.go.set()
    async with site(state, network, runner=runner, policy=REVIEWED) as tasks:
        tasks.received(order("run-1", SPEC))
        await eventually(lambda: network.states("run-1")[-1:] == [RunState.AWAITING_RELEASE])
    (waiting,) = waiting_results(state)
    assert waiting.files[0][1].read_text() == "result of run-1"
    assert find_waiting(state, "1") == waiting
    # A client that was away when it was decided acts on it at its next start.
    decide(state, "run-1", release=release)
    assert not waiting_results(state)
    with pytest.raises(Conflict, match="people"):
        decide(state, "run-1", release=not release)
    # Also by two who decide in the same moment, and find that nobody has.
    decisions = Decisions(state / "runs")
    with pytest.raises(Conflict):
        decisions.decide("run-1", Decision(release=not release, by="others", at=datetime.now(UTC)))
    decided = decisions.of("run-1")
    assert decided is not None
    assert (decided.release, decided.by) == (release, "people")
    with pytest.raises(Conflict):
        find_waiting(state, "run-1")
    with pytest.raises(NotFound):
        find_waiting(state, "run-2")
    async with site(state, network, runner=runner, policy=REVIEWED) as tasks:
        end = await network.ended("run-1")
        assert tasks.holding() == ("run-1",)
    assert end.result is not None
    if release:
        assert end.state is RunState.DONE
        assert network.content(end, "output") == b"result of run-1"
    else:
        assert end.state is RunState.REJECTED
        assert end.result.failure is not None
        assert end.result.failure.code == "results_blocked"
        assert network.pushes == 0
    kinds = [record.kind for record in AuditLog(state / AUDIT_FILE).records()]
    assert kinds == ["results.released" if release else "results.blocked"]


async def test_only_whom_the_policy_names_decides_from_elsewhere(tmp_path: Path) -> None:
    network, runner, state = TaskNetwork(), Runner(reviewed=True), tmp_path / "s"
    runner.go.set()
    async with site(state, network, runner=runner, policy=REVIEWED) as tasks:
        tasks.received(order("run-1", SPEC))
        await eventually(lambda: network.states("run-1")[-1:] == [RunState.AWAITING_RELEASE])
        tasks.received(TaskRelease(run_id="run-1", client=CLIENT, release=True, user="ada"))
        await eventually(lambda: any("ada" in news.detail for news in network.news))
        assert network.pushes == 0
        tasks.received(TaskRelease(run_id="run-1", client=CLIENT, release=True, user="custodian"))
        tasks.received(TaskRelease(run_id="run-1", client=CLIENT, release=False, user="custodian"))
        end = await network.ended("run-1")
    assert end.state is RunState.DONE
    kinds = [record.kind for record in AuditLog(state / AUDIT_FILE).records()]
    assert kinds == ["results.not_decided", "results.released"]
