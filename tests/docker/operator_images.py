"""The images of the components, and containers of them on networks of their own."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.docker_engine import base_image, docker, inspect
from tests.eventually import eventually_blocking

ROOT = Path(__file__).parents[2]
ROLES = ("reducer", "combiner", "client")
_SOURCES = ("common", "compute_package", "reducer", "combiner", "client", "sdk", "protos/gen", "examples/digits")


def ran(*arguments: str) -> str:
    """Run the docker command; what it printed is the answer, or part of the failure."""
    done = docker(*arguments, check=False)
    assert done.returncode == 0, f"docker {' '.join(arguments)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def wheelhouse() -> Path:
    """Return a folder with the wheels that the images need, from the index of this machine, by hash."""
    files = [ROOT / "requirements" / f"{name}.txt" for name in ("build", *ROLES)]
    asked = "import sys; print('{0}.{1}'.format(*sys.version_info))"
    version = ran("run", "--rm", "--network", "none", base_image(), "python3", "-c", asked).strip()
    key = hashlib.sha256(b"".join(file.read_bytes() for file in files) + version.encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "runnel-tests"
    folder = cache / f"wheelhouse-{key}"
    if not folder.exists():
        beside = cache / f"wheelhouse-{key}.{os.getpid()}.part"
        wanted = [word for file in files for word in ("--requirement", str(file))]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        subprocess.run(
            [*command, "--require-hashes", f"--python-version={version}", f"--dest={beside}", *wanted],
            check=True,
            capture_output=True,
            text=True,
        )
        beside.replace(folder)
    return folder


def build_images(folder: Path) -> dict[str, str]:
    """Build the three images without a network; return their names by role."""
    context = folder / "context"
    for source in _SOURCES:
        shutil.copytree(ROOT / source, context / source, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "requirements", context / "requirements")
    for name in ("pyproject.toml", "README.md", "LICENSE", ".dockerignore"):
        shutil.copy(ROOT / name, context / name)
    shutil.copytree(wheelhouse(), context / "wheelhouse")
    names = {}
    for role in ROLES:
        names[role] = f"runnel-{role}:test"
        place = ("--file", str(context / role / "Dockerfile"), "--tag", names[role], "--network", "none")
        ran("build", *place, "--build-arg", f"BASE={base_image()}", "--build-arg", "PIP_NO_INDEX=1", str(context))
    return names


class ContainerNetwork:
    """Containers, networks and volumes whose names begin with ``name``; leaves none of them behind."""

    def __init__(self, name: str, images: dict[str, str]) -> None:
        self.name = name
        self._images = images
        self._containers: list[str] = []
        self._networks: list[str] = []
        self.reducer = "reducer"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for container in self._containers:
            told = docker("logs", "--tail", "30", self.full(container), check=False)
            print(f"---- {container}\n{told.stdout}{told.stderr}")  # shown when the test fails
            docker("rm", "--force", self.full(container), check=False)
            docker("volume", "rm", "--force", f"{self.full(container)}-state", check=False)
        for network in self._networks:
            docker("network", "rm", network, check=False)

    def full(self, name: str) -> str:
        return f"{self.name}-{name}"

    def network(self, name: str) -> None:
        ran("network", "create", "--internal", self.full(name))
        self._networks.append(self.full(name))

    def start(self, name: str, role: str, networks: list[str], *options: str, command: tuple[str, ...] = ()) -> None:
        """Start a component as compose.yaml does: nothing writable but its state and /tmp, no capabilities."""
        cage = ("--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--init")
        state = f"--volume={self.full(name)}-state:/state"
        alias = f"--network-alias={name}"
        first, *others = networks
        self._containers.append(name)
        place = (f"--name={self.full(name)}", f"--hostname={name}", f"--network={self.full(first)}", alias)
        ran("create", *place, *cage, state, *options, self._images[role], *command)
        for other in others:
            ran("network", "connect", "--alias", name, self.full(other), self.full(name))
        ran("start", self.full(name))

    def exec(self, name: str, *command: str) -> str:
        return ran("exec", self.full(name), *command)

    def until_well(self, *names: str) -> None:
        """Wait until the command of the images' health checks is content."""
        for name in names:
            eventually_blocking(functools.partial(self._well, name), timeout_s=90)

    def _well(self, name: str) -> bool:
        return docker("exec", self.full(name), "runnel", "health", "--timeout-s", "20", check=False).returncode == 0

    def until_health(self, name: str, wanted: str, said: str) -> None:
        """Wait until the engine finds the container ``wanted``, and its check ``said`` so."""

        def found() -> bool:
            health = inspect("container", self.full(name))["State"]["Health"]
            return health["Status"] == wanted and said in health["Log"][-1]["Output"]

        eventually_blocking(found, timeout_s=90)

    def runnel(self, *command: str) -> Any:
        """Run a command for people beside the reducer, as its operator."""
        token = self.exec(self.reducer, "cat", "/state/operator.token").strip()
        options = ("--env=RUNNEL_URL=https://reducer:7480", "--env=RUNNEL_CA_FILE=/tls/ca.pem")
        told = ran(
            "exec", *options, f"--env=RUNNEL_TOKEN={token}", self.full(self.reducer), "runnel", *command, "--json"
        )
        return json.loads(told)

    def stop(self, name: str) -> int:
        """Tell it to end; return its exit status, which is 137 if it had to be killed."""
        ran("stop", "--time", "25", self.full(name))
        return int(inspect("container", self.full(name))["State"]["ExitCode"])
