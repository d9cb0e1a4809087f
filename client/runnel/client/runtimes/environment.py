"""Virtual environments of packages, built by uv and kept by what is in them."""

from __future__ import annotations

import asyncio
import hashlib
import os
import platform
import re
import sys
import sysconfig
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from runnel.client.runtimes.environment_folders import (
    claim_place,
    evict,
    hold,
    interpreter,
    release_place,
    take_place,
)
from runnel.client.runtimes.guard import Guard
from runnel.client.runtimes.installs import FednSource, Installs
from runnel.client.runtimes.log_capture import LogCapture
from runnel.client.runtimes.process_group import run_group
from runnel.client.runtimes.python_versions import PythonRequest, choose, read_listing, read_request
from runnel.client.runtimes.requirements import Requirements, read_requirements
from runnel.client.runtimes.runtime import LineSink
from runnel.client.runtimes.variables import installer_variables
from runnel.common.blobs import in_thread, storage_errors
from runnel.common.errors import EnvironmentFailed
from runnel.compute_package import shim_digest, write_shim_wheel

DEFAULT_BUILD_TIMEOUT_S = 1800.0
_ASKED_FOR = "pyproject.toml"
# How uv says that it did not get through to an index.
_NO_NETWORK = re.compile(r"error sending request|failed to fetch|dns error|connection refused|timed out", re.IGNORECASE)

log = structlog.get_logger()


