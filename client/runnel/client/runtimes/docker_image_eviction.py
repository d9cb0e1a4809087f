"""The one way in which images go that a client had made or fetched: by age and size, and none that is in use."""

from __future__ import annotations

from collections.abc import Callable

import structlog
from aiodocker.exceptions import DockerError

from runnel.client.runtimes.docker_engine import Engine, engine_errors, inspected
from runnel.client.runtimes.docker_image_uses import ImageUses
from runnel.common.blobs import in_thread
from runnel.common.errors import EnvironmentFailed

log = structlog.get_logger()


async def evict(
    engine: Engine,
    uses: ImageUses,
    *,
    most_bytes: int,
    most_days: float,
    name_of: Callable[[str], str],
    in_use: Callable[[str], bool] = lambda tag: False,
) -> list[str]:
    """Remove what is due; return the ids of the images that are gone.

    What a container has, or somebody gave a further name, the engine keeps; that counts as a use.

    Args:
        engine: that has the images.
        uses: when they were used last.
        most_bytes: of all together.
        most_days: since the last use.
        name_of: by which the engine knows an image, from its tag in ``uses``.
        in_use: whether somebody has an image, by its tag, without a container yet.
    """
    gone = []
    for one in await in_thread(uses.due, most_bytes=most_bytes, most_days=most_days):
        name = name_of(one.tag)
        if in_use(one.tag):
            continue
        try:
            if (found := await inspected(engine, name)) is not None:
                with engine_errors(f"remove the image {name}"):
                    await engine.docker.images.delete(name)
                gone.append(str(found["Id"]))
                log.info("an image was removed", image=name, size_bytes=one.size_bytes)
        except EnvironmentFailed as error:
            log.warning("an image could not be removed", image=name, error=error.message)
            if isinstance(error.__cause__, DockerError) and error.__cause__.status == 409:
                await in_thread(uses.note, one.tag, one.size_bytes)
            continue
        await in_thread(uses.forget, one.tag)
    return gone
