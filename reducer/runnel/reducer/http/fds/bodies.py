"""From what clients of this interface send to the one description that the network has of a task."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError

from runnel.common.errors import InvalidInput
from runnel.common.tasks import MAX_WITHIN, TaskSpec
from runnel.reducer.http.fds.documents import (
    Document,
    Executor,
    Form,
    Input,
    LegacyBody,
    NodeTask,
    Output,
    Resources,
    TesTask,
    unknown_fields,
)
from runnel.reducer.http.fds.quantities import amount_of

D = TypeVar("D", bound=Document)

FORM_TAG = "fds.form"
"""Tag by which a task remembers how it was asked for: answers follow that."""

SITES_TAG = "sites"
DATASET_TAGS = ("dataset_id", "dataset_name")

GB = 10**9

INPUT, OUTPUT = "/mnt/input", "/mnt/output"
MISSPELT_OUTPUT = "/mnt/ouput"
PLURAL_INPUT, PLURAL_OUTPUT = "/mnt/inputs", "/mnt/data"
PLURAL, MISSPELT = "plural", "misspelt"
_QUERY_NAME = "inputs"

_SQL = re.compile(r"\s*(?:select|with)\s(?!\s*\{)", re.IGNORECASE)
_WILDCARD = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A task that somebody asks for.

    Args:
        form: how it was written.
        spec: the task. Files too large to be within it are named by their digest.
        blobs: those files, to be stored before the task is started.
        sites: where it is to run, by name; empty: at all that are attached.
        unknown: members that nothing here knows, with where they are.
    """

    form: Form
    spec: TaskSpec
    blobs: tuple[bytes, ...]
    sites: tuple[str, ...]
    unknown: tuple[str, ...]


def read_task(document: Mapping[str, Any]) -> Wanted:
    """Return what a client asks for, in whichever of the three forms.

    Raises:
        InvalidInput: all that is wrong with it, each with where it is.
    """
    if isinstance(document.get("task"), Mapping):
        return _legacy(_read(LegacyBody, document))
    if _of_federated_node(document):
        return _node(_read(NodeTask, document))
    return _tes(_read(TesTask, document))


def _of_federated_node(document: Mapping[str, Any]) -> bool:
    resources = document.get("resources")
    return (
        any(isinstance(document.get(name), Mapping) for name in ("inputs", "outputs", "volumes"))
        or "db_query" in document
        or (isinstance(resources, Mapping) and ("limits" in resources or "requests" in resources))
    )


def _read(kind: type[D], document: Mapping[str, Any]) -> D:
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise _refused(error) from error


def _refused(error: ValidationError) -> InvalidInput:
    problems = "; ".join(
        f"{'.'.join(str(part) for part in each['loc']) or 'the task'}: {each['msg'].removeprefix('Value error, ')}"
        for each in error.errors()
    )
    return InvalidInput(f"The task is not as expected: {problems}.")


# ---- the forms


def _legacy(body: LegacyBody) -> Wanted:
    task = body.task
    registry = (task.container.registry or "").removeprefix("https://").strip("/")
    image = f"{registry}/{task.container.name}" if registry else task.container.name
    tags, sites, database = _place(task.tags or {}, Form.LEGACY)
    query = task.query_input
    return _wanted(
        body,
        Form.LEGACY,
        sites,
        name=task.name,
        description=task.description,
        executors=[{"image": f"{image}:{task.container.tag}" if task.container.tag else image}],
        selections=[] if query is None else [_selection(query.selection_query, None, database)],
        tags=tags,
    )


def _node(task: NodeTask) -> Wanted:
    tags, sites, database = _place(task.tags or {}, Form.FEDERATED_NODE)
    folders = list((task.inputs or {"inputs.csv": PLURAL_INPUT}).items())
    outputs = list((task.outputs or {"results": PLURAL_OUTPUT}).values())
    plural = folders[0][1].rstrip("/") == PLURAL_INPUT
    if plural:
        outputs = [path for path in outputs if path.rstrip("/") != PLURAL_OUTPUT]
    volumes = task.volumes or []
    selections = []
    if task.db_query is not None:
        named = folders[0][0].removesuffix(".csv")
        selections = [{"query": task.db_query.query, "language": "sql", "name": named, "database": database}]
    return _wanted(
        task,
        Form.FEDERATED_NODE,
        sites,
        name=task.name,
        description=task.description,
        executors=[_executor(each) for each in task.executors],
        profile=PLURAL if plural else None,
        selections=selections,
        outputs=[path for path in outputs if not _collected(path)],
        volumes=list(volumes.values()) if isinstance(volumes, dict) else volumes,
        resources=_resources(task.resources),
        tags=tags,
    )


