"""Where a running component listens, as a file that scripts, tests and other components of the machine read.

``endpoints.json`` in the state directory is written once the component serves and removed at its clean stop. After a
crash it stays behind: ``pid`` tells whether its writer still lives.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import structlog
from pydantic import TypeAdapter, ValidationError

from runnel.common.disk import read_json, write_json
from runnel.common.errors import CorruptData, NotFound, RunnelError

FILE_NAME = "endpoints.json"

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoints:
    """Addresses as ``HOST:PORT``; None for what the component does not serve. ``pid`` is the process that serves.

    ``tls`` tells whether TLS is spoken there. ``attached_to`` is the name of the node that a combiner or client is
    attached to, empty while there is none; None for a reducer.
    """

    rpc: str | None = None
    http: str | None = None
    tls: bool = False
    attached_to: str | None = None
    pid: int


def write_endpoints(
    state_dir: Path,
    *,
    rpc: str | None = None,
    http: str | None = None,
    tls: bool = False,
    attached_to: str | None = None,
    pid: int | None = None,
) -> Path:
    """Write ``endpoints.json`` into ``state_dir`` (which exists) and return its path; ``pid`` None: this process."""
    path = state_dir / FILE_NAME
    pid = os.getpid() if pid is None else pid
    write_json(path, _content(Endpoints(rpc=rpc, http=http, tls=tls, attached_to=attached_to, pid=pid)))
    return path


def _content(endpoints: Endpoints) -> dict[str, object]:
    return {key: value for key, value in asdict(endpoints).items() if value is not None and value is not False}


async def note_attachment(state_dir: Path, via: str) -> None:
    """Write into the ``endpoints.json`` of this process, if there is one, to whom it is attached; empty: to nobody.

    Health checks read it, nothing else depends on it: where there is no room for it, that is logged.
    """

    def note() -> None:
        known = read_endpoints(state_dir)
        write_json(state_dir / FILE_NAME, _content(dataclasses.replace(known, attached_to=via)), durable=False)

    try:
        await asyncio.to_thread(note)
    except NotFound:
        return  # it does not serve yet, or not any more
    except (RunnelError, OSError) as error:
        _log.warning("attachment not noted for health checks", state=str(state_dir), error=str(error))


def read_endpoints(state_dir: Path) -> Endpoints:
    """Return what the component of ``state_dir`` wrote.

    Raises:
        NotFound: it does not serve (yet, or any more).
        CorruptData: the file has another content than documented.
    """
    path = state_dir / FILE_NAME
    try:
        content = read_json(path)
    except NotFound as error:
        raise NotFound(
            f"Nothing serves from {state_dir}: there is no {FILE_NAME} in it.",
            hint="Start the component, or wait until it logs that it is ready.",
            path=str(path),
        ) from error
    try:
        return TypeAdapter(Endpoints).validate_python(content)
    except ValidationError as error:
        raise CorruptData(
            f"{path} should hold a pid and addresses; it holds {content!r:.200}.",
            hint="Restart the component, which writes it anew.",
            path=str(path),
        ) from error


def remove_endpoints(state_dir: Path, *, pid: int | None = None) -> None:
    """Remove ``endpoints.json`` if process ``pid`` (None: this one) wrote it; another's or a missing file is left."""
    with suppress(NotFound, CorruptData, FileNotFoundError):
        if read_endpoints(state_dir).pid == (os.getpid() if pid is None else pid):
            (state_dir / FILE_NAME).unlink()
