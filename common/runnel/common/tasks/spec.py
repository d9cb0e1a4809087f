"""What a task asks of a site: images to run on a selection of its data, and what to bring back.

One description for all: people send it to the reducer as JSON, it is stored and travels to the sites as that, and
the interfaces of other systems are translated to it.
"""

from __future__ import annotations

import posixpath
import re
from enum import Enum
from typing import Annotated, Self

from pydantic import AfterValidator, Base64Bytes, BaseModel, ConfigDict, Field, ValidationError, model_validator

from runnel.common.errors import InvalidInput

MAX_EXECUTORS = 32
"""Executors of one task."""

MAX_INPUTS = 256
"""Files that come with one task."""

MAX_WITHIN = 64 << 10
"""Bytes of a file that comes within the description; a larger one is a blob."""

MAX_SPEC = 1 << 20
"""Characters of a description as JSON."""

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}", re.ASCII)
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
# The reference grammar of container images, as strict as an engine is: nothing a shell or a path takes for its own.
_IMAGE = re.compile(
    r"(?:(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?)(?::[0-9]{1,5})?/)?"
    r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@sha256:[0-9a-f]{64})?",
    re.ASCII,
)


class Contract(Enum):
    """Which files and variables a container finds, and where its results are taken from."""

    PLAIN = "plain"
    PYTASKMANAGER = "pytaskmanager"
    VANTAGE6 = "vantage6"


class Language(Enum):
    """How a selection is written."""

    GRAPHQL = "graphql"
    SQL = "sql"
    SPARQL = "sparql"


def _image(text: str) -> str:
    if len(text) > 400 or not _IMAGE.fullmatch(text):
        raise ValueError("should name an image as registry/name:tag or name@sha256:digest")
    return text


def _inside(text: str) -> str:
    """Return an absolute path inside a container, in its plain form."""
    if not text.startswith("/") or "\0" in text or len(text) > 1000 or ".." in text.split("/"):
        raise ValueError("should be an absolute path inside the container, without '..'")
    return posixpath.normpath(text) if not text.startswith("//") else posixpath.normpath(text[1:])


def _label(text: str) -> str:
    if not _LABEL.fullmatch(text):
        raise ValueError("should have 1 to 64 letters, digits, dots, dashes and underscores")
    return text


def _variable(text: str) -> str:
    if not _VARIABLE.fullmatch(text):
        raise ValueError("should be the name of a variable: letters, digits and underscores")
    return text


def _text(text: str) -> str:
    if "\0" in text:
        raise ValueError("should have no NUL")
    return text


Image = Annotated[str, AfterValidator(_image)]
Inside = Annotated[str, AfterValidator(_inside)]
Label = Annotated[str, AfterValidator(_label)]
Variable = Annotated[str, AfterValidator(_variable)]
Text = Annotated[str, AfterValidator(_text)]


_OF_CONTAINERS = frozenset(
    {"contract", "profile", "payload", "inputs", "databases", "outputs", "volumes", "group", "central"}
)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)


