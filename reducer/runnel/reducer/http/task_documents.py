"""Tasks as JSON: what people send, checked strictly, and what they receive."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from runnel.common.tasks import TaskSpec
from runnel.reducer.domain.task_views import BlobView, RunLineView, RunView, TaskView
from runnel.reducer.http.document import Document


class TaskRequest(BaseModel):
    """A task to start."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    spec: TaskSpec = Field(description="What is to run at each site.")
    sites: list[str] = Field(
        min_length=1,
        max_length=10_000,
        description='Names of clients; `["*"]` is all that are attached and take tasks.',
        examples=[["hospital-a", "hospital-b"]],
    )
    expires_in_s: float | None = Field(
        default=None, gt=0, description="What has not begun by then fails with the code `expired`; null: a week."
    )


class ReleaseRequest(BaseModel):
    """What somebody who is not at the site decides about results."""

    model_config = ConfigDict(extra="forbid", strict=True)

    release: bool = Field(description="false: they are to stay at the site.")
    reason: str = Field(default="", max_length=500, description="For the site's records.")


class RunFile(Document):
    """A result file."""

    name: str = Field(description="stdout, stderr, log, output, or one that the contract has besides.")
    media_type: str
    sha256: str
    size_bytes: int


class Run(Document):
    """A task at one site."""

    run: str
    task: str
    site: str
    state: str = Field(
        description="queued, assigned, preparing, running, awaiting-release, pushing, done, failed, rejected, cancelled"
    )
    detail: str
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    exit_code: int | None = Field(description="Of the executor that ended last; null: none was started.")
    error_code: str | None = Field(description="Stable: by which limit, rule or fault it failed or was rejected.")
    error: str | None
    log_tail: str | None
    image_digest: str
    attempt: int = Field(description="More than 1 when the site's client was killed during an earlier one.")
    elapsed_s: dict[str, float]
    files: list[RunFile]
    kept_until: datetime | None = Field(description="When its files are removed.")
    removed_at: datetime | None

    @classmethod
    def of(cls, view: RunView) -> Run:
        """Make the document of a run."""
        return cls(
            run=view.run,
            task=view.task,
            site=view.site,
            state=view.state.value,
            detail=view.detail,
            created_at=view.created_at,
            started_at=view.started_at,
            finished_at=view.finished_at,
            exit_code=view.exit_code,
            error_code=view.error_code,
            error=view.error,
            log_tail=view.log_tail,
            image_digest=view.image_digest,
            attempt=view.attempt,
            elapsed_s=dict(view.elapsed_s),
            files=[RunFile.model_validate(each, from_attributes=True) for each in view.files],
            kept_until=view.kept_until,
            removed_at=view.removed_at,
        )


class Task(Document):
    """A task over all its sites."""

    task: str
    name: str
    organisation: str
    user: str = Field(description="Name of the token that asked for it.")
    status: str = Field(description="queued, running, done (every run is), failed (all have ended), cancelled")
    spec: dict[str, Any] | None = Field(description="As it was sent; null for who may only look.")
    created_at: datetime
    expires_at: datetime | None
    finished_at: datetime | None
    parent_run: str = Field(description="Of a sub-task: the run that asked for it.")
    counts: dict[str, int] = Field(description="Runs by state.")
    runs: list[Run] = Field(description="By site; empty in listings.")

    @classmethod
    def of(cls, view: TaskView) -> Task:
        """Make the document of a task."""
        spec = None if view.spec is None else view.spec.model_dump(mode="json", exclude_defaults=True)
        return cls(
            task=view.task,
            name=view.name,
            organisation=view.organisation,
            user=view.user,
            status=view.status.value,
            spec=spec,
            created_at=view.created_at,
            expires_at=view.expires_at,
            finished_at=view.finished_at,
            parent_run=view.parent_run,
            counts=dict(view.counts),
            runs=[Run.of(each) for each in view.runs],
        )


class RunLine(Document):
    """A line that a run wrote."""

    id: int
    run: str
    at: datetime
    stream: str
    text: str

    @classmethod
    def of(cls, view: RunLineView) -> RunLine:
        """Make the document of a line."""
        return cls.model_validate(view, from_attributes=True)


class StoredBlob(Document):
    """A file for tasks; a description names it by `sha256` and `size_bytes`."""

    sha256: str
    size_bytes: int
    kept_until: datetime | None = Field(description="At least so long, and while a task that names it goes on.")

    @classmethod
    def of(cls, view: BlobView) -> StoredBlob:
        """Make the document of a file."""
        return cls.model_validate(view, from_attributes=True)
