"""A network, as its people see it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from runnel.common.errors import DeadlineExceeded, IllegalState
from runnel.sdk.combining import SiteResults, site_results
from runnel.sdk.connection import Attempts, Connection
from runnel.sdk.datasets import Datasets
from runnel.sdk.event_source import PATIENCE_S, follow
from runnel.sdk.models import Models
from runnel.sdk.packages import Packages
from runnel.sdk.paths import quoted
from runnel.sdk.sessions import Sessions
from runnel.sdk.task_values import Task
from runnel.sdk.tasks import Tasks
from runnel.sdk.values import Event, Node, Status, Token, read

DEFAULT_URL = "http://127.0.0.1:7480"


class Nodes:
    """``network.nodes``."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def list(self) -> Iterator[Node]:
        """Yield clients and combiners by name; those that are away too."""
        return (read(Node, item) for item in self._connection.pages("nodes"))


class Tokens:
    """``network.tokens``."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def create(
        self, role: str, *, name: str = "", organisation: str | None = None, ttl_s: float | None = None
    ) -> Token:
        """Make a token; only this answer carries its secret, as ``token``.

        Args:
            role: operator, initiator, researcher, viewer, client or combiner.
            name: for people: whom or what it is for.
            organisation: None: that of the caller.
            ttl_s: seconds until it expires; None: never.
        """
        wanted = {"role": role, "name": name, "organisation": organisation, "ttl_s": ttl_s}
        return read(Token, self._connection.post("tokens", wanted))

    def list(self) -> Iterator[Token]:
        """Yield all tokens, newest first, without their secrets."""
        return (read(Token, item) for item in self._connection.pages("tokens"))

    def revoke(self, token_id: str) -> Token:
        """End a token at once."""
        return read(Token, self._connection.delete(f"tokens/{quoted(token_id)}"))


class Network:
    """The network whose reducer serves HTTP at ``url``; a context manager, for one thread at a time.

    Args:
        url: http://HOST:PORT or https://HOST:PORT.
        token: made by ``runnel token create``; None for an insecure network.
        ca_file: PEM file of the authority that signed its certificate; None: those that the system trusts.
        timeout_s: seconds that the network may be silent within one request.
        attempts: how often a request is sent when the connection fails; what changes something is sent again under
            the same idempotency key, so it happens once.

    Everything raises :class:`runnel.common.errors.RunnelError` subclasses: the very error that the network raised, or
    Unreachable.

    Example::

        with Network("http://127.0.0.1:7480") as network:
            session = network.sessions.start(package="digits.tar.gz", seed="seed.npz", rounds=10)
            for event in network.sessions.watch(session):
                print(event.kind, event.data)
            network.models.get(network.sessions.show(session).model, "model.npz")
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        token: str | None = None,
        ca_file: str | Path | None = None,
        *,
        timeout_s: float = 60.0,
        attempts: Attempts | None = None,
    ) -> None:
        self._connection = Connection(
            url,
            token=token,
            ca_file=None if ca_file is None else Path(ca_file),
            timeout_s=timeout_s,
            attempts=attempts or Attempts(),
        )
        self.packages = Packages(self._connection)
        self.models = Models(self._connection)
        self.sessions = Sessions(self._connection, self.packages, self.models)
        self.tasks = Tasks(self._connection)
        self.datasets = Datasets(self._connection)
        self.nodes = Nodes(self._connection)
        self.tokens = Tokens(self._connection)

    @property
    def url(self) -> str:
        """Where it is."""
        return self._connection.url

    def run_task(self, image: str, **options: Any) -> Task:
        """Run an image at sites; the same as ``network.tasks.start``, whose options it takes.

        Example::

            task = network.run_task("analysis:1", sites=["hospital-a"], select="{ patients { age } }").wait()
            for run in task.runs:
                print(run.site, run.text("stdout") if run.done else run.error)
        """
        return self.tasks.start(image, **options)

    def run(
        self, image: str, *, minimum: int | None = None, timeout_s: float | None = None, **options: Any
    ) -> SiteResults:
        """Run an image at sites and wait until it is over everywhere: one round of an analysis.

        Args:
            image: its name, as a container engine knows it.
            minimum: how many sites have to be done; None: all.
            timeout_s: seconds to wait; what has not ended by then is cancelled.
            options: of ``network.tasks.start``.

        Raises:
            NotEnoughClients: fewer sites are done than that; it says why each of the others is not.

        Example::

            for step in range(10):
                answers = network.run("analysis:1", sites=["a", "b"], input={"step": step}, minimum=1)
                total = sum(site["count"] for site in answers.json("result.json").values())
        """
        task = self.tasks.start(image, **options)
        try:
            ended = task.wait(timeout_s)
        except DeadlineExceeded:
            with contextlib.suppress(IllegalState):  # it ended meanwhile
                task.cancel()
            ended = task.refresh()
        return site_results(ended, minimum)

    def status(self) -> Status:
        """Return the network at a glance."""
        return read(Status, self._connection.get("status"))

    def events(self, *, after: int = 0, patience_s: float = PATIENCE_S) -> Iterator[Event]:
        """Yield what happened since event ``after`` and what happens, without an end."""
        return follow(self._connection, "events", after=after, patience_s=patience_s)

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()

    def __enter__(self) -> Network:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
