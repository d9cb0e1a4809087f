"""What a client has to do and what it holds: every piece of work is done once, whatever way it was asked for.

Pure: takes events, returns decisions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from runnel.common.protocol import Assignment, AssignmentKey


class JobState(Enum):
    """Where a piece of work is."""

    QUEUED = "queued"
    RUNNING = "running"
    HELD = "held"  # finished, and kept until the network has settled it


@dataclass(slots=True, kw_only=True)
class Job:
    """A piece of work.

    ``assignment``: the newest. ``order_id``: under which to report; None while detached or not asked again yet.
    ``failed``: what is held is a failure.
    """

    key: AssignmentKey
    state: JobState
    assignment: Assignment | None
    order_id: str | None
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Start:
    """Begin to work."""

    assignment: Assignment


@dataclass(frozen=True, slots=True)
class Offer:
    """Push and report what is held."""

    key: AssignmentKey
    order_id: str


@dataclass(frozen=True, slots=True)
class Abort:
    """Stop the work that runs; drop what it made."""

    key: AssignmentKey


@dataclass(frozen=True, slots=True)
class Forget:
    """Drop what is held; ``counted``: it is part of a model now, or will be."""

    key: AssignmentKey
    counted: bool = False


Decision = Start | Offer | Abort | Forget


class JobBook:
    """The jobs of a client.

    Args:
        parallel: how many may run at once.
        held: what an earlier process finished and could not settle.
    """

    def __init__(self, *, parallel: int = 1, held: Iterable[AssignmentKey] = ()) -> None:
        self._parallel = parallel
        self._draining = False
        self._told: frozenset[AssignmentKey] = frozenset()
        self.jobs: dict[AssignmentKey, Job] = {
            key: Job(key=key, state=JobState.HELD, assignment=None, order_id=None) for key in held
        }

    def holding(self) -> tuple[AssignmentKey, ...]:
        """Return what is under way or held, as a hello tells it."""
        self._told = frozenset(self.jobs)
        return tuple(self.jobs)

    @property
    def untold(self) -> bool:
        """Whether the last hello did not name all: an order of the time before it was taken after it was said.

        That order has ended with its attachment, so that nobody would ever say what is to become of the work.
        """
        return not self.jobs.keys() <= self._told

    def drain(self) -> None:
        """Begin nothing any more. What runs may end and be offered; who asks for more asks somebody else, or later."""
        self._draining = True

    def assigned(self, assignment: Assignment) -> list[Decision]:
        """Somebody wants this work: do it, or offer what is held; who asks again after a failure wants another try."""
        job = self.jobs.get(assignment.key)
        if self._draining and (job is None or job.failed):
            return []  # the order ends with the attachment, and the work is asked for again
        if job is None:
            job = Job(key=assignment.key, state=JobState.QUEUED, assignment=assignment, order_id=assignment.order_id)
            self.jobs[assignment.key] = job
            return self._start_next()
        job.order_id, job.assignment = assignment.order_id, assignment
        if job.state is JobState.HELD and job.failed:
            job.state, job.failed = JobState.QUEUED, False
            return [Forget(job.key), *self._start_next()]
        return [Offer(job.key, assignment.order_id)] if job.state is JobState.HELD else []

    def finished(self, key: AssignmentKey, *, failed: bool = False) -> list[Decision]:
        """The work is done, or has ``failed``, and its report is kept."""
        decisions: list[Decision] = []
        job = self.jobs.get(key)
        if job is not None:
            job.state, job.failed = JobState.HELD, failed
            if job.order_id is not None:
                decisions.append(Offer(key, job.order_id))
        return decisions + self._start_next()

    def dropped(self, key: AssignmentKey, *, counted: bool = False) -> list[Decision]:
        """The network has settled the work, which ``counted`` or not, or calls it off."""
        job = self.jobs.pop(key, None)
        if job is None:
            return []
        match job.state:
            case JobState.QUEUED:
                return []
            case JobState.RUNNING:
                return [Abort(key), *self._start_next()]
            case JobState.HELD:
                return [Forget(key, counted)]

    def detached(self) -> None:
        """The way up is gone, and with it the orders; the work goes on."""
        for job in self.jobs.values():
            job.order_id = None

    def wanted(self, key: AssignmentKey, order_id: str) -> bool:
        """Whether the report of ``key`` is still to go out under ``order_id``."""
        job = self.jobs.get(key)
        return job is not None and job.order_id == order_id

    def _start_next(self) -> list[Decision]:
        running = sum(job.state is JobState.RUNNING for job in self.jobs.values())
        decisions: list[Decision] = []
        for job in self.jobs.values():
            if self._draining or running >= self._parallel:
                break
            if job.state is JobState.QUEUED and job.assignment is not None:
                job.state = JobState.RUNNING
                running += 1
                decisions.append(Start(job.assignment))
        return decisions
