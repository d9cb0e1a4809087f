"""Tasks of a network: an image at chosen sites, followed until it is over, and what came of it."""

from __future__ import annotations

import base64
import json
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runnel.common.errors import DeadlineExceeded, InvalidInput, NotFound
from runnel.sdk.connection import Connection
from runnel.sdk.event_source import PATIENCE_S, follow
from runnel.sdk.paths import quoted
from runnel.sdk.task_values import Run, RunFile, RunLine, Task
from runnel.sdk.transfers import Progress, download, push
from runnel.sdk.values import Event, read

if TYPE_CHECKING:
    from runnel.common.tasks import TaskSpec

ALL_SITES = "*"
"""In place of the names of sites: all that are attached and take tasks."""

_WITHIN_BYTES = 64 << 10
_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 0.5


class Tasks:
    """``network.tasks``. Where a task is asked for, its id does, a prefix of 4 or more, or a Task; so for runs."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def start(
        self,
        image: str,
        *,
        sites: Iterable[str] | str = ALL_SITES,
        name: str = "",
        input: Mapping[str, Any] | bytes | Path | None = None,
        files: Mapping[str, bytes | Path] | None = None,
        select: str | None = None,
        sql: str | None = None,
        sparql: str | None = None,
        database: str = "default",
        databases: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        command: Sequence[str] | None = None,
        contract: str = "plain",
        profile: str | None = None,
        group: str | None = None,
        central: bool = False,
        outputs: Sequence[str] = (),
        resources: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
        expires_s: float | None = None,
        progress: Progress | None = None,
    ) -> Task:
        """Run an image once at each of some sites; returns at once.

        Args:
            image: its name, as a container engine knows it.
            sites: names of clients; ``"*"``: all that are attached and take tasks.
            name: for people.
            input: what the contract hands over: a mapping becomes a JSON object, bytes and files go as they are.
            files: further files, by the absolute path at which the container finds them.
            select: a selection ``{ table { field field } }`` of the site's ``database``.
            sql: one statement that reads.
            sparql: a query of an endpoint.
            database: of which the selection is.
            databases: that the container sees whole, by label, where its contract shows databases.
            env: variables of the container.
            command: in place of the image's own arguments.
            contract: plain, pytaskmanager or vantage6.
            profile: a variant of it.
            group: of tasks that iterate: they share a folder at each site.
            central: it may ask the network for sub-tasks.
            outputs: further paths inside that are collected.
            resources: cpus, memory_bytes, disk_bytes, time_s, output_bytes.
            tags: to find it by.
            expires_s: seconds until what has not begun fails; None: a week.
            progress: told of the bytes that are stored first.

        Raises:
            InvalidInput: a site is unknown, or something is not as it should be; the message names it.
        """
        selections = [
            {"query": query, "language": language, "database": database}
            for query, language in ((select, "graphql"), (sql, "sql"), (sparql, "sparql"))
            if query is not None
        ]
        executor: dict[str, Any] = {"image": image, "env": dict(env or {})}
        if command is not None:
            executor["command"] = list(command)
        spec: dict[str, Any] = {
            "name": name,
            "executors": [executor],
            "contract": contract,
            "profile": profile,
            "payload": None if input is None else self._content(_payload(input), progress),
            "inputs": [
                {"path": path, "content": self._content(given, progress)} for path, given in (files or {}).items()
            ],
            "selections": selections,
            "databases": list(databases),
            "outputs": list(outputs),
            "group": group,
            "central": central,
            "resources": dict(resources or {}),
            "tags": dict(tags or {}),
        }
        return self.submit(spec, sites=sites, expires_s=expires_s)

    def select(
        self,
        query: str,
        *,
        sites: Iterable[str] | str = ALL_SITES,
        database: str = "default",
        language: str = "graphql",
        name: str = "",
        tags: Mapping[str, str] | None = None,
        expires_s: float | None = None,
    ) -> Task:
        """Have sites give out what a query selects; returns at once. No image runs.

        Each site whose policy lets data be selected out gives a file ``output``, a ZIP archive with a CSV file for each
        table; all others reject it.

        Args:
            query: ``{ table { field field } }``, or in ``language`` sql or sparql.
            sites: names of clients; ``"*"``: all that are attached and take tasks.
            database: the dataset, as the sites publish it.
            language: of the query.
            name: for people.
            tags: to find it by.
            expires_s: seconds until what has not begun fails; None: a week.
        """
        selection: dict[str, Any] = {"query": query, "language": language, "database": database}
        spec = {"name": name, "executors": [], "selections": [selection], "tags": dict(tags or {})}
        return self.submit(spec, sites=sites, expires_s=expires_s)

    def submit(
        self,
        spec: TaskSpec | Mapping[str, Any],
        *,
        sites: Iterable[str] | str = ALL_SITES,
        expires_s: float | None = None,
    ) -> Task:
        """Run what ``spec`` describes, all of :class:`runnel.common.tasks.TaskSpec`, once at each of some sites."""
        described = dict(spec) if isinstance(spec, Mapping) else json.loads(spec.as_json())
        wanted = {
            "spec": described,
            "sites": [sites] if isinstance(sites, str) else list(sites),
            "expires_in_s": expires_s,
        }
        return self._task(self._connection.post("tasks", wanted))

    def store(self, given: bytes | Path, *, progress: Progress | None = None) -> dict[str, Any]:
        """Store a file that tasks are to name; return its ``sha256`` and ``size_bytes``."""
        if isinstance(given, Path):
            stored = push(self._connection, "blobs", given, progress=progress)
        else:
            with tempfile.TemporaryDirectory(prefix="runnel-") as folder:
                file = Path(folder) / "blob"
                file.write_bytes(given)
                stored = push(self._connection, "blobs", file, progress=progress)
        return {"sha256": stored["sha256"], "size_bytes": stored["size_bytes"]}

    def _content(self, given: bytes | Path, progress: Progress | None) -> dict[str, Any]:
        if isinstance(given, Path):
            if not given.is_file():
                raise NotFound(f"There is no file {given}.", path=str(given))
            if given.stat().st_size > _WITHIN_BYTES:
                return {"blob": self.store(given, progress=progress)}
            given = given.read_bytes()
        if len(given) > _WITHIN_BYTES:
            return {"blob": self.store(given, progress=progress)}
        return {"data": base64.b64encode(given).decode()}

    # ---- looking

    def list(
        self,
        *,
        status: str | None = None,
        name: str | None = None,
        site: str | None = None,
        tags: Sequence[str] = (),
        parent_run: str | None = None,
    ) -> Iterator[Task]:
        """Yield tasks, newest first, without their runs.

        Args:
            status: queued, running, done, failed or cancelled.
            name: the beginning of it.
            site: one of its sites.
            tags: ``KEY=VALUE`` or ``KEY``; it has all of them.
            parent_run: the run of which it is a sub-task.
        """
        pages = self._connection.pages(
            "tasks", status=status, name=name, site=site, tag=list(tags) or None, parent_run=parent_run
        )
        return (self._task(item) for item in pages)

    def show(self, task: str | Task) -> Task:
        """Return a task with its runs."""
        return self._task(self._connection.get(_task_path(task)))

    def run(self, run: str | Run) -> Run:
        """Return one run."""
        return self._run(self._connection.get(_run_path(run)))

    def wait(self, task: str | Task, *, timeout_s: float | None = None) -> Task:
        """Wait until all runs of a task have ended; see :meth:`Task.wait`."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        pause_s = _FIRST_PAUSE_S
        while True:
            shown = self.show(task)
            if shown.ended:
                return shown
            if deadline is not None and time.monotonic() + pause_s > deadline:
                states = ", ".join(f"{run.site} {run.state}" for run in shown.runs if not run.ended)
                raise DeadlineExceeded(
                    f"Task {shown.task} has not ended after {timeout_s:g} s: {states}.",
                    hint="It goes on; wait again, or cancel it.",
                    task=shown.task,
                )
            time.sleep(pause_s)
            pause_s = min(1.5 * pause_s, _LONGEST_PAUSE_S)

    def watch(self, task: str | Task, *, after: int = 0, patience_s: float = PATIENCE_S) -> Iterator[Event]:
        """Yield what happened to a task since event ``after`` and what happens, until it has ended."""
        for event in follow(self._connection, f"{_task_path(task)}/events", after=after, patience_s=patience_s):
            yield event
            if event.kind == "task.ended":
                return

    def logs(self, run: str | Run) -> Iterator[RunLine]:
        """Yield what a run wrote so far, oldest first."""
        return (read(RunLine, item) for item in self._connection.pages(f"{_run_path(run)}/logs"))

    def save(self, run: Run, name: str, target: str | Path, *, progress: Progress | None = None) -> Path:
        """Download a result file of a run; see :meth:`Run.save`."""
        file = run.file(name)
        path = Path(target)
        download(
            self._connection,
            f"{_run_path(run)}/files/{quoted(name)}",
            path,
            sha256=file.sha256,
            size_bytes=file.size_bytes,
            progress=progress,
        )
        return path

    # ---- deciding

    def cancel(self, task: str | Task) -> Task:
        """End what has not ended of a task and its sub-tasks; raises IllegalState when all of it has."""
        return self._task(self._connection.post(f"{_task_path(task)}/cancel"))

    def release(self, run: str | Run, *, release: bool = True, reason: str = "") -> Run:
        """Tell a site what to do with results that await release; its policy says whether it listens.

        Raises:
            IllegalState: the run does not await that.
        """
        wanted = {"release": release, "reason": reason}
        return self._run(self._connection.post(f"{_run_path(run)}/release", wanted))

    # ---- documents

    def _run(self, document: Mapping[str, Any]) -> Run:
        files = tuple(read(RunFile, each) for each in document.get("files", ()))
        return read(Run, document, tasks=self, files=files)

    def _task(self, document: Mapping[str, Any]) -> Task:
        return read(Task, document, tasks=self, runs=tuple(self._run(each) for each in document.get("runs", ())))


def _payload(given: Mapping[str, Any] | bytes | Path) -> bytes | Path:
    if not isinstance(given, Mapping):
        return given
    try:
        return json.dumps(given, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"The input can't be written as JSON: {error}.") from error


def _task_path(task: str | Task) -> str:
    return f"tasks/{quoted(task.task if isinstance(task, Task) else task)}"


def _run_path(run: str | Run) -> str:
    return f"runs/{quoted(run.run if isinstance(run, Run) else run)}"
