"""Virtual environments of packages, built by uv and kept by what is in them."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import platform
import secrets
import shutil
import sys
import sysconfig
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from runnel.client.runtimes.guard import Guard
from runnel.client.runtimes.log_capture import LogCapture
from runnel.client.runtimes.process_group import run_group
from runnel.client.runtimes.requirements import Requirements, read_requirements
from runnel.client.runtimes.runtime import LineSink
from runnel.client.runtimes.variables import installer_variables
from runnel.common.blobs import in_thread, storage_errors
from runnel.common.errors import EnvironmentFailed

DEFAULT_BUILD_TIMEOUT_S = 1800.0
_BUILDING = "building-"

log = structlog.get_logger()


class EnvironmentCache:
    """Makes each environment once and keeps it under ``root``.

    An environment is named by the SHA-256 of its requirements, the Python version and the platform. It is built in a
    folder beside and takes its name by one rename, so whatever has the name is whole, also after a kill at any moment;
    uv makes it *relocatable* (scripts find their interpreter relative to themselves), for otherwise the rename would
    break its scripts. What killed builds left behind is removed before the next build, in this or any other process
    that shares the folder.

    Args:
        root: folder of this cache; made when needed.
        environ: the client's variables; uv sees :func:`~runnel.client.runtimes.variables.installer_variables` of them.
        guard: ends uv if the client is killed.
        timeout_s: seconds that a build may take.
    """

    def __init__(
        self, root: Path, *, environ: Mapping[str, str], guard: Guard, timeout_s: float = DEFAULT_BUILD_TIMEOUT_S
    ) -> None:
        self._root = root.absolute()
        self._env = installer_variables(environ)
        self._guard = guard
        self._timeout_s = timeout_s
        self._locks: dict[str, asyncio.Lock] = {}

    async def prepare(self, requirements: Path | None, say: LineSink) -> Path:
        """Return the interpreter of an environment that has what ``requirements`` lists; tell progress to ``say``.

        Args:
            requirements: a ``requirements.txt`` or ``python_env.yaml``. None, or one without entries: this process's
                own interpreter is returned.

        Raises:
            BadPackage: the file is not readable as what it is.
            EnvironmentFailed: uv could not build it; the message has uv's last lines. Nothing is left behind.
            StorageFull: no room for it.
        """
        if requirements is None:
            return Path(sys.executable)
        wanted = await in_thread(read_requirements, requirements)
        if wanted.empty:
            return Path(sys.executable)
        key = await in_thread(_key, wanted)
        python = self._root / key / "bin" / "python"
        # One task builds, the others that want the same wait for it; if it fails or is cancelled, the next one tries.
        async with self._locks.setdefault(key, asyncio.Lock()):
            if not await in_thread(python.exists):
                await self._build(key, wanted, say)
        return python

    async def _build(self, key: str, wanted: Requirements, say: LineSink) -> None:
        say("runnel", "Building the package's environment; it is kept for the next time.")
        async with self._workplace() as place:
            python = place / "bin" / "python"
            await self._uv(
                "venv", ["--relocatable", "--no-project", "--python", sys.executable, str(place)], wanted, say
            )
            listing = wanted.file or place / "runnel-requirements.txt"
            if wanted.file is None:
                with storage_errors(place):
                    await in_thread(listing.write_text, wanted.text, encoding="utf-8")
            await self._uv("pip install", ["--python", str(python), "-r", str(listing)], wanted, say)
            with storage_errors(place):
                await in_thread(_take_place, place, self._root / key)
        log.info("environment built", environment=key)

    async def _uv(self, verb: str, arguments: Sequence[str], wanted: Requirements, say: LineSink) -> None:
        capture = LogCapture(lambda _, text: say("runnel", f"uv: {text}"))
        try:
            status = await run_group(
                [_uv_program(), "--no-progress", "--color", "never", *verb.split(), *arguments],
                cwd=wanted.folder,
                env=self._env,
                guard=self._guard,
                capture=capture,
                timeout_s=self._timeout_s,
            )
        except TimeoutError as error:
            raise _failed(f"uv did not end within {self._timeout_s:g} s", capture.tail) from error
        if status:
            raise _failed(f"uv {verb} ended with status {status}", capture.tail)

    @asynccontextmanager
    async def _workplace(self) -> AsyncIterator[Path]:
        """A folder to build in that is removed at the end, or by the next build if this process is killed."""
        with storage_errors(self._root):
            place, claim = await in_thread(_claim_place, self._root)
        try:
            yield place
        finally:
            await in_thread(_release_place, place, claim)


def _key(wanted: Requirements) -> str:
    parts = (wanted.digest(), sys.implementation.cache_tag, platform.python_version(), sysconfig.get_platform())
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()


def _uv_program() -> str:
    try:
        import uv

        return os.fsdecode(uv.find_uv_bin())
    except (ImportError, FileNotFoundError) as error:
        raise EnvironmentFailed(
            "The package has requirements, and uv, which installs them, is not there.",
            hint="Install it at the client: pip install 'runnel[client]'.",
        ) from error


def _failed(what: str, tail: str) -> EnvironmentFailed:
    return EnvironmentFailed(
        f"The environment of the package could not be built: {what}.\n{tail}".rstrip(),
        hint="Check its requirements, and that this client reaches a package index (UV_INDEX_URL, proxies).",
        log_tail=tail,
    )


def _claim_place(root: Path) -> tuple[Path, int]:
    """Sweep what killed builds left, then return a new name to build at and the lock that says that it is in use."""
    root.mkdir(parents=True, exist_ok=True)
    for claim in root.glob(f"{_BUILDING}*.lock"):
        _sweep(claim)
    place = root / f"{_BUILDING}{secrets.token_hex(6)}"
    descriptor = os.open(_claim_of(place), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return place, descriptor


def _sweep(claim: Path) -> None:
    try:
        descriptor = os.open(claim, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:  # its owner ended meanwhile
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # its owner is at work
        os.close(descriptor)
    else:
        _release_place(claim.with_suffix(""), descriptor)
        log.info("an unfinished environment was removed", place=claim.stem)


def _release_place(place: Path, claim: int) -> None:
    # The folder first: while it is there, the claim must be.
    if place.exists():
        shutil.rmtree(place)
    _claim_of(place).unlink(missing_ok=True)
    os.close(claim)


def _claim_of(place: Path) -> Path:
    return place.with_name(f"{place.name}.lock")


def _take_place(place: Path, final: Path) -> None:
    if final.exists() and not (final / "bin" / "python").exists():
        shutil.rmtree(final)  # its interpreter was uninstalled
    try:
        place.rename(final)
    except OSError:
        if not (final / "bin" / "python").exists():
            raise
        # Another process that shares the cache was quicker; its environment is as good.
