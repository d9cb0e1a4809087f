"""What the container of a task asks the network in the name of its run, and what it is answered."""

from __future__ import annotations

from dataclasses import dataclass, field

from runnel.common.protocol import RunResult


@dataclass(frozen=True, slots=True, kw_only=True)
class SitesAsk:
    """Which sites a sub-task may go to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTask:
    """A sub-task at ``sites``. ``spec``: JSON of a :class:`runnel.common.tasks.TaskSpec`; its images are the asker's.

    ``idempotency_key``: asked again with the same key, the same task is told.
    """

    spec: str = field(repr=False)
    sites: tuple[str, ...]
    idempotency_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LookAtTask:
    """What has become of one of the run's own sub-tasks; answered when it has ended, or after ``wait_s``."""

    task_id: str
    wait_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskAsk:
    """A question of the run ``run_id`` that is under way at ``client``."""

    run_id: str
    client: str
    body: SitesAsk | NewTask | LookAtTask


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A site that a sub-task may go to."""

    name: str
    attached: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SubRun:
    """How far a sub-task is at one site; ``result`` when it has ended there. ``state``: as REST tells it."""

    run_id: str
    site: str
    state: str
    result: RunResult | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskAnswer:
    """``sites`` to :class:`SitesAsk`, ``task_id`` to :class:`NewTask`, and ``runs`` as well to :class:`LookAtTask`."""

    sites: tuple[Site, ...] = ()
    task_id: str = ""
    runs: tuple[SubRun, ...] = ()