class EnvironmentCache:
    """Makes each environment once and keeps it under ``root``.

    An environment is named by the SHA-256 of its requirements, the Python version and the platform. It is built in a
    folder beside and takes its name by one rename, so whatever has the name is whole, also after a kill at any moment;
    uv makes it *relocatable* (scripts find their interpreter relative to themselves), for otherwise the rename would
    break its scripts. What killed builds left behind is removed before the next build, in this or any other process
    that shares the folder.

    If the package index can't be reached, what is at hand (uv's cache, local wheels) is tried before the build fails.

    Args:
        root: folder of this cache; made when needed.
        environ: the client's variables; uv sees :func:`~runnel.client.runtimes.variables.installer_variables` of them.
        guard: ends uv if the client is killed.
        timeout_s: seconds that a build may take.
        installs: what the site says about environments.
        installer: returns the path of uv; by default that which is installed with the client.
    """

    def __init__(
        self,
        root: Path,
        *,
        environ: Mapping[str, str],
        guard: Guard,
        timeout_s: float = DEFAULT_BUILD_TIMEOUT_S,
        installs: Installs | None = None,
        installer: Callable[[], str] | None = None,
    ) -> None:
        self._root = root.absolute()
        # Of the machine's Pythons only: one that is fetched is a program that nobody at the site has looked at.
        self._env = installer_variables(environ) | {"UV_PYTHON_DOWNLOADS": "never"}
        self._guard = guard
        self._timeout_s = timeout_s
        self._installs = installs or Installs()
        self._installer = installer or _uv_program
        self._locks: dict[str, asyncio.Lock] = {}

    def follow(self, installs: Installs) -> None:
        """Take over what the site says about environments from now on."""
        self._installs = installs

    async def prepare(
        self,
        requirements: Path | None,
        say: LineSink,
        *,
        root: Path | None = None,
        requires_python: str = "",
        asked_by: str = _ASKED_FOR,
    ) -> Path:
        """Return the interpreter of an environment that has what ``requirements`` lists; tell progress to ``say``.

        Args:
            requirements: a ``requirements.txt`` or ``python_env.yaml``. None, or one without entries: this process's
                own interpreter is returned, unless the package asks for another Python.
            root: the package's folder, which included files must not leave; that of ``requirements`` by default.
            requires_python: the Python that the package asks for otherwise; a ``python_env.yaml`` that names one goes
                before.
            asked_by: the file that asks for it.

        Raises:
            BadPackage: the file is not readable as what it is.
            EnvironmentFailed: uv could not build it, the message has uv's last lines; or the Python that it asks for is
                not on this machine; or the site forbids to install. Nothing is left behind.
            StorageFull: no room for it.
        """
        wanted = Requirements(folder=root or Path.cwd())
        if requirements is not None:
            shim = self._installs.fedn is FednSource.SHIM
            wanted = await in_thread(read_requirements, requirements, root=root, fedn_shim=shim)
        request = _request(wanted, requires_python, asked_by)
        own = request is None or request.accepts(platform.python_version())
        if wanted.empty and own:
            return Path(sys.executable)
        key = await in_thread(_key, wanted, None if own else request)
        python = interpreter(self._root / key)
        # One task builds, the others that want the same wait for it; if it fails or is cancelled, the next one tries.
        async with self._locks.setdefault(key, asyncio.Lock()):
            async with self.in_use(python) as there:
                built = not there
            if built:
                await self._build(key, wanted, None if own else request, say)
            else:
                log.info("environment found built", environment=key)
        await self._evict()
        return python

    async def pin(
        self, requirements: Path, say: LineSink, *, root: Path | None = None, hashes: bool = False, python: str = ""
    ) -> str:
        """Return what ``requirements`` would install now, each project with its exact version.

        Args:
            requirements: as for :meth:`prepare`.
            say: takes what uv prints.
            root: as for :meth:`prepare`.
            hashes: whether each line has the hashes of its files.
            python: version that they are for; empty: this process's.

        Returns:
            Lines of a requirements file. ``fedn`` is in it as its author wrote it.

        Raises:
            BadPackage: as for :meth:`prepare`.
            EnvironmentFailed: uv found no versions that fit together; the message has its words.
        """
        wanted = await in_thread(read_requirements, requirements, root=root)
        written = await in_thread(read_requirements, requirements, root=root, fedn_shim=False)
        async with self._workplace() as place:
            await in_thread(place.mkdir)
            arguments = ["--quiet", "--no-header", "--no-annotate", "--python", sys.executable]
            arguments += ["--no-emit-package", "fedn", "--output-file", str(place / "pinned.txt")]
            arguments += ["--generate-hashes"] if hashes else []
            arguments += ["--python-version", python] if python else []
            await self._resolve("pip compile", arguments, place, wanted, say)
            pinned = await in_thread((place / "pinned.txt").read_text, "utf-8")
        fedn = [line for line in written.lines if line not in wanted.lines]
        return pinned + "".join(f"{line}\n" for line in fedn)

    @asynccontextmanager
    async def in_use(self, python: Path) -> AsyncIterator[bool]:
        """Keep the environment of ``python`` while the block runs; the value tells whether it is there.

        An interpreter that is not of this cache is always there.
        """
        folder = python.parent.parent
        if folder.parent != self._root:
            yield True
            return
        held = await in_thread(hold, folder)
        try:
            yield held is not None
        finally:
            if held is not None:
                os.close(held)

    async def _evict(self) -> None:
        # Where nothing may be installed, what is gone would not come back.
        if self._installs.allowed:
            limits = self._installs
            await in_thread(evict, self._root, most_bytes=limits.most_bytes, most_days=limits.most_days)

    async def _build(self, key: str, wanted: Requirements, request: PythonRequest | None, say: LineSink) -> None:
        if not self._installs.allowed:
            raise EnvironmentFailed(
                f"This site does not install what packages require, and the environment {key[:12]} is not there.",
                hint="Build it at the site first (see: environments in the guide of data providers), or ask the site "
                "to allow installs.",
                log_tail="",
            )
        say("runnel", "Building the package's environment; it is kept for the next time.")
        python = Path(sys.executable) if request is None else await self._find(request, wanted, say)
        async with self._workplace() as place:
            await self._uv("venv", ["--relocatable", "--no-project", "--python", str(python), str(place)], wanted, say)
            if not wanted.empty:
                await self._install(place, wanted, say)
            with storage_errors(place):
                await in_thread(take_place, place, self._root / key)
        log.info("environment built", environment=key)

    async def _find(self, request: PythonRequest, wanted: Requirements, say: LineSink) -> Path:
        listed: list[str] = []

        def take(stream: str, text: str) -> None:
            if stream == "stdout":
                listed.append(text)

        await self._uv("python list", ["--only-installed", "--output-format", "text"], wanted, take)
        found = choose(request, read_listing(listed))
        say("runnel", f"{request.source} asks for Python {request.text}: {found.version} serves.")
        return found.path

    async def _install(self, place: Path, wanted: Requirements, say: LineSink) -> None:
        arguments = ["--python", str(interpreter(place))]
        if wanted.hashed:
            arguments.append("--require-hashes")
        await self._resolve("pip install", arguments, place, wanted, say)

    async def _resolve(
        self, verb: str, arguments: Sequence[str], place: Path, wanted: Requirements, say: LineSink
    ) -> None:
        """Let uv find out what ``wanted`` means; its files are written to ``place``."""
        with storage_errors(place):
            listing, constraints = await in_thread(_write_listing, place, wanted)
        # Relative paths in the listing are relative to the folder in which uv runs.
        arguments = [*arguments, *(["-r"] if verb == "pip install" else []), str(listing)]
        if constraints is not None:
            arguments += ["-c", str(constraints)]
        for place_of_wheels in self._installs.find_links:
            arguments += ["--find-links", place_of_wheels]
        try:
            await self._uv(verb, arguments, wanted, say)
        except EnvironmentFailed as error:
            if not _NO_NETWORK.search(str(error.fields["log_tail"])):
                raise
            say("runnel", "The package index does not answer; trying with what is at hand.")
            try:
                await self._uv(verb, ["--offline", *arguments], wanted, say)
            except EnvironmentFailed:
                raise error from None

    async def _uv(self, verb: str, arguments: Sequence[str], wanted: Requirements, say: LineSink) -> None:
        quiet = verb == "python list"
        capture = LogCapture(say if quiet else lambda _, text: say("runnel", f"uv: {text}"))
        try:
            status = await run_group(
                [self._installer(), "--no-progress", "--color", "never", *verb.split(), *arguments],
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
            place, claim = await in_thread(claim_place, self._root)
        try:
            yield place
        finally:
            await in_thread(release_place, place, claim)


def _request(wanted: Requirements, requires_python: str, asked_by: str) -> PythonRequest | None:
    if wanted.python:
        return read_request(wanted.python, wanted.python_from)
    return read_request(requires_python, asked_by) if requires_python else None


def _key(wanted: Requirements, request: PythonRequest | None) -> str:
    # Another Python is named by the request: to look it up would take a run of uv at each start.
    python = f"asked for: {request.text}" if request else f"{sys.implementation.cache_tag} {platform.python_version()}"
    parts = [wanted.digest(), python, sysconfig.get_platform()]
    if wanted.fedn_shim:
        parts.append(shim_digest())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _write_listing(place: Path, wanted: Requirements) -> tuple[Path, Path | None]:
    listing, constraints = place / "runnel-requirements.txt", None
    shim = write_shim_wheel(place).as_uri() if wanted.fedn_shim else ""
    text = wanted.written(folder=wanted.folder.absolute().as_uri(), shim=shim)
    listing.write_text(text, encoding="utf-8")
    if wanted.constraints:
        constraints = place / "runnel-constraints.txt"
        constraints.write_text("".join(f"{line}\n" for line in wanted.constraints), encoding="utf-8")
    return listing, constraints


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
