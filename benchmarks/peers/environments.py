"""An environment of its own for each peer, made once by uv and kept outside the repository."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from runnel.demo.processes import ONE_THREAD

_MADE = ".made-for-benchmarks"
_INSTALL_S = 900.0


class PeerUnavailable(RuntimeError):
    """A peer could not be installed here; the message is the reason."""


def default_folder(environ: Mapping[str, str]) -> Path:
    """Return where environments are kept: the user's cache."""
    cache = environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "runnel-benchmarks"


async def environment(folder: Path, package: str, environ: Mapping[str, str] | None = None) -> tuple[Path, str]:
    """Return the folder of an environment with the newest ``package`` that installs here, and its version.

    ``environ``: for uv; by default this process' variables.

    Raises:
        PeerUnavailable: it can't be had.
    """
    variables = dict(os.environ if environ is None else environ) | {"UV_PYTHON_DOWNLOADS": "never"}
    own = folder / package
    if not await asyncio.to_thread((own / _MADE).exists):
        await asyncio.to_thread(shutil.rmtree, own, ignore_errors=True)
        await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
        await _uv(variables, "venv", "--quiet", "--python", sys.executable, str(own))
        await _uv(variables, "pip", "install", "--quiet", "--python", str(own / "bin/python"), package, "numpy")
        await asyncio.to_thread((own / _MADE).touch)
    ask = f"from importlib.metadata import version; print(version({package!r}))"
    return own, (await _said([str(own / "bin/python"), "-c", ask], variables)).strip()


def peer_variables(environment: Path, home: Path) -> dict[str, str]:
    """Return the variables of a peer's processes: nothing of the user's own, nobody to tell about the run."""
    return ONE_THREAD | {
        "PATH": os.pathsep.join([str(environment / "bin"), "/usr/local/bin", "/usr/bin", "/bin"]),
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        "FLWR_HOME": str(home / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "NVFLARE_POC_WORKSPACE": str(home / "poc"),
        "DO_NOT_TRACK": "1",
    }


async def _uv(environ: Mapping[str, str], *arguments: str) -> None:
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else shutil.which("uv")
    if uv is None:
        raise PeerUnavailable("uv, which makes its environment, is not installed")
    await _said([uv, *arguments], environ)


async def _said(argv: Sequence[str], environ: Mapping[str, str]) -> str:
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environ,
    )
    try:
        async with asyncio.timeout(_INSTALL_S):
            said, complained = await process.communicate()
    except TimeoutError as error:
        raise PeerUnavailable(f"{Path(argv[0]).name} took longer than {_INSTALL_S:g} s") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        lines = complained.decode(errors="replace").split("\n")
        reason = " ".join(line.strip() for line in lines if line.strip())[:300]
        raise PeerUnavailable(f"{' '.join([Path(argv[0]).name, *argv[1:3]])} ended with {process.returncode}: {reason}")
    return said.decode()
