"""Images of tasks: found or fetched as the site wants it, and known by their digests before anything of them runs.

What was fetched here goes again by age and size, as images that are made for packages do. What the engine had before
stays, and so does what a run has.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

import structlog
from aiodocker.exceptions import DockerError

from runnel.client.domain.task_policy import Pull
from runnel.client.runtimes.docker_engine import Engine, engine_errors, inspected
from runnel.client.runtimes.docker_image_eviction import evict
from runnel.client.runtimes.docker_image_uses import ImageUses
from runnel.client.runtimes.installs import DEFAULT_MOST_BYTES, DEFAULT_MOST_DAYS
from runnel.client.runtimes.log_capture import readable
from runnel.common.blobs import in_thread
from runnel.common.errors import EnvironmentFailed, ImageUnavailable

DEFAULT_PULL_TIMEOUT_S = 3600.0
_TELL_S = 0.5
_ALGORITHM = "sha256:"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskImage:
    """An image that the engine has.

    Args:
        name: by which the task asks for it.
        id: of it, which no other ever has.
        digests: ``sha256:…``, its id and those by which registries know it.
        volumes: folders in which it would have volumes, which know no limit.
        size_bytes: of all its layers.
    """

    name: str
    id: str
    digests: frozenset[str]
    volumes: tuple[str, ...] = ()
    size_bytes: int = 0

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
    """Finds or fetches images, and removes what was fetched when it is old or too much.

    Args:
        engine: whose.
        uses: what was fetched here, and when it was used last.
        most_bytes: of all images that were fetched here.
        most_days: since the last use of one.
        timeout_s: seconds that a transfer may take.
    """

    def __init__(
        self,
        engine: Engine,
        uses: ImageUses,
        *,
        most_bytes: int = DEFAULT_MOST_BYTES,
        most_days: float = DEFAULT_MOST_DAYS,
        timeout_s: float = DEFAULT_PULL_TIMEOUT_S,
    ) -> None:
        self._engine = engine
        self._uses = uses
        self._most_bytes = most_bytes
        self._most_days = most_days
        self._timeout_s = timeout_s
        self._turns = WeakValueDictionary[str, asyncio.Lock]()  # by name: those that somebody has or waits for
        self._held: dict[str, set[str]] = {}  # ids of images, by the run that has them
        self._removing = asyncio.Lock()
        self._fetching = 0

    async def get(self, name: str, pull: Pull, tell: Callable[[str], None], *, run_id: str) -> TaskImage:
        """Return the image ``name``, fetched as ``pull`` says; ``tell`` hears how far that is.

        It stays until ``run_id`` lets go of it.

        Raises:
            ImageUnavailable: it can't be had, or what came has not the digest that ``name`` pins.
            EnvironmentFailed: the engine is gone.
        """
        # Two runs that want the same image wait for one transfer.
        async with self._turns.setdefault(name, asyncio.Lock()):
            found = None if pull is Pull.ALWAYS else await self._hold(name, run_id)
            if found is None:
                if pull is Pull.NEVER:
                    raise ImageUnavailable(
                        f"The image {name} is not there, and this site fetches none.",
                        hint="It has to be in the engine of that site before, as by docker pull.",
                        image=name,
                    )
                found = await self._fetched(name, tell, run_id)
        if found is None:
            raise ImageUnavailable(f"The Docker engine fetched the image {name} and does not have it.", image=name)
        pinned = name.partition("@")[2]
        if pinned and pinned not in found.digests:
            raise ImageUnavailable(
                f"The image {name} is not what its digest says: it has {', '.join(sorted(found.digests))}.", image=name
            )
        return found

    async def let_go(self, run_id: str, pull: Pull) -> None:
        """A run needs its images no longer; what is old or too much goes, unless nothing may be fetched again."""
        try:
            for image_id in self._held.pop(run_id, ()):
                await in_thread(self._uses.again, _tag(image_id))
            # An image that is fetched anew this very moment could be one that is due.
            if pull is Pull.NEVER or self._fetching:
                return
            async with self._removing:
                await evict(
                    self._engine,
                    self._uses,
                    most_bytes=self._most_bytes,
                    most_days=self._most_days,
                    name_of=lambda tag: f"{_ALGORITHM}{tag}",
                    in_use=lambda tag: any(f"{_ALGORITHM}{tag}" in held for held in self._held.values()),
                )
        except OSError as error:  # of the state folder: no reason for a run to fail that has ended
            log.warning("images could not be looked through", error=str(error))

    async def _hold(self, name: str, run_id: str) -> TaskImage | None:
        async with self._removing:
            found = await self._find(name)
            if found is not None:
                self._held.setdefault(run_id, set()).add(found.id)
                await in_thread(self._uses.again, _tag(found.id))
            return found

    async def _fetched(self, name: str, tell: Callable[[str], None], run_id: str) -> TaskImage | None:
        with self._transfer():
            with engine_errors("list its images"):
                before = {str(each["Id"]) for each in await self._engine.docker.images.list()}
            await self._fetch(name, tell)
            found = await self._hold(name, run_id)
        if found is not None and found.id not in before:
            await in_thread(self._uses.note, _tag(found.id), found.size_bytes)
        return found

    @contextmanager
    def _transfer(self) -> Iterator[None]:
        self._fetching += 1
        try:
            yield
        finally:
            self._fetching -= 1

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
            size_bytes=int(found.get("Size") or 0),
        )


def _tag(image_id: str) -> str:
    return image_id.removeprefix(_ALGORITHM)
