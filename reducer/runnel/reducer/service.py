"""What people can ask of a reducer, whichever way they ask it.

:class:`ReducerService` is the seam between the HTTP interface and the rest: HTTP knows nothing of the engine or the
store, and both can be tested without HTTP.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from runnel.common.protocol import PackageSignature
from runnel.common.tasks import TaskSpec
from runnel.reducer.domain.datasets import DatasetDetails, DatasetView
from runnel.reducer.domain.task_views import BlobView, RunFileView, RunLineView, RunView, TaskFilter, TaskView
from runnel.reducer.domain.values import (
    EventView,
    LogView,
    ModelView,
    NodeView,
    PackageView,
    Page,
    Role,
    SessionConfig,
    SessionView,
    StatusView,
    TokenView,
)

ALL_SITES = "*"
"""In place of the names of sites: all that are attached and take tasks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks: the token's id ("" in an insecure network), its role and organisation."""

    token_id: str
    role: Role
    organisation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessToken:
    """What stands for a token for a while: a JWT, and for how many seconds it is good."""

    token: str
    expires_in_s: float


class TaskService(Protocol):
    """What people can ask of tasks; the part of :class:`ReducerService` that interfaces of other systems translate to.

    Wherever an id is asked for, an unambiguous prefix of at least 4 characters does. Who may only look sees tasks
    without their descriptions, and no results. For a researcher there are only the tasks that tokens of the same name
    asked for.
    """

    async def add_blob(self, caller: Caller, body: AsyncIterator[bytes]) -> BlobView:
        """Store a file that tasks are to name as :class:`runnel.common.tasks.Blob`. Raises TooLarge, StorageFull."""

    async def start_task(
        self, caller: Caller, *, spec: TaskSpec, sites: Sequence[str], expires_in_s: float | None = None
    ) -> TaskView:
        """Have ``spec`` run once at each of ``sites``, names of clients; :data:`ALL_SITES` alone: at all attached ones
        that take tasks. A site that is away gets it when it returns.

        ``expires_in_s``: what has not begun by then fails with the code ``expired``; None: a week.

        Raises:
            InvalidInput: a site is unknown, named twice or no client of the caller's organisation; or a blob is not
                there. The error names them.
        """

    async def tasks(self, caller: Caller, wanted: TaskFilter, cursor: str | None, limit: int) -> Page[TaskView]:
        """List tasks, newest first, without their runs."""

    async def task(self, caller: Caller, task: str) -> TaskView:
        """Return one task with its runs."""

    async def cancel_task(self, caller: Caller, task: str) -> TaskView:
        """End what has not ended of a task and of its sub-tasks. Raises IllegalState when all of it has."""

    async def run(self, caller: Caller, run: str) -> RunView:
        """Return one run."""

    async def run_logs(self, caller: Caller, run: str, cursor: str | None, limit: int) -> Page[RunLineView]:
        """Return what a run wrote so far, oldest first."""

    def run_file(self, caller: Caller, run: str, name: str) -> AbstractAsyncContextManager[tuple[RunFileView, Path]]:
        """Give a result file, which stays while the block runs. Raises NotFound, Gone when its time is over."""

    async def release_run(
        self, caller: Caller, run: str, *, release: bool, reason: str = "", once: bool = False
    ) -> RunView:
        """Tell the site what the caller decides about results that await release; its policy says whether it listens.

        ``once``: only if nobody decided about them before; else the last word before the site's counts.

        Raises:
            IllegalState: the run does not await that, or somebody decided about it and ``once`` is asked for.
        """


