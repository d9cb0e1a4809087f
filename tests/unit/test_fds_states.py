"""Tasks of several sites in the states and documents of the Task Execution Service."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from runnel.common.protocol import ENDED, RunState
from runnel.common.tasks import Executor, TaskSpec
from runnel.reducer.domain.task_views import RunFileView, RunView, TaskStatus, TaskView
from runnel.reducer.http.fds.answers import View, Written, task_document
from runnel.reducer.http.fds.bodies import read_task
from runnel.reducer.http.fds.states import TesState, legacy_status, needs_runs, task_state

pytestmark = pytest.mark.unit

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
RUN = RunView(
    run="run-1",
    task="tsk-1",
    site="north",
    state=RunState.DONE,
    detail="",
    created_at=NOW,
    started_at=NOW,
    finished_at=NOW,
    exit_code=0,
    error_code=None,
    error=None,
    log_tail=None,
    image_digest="sha256:1",
    attempt=1,
    elapsed_s={},
    files=(RunFileView(name="output", media_type="application/zip", sha256="0" * 64, size_bytes=12),),
    kept_until=None,
    removed_at=None,
)


def task(*states: RunState, exit_code: int | None = None, spec: TaskSpec | None = None) -> TaskView:
    runs = tuple(
        replace(RUN, run=f"run-{number}", site=f"site-{number}", state=state, exit_code=exit_code)
        for number, state in enumerate(states)
    )
    if set(states) - ENDED:
        status = TaskStatus.QUEUED if set(states) == {RunState.QUEUED} else TaskStatus.RUNNING
    elif RunState.CANCELLED in states:
        status = TaskStatus.CANCELLED
    else:
        status = TaskStatus.DONE if set(states) == {RunState.DONE} else TaskStatus.FAILED
    return TaskView(
        task="tsk-1",
        name="Summary",
        organisation="default",
        user="alice",
        status=status,
        spec=spec or TaskSpec(executors=(Executor(image="alpine"),)),
        created_at=NOW,
        expires_at=None,
        finished_at=None,
        parent_run="",
        counts=Counter(state.value for state in states),
        runs=runs,
    )


@pytest.mark.parametrize(
    ("states", "told"),
    [
        (["queued"], "QUEUED"),
        (["queued", "queued"], "QUEUED"),
        (["assigned"], "INITIALIZING"),
        (["queued", "preparing"], "INITIALIZING"),
        (["preparing", "running"], "RUNNING"),
        (["queued", "done"], "RUNNING"),
        (["queued", "failed"], "RUNNING"),
        (["running", "done"], "RUNNING"),
        (["pushing"], "RUNNING"),
        (["awaiting-release"], "PAUSED"),
        (["awaiting-release", "done"], "PAUSED"),
        (["awaiting-release", "running"], "RUNNING"),
        (["done"], "COMPLETE"),
        (["done", "done"], "COMPLETE"),
        (["done", "rejected"], "SYSTEM_ERROR"),
        (["failed"], "SYSTEM_ERROR"),
        (["cancelled"], "CANCELED"),
        (["cancelled", "done"], "CANCELED"),
    ],
)
def test_the_state_over_all_sites(states: list[str], told: str) -> None:
    view = task(*(RunState(state) for state in states))
    assert task_state(view).value == told
    if not needs_runs(replace(view, runs=())):
        assert task_state(replace(view, runs=())).value == told


def test_a_container_that_failed_is_an_executors_error() -> None:
    assert task_state(task(RunState.FAILED, RunState.DONE, exit_code=3)) is TesState.EXECUTOR_ERROR
    assert task_state(task(RunState.FAILED, exit_code=0)) is TesState.SYSTEM_ERROR
    assert needs_runs(replace(task(RunState.FAILED), runs=()))


def test_the_words_of_the_legacy_form() -> None:
    assert {legacy_status(state) for state in TesState if not state.ended} == {"Running"}
    assert legacy_status(TesState.COMPLETE) == "complete"


def test_what_the_views_leave_out() -> None:
    spec = read_task(
        {
            "executors": [{"image": "alpine", "command": ["sort"]}, {"image": "alpine"}],
            "inputs": [{"path": "/a.txt", "content": "secret"}, {"content": "{ patients { age } }"}],
            "resources": {"cpu_cores": 0.5, "ram_gb": 2},
        }
    ).spec
    view = replace(task(RunState.DONE, exit_code=0, spec=spec), name="Summary")
    written = {"run-0": Written(stdout="hello", stderr="")}
    minimal, basic, full = (task_document(view, each, here="", written=written) for each in View)
    assert minimal == {"id": "tsk-1", "state": "COMPLETE"}
    assert basic["resources"] == {"cpu_cores": 1, "ram_gb": 2.0}
    assert [each.get("content") for each in basic["inputs"]] == [None, None]
    assert [each.get("content") for each in full["inputs"]] == ["secret", "{ patients { age } }"]
    assert "system_logs" not in basic["logs"][0]
    assert [each["exit_code"] for each in basic["logs"][0]["logs"]] == [0, 0]
    assert "stdout" not in basic["logs"][0]["logs"][1]
    assert full["logs"][0]["logs"][1]["stdout"] == "hello"
    assert full["logs"][0]["metadata"]["site"] == "site-0"
    assert full["logs"][0]["outputs"][0] == {
        "path": "/mnt/output",
        "url": "/api/v1/runs/run-0/files/output",
        "size_bytes": "12",
    }


def test_who_may_only_look_sees_no_description() -> None:
    document = task_document(replace(task(RunState.QUEUED), spec=None), View.FULL, here="")
    assert document["executors"] == []
    assert "inputs" not in document
