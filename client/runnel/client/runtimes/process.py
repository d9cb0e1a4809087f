"""Entry points as processes of the client's machine and user."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from runnel.client.domain.cage import Cage
from runnel.client.runtimes.environment import EnvironmentCache
from runnel.client.runtimes.guard import Guard
from runnel.client.runtimes.installs import FednSource, Installs
from runnel.client.runtimes.log_capture import LogCapture
from runnel.client.runtimes.process_group import DEFAULT_GRACE_S, run_group, run_leader
from runnel.client.runtimes.runtime import Call, Finished, Limits, LineSink, PackageFiles, Prepared
from runnel.client.runtimes.variables import process_variables
from runnel.client.runtimes.warm_starts import WarmStarts
from runnel.common.errors import BadPackage, EntryPointFailed, EntryPointTimeout, EnvironmentFailed
from runnel.compute_package import shim_source

MORE_MEMORY = ": a process of it may have {:,} bytes of memory, and it wanted more"
# How Python, numpy and C++ say that they were given no more.
_NO_MORE_MEMORY = ("MemoryError", "std::bad_alloc", "Cannot allocate memory")
_HINTS = {
    signal.SIGKILL: "out of memory?",
    signal.SIGXCPU: "its processor time was used up",
    signal.SIGSEGV: "a crash in native code",
    signal.SIGABRT: "a crash in native code",
    signal.SIGILL: "a library that was built for another processor?",
}

# The others run once for a package, and startup may install what these import.
_OFTEN = ("train", "validate", "predict")


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedProcess(Prepared):
    """A package with the interpreter that runs it: an absolute path, not resolved, for it names the environment.

    ``path`` is put before the folders in which that interpreter looks for modules; empty for nearly all packages.
    """

    python: Path
    path: str = ""

    @property
    def runs_with(self) -> str:
        """See :attr:`Prepared.runs_with`."""
        return str(self.python)


class ProcessRuntime:
    """Runs each entry point as a process group of its own, in the package's root, with the package's environment.

    This separates runs from the client and from each other but not from the machine: the process has the rights of the
    client's user, and a process that makes itself a daemon (a session of its own) is not found again. Where packages
    are not trusted that far, run them in containers.

    A *warm* runtime forks ``train``, ``validate`` and ``predict`` from an interpreter that has imported their installed
    modules already (a zygote), where that makes no difference but time; otherwise it starts them as any other.

    Use as an async context manager; runs are to be ended before it is left.

    Args:
        environments: folder of the environments that are built.
        environ: the client's variables.
        grace_s: seconds between SIGTERM and SIGKILL.
        warm: whether to keep zygotes; only Linux has them.
        installs: what the site says about environments.
    """

    def __init__(
        self,
        *,
        environments: Path,
        environ: Mapping[str, str],
        grace_s: float = DEFAULT_GRACE_S,
        warm: bool = False,
        installs: Installs | None = None,
    ) -> None:
        self._guard = Guard()
        self._installs = installs or Installs()
        self._environments = EnvironmentCache(environments, environ=environ, guard=self._guard, installs=self._installs)
        self._env = process_variables(environ)
        self._grace_s = grace_s
        self._warm = WarmStarts(guard=self._guard) if warm and WarmStarts.supported() else None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._warm is not None:
            await self._warm.close()
        await self._guard.close()

    def follow(self, *, installs: Installs, cage: Cage) -> None:
        """Take over what the site says of installs from now on; processes know no cage."""
        self._installs = installs
        self._environments.follow(installs)

    async def prepare(self, package: PackageFiles, say: LineSink) -> PreparedProcess:
        """Build the package's environment or find it built; see :meth:`Runtime.prepare`."""
        if package.manifest.needs_image:
            raise _needs_image(package)
        listing = package.manifest.requirements or package.manifest.python_env
        wanted_python, asked_by = package.manifest.asked_python
        python = await self._environments.prepare(
            package.root / listing if listing else None,
            say,
            root=package.root,
            requires_python=wanted_python,
            asked_by=asked_by,
        )
        # Without an environment of its own a package of FEDn expects what was installed with FEDn's client.
        bare = python == Path(sys.executable) and self._installs.fedn is FednSource.SHIM
        path = str(shim_source()) if bare and package.manifest.fedn.imports else ""
        return PreparedProcess(package=package, python=python, path=path)

    async def run(self, prepared: Prepared, call: Call, say: LineSink) -> Finished:
        """Run one entry point; see :meth:`Runtime.run`.

        An environment that was evicted since the package was prepared is built again.

        Raises:
            EnvironmentFailed: that did not succeed.
        """
        if not isinstance(prepared, PreparedProcess):
            raise TypeError(f"prepared by another runtime: {prepared!r}")
        async with AsyncExitStack() as stack:
            if not await stack.enter_async_context(self._environments.in_use(prepared.python)):
                prepared = dataclasses.replace(prepared, python=(await self.prepare(prepared.package, say)).python)
                await stack.enter_async_context(self._environments.in_use(prepared.python))
            return await self._run_there(prepared, call, say)

    async def _run_there(self, prepared: PreparedProcess, call: Call, say: LineSink) -> Finished:
        env = _with_python(self._env | dict(call.env), prepared)
        argv = prepared.package.manifest.argv(call.entry_point, call.arguments, python=str(prepared.python))
        argv[0] = _program(argv[0], call.entry_point, prepared, env["PATH"])
        capture = LogCapture(say, budget_bytes=call.limits.output_bytes)
        started = time.perf_counter()
        try:
            status = await self._run(prepared, call, argv, env, capture)
        except TimeoutError as error:
            raise EntryPointTimeout(
                f"The entry point {call.entry_point} was still running after {call.timeout_s:g} s and was ended.",
                hint="Let it do less, or give it more time.",
                entry_point=call.entry_point,
                timeout_s=call.timeout_s,
                log_tail=capture.tail,
                limit="time",
            ) from error
        if status:
            raise _failed(call.entry_point, status, capture.tail, call.limits)
        return Finished(exit_status=status, elapsed_s=time.perf_counter() - started, log_tail=capture.tail)

    async def _run(
        self, prepared: PreparedProcess, call: Call, argv: Sequence[str], env: Mapping[str, str], capture: LogCapture
    ) -> int:
        root = prepared.package.root
        scripts = _warm_scripts(prepared)
        if self._warm is not None and call.entry_point in scripts:
            leader = await self._warm.fork(argv, folder=root, env=env, limits=call.limits, scripts=scripts.values())
            if leader is not None:
                return await run_leader(
                    leader, guard=self._guard, capture=capture, timeout_s=call.timeout_s, grace_s=self._grace_s
                )
        return await run_group(
            argv,
            cwd=root,
            env=env,
            guard=self._guard,
            capture=capture,
            limits=call.limits,
            timeout_s=call.timeout_s,
            grace_s=self._grace_s,
        )


