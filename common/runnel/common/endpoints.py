"""Where a running component listens, as a file that scripts, tests and other components of the machine read.

``endpoints.json`` in the state directory is written once the component serves and removed at its clean stop. After a
crash it stays behind: ``pid`` tells whether its writer still lives.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from runnel.common.disk import read_json, write_json
from runnel.common.errors import CorruptData, NotFound

FILE_NAME = "endpoints.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoints:
    """Addresses as ``HOST:PORT``; None for what the component does not serve. ``pid`` is the process that serves."""

    rpc: str | None = None
    http: str | None = None
    pid: int


def write_endpoints(
    state_dir: Path, *, rpc: str | None = None, http: str | None = None, pid: int | None = None
) -> Path:
    """Write ``endpoints.json`` into ``state_dir`` (which exists) and return its path; ``pid`` None: this process."""
    path = state_dir / FILE_NAME
    found = asdict(Endpoints(rpc=rpc, http=http, pid=os.getpid() if pid is None else pid))
    write_json(path, {key: value for key, value in found.items() if value is not None})
    return path


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
