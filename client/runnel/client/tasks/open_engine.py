"""An engine that answered, with all that runs of tasks want of it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from runnel.client.runtimes.docker_engine import Engine
from runnel.client.runtimes.docker_files import FileSharing
from runnel.client.runtimes.docker_image_uses import ImageUses
from runnel.client.runtimes.docker_leftovers import labels_of, sweep
from runnel.client.tasks.containers import TaskContainers
from runnel.client.tasks.executors import run_executors
from runnel.client.tasks.file_ways import choose_way
from runnel.client.tasks.images import TaskImages
from runnel.client.tasks.task_engine import EngineSettings
from runnel.client.tasks.work import Work
from runnel.common.protocol import Failure

LABEL_TASKS = "runnel.tasks"
"""Label of all that is made for tasks, so that one client's packages and tasks are told apart."""

_IMAGES = "task-images"  # folder of the state


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenEngine:
    """An engine, what fetches images there, what runs containers there, and the labels of what is made."""

    engine: Engine
    images: TaskImages
    containers: TaskContainers
    labels: Mapping[str, str]

    async def run(self, work: Work) -> tuple[int | None, Failure | None]:
        """Run the executors of a run; see :func:`.executors.run_executors`."""
        return await run_executors(work, self.containers)


@asynccontextmanager
async def open_engine(settings: EngineSettings, *, started: Callable[[float], None]) -> AsyncIterator[OpenEngine]:
    """Connect, and remove what an earlier start of this client left of its tasks.

    ``started`` is told how long each start of a container took, in seconds.

    Raises:
        BadSettings: no engine answers, or it can't have the files of this client.
        EnvironmentFailed: it refused, or is gone again.
    """
    labels = labels_of(settings.client, settings.state) | {LABEL_TASKS: "yes"}
    owner = (os.geteuid(), os.getegid())
    async with Engine(settings.host, settings.environ, settings.config) as engine:
        await sweep(engine, labels)
        way = await choose_way(
            engine,
            state=settings.state,
            sharing=None if settings.files is None else FileSharing(settings.files),
            labels=labels,
            owner=owner,
        )
        yield OpenEngine(
            engine=engine,
            images=TaskImages(
                engine,
                ImageUses(settings.state / _IMAGES),
                most_bytes=settings.most_bytes,
                most_days=settings.most_days,
            ),
            containers=TaskContainers(engine, way, labels=labels, owner=owner, grace_s=settings.grace_s, took=started),
            labels=labels,
        )
