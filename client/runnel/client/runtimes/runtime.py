"""What every runtime promises: it prepares a package, runs its entry points, and nothing of a run outlives it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from runnel.compute_package import Manifest

LineSink = Callable[[str, str], None]
"""Takes one line without its end: the stream (``stdout``, ``stderr``, or ``runnel`` for what the client says) and the
text. Called on the event loop, so it must not block."""

DEFAULT_OUTPUT_BYTES = 256 * 1024
STARTED_MARK = ".runnel-started"
"""Name of the file in a package's root that tells that its ``startup`` has ended well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one run may take.

    Args:
        memory_bytes: private writable memory of each of its processes (``RLIMIT_DATA``; mapped files and address space
            that is only reserved don't count); None: no limit.
        output_bytes: what is kept of its standard output and error; the rest is read and dropped.
        cpu_s: processor seconds of each of its processes; None: no limit.
    """

    memory_bytes: int | None = None
    output_bytes: int = DEFAULT_OUTPUT_BYTES
    cpu_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageFiles:
    """An unpacked compute package: ``digest`` is the SHA-256 of its archive in hex, ``root`` the folder it runs in."""

    digest: str
    root: Path
    manifest: Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A package that a runtime is ready to run; runtimes derive their own with what they need to know.

    ``starting`` serialises the package's ``startup`` entry point among the tasks that share this value.
    """

    package: PackageFiles
    starting: asyncio.Lock = field(default_factory=asyncio.Lock, compare=False, repr=False)

    @property
    def runs_with(self) -> str:
        """What runs it, for people: an interpreter or an image."""
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One run of an entry point.

    Args:
        entry_point: a name in the manifest, such as ``train``.
        arguments: appended to the entry point's command, each as one word.
        workdir: absolute folder that holds all files which the arguments name.
        env: variables that the entry point sees, besides those that its runtime needs for a process to work.
        timeout_s: seconds until it is ended; None: no limit.
        limits: what it may take.
    """

    entry_point: str
    arguments: tuple[str, ...]
    workdir: Path
    env: Mapping[str, str]
    timeout_s: float | None = None
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A run that ended well: ``exit_status`` 0, its wall time, and its last lines (at most 4 KiB)."""

    exit_status: int
    elapsed_s: float
    log_tail: str


class Runtime(Protocol):
    """Runs entry points, as processes or in containers.

    Whoever awaits :meth:`run` owns the run: when that task is cancelled everything that the run started is asked to
    end, then killed, and the cancellation goes on only when nothing of it is alive.
    """

    async def prepare(self, package: PackageFiles, say: LineSink) -> Prepared:
        """Make ``package`` ready to run, telling progress to ``say``.

        Raises:
            EnvironmentFailed: what the package requires could not be installed.
        """
        ...

    async def run(self, prepared: Prepared, call: Call, say: LineSink) -> Finished:
        """Run one entry point to its end; its output goes to ``say`` line by line.

        Raises:
            BadPackage: the manifest has no such entry point.
            EntryPointFailed: it ended with a status other than 0; ``fields`` has ``exit_status`` and ``log_tail``.
            EntryPointTimeout: it was still running after ``call.timeout_s``; ``fields`` has ``log_tail``.
        """
        ...
