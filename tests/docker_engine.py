"""The Docker engine that tests use, and the image that theirs are built on."""

from __future__ import annotations

import functools
import json
import os
import secrets
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from runnel.client.domain import Cage
from tests.needs import needs

ENGINE = "RUNNEL_TEST_DOCKER_HOST"
BASE = "RUNNEL_TEST_BASE_IMAGE"
_HINT = "tools/docker_engine.sh and tools/base_image.sh make them"


@functools.cache
def _has(host: str, image: str) -> bool:
    return bool(host and image) and docker("image", "inspect", image, host=host, check=False).returncode == 0


def engine_host() -> str:
    """Return the engine's address; skips (or fails in CI) where there is none with the base image."""
    host, image = os.environ.get(ENGINE, ""), os.environ.get(BASE, "")
    needs(_has(host, image), f"a Docker engine and its base image, named by {ENGINE} and {BASE} ({_HINT})")
    return host


def base_image() -> str:
    """Return the image that tests build on; it has Python, numpy and pip."""
    engine_host()
    return os.environ[BASE]


def docker(*arguments: str, host: str | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the docker command against the engine."""
    return subprocess.run(
        ["docker", "--host", host or engine_host(), *arguments], capture_output=True, text=True, check=check
    )


def containers(client: str) -> list[str]:
    """Return the names of all containers of ``client``, running or not."""
    told = docker("ps", "--all", "--filter", f"label=runnel.client={client}", "--format", "{{.Names}}")
    return told.stdout.split()


def volumes(client: str) -> list[str]:
    """Return the names of all volumes of ``client``."""
    told = docker("volume", "ls", "--filter", f"label=runnel.client={client}", "--format", "{{.Name}}")
    return told.stdout.split()


def networks(client: str) -> list[str]:
    """Return the names of all networks of ``client``."""
    told = docker("network", "ls", "--filter", f"label=runnel.client={client}", "--format", "{{.Name}}")
    return told.stdout.split()


def inspect(kind: str, name: str) -> Any:
    """Return what the engine knows of the image or container ``name``."""
    return json.loads(docker(kind, "inspect", name).stdout)[0]


def forget_images(package: str) -> None:
    """Remove the images that were made of the package with this digest."""
    found = docker("images", "--quiet", "--filter", f"label=runnel.package={package}").stdout.split()
    if found:
        docker("rmi", "--force", *set(found))


@asynccontextmanager
async def docker_runtime(folder: Path, **choices: Any) -> AsyncIterator[Any]:
    """A runtime of a client of its own, which must leave nothing at the engine."""
    host = engine_host()
    from runnel.client.runtimes.docker import DockerRuntime

    client = choices.setdefault("client", f"client-of-{folder.name}-{secrets.token_hex(4)}")
    usual: dict[str, Any] = {
        "state": folder,
        "environ": {"LC_ALL": "C.UTF-8"},
        "grace_s": 0.3,
        "base_image": base_image(),
    }
    async with DockerRuntime(host=host, **(usual | choices)) as made:
        yield made
    assert containers(client) == []
    assert volumes(client) == []


def cage(**limits: Any) -> Cage:
    """Return a cage as small as tests need."""
    return Cage(**({"memory_bytes": 512 << 20, "pids": 64, "tmpfs_bytes": 32 << 20, "disk_bytes": 64 << 20} | limits))


def with_base(lines: Sequence[str] = ()) -> str:
    """Return a Dockerfile on the base image."""
    return "\n".join(["ARG BASE_IMAGE", "FROM ${BASE_IMAGE}", *lines, ""])
