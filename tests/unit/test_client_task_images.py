"""Images of tasks by the site's pull policy, with an engine that is a table."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import pytest
from aiodocker.exceptions import DockerError

from runnel.client.domain.task_policy import Pull
from runnel.client.runtimes.docker_engine import Engine
from runnel.client.runtimes.docker_image_uses import ImageUses
from runnel.client.tasks.images import TaskImage, TaskImages
from runnel.common.errors import ImageUnavailable

pytestmark = pytest.mark.unit

ImagesOf = Callable[["Images"], "Site"]

DIGEST = f"sha256:{'1' * 64}"
OTHER = f"sha256:{'2' * 64}"


def id_of(digest: str) -> str:
    return f"sha256:f{digest[-63:]}"


class Images:
    """An engine whose registry has ``there``: name to digest; ``says`` is what a pull tells.

    The id of an image is that of its digest; those ``adopted`` are not given up.
    """

    def __init__(self, there: dict[str, str], says: list[dict[str, Any]] | None = None) -> None:
        self.there = there
        self.says = says or []
        self.has: dict[str, str] = {}
        self.pulled: list[str] = []
        self.adopted: set[str] = set()
        self.deletions: list[str] = []

    def ids(self) -> set[str]:
        return {id_of(digest) for digest in self.has.values()}

    async def list(self) -> list[dict[str, Any]]:
        return [{"Id": each} for each in self.ids()]

    async def delete(self, name: str) -> None:
        self.deletions.append(name)
        if name in self.adopted:
            raise DockerError(409, "it has another name")
        self.has = {each: digest for each, digest in self.has.items() if id_of(digest) != name}

    async def inspect(self, name: str) -> dict[str, Any]:
        digest = self.has.get(name) or next((each for each in self.has.values() if id_of(each) == name), None)
        if digest is None:
            raise DockerError(404, "no such image")
        return {
            "Id": id_of(digest),
            "Size": 10,
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


class Site:
    """Images of tasks at such an engine; each call is of a run of its own unless it says of which."""

    def __init__(self, engine: Images, folder: Path, most_bytes: int = 1000) -> None:
        self.images = TaskImages(cast(Engine, Docker(engine)), ImageUses(folder), most_bytes=most_bytes, most_days=60)
        self.folder = folder

    async def get(self, name: str, pull: Pull, tell: Callable[[str], None] = print, run_id: str = "") -> TaskImage:
        return await self.images.get(name, pull, tell, run_id=run_id or f"run-{name}")

    async def run(self, name: str, pull: Pull = Pull.MISSING) -> None:
        """Carry a run out that does nothing."""
        await self.get(name, pull)
        await self.images.let_go(f"run-{name}", pull)

    def age(self, days: float = 100) -> None:
        """Let all uses be so long ago."""
        for each in self.folder.iterdir():
            then = each.stat().st_mtime - days * 86400
            os.utime(each, (then, then))


@pytest.fixture
def images_of(tmp_path: Path) -> Callable[[Images], Site]:
    return lambda engine: Site(engine, tmp_path / "images")


async def test_an_image_is_fetched_when_the_policy_says_so(images_of: ImagesOf) -> None:
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


async def test_two_runs_wait_for_one_transfer(images_of: ImagesOf) -> None:
    engine = Images({"a:1": DIGEST}, says=[{"status": "Pulling"}])
    images = images_of(engine)
    await asyncio.gather(*(images.get("a:1", Pull.MISSING, print) for _ in range(5)))
    assert engine.pulled == ["a:1"]


async def test_a_pull_that_fails_tells_the_engines_reason_without_its_terminal_codes(images_of: ImagesOf) -> None:
    with pytest.raises(ImageUnavailable, match=r"could not be fetched: .*manifest unknown"):
        await images_of(Images({})).get("a:1", Pull.MISSING, print)
    told = Images({"a:1": DIGEST}, says=[{"error": "denied: no access"}])
    with pytest.raises(ImageUnavailable, match="denied: no access"):
        await images_of(told).get("a:1", Pull.MISSING, print)


async def test_what_came_has_to_have_the_digest_that_was_pinned(images_of: ImagesOf) -> None:
    good, bad = f"a@{DIGEST}", f"b@{DIGEST}"
    images = images_of(Images({good: DIGEST, bad: OTHER}))
    assert (await images.get(good, Pull.MISSING, print)).digest == DIGEST
    with pytest.raises(ImageUnavailable, match="not what its digest says"):
        await images.get(bad, Pull.MISSING, print)


async def test_how_far_a_pull_is_is_told_over_all_layers(images_of: ImagesOf) -> None:
    says: list[dict[str, Any]] = [
        {"status": "Pulling from a", "id": "1"},
        {"status": "Downloading", "id": "x", "progressDetail": {"current": 25, "total": 100}},
        {"status": "Downloading", "id": "y", "progressDetail": {"current": 0, "total": 100}},
        {"status": "Download complete", "id": "x", "progressDetail": {}},
    ]
    told: list[str] = []
    await images_of(Images({"a:1": DIGEST}, says)).get("a:1", Pull.MISSING, told.append)
    assert told == ["pulling a:1", "pulling a:1 (25 %)"]


# ---- images that go again


async def test_what_was_fetched_goes_when_it_was_not_used_for_long_and_what_was_there_stays(
    images_of: ImagesOf,
) -> None:
    engine = Images({"a:1": DIGEST, "b:1": OTHER})
    engine.has["b:1"] = OTHER
    site = images_of(engine)
    await site.run("a:1")
    await site.run("b:1", Pull.ALWAYS)
    site.age()
    await site.run("a:1")
    assert engine.ids() == {id_of(DIGEST), id_of(OTHER)}, "it was used just now"
    site.age()
    await site.run("b:1")
    assert engine.ids() == {id_of(OTHER)}
    await site.run("a:1")
    assert engine.pulled == ["a:1", "b:1", "a:1"]


async def test_what_is_too_much_goes_the_oldest_first(tmp_path: Path) -> None:
    third = f"sha256:{'3' * 64}"
    engine = Images({"a:1": DIGEST, "b:1": OTHER, "c:1": third})
    site = Site(engine, tmp_path / "images", most_bytes=20)
    for name in ("a:1", "b:1"):
        site.folder.mkdir(exist_ok=True)
        site.age(1)
        await site.run(name)
    site.age(1)
    await site.run("c:1")
    assert engine.ids() == {id_of(OTHER), id_of(third)}


async def test_what_a_run_has_stays_and_so_does_all_where_nothing_is_fetched(images_of: ImagesOf) -> None:
    engine = Images({"a:1": DIGEST, "b:1": OTHER})
    site = images_of(engine)
    await site.get("a:1", Pull.MISSING, run_id="run-long")
    site.age()
    await site.run("b:1")
    assert id_of(DIGEST) in engine.ids()
    await site.images.let_go("run-long", Pull.MISSING)
    site.age()
    await site.images.let_go("run-none", Pull.NEVER)
    assert engine.ids() == {id_of(DIGEST), id_of(OTHER)}
    await site.images.let_go("run-none", Pull.MISSING)
    assert engine.ids() == set()


async def test_an_image_that_somebody_named_otherwise_is_theirs(images_of: ImagesOf) -> None:
    engine = Images({"a:1": DIGEST, "b:1": OTHER})
    engine.adopted = {id_of(DIGEST)}
    site = images_of(engine)
    await site.run("a:1")
    site.age()
    await site.run("b:1")
    await site.run("b:1")
    assert engine.ids() == {id_of(DIGEST), id_of(OTHER)}
    assert engine.deletions == [id_of(DIGEST)], "and is not tried again at each run"