def _tes(task: TesTask) -> Wanted:
    tags, sites, database = _place(task.tags or {}, Form.TES)
    files, selections = [], []
    for number, each in enumerate(task.inputs or ()):
        if each.path is None and each.content is not None:
            selections.append(_selection(each.content, each.name, database))
        else:
            files.append((each.path, _content(each, f"inputs.{number}")))
    outputs = [_output(each, f"outputs.{number}") for number, each in enumerate(task.outputs or ())]
    return _wanted(
        task,
        Form.TES,
        sites,
        files,
        name=task.name,
        description=task.description,
        executors=[_executor(each) for each in task.executors],
        profile=MISSPELT if any(_below(path, MISSPELT_OUTPUT) for path in outputs) else None,
        selections=selections,
        outputs=[path for path in outputs if not _collected(path) and not _below(path, MISSPELT_OUTPUT)],
        volumes=task.volumes or [],
        resources=_resources(task.resources),
        tags=tags,
    )


def _wanted(
    document: Document,
    form: Form,
    sites: tuple[str, ...],
    files: list[tuple[str | None, bytes]] | None = None,
    **said: Any,
) -> Wanted:
    large = [data for _, data in files or () if len(data) > MAX_WITHIN]
    said["inputs"] = [{"path": path, "content": _within(data)} for path, data in files or ()]
    try:
        spec = TaskSpec.model_validate({name: value for name, value in said.items() if value is not None})
    except ValidationError as error:
        raise _refused(error) from error
    return Wanted(form=form, spec=spec, blobs=tuple(large), sites=sites, unknown=tuple(unknown_fields(document)))


# ---- their parts


def _place(tags: Mapping[str, str], form: Form) -> tuple[dict[str, str], tuple[str, ...], str]:
    """Return the task's tags, its sites and the label of their database, as the tags name them."""
    sites = tuple(dict.fromkeys(name for each in tags.get(SITES_TAG, "").split(",") if (name := each.strip())))
    dataset = next((tags[name].strip() for name in DATASET_TAGS if tags.get(name, "").strip()), "")
    database = dataset if sites else dataset.partition("/")[2]
    if dataset and not sites:
        sites = (dataset.partition("/")[0],)
    kept = {name: value for name, value in tags.items() if name != FORM_TAG}
    if form is not Form.TES:
        kept[FORM_TAG] = form.value
    return kept, sites, database or "default"


def _selection(query: str, name: str | None, database: str) -> dict[str, Any]:
    if _SQL.match(query):
        return {
            "query": query,
            "language": "sql",
            "name": (name or _QUERY_NAME).removesuffix(".csv"),
            "database": database,
        }
    return {"query": query, "database": database}


def _content(given: Input, place: str) -> bytes:
    if given.path is None:
        raise InvalidInput(
            f"{place}: an input has a path, with the content of the file there, or a content alone: a selection."
        )
    if given.content is None:
        raise InvalidInput(
            f"{place}: a site fetches nothing from {given.url or 'a url'}.",
            hint="Send the file as `content`, or select data of the site by a content without a path.",
        )
    if given.type == "DIRECTORY":
        raise InvalidInput(f"{place}: a content is that of a file, and {given.path} is said to be a DIRECTORY.")
    return given.content.encode()


def _within(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_WITHIN:
        return {"blob": {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}}
    return {"data": base64.b64encode(data)}


def _output(given: Output, place: str) -> str:
    if given.path_prefix is not None or _WILDCARD.search(given.path):
        raise InvalidInput(f"{place}: {given.path} has wildcards.", hint="Name the folder: all in it is collected.")
    return given.path


def _below(path: str, folder: str) -> bool:
    return path.rstrip("/") == folder or path.startswith(f"{folder}/")


def _collected(path: str) -> bool:
    """Whether a plain task's output holds it anyway."""
    return _below(path, OUTPUT)


def _executor(given: Executor) -> dict[str, Any]:
    said = {name: getattr(given, name) for name in Executor.model_fields}
    return {name: value for name, value in said.items() if value is not None}


def _resources(given: Resources | None) -> dict[str, Any]:
    """Return what is asked for; zero is what clients send that ask for nothing."""
    if given is None:
        return {}
    if given.backend_parameters_strict and given.backend_parameters:
        raise InvalidInput(
            f"resources.backend_parameters: nothing here knows {', '.join(given.backend_parameters)}.",
            hint="Without backend_parameters_strict they are left aside.",
        )
    asked: dict[str, float | None] = {
        "cpus": given.cpu_cores,
        "memory_bytes": None if given.ram_gb is None else int(given.ram_gb * GB),
        "disk_bytes": None if given.disk_gb is None else int(given.disk_gb * GB),
    }
    for amounts in (given.limits, given.requests):
        if amounts is not None:
            asked["cpus"] = asked["cpus"] or amount_of(amounts.cpu, "resources: cpu")
            memory = amount_of(amounts.memory, "resources: memory")
            asked["memory_bytes"] = asked["memory_bytes"] or (None if memory is None else int(memory))
    return {name: value for name, value in asked.items() if value}
