"""Tasks as documents of the Task Execution Service, in its three views."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from pathlib import PurePosixPath
from typing import Any

from runnel.common.protocol import RunState
from runnel.common.tasks import Executor, InputFile, Selection, TaskSpec
from runnel.reducer.domain.task_views import RunView, TaskView
from runnel.reducer.http.fds.bodies import FORM_TAG, GB, INPUT, OUTPUT, PLURAL, PLURAL_INPUT, PLURAL_OUTPUT
from runnel.reducer.http.fds.states import task_state

_FOLDERS: Mapping[str | None, tuple[str, str]] = {PLURAL: (PLURAL_INPUT, PLURAL_OUTPUT)}
"""Of input and output, by profile of a task."""


def _folders(spec: TaskSpec | None) -> tuple[str, str]:
    return _FOLDERS.get(spec.profile if spec is not None else None, (INPUT, OUTPUT))


ARCHIVES = ("output", "outputs")
"""Result files of a run that are zips: of its output folder, and of further outputs that the task named, by path."""


class View(Enum):
    """How much of a task is told: id and state; all but what may be long; all."""

    MINIMAL = "MINIMAL"
    BASIC = "BASIC"
    FULL = "FULL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """The end of what a run wrote to its two streams."""

    stdout: str
    stderr: str


def task_document(
    task: TaskView, view: View, *, here: str, written: Mapping[str, Written] | None = None
) -> dict[str, Any]:
    """Return a task with its runs as JSON-ready values.

    Args:
        task: with its runs, unless the view is the minimal one.
        view: how much to tell.
        here: the address of this server.
        written: by run, for the full view.
    """
    document: dict[str, Any] = {"id": task.task, "state": task_state(task).value}
    if view is View.MINIMAL:
        return document
    full = view is View.FULL
    document |= {"name": task.name, "creation_time": _time(task.created_at)}
    document |= {"executors": []} if task.spec is None else _spec(task, task.spec, full=full, here=here)
    document["logs"] = [_run(task, run, full=full, here=here, written=written or {}) for run in task.runs]
    return document


def _spec(task: TaskView, spec: TaskSpec, *, full: bool, here: str) -> dict[str, Any]:
    into, out = _folders(spec)
    outputs = [out, *spec.outputs]
    return {
        "description": spec.description,
        "inputs": [
            *(_file(each, full=full) for each in spec.inputs),
            *(_selection(each, into, full=full) for each in spec.selections),
        ],
        "outputs": [
            {"path": path, "type": _type(path), "url": f"{here}/tasks/{task.task}/results"} for path in outputs
        ],
        "resources": _resources(spec),
        "executors": [_executor(each) for each in spec.executors],
        "volumes": list(spec.volumes),
        "tags": {name: value for name, value in spec.tags.items() if name != FORM_TAG},
    }


def _file(given: InputFile, *, full: bool) -> dict[str, Any]:
    document: dict[str, Any] = {"path": given.path, "type": "FILE"}
    if given.content.blob is not None:
        document["url"] = f"sha256:{given.content.blob.sha256}"
    elif full and given.content.data is not None:
        document["content"] = given.content.data.decode("utf-8", "replace")
    return document


def _selection(given: Selection, into: str, *, full: bool) -> dict[str, Any]:
    """A selection fills a folder; the standard asks for a path, by which it would be a file's content if it came so."""
    document = {"path": into, "type": "DIRECTORY", "description": f"Selected from the database {given.database}."}
    return document | ({"content": given.query} if full else {})


def _type(path: str) -> str:
    """Tell files by their suffix: a task names no more than the path."""
    return "FILE" if PurePosixPath(path).suffix else "DIRECTORY"


def _resources(spec: TaskSpec) -> dict[str, Any]:
    asked = spec.resources
    document: dict[str, Any] = {}
    if asked.cpus is not None:
        document["cpu_cores"] = math.ceil(asked.cpus)
    if asked.memory_bytes is not None:
        document["ram_gb"] = asked.memory_bytes / GB
    if asked.disk_bytes is not None:
        document["disk_gb"] = asked.disk_bytes / GB
    return document


def _executor(given: Executor) -> dict[str, Any]:
    document: dict[str, Any] = {"image": given.image, "command": list(given.command or ())}
    if given.env:
        document["env"] = given.env
    document |= {
        name: path for name in ("workdir", "stdin", "stdout", "stderr") if (path := getattr(given, name)) is not None
    }
    return document | ({"ignore_error": True} if given.ignore_error else {})


def _run(task: TaskView, run: RunView, *, full: bool, here: str, written: Mapping[str, Written]) -> dict[str, Any]:
    """The log of a task at one site."""
    document: dict[str, Any] = {
        "logs": _executor_logs(task, run, written.get(run.run) if full else None),
        "metadata": {
            "site": run.site,
            "run": run.run,
            "state": run.state.value,
            "attempt": str(run.attempt),
            "image_digest": run.image_digest,
        },
        "outputs": [
            {
                "path": _folders(task.spec)[1] if each.name == "output" else "/",
                "url": f"{here}/api/v1/runs/{run.run}/files/{each.name}",
                "size_bytes": str(each.size_bytes),
            }
            for each in run.files
            if each.name in ARCHIVES
        ],
    }
    if run.started_at is not None:
        document["start_time"] = _time(run.started_at)
    if run.finished_at is not None:
        document["end_time"] = _time(run.finished_at)
    if full:
        document["system_logs"] = [text for text in (run.detail, run.error) if text]
    return document


def _executor_logs(task: TaskView, run: RunView, written: Written | None) -> list[dict[str, Any]]:
    """Return those of the executors that are known to have ended.

    Sites tell how the last one ended. All before it have ended well, unless errors are ignored: which did is not told.
    """
    if run.exit_code is None:
        return []
    last: dict[str, Any] = {"exit_code": run.exit_code}
    if run.started_at is not None:
        last["start_time"] = _time(run.started_at)
    if run.finished_at is not None:
        last["end_time"] = _time(run.finished_at)
    if written is not None:
        last |= {"stdout": written.stdout, "stderr": written.stderr}
    executors = task.spec.executors if task.spec is not None else ()
    before = 0
    if run.state is RunState.DONE and not any(each.ignore_error for each in executors):
        before = max(0, len(executors) - 1)
    return [*({"exit_code": 0} for _ in range(before)), last]


def _time(moment: datetime) -> str:
    return moment.isoformat()