def _warm_scripts(prepared: PreparedProcess) -> dict[str, str]:
    """Return the script of each entry point that runs often and is ``python SCRIPT`` with arguments or none."""
    found = {}
    manifest = prepared.package.manifest
    for name in _OFTEN:
        if name in manifest.entry_points:
            program, *words = manifest.argv(name, python=str(prepared.python))
            if program == str(prepared.python) and words and not words[0].startswith("-"):
                found[name] = words[0]
    return found


def _with_python(env: dict[str, str], prepared: PreparedProcess) -> dict[str, str]:
    """Let scripts that call ``python`` or an installed command themselves find those of their environment."""
    python = prepared.python
    if prepared.path:
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (prepared.path, env.get("PYTHONPATH"))))
    env["PATH"] = f"{python.parent}{os.pathsep}{env['PATH']}"
    if (python.parent.parent / "pyvenv.cfg").exists():
        env["VIRTUAL_ENV"] = str(python.parent.parent)
    return env


def _program(word: str, entry_point: str, prepared: PreparedProcess, path: str) -> str:
    """Return what to execute for the first word of a command, or say clearly that it is not there."""
    root = prepared.package.root
    if word == str(prepared.python) or word == "bash":
        found = shutil.which(word, path=path)
    else:
        found = shutil.which(root / word if "/" in word else word, path=path)
    if found is not None:
        return found
    if word == str(prepared.python):
        raise EnvironmentFailed(
            f"The interpreter {word} of the package's environment is not there any more.",
            hint="Restart the client, so that it is built again.",
        )
    if "/" in word and not (root / word).exists():
        raise BadPackage(
            f"The entry point {entry_point} should run {word}, which the package does not have.",
            entry_point=entry_point,
        )
    why = "is not executable" if "/" in word else "is not installed at this client"
    raise EntryPointFailed(
        f"The entry point {entry_point} should run {word!r}, which {why}.",
        hint="Make it executable in the package." if "/" in word else "Install it there, or change the package.",
        entry_point=entry_point,
        exit_status=127,
        log_tail="",
    )


def _needs_image(package: PackageFiles) -> EnvironmentFailed:
    manifest = package.manifest
    if manifest.image is not None:
        why = f"the image {manifest.image}"
    elif manifest.dockerfile is not None:
        why = f"the image that its {manifest.dockerfile} makes"
    else:
        why = f"an image with {', '.join(manifest.apt)}"
    return EnvironmentFailed(
        f"The package {manifest.name!r} runs in a container of {why}, and this client runs entry points as processes.",
        hint="Start the client with --runtime docker, where it has a Docker engine.",
        package=manifest.name,
    )


def _failed(entry_point: str, status: int, tail: str, limits: Limits) -> EntryPointFailed:
    happened = describe_status(status)
    fields: dict[str, object] = {"entry_point": entry_point, "exit_status": status, "log_tail": tail}
    hint = "The last lines of its log tell more." if tail else "It printed nothing."
    if used_up := limit_of(status, limits, tail):
        fields["limit"] = used_up
        hint = "Let it use less, or ask the site for more."
        if used_up == "memory":
            happened += MORE_MEMORY.format(limits.memory_bytes)
    return EntryPointFailed(f"The entry point {entry_point} {happened}.", hint=hint, **fields)


def limit_of(status: int, limits: Limits, tail: str) -> str:
    """Return which of the ``limits`` of a process ended it, as far as that can be told: ``cpu``, ``memory`` or neither.

    >>> limit_of(-24, Limits(cpu_s=1), ""), limit_of(1, Limits(memory_bytes=1 << 20), "MemoryError")
    ('cpu', 'memory')
    """
    if limits.cpu_s is not None and status in (-signal.SIGXCPU, 128 + signal.SIGXCPU):
        return "cpu"
    complains = any(each in tail for each in _NO_MORE_MEMORY)
    return "memory" if limits.memory_bytes is not None and complains else ""


def describe_status(status: int) -> str:
    """Say how a process ended; ``status`` as subprocess returns it.

    >>> describe_status(3)
    'ended with exit status 3'
    >>> describe_status(-9)
    'was killed by SIGKILL (out of memory?)'
    """
    # A shell tells a signal that ended its command as 128 + number.
    number = -status if status < 0 else status - 128
    if number not in signal.valid_signals():
        return f"ended with exit status {status}"
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    hint = f" ({_HINTS[signal.Signals(number)]})" if number in _HINTS else ""
    if status < 0:
        return f"was killed by {name}{hint}"
    return f"ended with exit status {status}, which mostly means: killed by {name}{hint}"
