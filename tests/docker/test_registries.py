"""Images of tasks from a real registry that wants a password."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from runnel.client.domain.policy import ANYTHING
from runnel.client.domain.task_policy import Pull, TaskPolicy
from runnel.common.protocol import RunState, TaskNews
from tests.docker_engine import base_image, docker, engine_host
from tests.doubles.task_network import TaskNetwork, order, plain, site
from tests.registry import PASSWORD, USER, Registry, login, running_registry

pytestmark = [pytest.mark.docker, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    with running_registry() as running:
        yield running


@pytest.fixture
def name(registry: Registry) -> Iterator[str]:
    """The name of an image that the engine does not have, before and after."""
    made = f"study/said-{secrets.token_hex(4)}:1"
    yield made
    registry.forget(made)


async def said(
    state: Path,
    image: str,
    *,
    pull: Pull = Pull.MISSING,
    digests: frozenset[str] | None = None,
    config: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> tuple[TaskNews, str]:
    """Return the end of a task that prints /said, and what it printed."""
    network = TaskNetwork()
    policy = dataclasses.replace(ANYTHING, tasks=TaskPolicy(pull=pull, digests=digests))
    # A client holds the end of a run until it is settled.
    async with site(
        state / secrets.token_hex(4),
        network,
        host=engine_host(),
        policy=policy,
        engine={"config": config, "environ": environ or {}},
    ) as tasks:
        tasks.received(order("run-1", plain(image, "cat", "/said")))
        end = await network.ended("run-1")
    assert PASSWORD not in repr(network.news)
    return end, "".join(line.text for line in network.lines("run-1") if line.stream == "stdout")


def failure(end: TaskNews) -> str:
    assert end.result is not None
    assert end.result.failure is not None
    return end.result.failure.message


async def test_with_the_password_an_image_is_fetched_and_without_it_is_not(
    tmp_path: Path, registry: Registry, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    image = f"{registry.host}/{name}"
    await asyncio.to_thread(registry.push, name, base_image(), "first")
    end, _ = await said(tmp_path / "none", image)
    assert end.state is RunState.FAILED
    assert "no basic auth credentials" in failure(end)
    wrong = login(tmp_path / "wrong", registry.host, "wrong-horse")
    end, _ = await said(tmp_path / "s", image, config=wrong)
    assert "unauthorized" in failure(end)
    assert "wrong-horse" not in failure(end)
    # As the user's own `docker login` left it.
    end, text = await said(tmp_path / "s", image, environ={"DOCKER_CONFIG": str(registry.login.parent)})
    assert (end.state, text) == (RunState.DONE, "first"), end
    assert PASSWORD not in caplog.text


def helper(folder: Path, script: str) -> None:
    """Write a credential helper."""
    (folder / "docker-credential-ours").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "docker-credential-ours").chmod(0o755)


async def test_a_credential_helper_is_asked(
    tmp_path: Path, registry: Registry, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    image = f"{registry.host}/{name}"
    digest = await asyncio.to_thread(registry.push, name, base_image(), "helped")
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"credHelpers": {registry.host: "ours"}}))
    helper(tmp_path, f"echo 'no: {PASSWORD}'; exit 1")
    end, _ = await said(tmp_path / "s", image, config=config, environ=dict(os.environ))
    assert failure(end).startswith("The passwords that this site keeps for registries can't be read")
    answer = json.dumps({"ServerURL": registry.host, "Username": USER, "Secret": PASSWORD})
    helper(tmp_path, f"""test "$1" = get && grep -q '^{registry.host}$' && echo '{answer}'""")
    end, text = await said(
        tmp_path / "s", f"{image.partition(':1')[0]}@{digest}", config=config, environ=dict(os.environ)
    )
    assert (end.state, text) == (RunState.DONE, "helped"), end
    assert end.result is not None
    assert end.result.image_digest == digest
    docker("rmi", "--force", f"{image.partition(':1')[0]}@{digest}")


async def test_always_means_that_each_run_has_what_the_registry_has_then(
    tmp_path: Path, registry: Registry, name: str
) -> None:
    image, config = f"{registry.host}/{name}", registry.login
    await asyncio.to_thread(registry.push, name, base_image(), "first")
    end, text = await said(tmp_path / "s", image, pull=Pull.ALWAYS, config=config)
    assert (end.state, text) == (RunState.DONE, "first"), end
    docker("tag", image, f"{image}-kept")
    await asyncio.to_thread(registry.push, name, base_image(), "second")
    # The engine has the first under this name; only who fetches anew has the second.
    docker("tag", f"{image}-kept", image)
    docker("rmi", f"{image}-kept")
    for pull, expected in ((Pull.MISSING, "first"), (Pull.ALWAYS, "second")):
        end, text = await said(tmp_path / "s", image, pull=pull, config=config)
        assert (end.state, text) == (RunState.DONE, expected), end
    gone = f"{registry.host}/study/none:1"
    docker("tag", image, gone)
    end, _ = await said(tmp_path / "s", gone, pull=Pull.ALWAYS, config=config)
    docker("rmi", gone)
    assert end.state is RunState.FAILED
    assert "manifest unknown" in failure(end)


async def test_a_digest_that_the_site_did_not_allow_does_not_run(tmp_path: Path, registry: Registry, name: str) -> None:
    image, config = f"{registry.host}/{name}", registry.login
    digest = await asyncio.to_thread(registry.push, name, base_image(), "allowed")
    end, text = await said(tmp_path / "s", image, digests=frozenset({digest}), config=config)
    assert (end.state, text) == (RunState.DONE, "allowed"), end
    # The same name holds another image now.
    await asyncio.to_thread(registry.push, name, base_image(), "another")
    end, text = await said(tmp_path / "s", image, pull=Pull.ALWAYS, digests=frozenset({digest}), config=config)
    assert (end.state, text) == (RunState.REJECTED, "")
    assert "digest of the image" in failure(end)
    # Whoever pins the digest has the first one, whatever the name holds.
    pinned = f"{image.rpartition(':')[0]}@{digest}"
    end, text = await said(tmp_path / "s", pinned, digests=frozenset({digest}), config=config)
    docker("rmi", "--force", pinned)
    assert (end.state, text) == (RunState.DONE, "allowed"), end


async def test_what_was_fetched_for_tasks_goes_by_age_and_the_sites_own_images_stay(
    tmp_path: Path, registry: Registry, name: str
) -> None:
    image, own = f"{registry.host}/{name}", f"{registry.host}/own-{name}"
    await asyncio.to_thread(registry.push, name, base_image(), "fetched")
    await asyncio.to_thread(registry.push, f"own-{name}", base_image(), "own")
    docker("--config", str(registry.login.parent), "pull", own)
    try:
        network, settings = TaskNetwork(), {"config": registry.login}
        policy = dataclasses.replace(ANYTHING, tasks=TaskPolicy())
        async with site(tmp_path / "s", network, host=engine_host(), policy=policy, engine=settings) as tasks:

            async def run(run_id: str, image: str) -> None:
                tasks.received(order(run_id, plain(image, "cat", "/said")))
                assert (await network.ended(run_id)).state is RunState.DONE

            await run("run-1", image)
            await run("run-2", own)
            (fetched,) = (tmp_path / "s" / "task-images").iterdir()
            os.utime(fetched, (0, 0))
            await run("run-3", own)
            assert docker("image", "inspect", image, check=False).returncode != 0
            assert docker("image", "inspect", own, check=False).returncode == 0
            assert not fetched.exists()
            await run("run-4", image)
    finally:
        registry.forget(f"own-{name}")
