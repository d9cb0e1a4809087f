"""What the network answers about tasks, as values that know where to ask on."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runnel.common.errors import InvalidInput, NotFound
from runnel.sdk.transfers import Progress
from runnel.sdk.values import Event

if TYPE_CHECKING:
    from runnel.sdk.tasks import Tasks

_ENDED = frozenset({"done", "failed", "rejected", "cancelled"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFile:
    """A result file: ``stdout``, ``stderr``, ``log``, ``output`` (a zip) or one that the task's contract has."""

    name: str
    media_type: str
    sha256: str
    size_bytes: int
    raw: Mapping[str, Any] = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLine:
    """A line that a run wrote, as it was seen while it ran."""

    id: int
    run: str
    at: datetime
    stream: str
    text: str
    raw: Mapping[str, Any] = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A task at one site.

    ``state``: queued, assigned, preparing, running, awaiting-release, pushing, done, failed, rejected or cancelled.
    ``error_code`` and ``error``: why it failed or was rejected, for machines and for people. ``exit_code``: of the
    container that ended last; None: none was started. ``elapsed_s``: seconds by stage.
    """

    run: str
    task: str
    site: str
    state: str
    detail: str
    exit_code: int | None
    error_code: str | None
    error: str | None
    log_tail: str | None
    started_at: datetime | None
    finished_at: datetime | None
    attempt: int
    image_digest: str
    elapsed_s: Mapping[str, float]
    files: tuple[RunFile, ...]
    kept_until: datetime | None
    removed_at: datetime | None
    raw: Mapping[str, Any] = field(repr=False, compare=False)
    tasks: Tasks = field(repr=False, compare=False)

    @property
    def ended(self) -> bool:
        """Whether nothing happens to it any more."""
        return self.state in _ENDED

    @property
    def done(self) -> bool:
        """Whether it did what it should."""
        return self.state == "done"

    def file(self, name: str) -> RunFile:
        """Return what is known of a result file; raises NotFound when it gave out none of this name."""
        for each in self.files:
            if each.name == name:
                return each
        named = ", ".join(each.name for each in self.files) or "none"
        raise NotFound(f"The run at {self.site} ({self.state}) has no file {name!r}; it has: {named}.", run=self.run)

    def save(self, name: str, target: str | Path, *, progress: Progress | None = None) -> Path:
        """Download a result file to ``target``, whole and verified or not at all.

        Raises:
            NotFound: the run gave out none of this name.
            Gone: it was kept for its time, and that is over.
        """
        return self.tasks.save(self, name, target, progress=progress)

    def read(self, name: str) -> bytes:
        """Return the bytes of a result file; see :meth:`save`."""
        with tempfile.TemporaryDirectory(prefix="runnel-") as folder:
            return self.save(name, Path(folder) / "file").read_bytes()

    def text(self, name: str = "stdout") -> str:
        """Return a result file as text; what is no UTF-8 in it is replaced."""
        return self.read(name).decode("utf-8", "replace")

    def json(self, name: str) -> Any:
        """Return what a result file holds as JSON; raises InvalidInput when it is none."""
        try:
            return json.loads(self.read(name))
        except ValueError as error:
            raise InvalidInput(f"The file {name} of the run at {self.site} is no JSON: {error}.") from error

    def save_output(self, target: str | Path) -> Path:
        """Download what the run put out, a zip."""
        return self.save("output", target)

    def unpack(self, target: str | Path) -> Path:
        """Download what the run put out and unpack it into the new folder ``target``.

        Raises:
            HostileArchive: something in it would be written elsewhere, or there is too much of it.
            Conflict: ``target`` is there and not empty.
        """
        from runnel.compute_package import extract

        with tempfile.TemporaryDirectory(prefix="runnel-") as folder:
            extract(self.save_output(Path(folder) / "output.zip"), Path(target))
        return Path(target)

    def logs(self) -> Iterator[RunLine]:
        """Yield what it wrote so far, oldest first."""
        return self.tasks.logs(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task, as it was when it was asked for; :meth:`refresh` asks anew.

    ``status``: queued, running, done (every run is), failed (all have ended, some not well) or cancelled.
    ``counts``: runs by state. ``runs``: by site; empty in listings.
    """

    task: str
    name: str
    organisation: str
    user: str
    status: str
    spec: Mapping[str, Any] | None
    created_at: datetime
    expires_at: datetime | None
    finished_at: datetime | None
    parent_run: str
    counts: Mapping[str, int]
    runs: tuple[Run, ...]
    raw: Mapping[str, Any] = field(repr=False, compare=False)
    tasks: Tasks = field(repr=False, compare=False)

    @property
    def ended(self) -> bool:
        """Whether all its runs have ended."""
        return self.finished_at is not None

    def at(self, site: str) -> Run:
        """Return its run at a site; raises NotFound."""
        for each in self.runs:
            if each.site == site:
                return each
        raise NotFound(f"Task {self.task} has no run at {site!r}.", task=self.task)

    def refresh(self) -> Task:
        """Return it as it is now."""
        return self.tasks.show(self)

    def wait(self, timeout_s: float | None = None) -> Task:
        """Wait until all its runs have ended, and return it then.

        Raises:
            DeadlineExceeded: some had not, after ``timeout_s`` seconds; it goes on.
        """
        return self.tasks.wait(self, timeout_s=timeout_s)

    def watch(self) -> Iterator[Event]:
        """Yield what happened to it and what happens, until it has ended."""
        return self.tasks.watch(self)

    def cancel(self) -> Task:
        """End what has not ended of it."""
        return self.tasks.cancel(self)
