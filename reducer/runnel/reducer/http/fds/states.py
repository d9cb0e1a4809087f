"""Where a task is, in the words of the Task Execution Service.

A task of this network runs at several sites, and TES knows one state for all: the one that tells a caller whether to go
on waiting, and whether everything went well. What became of each site is in the task's logs, one for each.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum

from runnel.common.protocol import RunState
from runnel.reducer.domain.task_views import RunView, TaskStatus, TaskView


class TesState(Enum):
    """States of TES, as far as there are tasks in them here."""

    QUEUED = "QUEUED"
    INITIALIZING = "INITIALIZING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    COMPLETE = "COMPLETE"
    EXECUTOR_ERROR = "EXECUTOR_ERROR"
    SYSTEM_ERROR = "SYSTEM_ERROR"
    CANCELED = "CANCELED"

    @property
    def ended(self) -> bool:
        """Whether the task stays in it."""
        return self in _WORST_LAST


_WORST_LAST = (TesState.COMPLETE, TesState.CANCELED, TesState.SYSTEM_ERROR, TesState.EXECUTOR_ERROR)

_BY_RUN = {
    RunState.QUEUED: TesState.QUEUED,
    RunState.ASSIGNED: TesState.INITIALIZING,
    RunState.PREPARING: TesState.INITIALIZING,
    RunState.RUNNING: TesState.RUNNING,
    RunState.AWAITING_RELEASE: TesState.PAUSED,
    RunState.PUSHING: TesState.RUNNING,
    RunState.DONE: TesState.COMPLETE,
    RunState.FAILED: TesState.SYSTEM_ERROR,
    RunState.REJECTED: TesState.SYSTEM_ERROR,
    RunState.CANCELLED: TesState.CANCELED,
}

_LEGACY = {
    TesState.COMPLETE: "complete",
    TesState.EXECUTOR_ERROR: "failed",
    TesState.SYSTEM_ERROR: "failed",
    TesState.CANCELED: "cancelled",
}


def run_state(run: RunView) -> TesState:
    """Return the state of a task at one site. A failure is an executor's if a container ended with a status not 0."""
    if run.state is RunState.FAILED and run.exit_code:
        return TesState.EXECUTOR_ERROR
    return _BY_RUN[run.state]


def needs_runs(task: TaskView) -> bool:
    """Whether the state of a task as it is listed, without its runs, can't be told."""
    return task.status is TaskStatus.FAILED and not task.runs


def task_state(task: TaskView) -> TesState:
    """Return the state of a task over all its sites; of a failed one, its runs have to be there.

    Ended: COMPLETE if every site is, else the worst that happened. Before that: PAUSED while nothing is left but
    results that wait for their release; QUEUED while no site has begun; INITIALIZING while none got further than that.
    """
    if task.runs:
        states = {run_state(run) for run in task.runs}
    else:
        states = {_BY_RUN[RunState(state)] for state, count in task.counts.items() if count}
    if task.status is TaskStatus.CANCELLED:
        return TesState.CANCELED
    return _of_all(states)


def _of_all(states: Collection[TesState]) -> TesState:
    opened = {state for state in states if not state.ended}
    if not opened:
        return max(states, key=_WORST_LAST.index, default=TesState.QUEUED)
    if len(opened) == 1 and (len(states) == 1 or opened == {TesState.PAUSED}):
        return next(iter(opened))
    return TesState.INITIALIZING if states == {TesState.QUEUED, TesState.INITIALIZING} else TesState.RUNNING


def legacy_status(state: TesState) -> str:
    """Return the word by which clients of the legacy form wait: ``Running`` until there is nothing to wait for."""
    return _LEGACY.get(state, "Running")