class Blob(_Strict):
    """A stored file: lower-case hex SHA-256 and exact size."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)


class Content(_Strict):
    """The bytes of a file: within the description as base64 (at most :data:`MAX_WITHIN`), or a blob."""

    data: Base64Bytes | None = Field(default=None, max_length=2 * MAX_WITHIN, repr=False)
    blob: Blob | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.data is None) == (self.blob is None):
            raise ValueError("a content is either data or a blob")
        if self.data is not None and len(self.data) > MAX_WITHIN:
            raise ValueError(f"data within a task has at most {MAX_WITHIN:,} bytes: store it as a blob")
        return self


class InputFile(_Strict):
    """A file that a container finds at ``path``, read-only."""

    path: Inside
    content: Content


class Selection(_Strict):
    """What is taken from one of the site's databases before a container starts.

    ``query`` is in ``language``: ``{ table { field field } }``, one SQL statement that reads, or SPARQL. ``name``: of
    the file that a SQL or SPARQL query fills (``name.csv``); a query of the first kind has the tables' own names.
    """

    query: Text = Field(min_length=1, max_length=100_000)
    language: Language = Language.GRAPHQL
    database: Label = "default"
    name: Label | None = None


class Executor(_Strict):
    """One container; those of a task run one after another, and the first that fails ends it.

    ``command`` takes the place of the image's own arguments. ``stdin``, ``stdout`` and ``stderr`` are files inside.
    """

    image: Image
    command: tuple[Text, ...] | None = Field(default=None, max_length=1000)
    workdir: Inside | None = None
    env: dict[Variable, Text] = Field(default_factory=dict, max_length=500)
    stdin: Inside | None = None
    stdout: Inside | None = None
    stderr: Inside | None = None
    ignore_error: bool = False


class Resources(_Strict):
    """What a task asks for; the site's own limits hold whatever it says. None: what the site gives."""

    cpus: float | None = Field(default=None, gt=0, le=1024)
    memory_bytes: int | None = Field(default=None, ge=4 << 20)
    disk_bytes: int | None = Field(default=None, ge=1 << 20)
    time_s: float | None = Field(default=None, gt=0, le=30 * 86_400)
    output_bytes: int | None = Field(default=None, ge=0)


class TaskSpec(_Strict):
    """What is to run at each site of a task.

    Without ``executors`` it runs nothing: the files that its selections fill are its results, at sites that let data
    be selected out.

    Args:
        contract: what the containers expect; ``profile`` names a variant of it, such as ``plural`` folders.
        payload: the input that the contract hands over: ``input.json`` of a plain task, the input text of the others.
        inputs: further files.
        selections: of the site's data.
        databases: by label, that the containers see whole, where their contract shows databases and the site allows it.
        outputs: further paths inside that are collected.
        volumes: folders that the executors share.
        group: of tasks that iterate: those of the same group share a folder at each site.
        central: it may ask the network for sub-tasks.
    """

    name: Text = Field(default="", max_length=200)
    description: Text = Field(default="", max_length=10_000)
    executors: tuple[Executor, ...] = Field(max_length=MAX_EXECUTORS)
    contract: Contract = Contract.PLAIN
    profile: Label | None = None
    payload: Content | None = None
    inputs: tuple[InputFile, ...] = Field(default=(), max_length=MAX_INPUTS)
    selections: tuple[Selection, ...] = Field(default=(), max_length=64)
    databases: tuple[Label, ...] = Field(default=(), max_length=64)
    outputs: tuple[Inside, ...] = Field(default=(), max_length=64)
    volumes: tuple[Inside, ...] = Field(default=(), max_length=64)
    group: Label | None = None
    central: bool = False
    resources: Resources = Resources()
    tags: dict[Text, Text] = Field(default_factory=dict, max_length=200)

    @model_validator(mode="after")
    def _runs_or_selects(self) -> Self:
        if self.executors:
            return self
        if not self.selections:
            raise ValueError("a task has executors, or selections whose files are its results")
        if pointless := sorted(self.model_fields_set & _OF_CONTAINERS):
            given = [name for name in pointless if getattr(self, name) != type(self).model_fields[name].get_default()]
            if given:
                raise ValueError(f"a task without executors has no {', '.join(given)}: those are for containers")
        return self

    @property
    def selects(self) -> bool:
        """Whether it runs nothing and its selections themselves are its results."""
        return not self.executors

    def as_json(self) -> str:
        """Return what travels and is stored: only what was said."""
        return self.model_dump_json(exclude_defaults=True)


def task_spec(text: str | bytes, *, source: str) -> TaskSpec:
    """Return the description that ``text`` is; ``source`` says from whom it came.

    Raises:
        InvalidInput: all that is wrong with it, each with where it is.
    """
    if len(text) > MAX_SPEC:
        raise InvalidInput(f"A task of {source} has {len(text):,} characters; at most {MAX_SPEC:,} are taken.")
    try:
        return TaskSpec.model_validate_json(text)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in each['loc']) or 'the task'}: {each['msg']}" for each in error.errors()
        )
        raise InvalidInput(f"A task of {source} is not as expected: {problems}.") from error
