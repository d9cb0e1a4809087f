"""What the Task Execution Service 1.1 says of its answers: names, types, what has to be there, and nothing else."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

Absolute = Annotated[str, StringConstraints(pattern=r"^/")]
Kind = Literal["FILE", "DIRECTORY"]


class Document(BaseModel):
    model_config = ConfigDict(extra="forbid")


class InputDocument(Document):
    name: str | None = None
    description: str | None = None
    url: str | None = None
    path: Absolute
    type: Kind
    content: str | None = None
    streamable: bool | None = None


class OutputDocument(Document):
    name: str | None = None
    description: str | None = None
    url: str
    path: Absolute
    path_prefix: str | None = None
    type: Kind


class ResourcesDocument(Document):
    cpu_cores: int | None = None
    preemptible: bool | None = None
    ram_gb: float | None = None
    disk_gb: float | None = None
    zones: list[str] | None = None


class ExecutorDocument(Document):
    image: str
    command: list[str]
    workdir: str | None = None
    stdin: Absolute | None = None
    stdout: Absolute | None = None
    stderr: Absolute | None = None
    env: dict[str, str] | None = None
    ignore_error: bool | None = None


class ExecutorLogDocument(Document):
    start_time: AwareDatetime | None = None
    end_time: AwareDatetime | None = None
    stdout: str | None = None
    stderr: str | None = None
    exit_code: int


class OutputLogDocument(Document):
    url: str
    path: Absolute
    size_bytes: Annotated[str, StringConstraints(pattern=r"^[0-9]+$")]


class TaskLogDocument(Document):
    logs: list[ExecutorLogDocument]
    metadata: dict[str, str] | None = None
    start_time: AwareDatetime | None = None
    end_time: AwareDatetime | None = None
    outputs: list[OutputLogDocument]
    system_logs: list[str] | None = None


class TaskDocument(Document):
    id: str
    state: Literal[
        "UNKNOWN",
        "QUEUED",
        "INITIALIZING",
        "RUNNING",
        "PAUSED",
        "COMPLETE",
        "EXECUTOR_ERROR",
        "SYSTEM_ERROR",
        "CANCELED",
        "PREEMPTED",
        "CANCELING",
    ]
    name: str | None = None
    description: str | None = None
    inputs: list[InputDocument] | None = None
    outputs: list[OutputDocument] | None = None
    resources: ResourcesDocument | None = None
    executors: list[ExecutorDocument] | None = Field(default=None, min_length=1)
    volumes: list[Absolute] | None = None
    tags: dict[str, str] | None = None
    logs: list[TaskLogDocument] | None = None
    creation_time: AwareDatetime | None = None


class TaskPage(Document):
    tasks: list[TaskDocument]
    next_page_token: str | None = None


class TypeDocument(Document):
    group: Literal["org.ga4gh"]
    artifact: Literal["tes"]
    version: str


class OrganizationDocument(Document):
    name: str
    url: str


class TaskServiceInfo(Document):
    id: str
    name: str
    type: TypeDocument
    description: str | None = None
    organization: OrganizationDocument
    version: str
    storage: list[str] | None = None
