"""A registry of the tests' own that wants a password: Docker's, as Debian has it, on the loopback."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import shutil
import socket
import subprocess
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.docker_engine import docker, engine_host
from tests.needs import needs

USER = "reader"
PASSWORD = "correct-horse:battery"
# The registry takes bcrypt only, which is slow on purpose.
_HTPASSWD = "reader:$2b$04$abpI/Qi/V0oNbP94gYzC0.Hb48vg062zLtzDa7BUAN83ng3HWumoW\n"
_START_S = 20.0
# Small, as a registry is sent and packs all layers.
_DOCKERFILE = """FROM {base} AS base
RUN mkdir /small && cp --parents -L /bin/cat $(ldd /bin/cat | grep -o '/[^ ]*') /small
FROM scratch
COPY --from=base /small /
COPY said /said
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """It is at ``host`` (``127.0.0.1:PORT``); ``login`` is the config.json of somebody who may push and pull."""

    host: str
    login: Path

    def push(self, name: str, base: str, text: str) -> str:
        """Push an image with `cat` of ``base`` and ``text`` in /said as ``name``, keep none; return its digest."""
        full, layer = f"{self.host}/{name}", io.BytesIO()
        with tarfile.open(fileobj=layer, mode="w") as archive:
            for path, content in (("Dockerfile", _DOCKERFILE.format(base=base)), ("said", text)):
                info = tarfile.TarInfo(path)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content.encode()))
        build = ["docker", "--host", engine_host(), "build", "--quiet", "--network", "none", "--tag", full, "-"]
        subprocess.run(build, input=layer.getvalue(), capture_output=True, check=True)
        docker("--config", str(self.login.parent), "push", full)
        (digest,) = json.loads(docker("image", "inspect", "--format", "{{json .RepoDigests}}", full).stdout)
        self.forget(name)
        return str(digest).partition("@")[2]

    def forget(self, name: str) -> None:
        """Remove an image from the engine, if it is there."""
        docker("rmi", "--force", f"{self.host}/{name}", check=False)


@contextlib.contextmanager
def running_registry() -> Iterator[Registry]:
    """Run one; skips (or fails in CI) where there is no program or no engine that could pull."""
    engine_host()
    program = shutil.which("docker-registry")
    needs(program, "the program docker-registry")
    assert program is not None
    with tempfile.TemporaryDirectory(prefix="runnel-registry-") as name, socket.socket() as probe:
        folder = Path(name)
        probe.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{probe.getsockname()[1]}"
        probe.close()
        (folder / "htpasswd").write_text(_HTPASSWD)
        (folder / "config.yml").write_text(
            json.dumps(
                {
                    "version": "0.1",
                    "log": {"level": "error", "accesslog": {"disabled": True}},
                    "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
                    "http": {"addr": host},
                    "auth": {"htpasswd": {"realm": "tests", "path": str(folder / "htpasswd")}},
                }
            )
        )
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen([program, "serve", str(folder / "config.yml")], stdout=log, stderr=log)
        try:
            _wait(host, process, folder / "log")
            yield Registry(host=host, login=login(folder / "login", host, PASSWORD))
        finally:
            process.terminate()
            process.wait(10)


def login(folder: Path, host: str, password: str) -> Path:
    """Write what `docker login` would have written into ``folder``; return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    known = base64.b64encode(f"{USER}:{password}".encode()).decode()
    path = folder / "config.json"
    path.write_text(json.dumps({"auths": {host: {"auth": known}}}))
    return path


def _wait(host: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + _START_S
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://{host}/v2/", timeout=1):
                return
        except urllib.error.HTTPError:  # 401: it is there
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"The registry does not serve:\n{log.read_text()[-2000:]}")
