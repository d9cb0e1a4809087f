"""For which release of vantage6 an image was made."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from aiodocker.containers import DockerContainer
from aiodocker.exceptions import DockerError

from runnel.client.runtimes.docker_engine import Engine, engine_errors
from runnel.client.tasks.vantage6_files import Profile
from runnel.common.blobs import in_thread

_ONLY_IN_V5 = "vantage6/algorithm/decorator/__init__.py"
_VERSION_FILE = "vantage6/algorithm/client/_version.py"
_VERSION = re.compile(rb"version_info = \((\d+), (\d+)")
_PYTHON = re.compile(r"PYTHON_VERSION=(\d+\.\d+)")


async def detect_profile(engine: Engine, image: str, labels: Mapping[str, str]) -> Profile:
    """Return the profile that fits an image which the engine has.

    Its command tells the wrapper of releases 2 and 3 from later ones; which of these it is stands in a file of the
    image, looked for where images of Python have their packages. What tells nothing is taken for release 4.

    Raises:
        EnvironmentFailed: the engine refused, or is gone.
    """
    with engine_errors(f"tell about the image {image}"):
        config = (await engine.docker.images.inspect(image)).get("Config") or {}
    command = " ".join([*(config.get("Entrypoint") or ()), *(config.get("Cmd") or ())])
    if "vantage6.tools" in command:
        return Profile.V3
    python = next((found[1] for each in config.get("Env") or () if (found := _PYTHON.match(each))), None)
    if python is None:
        return Profile.V4
    packages = f"/usr/local/lib/python{python}/site-packages"
    version, only_in_v5 = await _files_of(
        engine, image, [f"{packages}/{each}" for each in (_VERSION_FILE, _ONLY_IN_V5)], labels
    )
    if only_in_v5:  # which has no file with its version
        return Profile.V5
    number = _VERSION.search(version)
    return Profile.V4_0 if number is not None and (int(number[1]), int(number[2])) < (4, 2) else Profile.V4


async def _files_of(engine: Engine, image: str, paths: Sequence[str], labels: Mapping[str, str]) -> list[bytes]:
    """Return small files of an image, by a container that is never started; empty: it is not there."""
    name = f"runnel-look-{secrets.token_hex(8)}"
    config: dict[str, Any] = {"Image": image, "Labels": dict(labels), "NetworkDisabled": True, "Cmd": ["-"]}
    with engine_errors(f"look into the image {image}"):
        container = await engine.docker.containers.create(config, name=name)
        try:
            return [await _file_of(container, path) for path in paths]
        finally:
            await container.delete(force=True)


async def _file_of(container: DockerContainer, path: str) -> bytes:
    try:
        archive = await container.get_archive(path)
    except DockerError as error:
        if error.status != 404:
            raise
        return b""
    return await in_thread(_only_file, archive)


def _only_file(archive: Any) -> bytes:
    with archive:
        member = archive.next()
        file = archive.extractfile(member) if member is not None and member.isreg() else None
        return file.read(1 << 16) if file is not None else b""
