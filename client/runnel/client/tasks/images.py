"""Images of tasks: found or fetched as the site wants it, and known by their digests before anything of them runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog
from aiodocker.exceptions import DockerError

from runnel.client.domain.task_policy import Pull
from runnel.client.runtimes.docker_engine import Engine, engine_errors, inspected
from runnel.client.runtimes.log_capture import readable
from runnel.common.errors import EnvironmentFailed, ImageUnavailable

DEFAULT_PULL_TIMEOUT_S = 3600.0
_TELL_S = 0.5

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskImage:
    """An image that the engine has.

    Args:
        name: by which the task asks for it.
        id: of it, which no other ever has.
        digests: ``sha256:…``, its id and those by which registries know it.
        volumes: folders in which it would have volumes, which know no limit.
    """

    name: str
    id: str
    digests: frozenset[str]
    volumes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """The one to tell: of a registry if it is from one, else its id."""
        return min(self.digests - {self.id}, default=self.id)


@dataclass(slots=True)
class _Progress:
    """How far a pull is, over all layers that say how large they are."""

    layers: dict[str, tuple[int, int]] = field(default_factory=dict)

    def told(self, line: Mapping[str, Any]) -> str:
        detail = line.get("progressDetail") or {}
        if line.get("status") == "Downloading" and detail.get("total"):
            self.layers[str(line.get("id"))] = (int(detail.get("current", 0)), int(detail["total"]))
        elif line.get("status") in ("Download complete", "Pull complete") and (one := self.layers.get(str(line["id"]))):
            self.layers[str(line["id"])] = (one[1], one[1])
        total = sum(size for _, size in self.layers.values())
        return f" ({100 * sum(done for done, _ in self.layers.values()) // total} %)" if total else ""


class TaskImages:
    """Finds or fetches images.

    Args:
        engine: whose.
        timeout_s: seconds that a transfer may take.
    """

    def __init__(self, engine: Engine, *, timeout_s: float = DEFAULT_PULL_TIMEOUT_S) -> None:
        self._engine = engine
        self._timeout_s = timeout_s
        self._turns: dict[str, asyncio.Lock] = {}

    async def get(self, name: str, pull: Pull, tell: Callable[[str], None]) -> TaskImage:
        """Return the image ``name``, fetched as ``pull`` says; ``tell`` hears how far that is.

        Raises:
            ImageUnavailable: it can't be had, or what came has not the digest that ``name`` pins.
            EnvironmentFailed: the engine is gone.
        """
        # Two runs that want the same image wait for one transfer.
        async with self._turns.setdefault(name, asyncio.Lock()):
            found = None if pull is Pull.ALWAYS else await self._find(name)
            if found is None:
                if pull is Pull.NEVER:
                    raise ImageUnavailable(
                        f"The image {name} is not there, and this site fetches none.",
                        hint="Ask the people of that site to load it.",
                        image=name,
                    )
                await self._fetch(name, tell)
                found = await self._find(name)
        if found is None:
            raise ImageUnavailable(f"The Docker engine fetched the image {name} and does not have it.", image=name)
        pinned = name.partition("@")[2]
        if pinned and pinned not in found.digests:
            raise ImageUnavailable(
                f"The image {name} is not what its digest says: it has {', '.join(sorted(found.digests))}.", image=name
            )
        return found

    async def _fetch(self, name: str, tell: Callable[[str], None]) -> None:
        progress, told_at = _Progress(), 0.0
        tell(f"pulling {name}")
        log.info("pulling an image", image=name)
        try:
            with engine_errors(f"fetch the image {name}"):
                async with asyncio.timeout(self._timeout_s):
                    async for line in self._engine.pull(name):
                        if problem := line.get("error"):
                            raise self._failed(name, readable(str(problem).encode()))
                        how_far, now = progress.told(line), time.monotonic()
                        if how_far and now - told_at > _TELL_S:
                            told_at = now
                            tell(f"pulling {name}{how_far}")
        except TimeoutError as error:
            raise self._failed(name, f"it was not there within {self._timeout_s:g} s") from error
        except EnvironmentFailed as error:
            if not isinstance(error.__cause__, DockerError):
                raise
            raise self._failed(name, readable(error.__cause__.message.encode())) from error

    def _failed(self, name: str, why: str) -> ImageUnavailable:
        return ImageUnavailable(
            f"The image {name} could not be fetched: {why.rstrip('.')}.",
            hint="Check its name, and that the engine of the site reaches its registry and may read there.",
            image=name,
        )

    async def _find(self, name: str) -> TaskImage | None:
        found = await inspected(self._engine, name)
        if found is None:
            return None
        volumes = (found.get("Config") or {}).get("Volumes") or {}
        named = {str(each).partition("@")[2] for each in found.get("RepoDigests") or ()}
        return TaskImage(
            name=name,
            id=str(found["Id"]),
            digests=frozenset({str(found["Id"]), *filter(None, named)}),
            volumes=tuple(sorted(volumes)),
        )
