"""Which Python an image has, where a package asks for one."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

from runnel.client.domain.cage import Cage
from runnel.client.runtimes.docker_container import Container, container_config
from runnel.client.runtimes.docker_engine import Engine
from runnel.client.runtimes.log_capture import LogCapture
from runnel.client.runtimes.python_versions import read_request
from runnel.client.runtimes.runtime import Limits
from runnel.common.errors import EnvironmentFailed
from runnel.compute_package import Manifest

_ASK = ("python3", "-c", "import platform; print(platform.python_version())")
_TIMEOUT_S = 60.0


class ImagePythons:
    """Asks images for their Python, each once, in a container as caged as any.

    Args:
        engine: that has them.
        cage: what the containers may take.
        owner: uid and gid of their processes.
        labels: of the containers.
    """

    def __init__(self, engine: Engine, *, cage: Cage, owner: tuple[int, int], labels: Mapping[str, str]) -> None:
        self._engine = engine
        self._cage = cage
        self._owner = owner
        self._labels = labels
        self._known: dict[str, str] = {}

    async def require(self, manifest: Manifest, image: str) -> None:
        """Refuse an image whose Python is not the one that a package asks for.

        Raises:
            EnvironmentFailed: it has another, or none; the message names both.
            BadPackage: what is asked for is no version.
        """
        text, source = manifest.asked_python
        if not text:
            return
        request = read_request(text, source)
        if image not in self._known:
            self._known[image] = await self._ask(image)
        version = self._known[image]
        if not (version and request.accepts(version)):
            has = f"has Python {version}" if version else "has no python3"
            raise EnvironmentFailed(
                f"{source} asks for Python {text}, and the image that the package would run in {has}.",
                hint="Build it on an image with that Python, or ask the site for one (--docker-image).",
                log_tail="",
            )

    async def _ask(self, image: str) -> str:
        lines: list[str] = []
        config = container_config(
            image=image,
            argv=_ASK,
            env={},
            folder="/",
            mounts=[],
            cage=self._cage,
            owner=self._owner,
            limits=Limits(),
            cpus=self._engine.facts.cpus,
            labels=self._labels,
        )
        container = Container(
            engine=self._engine,
            name=f"runnel-{secrets.token_hex(8)}",
            config=config,
            capture=LogCapture(lambda stream, text: lines.append(text) if stream == "stdout" else None),
            grace_s=0.0,
            full=_never,
        )
        try:
            try:
                await container.create()
                await container.start()
                await container.wait(_TIMEOUT_S)
            finally:
                await container.end()
            ended = await container.result()
        finally:
            await container.remove()
        return lines[0].strip() if lines and not ended.status else ""


async def _never() -> bool:
    return False
