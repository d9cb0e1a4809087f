"""The three kinds of JSON by which clients of this interface ask for a task, as they are found in the wild.

Names may be in snake or camel case. What no kind knows is kept apart, so that it can be told rather than refused: a
newer client may send more than is known here.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel


class Form(Enum):
    """Which kind of JSON asked for a task, and so which answers are understood."""

    TES = "tes"
    LEGACY = "legacy"
    FEDERATED_NODE = "federated-node"


def _text(value: object) -> object:
    """Make text of a number, which clients write without quotes."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Text = Annotated[str, BeforeValidator(_text)]


class Document(BaseModel):
    """What people send; unknown members are kept in ``model_extra``."""

    model_config = ConfigDict(
        extra="allow", alias_generator=to_camel, populate_by_name=True, allow_inf_nan=False, defer_build=True
    )


class Input(Document):
    """A file (``content`` at ``path``), or a selection of the site's data (``content`` without a path)."""

    name: str | None = None
    description: str | None = None
    url: str | None = None
    path: str | None = None
    type: Literal["FILE", "DIRECTORY"] = "FILE"
    content: str | None = None
    streamable: bool | None = None


class Output(Document):
    """A file or folder that is collected; ``url`` is not written to: results come back through the network."""

    name: str | None = None
    description: str | None = None
    url: str | None = None
    path: str
    path_prefix: str | None = None
    type: Literal["FILE", "DIRECTORY"] = "FILE"


class Amounts(Document):
    """What a federated node asks its cluster for, in Kubernetes' quantities."""

    cpu: Text | None = None
    memory: Text | None = None


class Resources(Document):
    """What a task asks for; gigabytes are 10^9 bytes."""

    cpu_cores: float | None = Field(default=None, ge=0)
    ram_gb: float | None = Field(default=None, ge=0)
    disk_gb: float | None = Field(default=None, ge=0)
    preemptible: bool | None = None
    zones: list[str] | None = None
    backend_parameters: dict[str, Any] | None = None
    backend_parameters_strict: bool | None = None
    limits: Amounts | None = None
    requests: Amounts | None = None


class Executor(Document):
    """One container."""

    image: str
    command: list[str] | None = None
    workdir: str | None = None
    stdin: str | None = None
    stdout: str | None = None
    stderr: str | None = None
    env: dict[str, Text] | None = None
    ignore_error: bool | None = None


class _Task(Document):
    name: str | None = None
    description: str | None = None
    resources: Resources | None = None
    executors: list[Executor] = Field(min_length=1)
    tags: dict[str, Text] | None = None
    # What a server adds to a task; clients that send a task again send it too.
    id: Any = None
    state: Any = None
    logs: Any = None
    creation_time: Any = None


class TesTask(_Task):
    """The form of the specification."""

    inputs: list[Input] | None = None
    outputs: list[Output] | None = None
    volumes: list[str] | None = None


class Query(Document):
    """What a federated node takes from its database."""

    query: str
    dialect: str | None = None


class NodeTask(_Task):
    """The form of the federated node: ``inputs`` are folders by file name, ``outputs`` folders by name."""

    executors: list[Executor] = Field(min_length=1, max_length=1)
    db_query: Query | None = None
    inputs: dict[str, str] | None = None
    outputs: dict[str, str] | None = None
    volumes: dict[str, str] | list[str] | None = None
    requested_by: Any = None


class QueryInput(Document):
    """The selection of the legacy form."""

    selection_query: str


class Container(Document):
    """The image of the legacy form."""

    name: str
    tag: str | None = None
    registry: str | None = None


class LegacyTask(Document):
    """What is inside of the legacy form."""

    name: str | None = None
    description: str | None = None
    query_input: QueryInput | None = None
    container: Container
    tags: dict[str, Text] | None = None


class LegacyBody(Document):
    """The legacy form."""

    task: LegacyTask


def unknown_fields(document: Document, place: str = "") -> Iterator[str]:
    """Yield the members that no form knows, as they were sent, with where they are."""
    for name in document.model_extra or {}:
        yield f"{place}{name}"
    for name in type(document).model_fields:
        value = getattr(document, name)
        for number, item in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(item, Document):
                at = f"{place}{name}.{number}." if isinstance(value, list) else f"{place}{name}."
                yield from unknown_fields(item, at)
