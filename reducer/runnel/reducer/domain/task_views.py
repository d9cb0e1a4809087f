"""Tasks and their runs, as their people see them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from runnel.common.protocol import RunState
from runnel.common.tasks import TaskSpec


class TaskStatus(Enum):
    """Where a task is, over all its sites.

    ``queued``: no site has it yet. ``running``: some site has, and not all runs have ended. ``done``: every run did
    what it should. ``failed``: all have ended, and not all of them well. ``cancelled``: by a person, before the end.
    """

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether nothing happens any more."""
        return self not in {TaskStatus.QUEUED, TaskStatus.RUNNING}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFileView:
    """A result file: ``name`` as in :class:`runnel.common.protocol.ResultFile`; ``sha256`` in lower-case hex."""

    name: str
    media_type: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """A task at one site.

    ``detail``: how far it is, for people. ``error_code``: stable: the limit, rule or fault by which it failed or was
    rejected; ``error``: the same for people. ``exit_code``: of the executor that ended last; None: none was started.
    ``elapsed_s``: seconds by stage. ``kept_until``: when its files are removed; None: not (yet). ``removed_at``: when
    they were.
    """

    run: str
    task: str
    site: str
    state: RunState
    detail: str
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    exit_code: int | None
    error_code: str | None
    error: str | None
    log_tail: str | None
    image_digest: str
    attempt: int
    elapsed_s: Mapping[str, float]
    files: tuple[RunFileView, ...]
    kept_until: datetime | None
    removed_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskView:
    """A task. ``user``: name of the token that asked for it; ``parent_run``: of a sub-task, the run that did.

    ``counts``: runs by state; ``runs``: those of all its sites by name, empty in listings. ``spec`` None: the caller
    may only look.
    """

    task: str
    name: str
    organisation: str
    user: str
    status: TaskStatus
    spec: TaskSpec | None
    created_at: datetime
    expires_at: datetime | None
    finished_at: datetime | None
    parent_run: str
    counts: Mapping[str, int]
    runs: tuple[RunView, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFilter:
    """Which tasks are listed; all that is said has to hold.

    ``name``: the beginning of it. ``site``: one of its sites. ``tags``: the task has all of them; an empty value: the
    tag whatever its value. ``parent_run``: sub-tasks of that run; empty: those that are not sub-tasks; None: both.
    """

    status: TaskStatus | None = None
    name: str = ""
    site: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    parent_run: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLineView:
    """A line that a run wrote, as it was seen live; its files have all of them."""

    id: int
    run: str
    at: datetime
    stream: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobView:
    """A file for tasks that was uploaded. ``kept_until``: at least so long; None: for ever."""

    sha256: str
    size_bytes: int
    kept_until: datetime | None
