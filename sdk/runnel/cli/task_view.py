"""How a task looks to people: while it runs and when it is over."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from runnel.cli.tables import ago, facts, size, status, table, when
from runnel.sdk.task_values import Run, Task
from runnel.sdk.values import Event

_IMAGES_SHOWN = 3


class TaskProgress:
    """What is known of a task, brought up to date by its events."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.states: dict[str, str] = {run.site: run.state for run in task.runs}
        self.details: dict[str, str] = {}

    def take(self, event: Event) -> None:
        """Take in an event; kinds that are not known change nothing."""
        if event.kind == "run.state":
            self.states[str(event.data.get("site"))] = str(event.data.get("state"))
        elif event.kind == "progress":
            self.details = {site: str(told) for site, told in dict(event.data.get("stages", {})).items()}

    def __rich__(self) -> RenderableType:
        made = table("site", "state", "", fold=("",))
        for site, state in sorted(self.states.items()):
            told = self.details.get(site, "")
            made.add_row(site, status(state), told.partition(": ")[2] if told.startswith(f"{state}: ") else "")
        return Group(Text(f"{self.task.task} {self.task.name}".rstrip(), style="bold"), made)


def event_line(event: Event) -> str | None:
    """Return the line that tells of an event, None if there is nothing to tell."""
    if event.kind != "run.state":
        return None
    data = event.data
    why = f" ({data['error_code']})" if data.get("error_code") else ""
    if data.get("state") == "awaiting-release":
        why = " (somebody there has to look at its results)"
    return f"{data.get('site')}: {data.get('state')}{why}"


def images(task: Task) -> str:
    """Return the images of a task, in a row; of one without any, that it selects data."""
    executors = list((task.spec or {}).get("executors", ()))
    if task.spec is not None and not executors:
        return "selects data"
    named = [str(each.get("image", "")) for each in executors[:_IMAGES_SHOWN] if isinstance(each, Mapping)]
    return ", ".join(named) + (" …" if len(executors) > _IMAGES_SHOWN else "")


def counts(task: Task) -> str:
    """Return how many of its runs are in which state.

    >>> from types import SimpleNamespace
    >>> counts(SimpleNamespace(counts={"done": 2, "queued": 1}))
    '2 done, 1 queued'
    """
    return ", ".join(f"{number} {state}" for state, number in task.counts.items())


def task_parts(task: Task) -> RenderableType:
    """Return a task with its runs."""
    head = facts(
        [
            ("task", task.task),
            ("name", task.name or None),
            ("status", status(task.status)),
            ("image", images(task) or None),
            ("asked by", task.user or None),
            ("asked", f"{when(task.created_at)} ({ago(task.created_at)})"),
            ("expires", when(task.expires_at) if task.expires_at and not task.ended else None),
            ("sub-task of", task.parent_run or None),
        ]
    )
    return Group(head, Text(), runs_table(task.runs))


def runs_table(runs: tuple[Run, ...]) -> Table:
    """Return runs as a table."""
    made = table("site", "state", "exit", "run", "files", "why", right=("exit",), fold=("files", "why"))
    for run in runs:
        files = ", ".join(f"{file.name} {size(file.size_bytes)}" for file in run.files)
        told = run.error or run.detail
        if run.removed_at is not None:
            files = f"removed {when(run.removed_at)}"
        code = "" if run.exit_code is None else str(run.exit_code)
        made.add_row(run.site, status(run.state), code, run.run, Text(files), Text(told))
    return made


def tasks_table(tasks: list[Task]) -> Table:
    """Return tasks as a table."""
    made = table("task", "name", "status", "runs", "image", "asked", fold=("name", "image", "runs"))
    for task in tasks:
        row = (task.task, Text(task.name), status(task.status), counts(task), Text(images(task)))
        made.add_row(*row, when(task.created_at))
    return made
