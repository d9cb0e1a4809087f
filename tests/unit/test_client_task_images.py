"""Images of tasks by the site's pull policy, with an engine that is a table."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from aiodocker.exceptions import DockerError

from runnel.client.domain.task_policy import Pull
from runnel.client.runtimes.docker_engine import Engine
from runnel.client.tasks.images import TaskImages
from runnel.common.errors import ImageUnavailable

pytestmark = pytest.mark.unit

DIGEST = f"sha256:{'1' * 64}"
OTHER = f"sha256:{'2' * 64}"


class Images:
    """An engine whose registry has ``there``: name to digest; ``says`` is what a pull tells."""

    def __init__(self, there: dict[str, str], says: list[dict[str, Any]] | None = None) -> None:
        self.there = there
        self.says = says or []
        self.has: dict[str, str] = {}
        self.pulled: list[str] = []

    async def inspect(self, name: str) -> dict[str, Any]:
        if name not in self.has:
            raise DockerError(404, "no such image")
        digest = self.has[name]
        return {
            "Id": f"sha256:{'f' * 64}",
            "RepoDigests": [f"{name.partition('@')[0]}@{digest}"],
            "Config": {"Volumes": {"/data": {}}},
        }

    async def pull(self, name: str) -> AsyncIterator[dict[str, Any]]:
        self.pulled.append(name)
        for line in self.says:
            await asyncio.sleep(0)
            yield line
        if name not in self.there:
            raise DockerError(404, "manifest\x1b[2J unknown")
        self.has[name] = self.there[name]


class Docker:
    def __init__(self, images: Images) -> None:
        self.docker = self
        self.images = images
        self.pull = images.pull


def images_of(images: Images) -> TaskImages:
    return TaskImages(cast(Engine, Docker(images)))


async def test_an_image_is_fetched_when_the_policy_says_so() -> None:
    engine = Images({"a:1": DIGEST})
    images = images_of(engine)
    with pytest.raises(ImageUnavailable, match="fetches none"):
        await images.get("a:1", Pull.NEVER, print)
    assert engine.pulled == []
    found = await images.get("a:1", Pull.MISSING, print)
    assert (found.digest, found.volumes) == (DIGEST, ("/data",))
    assert found.digests == {DIGEST, found.id}
    await images.get("a:1", Pull.MISSING, print)
    await images.get("a:1", Pull.NEVER, print)
    assert engine.pulled == ["a:1"]
    await images.get("a:1", Pull.ALWAYS, print)
    assert engine.pulled == ["a:1", "a:1"]


async def test_two_runs_wait_for_one_transfer() -> None:
    engine = Images({"a:1": DIGEST}, says=[{"status": "Pulling"}])
    images = images_of(engine)
    await asyncio.gather(*(images.get("a:1", Pull.MISSING, print) for _ in range(5)))
    assert engine.pulled == ["a:1"]


async def test_a_pull_that_fails_tells_the_engines_reason_without_its_terminal_codes() -> None:
    with pytest.raises(ImageUnavailable, match=r"could not be fetched: .*manifest unknown"):
        await images_of(Images({})).get("a:1", Pull.MISSING, print)
    told = Images({"a:1": DIGEST}, says=[{"error": "denied: no access"}])
    with pytest.raises(ImageUnavailable, match="denied: no access"):
        await images_of(told).get("a:1", Pull.MISSING, print)


async def test_what_came_has_to_have_the_digest_that_was_pinned() -> None:
    good, bad = f"a@{DIGEST}", f"b@{DIGEST}"
    images = images_of(Images({good: DIGEST, bad: OTHER}))
    assert (await images.get(good, Pull.MISSING, print)).digest == DIGEST
    with pytest.raises(ImageUnavailable, match="not what its digest says"):
        await images.get(bad, Pull.MISSING, print)


async def test_how_far_a_pull_is_is_told_over_all_layers() -> None:
    says: list[dict[str, Any]] = [
        {"status": "Pulling from a", "id": "1"},
        {"status": "Downloading", "id": "x", "progressDetail": {"current": 25, "total": 100}},
        {"status": "Downloading", "id": "y", "progressDetail": {"current": 0, "total": 100}},
        {"status": "Download complete", "id": "x", "progressDetail": {}},
    ]
    told: list[str] = []
    await images_of(Images({"a:1": DIGEST}, says)).get("a:1", Pull.MISSING, told.append)
    assert told == ["pulling a:1", "pulling a:1 (25 %)"]
