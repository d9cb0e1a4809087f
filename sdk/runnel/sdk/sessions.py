"""Sessions of a network: start, look, follow, stop, resume, extend, update."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from runnel.common.errors import RunnelError, Unreachable
from runnel.sdk.connection import PAGE, Connection
from runnel.sdk.event_source import PATIENCE_S, follow
from runnel.sdk.models import Models
from runnel.sdk.packages import Packages
from runnel.sdk.paths import file_given, quoted
from runnel.sdk.transfers import Progress
from runnel.sdk.values import Event, LogLine, Session, read


class Sessions:
    """``network.sessions``. Where a session is asked for, its id does, a prefix of 4 or more, or a Session."""

    def __init__(self, connection: Connection, packages: Packages, models: Models) -> None:
        self._connection = connection
        self._packages = packages
        self._models = models

    def start(
        self,
        *,
        package: str | Path,
        seed: str | Path,
        rounds: int,
        name: str = "",
        strategy: str = "fedavg",
        strategy_options: Mapping[str, float] | None = None,
        min_clients: int = 1,
        sample: float | int | str | None = None,
        over_select: float = 1.0,
        buffer: int | None = None,
        round_timeout_s: float = 600.0,
        retries: int = 3,
        validate_every: int = 1,
        compress: str = "none",
        stop_when: str | None = None,
        client_settings: Mapping[str, Any] | None = None,
        random_seed: int | None = None,
        keep_models: int | None = None,
        server_functions: bool = True,
        progress: Progress | None = None,
    ) -> Session:
        """Train ``seed`` with ``package`` for some rounds; returns at once, training goes on.

        Args:
            package: an archive, which is pushed first, or the digest of one that was.
            seed: a model's file, which is pushed first (and removed again if the session is refused), or the id of
                one that is stored.
            rounds: how many.
            name: for people.
            strategy: fedavg, fedavgm, fedadagrad, fedadam, fedyogi; or a robust rule, which needs every update at the
                reducer: median, trimmed_mean, krum, multi_krum, bulyan, geometric_median, norm_clipping.
            strategy_options: for example ``{"learning_rate": 0.1}`` or ``{"f": 2}``.
            min_clients: updates that a round needs at least.
            sample: clients that a round asks: an int is a count, a float in (0, 1] a fraction; None: all.
            over_select: ask so many times the sample, and close the round when the sample is in.
            buffer: close a round when this many updates are in.
            round_timeout_s: seconds from first request to close of a phase.
            retries: how often a phase with too few updates is opened again.
            validate_every: validate each n-th round and the last; 0: never.
            compress: how clients compress their updates: none, fp16, bf16, int8, top-k[:FRACTION], zstd, or one of
                the lossy ones ``+zstd``, for example ``"int8+zstd"``.
            stop_when: for example ``"accuracy>=0.97"``.
            client_settings: handed to the package as it is.
            random_seed: of the sampling of clients.
            keep_models: keep the files of so many newest models, of the seed and of the best by ``stop_when``; 0: of
                all; None: as the reducer is set.
            server_functions: whether the package's functions for the server are used, if it has any.
            progress: told of the bytes that are pushed.

        Raises:
            ServerFunctionsRefused: it has such functions, and the reducer does not run them.
            InvalidInput: an option is out of its range; the message names it.
        """
        archive = file_given(package, what="package", make=f"Pack it first: runnel package build {package}")
        model = file_given(seed, what="seed", make="Give a model's file (.npz or .safetensors).")
        digest = str(package) if archive is None else self._packages.push(archive, progress=progress).digest
        model_id = str(seed) if model is None else self._models.push(model, progress=progress).model
        wanted: dict[str, Any] = {
            "package": digest,
            "seed": model_id,
            "name": name,
            "rounds": rounds,
            "strategy": strategy,
            "strategy_options": dict(strategy_options or {}),
            "min_clients": min_clients,
            "sample": sample,
            "over_select": over_select,
            "buffer": buffer,
            "round_timeout_s": round_timeout_s,
            "retries": retries,
            "validate_every": validate_every,
            "compress": compress,
            "stop_when": stop_when,
            "client_settings": dict(client_settings or {}),
            "random_seed": random_seed,
            "keep_models": keep_models,
            "server_functions": server_functions,
        }
        try:
            return read(Session, self._connection.post("sessions", wanted))
        except Unreachable:  # it may have begun
            raise
        except RunnelError:
            if model is not None:
                with suppress(RunnelError):  # why it was refused is what matters
                    self._models.remove(model_id)
            raise

    def list(self) -> Iterator[Session]:
        """Yield all sessions, newest first, without their rounds."""
        return (read(Session, item) for item in self._connection.pages("sessions"))

    def show(self, session: str | Session, *, clients: bool = False) -> Session:
        """Return a session with its rounds, and with each client's part in them when ``clients``."""
        return read(Session, self._connection.get(_path(session), clients="true" if clients else None))

    def stop(self, session: str | Session) -> Session:
        """Call the work off; the newest model stays."""
        return read(Session, self._connection.post(f"{_path(session)}/stop"))

    def resume(self, session: str | Session) -> Session:
        """Go on with a stopped or failed session where it ended."""
        return read(Session, self._connection.post(f"{_path(session)}/resume"))

    def extend(self, session: str | Session, rounds: int) -> Session:
        """Add rounds; an ended session goes on."""
        return read(Session, self._connection.post(f"{_path(session)}/extend", {"rounds": rounds}))

    def update(self, session: str | Session, *, package: str | Path, progress: Progress | None = None) -> Session:
        """Give a session another package, from the next round that begins.

        The round under way keeps the package that it has, also when it is tried again. The model goes on as it is, so
        the new package has to take and to give the same arrays.

        Args:
            session: which one.
            package: an archive, which is pushed first, or the digest of one that was.
            progress: told of the bytes that are pushed.

        Raises:
            Conflict: the package is retired.
        """
        archive = file_given(package, what="package", make=f"Pack it first: runnel package build {package}")
        digest = str(package) if archive is None else self._packages.push(archive, progress=progress).digest
        return read(Session, self._connection.post(f"{_path(session)}/update", {"package": digest}))

    def logs(
        self,
        session: str | Session,
        *,
        round: int | None = None,
        client: str | None = None,
    ) -> Iterator[LogLine]:
        """Yield what the entry points wrote, oldest first, of one round or one client if wanted."""
        pages = self._connection.pages(f"{_path(session)}/logs", round=round, client=client)
        return (read(LogLine, item) for item in pages)

    def watch(self, session: str | Session, *, after: int = 0, patience_s: float = PATIENCE_S) -> Iterator[Event]:
        """Yield what happened in a session since event ``after`` and what happens, until the session has ended.

        Connections that break are made again; :class:`runnel.common.errors.Unreachable` is raised when the network
        did not answer for ``patience_s`` seconds.
        """
        for event in follow(self._connection, f"{_path(session)}/events", after=after, patience_s=patience_s):
            yield event
            if event.kind == "session.ended" and event.seq is not None and self._over(session, event.seq):
                return

    def _over(self, session: str | Session, seq: int) -> bool:
        """Whether the end that event ``seq`` told is the last: a session that was resumed has ended before."""
        if not self.show(session).ended:
            return False
        after: str | None = str(seq)
        while after is not None:
            page = self._connection.get(f"{_path(session)}/events", after=after, limit=PAGE)
            if any(event["kind"] == "session.ended" for event in page["items"]):
                return False
            after = page["next"]
        return True


def _path(session: str | Session) -> str:
    return f"sessions/{quoted(session.session if isinstance(session, Session) else session)}"
