"""How soon a task's container starts at its site, beside what the engine itself needs to create and start it.

Reducer and client are real processes and the image is there. Asked for over HTTP, as `runnel task run` does; the
engine's own event says when the container has started. In turn with it, a container of the very same configuration,
mounts included, is created and started at the same engine. Needs a Docker engine (``DOCKER_HOST``) and an image that it
has and that has ``sh`` (``RUNNEL_BENCH_IMAGE``).

    python -m benchmarks.task_start [--quick] [--json]
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
import time
from collections.abc import Mapping
from typing import Any, cast

from benchmarks.containers import IMAGE
from benchmarks.figures import Result, figure, parser_of, quieten, tell
from benchmarks.local_network import LocalNetwork, local_network
from runnel.client.runtimes.docker_engine import Engine
from runnel.client.runtimes.docker_leftovers import LABEL_STATE
from runnel.common.errors import BadSettings, NoEngine
from runnel.common.lifetime import report as failed

LIMIT_MS = 300.0
_SITE = "client-1"
_WAIT_S = 60.0
_OWN = "runnel.benchmark"


async def measure(quick: bool) -> Result:
    """Measure starts by task and by engine in turn, after one of each.

    Raises:
        NoEngine: no engine answers, or it does not have the image.
    """
    image = os.environ.get(IMAGE, "")
    starts = 3 if quick else 25
    try:
        async with Engine(None, os.environ) as engine:
            if not image or not any(
                image in (each.get("RepoTags") or ()) for each in await engine.docker.images.list()
            ):
                raise NoEngine(f"Name an image of the engine at {engine.host} that has sh: {IMAGE}=…")
            async with local_network(clients=1) as network:
                by_task, by_engine = await _in_turn(network, engine, image, starts)
    except BadSettings as error:
        raise NoEngine(error.message, hint=error.hint) from error
    beyond = [task - bare for task, bare in zip(by_task, by_engine, strict=True)]
    return Result(
        benchmark="task_start",
        parameters={"starts": starts, "image": image},
        figures=[
            figure("task asked for to container started", "ms", by_task),
            figure("engine alone: create and start", "ms", by_engine),
            figure("overhead of a task", "ms", beyond, target=LIMIT_MS),
        ],
    )


class Starts:
    """The engine's own word on when containers have started."""

    def __init__(self, engine: Engine) -> None:
        # The library has no types here.
        self._events: Any = cast(Any, engine.docker.events)
        self._channel: Any = self._events.subscribe()

    async def stop(self) -> None:
        """Listen no longer."""
        await self._events.stop()

    async def next(self, label: str, value: str) -> tuple[int, str]:
        """Return when the next container so labelled was started, in nanoseconds since the epoch, and its id."""
        async with asyncio.timeout(_WAIT_S):
            while True:
                event = await self._channel.get()
                if event is None:
                    raise NoEngine("The engine tells no events any more.")
                of = event.get("Actor") or {}
                if event.get("Action") == "start" and (of.get("Attributes") or {}).get(label) == value:
                    return int(event["timeNano"]), str(of["ID"])


async def _in_turn(network: LocalNetwork, engine: Engine, image: str, starts: int) -> tuple[list[float], list[float]]:
    events = Starts(engine)
    by_task, by_engine = [], []
    try:
        # It stays while all is measured, and with it the folders that its container has mounted.
        staying = await network.ask(lambda http: http.tasks.submit(_spec(image, "sleep 600"), sites=[_SITE]))
        _, running = await events.next(LABEL_STATE, str(network.work / _SITE))
        told = await (await engine.docker.containers.get(running)).show()
        for _ in range(starts + 1):
            by_engine.append(await _engine_alone(engine, events, told))
            by_task.append(await _task(network, events, image))
        await network.ask(lambda http: http.tasks.cancel(staying))
        await network.ask(lambda http: http.tasks.wait(staying, timeout_s=_WAIT_S))
    finally:
        await events.stop()
    return by_task[1:], by_engine[1:]


async def _task(network: LocalNetwork, events: Starts, image: str) -> float:
    asked = time.time_ns()
    task = await network.ask(lambda http: http.tasks.submit(_spec(image, "true"), sites=[_SITE]))
    started, _ = await events.next(LABEL_STATE, str(network.work / _SITE))
    ended = await network.ask(lambda http: http.tasks.wait(task, timeout_s=_WAIT_S))
    if ended.status != "done":
        raise AssertionError(f"the task is {ended.status}")
    return (started - asked) / 1e6


async def _engine_alone(engine: Engine, events: Starts, told: Mapping[str, Any]) -> float:
    config = {key: value for key, value in told["Config"].items() if key != "Hostname"}
    own = secrets.token_hex(8)
    config |= {"Cmd": ["sh", "-c", "true"], "Labels": {_OWN: own}, "HostConfig": told["HostConfig"]}
    asked = time.time_ns()
    container = await engine.docker.containers.create(config)
    try:
        await container.start()
        started, _ = await events.next(_OWN, own)
        await container.wait()
    finally:
        await container.delete(force=True)
    return (started - asked) / 1e6


def _spec(image: str, script: str) -> dict[str, Any]:
    return {"executors": [{"image": image, "command": ["sh", "-c", script]}]}


async def _alone() -> None:
    arguments = parser_of(__doc__).parse_args()
    quieten()
    try:
        result = await measure(arguments.quick)
    except NoEngine as error:
        sys.exit(failed(error))
    tell(result, as_json=arguments.json)


if __name__ == "__main__":
    asyncio.run(_alone())
