"""Runs that run nothing: what is selected leaves a site that lets it, and at others nothing is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest

from runnel.client.audit import AUDIT_FILE, AuditLog
from runnel.client.data import SiteSelector, database_of
from runnel.client.domain.policy import ANYTHING, Policy
from runnel.client.domain.task_policy import PRESENT_IMAGES, TaskLimits, TaskPolicy
from runnel.client.tasks.release import waiting_results
from runnel.common.protocol import RunState
from runnel.common.tasks import Selection, TaskSpec
from tests.doubles.task_network import TaskNetwork, order, site
from tests.eventually import eventually

pytestmark = pytest.mark.unit

SELECTS = TaskSpec(executors=(), selections=(Selection(query="{ patients { age } }"),))


def letting(**rules: object) -> Policy:
    tasks = dataclasses.replace(TaskPolicy(images=(), select=True), **rules)  # type: ignore[arg-type]
    return dataclasses.replace(ANYTHING, tasks=tasks)


def selector(folder: Path) -> SiteSelector:
    folder.mkdir()
    (folder / "patients.csv").write_text("age,sex\n61,f\n62,m\n")
    return SiteSelector({"default": database_of("default", folder / "patients.csv")})


class Unread:
    """Selects from data that nobody is to look at."""

    def __init__(self) -> None:
        self.asked = 0

    async def __call__(self, selections: Sequence[Selection], folder: Path, *, minimum_rows: int) -> None:
        self.asked += 1


def recorded(state: Path) -> list[str]:
    return [record.kind for record in AuditLog(state / AUDIT_FILE).records()]


async def test_a_site_of_level_1_gives_out_what_is_selected_without_any_engine(tmp_path: Path) -> None:
    network, state = TaskNetwork(), tmp_path / "s"
    async with site(state, network, policy=letting(), selector=selector(tmp_path / "data")) as tasks:
        assert tasks.slots == 2
        tasks.received(order("run-1", SELECTS))
        end = await network.ended("run-1")
    assert end.state is RunState.DONE, end.result
    assert network.unzipped(end) == {"patients.csv": b"age\r\n61\r\n62\r\n"}
    assert recorded(state) == ["task.started", "task.ended"]


async def test_the_log_says_that_a_run_failed_by_its_disk(tmp_path: Path) -> None:
    async def broken(selections: Sequence[Selection], folder: Path, *, minimum_rows: int) -> None:
        raise OSError(5, "Input/output error")

    network, state = TaskNetwork(), tmp_path / "s"
    async with site(state, network, policy=letting(), selector=broken) as tasks:
        tasks.received(order("run-1", SELECTS))
        end = await network.ended("run-1")
    assert end.state is RunState.FAILED
    _, ended = AuditLog(state / AUDIT_FILE).records()
    assert (ended.kind, ended.data["end"], ended.data["bytes_out"]) == ("task.ended", "internal", 0)


@pytest.mark.parametrize(
    ("policy", "rule"),
    [
        (dataclasses.replace(ANYTHING, tasks=TaskPolicy(images=(".*",))), "select"),
        (dataclasses.replace(ANYTHING, tasks=PRESENT_IMAGES), "select"),
        (dataclasses.replace(ANYTHING, tasks=None), "tasks"),
        (letting(databases=frozenset({"other"})), "databases"),
        (letting(users=frozenset({"bob"})), "users"),
    ],
)
async def test_a_site_of_level_2_refuses_before_anything_is_read(tmp_path: Path, policy: Policy, rule: str) -> None:
    network, state, unread = TaskNetwork(), tmp_path / "s", Unread()
    async with site(state, network, policy=policy, selector=unread) as tasks:
        tasks.received(order("run-1", SELECTS))
        end = await network.ended("run-1")
    assert end.state is RunState.REJECTED
    assert end.result is not None
    assert end.result.failure is not None
    assert f"by its rule {rule}:" in end.result.failure.message
    assert unread.asked == 0
    assert recorded(state) == ["task.refused"]


async def test_a_refusal_that_a_damaged_log_does_not_take_fails_the_run_and_not_the_client(tmp_path: Path) -> None:
    network, state = TaskNetwork(), tmp_path / "s"
    async with site(state, network, policy=letting(users=frozenset({"bob"})), selector=Unread()) as tasks:
        (state / AUDIT_FILE).write_text("no record\n")
        for run in ("run-1", "run-2"):
            tasks.received(order(run, SELECTS))
            end = await network.ended(run)
            assert end.state is RunState.FAILED
            assert end.result is not None
            assert end.result.failure is not None
            assert end.result.failure.code == "corrupt_data"


async def test_what_is_selected_out_waits_for_its_release_where_results_do(tmp_path: Path) -> None:
    network, state = TaskNetwork(), tmp_path / "s"
    async with site(state, network, policy=letting(review=True), selector=selector(tmp_path / "data")) as tasks:
        tasks.received(order("run-1", SELECTS))
        await eventually(lambda: RunState.AWAITING_RELEASE in network.states("run-1"))
        assert [each.held.run_id for each in waiting_results(state)] == ["run-1"]


@pytest.mark.parametrize(
    ("rules", "state", "code"),
    [
        ({"minimum_rows": 3}, RunState.REJECTED, "too_few_rows"),
        ({"limits": TaskLimits(output_bytes=5)}, RunState.FAILED, "output_limit"),
    ],
)
async def test_the_rules_for_what_is_selected_hold_for_what_leaves(
    tmp_path: Path, rules: dict[str, object], state: RunState, code: str
) -> None:
    network = TaskNetwork()
    async with site(tmp_path / "s", network, policy=letting(**rules), selector=selector(tmp_path / "data")) as tasks:
        tasks.received(order("run-1", SELECTS))
        end = await network.ended("run-1")
    assert end.state is state
    assert end.result is not None
    assert end.result.failure is not None
    assert end.result.failure.code == code
    assert not end.result.files