class ReducerService(TaskService, Protocol):
    """All operations raise :class:`runnel.common.errors.RunnelError` subclasses: NotFound, Conflict, IllegalState, …

    Wherever an id is asked for, an unambiguous prefix of at least 4 characters does.
    """

    async def authenticate(self, bearer: str | None, *, client_id: str | None = None) -> Caller:
        """Return who presents ``bearer``, a token or an access token; raises Unauthenticated.

        ``client_id``: id or name of the token that it has to be. In an insecure network anybody is operator.
        """

    async def access_token(self, caller: Caller) -> AccessToken:
        """Return what stands for the caller's token for a while, and ends with it."""

    async def note_call(self, caller: Caller, *, method: str, path: str, status: int, calls: int) -> None:
        """Record what was called and how it was answered; ``calls``: how many, equal in all that, since the last."""

    async def datasets(self, caller: Caller) -> Sequence[DatasetView]:
        """List what sites of the caller's organisation publish of their data, by id."""

    async def dataset(self, caller: Caller, dataset: str) -> DatasetDetails:
        """Return a dataset as its sites describe it. Raises NotFound."""

    async def status(self, caller: Caller) -> StatusView:
        """Return the network at a glance."""

    async def add_package(self, caller: Caller, filename: str, body: AsyncIterator[bytes]) -> PackageView:
        """Store and check an archive; the same archive again returns the first entry. Raises BadPackage, TooLarge."""

    async def sign_package(self, caller: Caller, digest: str, signature: PackageSignature) -> PackageView:
        """Store who vouches for a package. Raises InvalidInput when it is not a signature of this package."""

    async def retire_package(self, caller: Caller, digest: str, *, undo: bool) -> PackageView:
        """Let no session be given a package any more, or again; those that have it go on."""

    async def packages(self, caller: Caller, cursor: str | None, limit: int) -> Page[PackageView]:
        """List packages, newest first."""

    async def package(self, caller: Caller, digest: str) -> PackageView:
        """Return one package."""

    def package_file(self, caller: Caller, digest: str) -> AbstractAsyncContextManager[Path]:
        """Give the archive's file, which stays while the block runs."""

    async def add_model(self, caller: Caller, body: AsyncIterator[bytes]) -> ModelView:
        """Store and check a seed model. Raises BadModel, TooLarge."""

    async def remove_model(self, caller: Caller, model: str) -> ModelView:
        """Remove a seed model that no session began with; Conflict for every other."""

    async def models(self, caller: Caller, session: str | None, cursor: str | None, limit: int) -> Page[ModelView]:
        """List the trail, newest first."""

    async def model(self, caller: Caller, model: str) -> ModelView:
        """Return one model with its participants."""

    def model_file(self, caller: Caller, model: str) -> AbstractAsyncContextManager[Path]:
        """Give the model's file, which stays while the block runs.

        Raises Gone when it was removed, as the session keeps only its newest models.
        """

    async def start_session(
        self, caller: Caller, *, name: str, package: str, seed: str, config: SessionConfig
    ) -> SessionView:
        """Create a session of a stored package (digest) and model (id), and run it. Raises InvalidInput, NotFound."""

    async def sessions(self, caller: Caller, cursor: str | None, limit: int) -> Page[SessionView]:
        """List sessions, newest first, without their rounds."""

    async def session(self, caller: Caller, session: str, *, clients: bool = False) -> SessionView:
        """Return one session with its rounds, and with each client's part in them when ``clients``."""

    async def stop_session(self, caller: Caller, session: str) -> SessionView:
        """Call the work off and end the session as stopped; its newest model stays."""

    async def resume_session(self, caller: Caller, session: str) -> SessionView:
        """Go on with a stopped or failed session where it ended."""

    async def extend_session(self, caller: Caller, session: str, rounds: int) -> SessionView:
        """Add rounds; an ended session goes on."""

    async def update_session(self, caller: Caller, session: str, package: str) -> SessionView:
        """Give a session another package for the rounds that have not begun. Raises NotFound, Conflict (retired)."""

    async def session_logs(
        self,
        caller: Caller,
        session: str,
        *,
        round_number: int | None,
        client: str | None,
        cursor: str | None,
        limit: int,
    ) -> Page[LogView]:
        """Return what the entry points wrote, oldest first."""

    async def nodes(self, caller: Caller, cursor: str | None, limit: int) -> Page[NodeView]:
        """List clients and combiners by name."""

    async def create_token(
        self, caller: Caller, *, role: Role, name: str, organisation: str | None, ttl_s: float | None
    ) -> TokenView:
        """Make a token; only this answer carries its secret."""

    async def tokens(self, caller: Caller, cursor: str | None, limit: int) -> Page[TokenView]:
        """List tokens, newest first, without secrets."""

    async def revoke_token(self, caller: Caller, token_id: str) -> TokenView:
        """End a token at once."""

    async def events(self, caller: Caller, session: str | None, after: int, limit: int) -> Page[EventView]:
        """Return events after the sequence number ``after``, oldest first; which ones, :meth:`follow` tells."""

    def follow(self, caller: Caller, session: str | None, after: int) -> AsyncIterator[Mapping[str, Any]]:
        """Yield events as they happen, from ``after`` on, as JSON-ready mappings, without an end.

        Stored events are ``{"seq", "at", "kind", "session", "data"}``. Between them come passing ones without
        ``seq``: kind ``progress`` with ``{"round", "work", "asked", "counted", "failed", "stages": {client: stage}}``.
        Kinds of stored events: ``session.created``, ``session.phase`` (``{"phase", "round"}``), ``round.committed``
        (``data`` is the round as JSON), ``session.ended`` (``{"status", "reason"}``), ``client.failed``,
        ``session.updated`` (another package:
        ``{"package", "previous", "from_round", "by"}``), ``node.attached``, ``node.left``, ``package.added``,
        ``package.retired``, ``package.restored``, ``model.added``, ``model.removed`` (files of models that
        are no longer kept: ``{"models", "kept"}``, or a seed that was removed: ``{"models", "by"}``),
        ``token.created``, ``token.revoked``, ``api.call``
        (``{"method", "path", "status", "calls", "by"}``). Of tasks, whose id is then
        what ``session`` says: ``task.created`` (``{"name", "sites", "user"}``), ``run.state`` (``{"run", "site",
        "state", "error_code", "exit_code"}``), ``task.ended`` (``{"status"}``).

        The role researcher hears of its own tasks only, and nothing of tokens and calls.
        """

    async def recall(self, caller: Caller, key: str, fingerprint: str) -> tuple[int, bytes] | None:
        """Return the stored answer (status, body) to an idempotency key. Raises Conflict if the key was used for a
        request with another fingerprint."""

    async def remember(self, caller: Caller, key: str, fingerprint: str, status: int, body: bytes) -> None:
        """Store the answer to an idempotency key, for a day."""
