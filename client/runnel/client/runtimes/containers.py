"""The way to the Docker runtime for code that mostly does without: its library is loaded when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from runnel.client.domain.cage import Cage
from runnel.client.runtimes.installs import Installs
from runnel.common.errors import BadSettings

if TYPE_CHECKING:
    from runnel.client.runtimes.docker import DockerRuntime


def in_containers(
    *,
    client: str,
    state: Path,
    environ: Mapping[str, str],
    host: str | None = None,
    config: Path | None = None,
    base_image: str = "",
    files: str | None = None,
    cage: Cage | None = None,
    installs: Installs | None = None,
) -> DockerRuntime:
    """Return a :class:`~runnel.client.runtimes.docker.DockerRuntime`; ``files`` is ``mount``, ``copy`` or None.

    Raises:
        BadSettings: what it needs is not installed.
    """
    try:
        from runnel.client.runtimes.docker import DockerRuntime
        from runnel.client.runtimes.docker_files import FileSharing
    except ModuleNotFoundError as error:
        raise BadSettings(
            f"The runtime docker needs the module {error.name}, which is not installed.",
            hint="Install it: pip install 'runnel[client]'.",
        ) from error
    return DockerRuntime(
        client=client,
        state=state,
        environ=environ,
        host=host,
        config=config,
        base_image=base_image,
        cage=cage,
        installs=installs,
        sharing=None if files is None else FileSharing(files),
    )
