"""A killed client, and a client whose engine is not there."""

from __future__ import annotations

import asyncio
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import psutil
import pytest

from runnel.client.runtimes.docker import DockerRuntime
from runnel.client.runtimes.docker_files import FileSharing
from runnel.common.errors import BadSettings, EnvironmentFailed
from tests.docker_engine import base_image, containers, docker, docker_runtime, engine_host, volumes
from tests.doubles.client_packages import Listener, run_train, write_package

pytestmark = pytest.mark.docker

CLIENT = """
    import asyncio, sys
    from pathlib import Path
    from runnel.client.runtimes import Call, PackageFiles
    from runnel.client.runtimes.docker import DockerRuntime
    from runnel.client.runtimes.docker_files import FileSharing
    from runnel.compute_package import read_manifest

    async def main(root, host, image, client, sharing):
        choices = {"environ": {}, "host": host, "base_image": image, "sharing": FileSharing(sharing)}
        async with DockerRuntime(client=client, state=root, **choices) as runtime:
            package = PackageFiles(digest="0" * 64, root=root / "package", manifest=read_manifest(root / "package"))
            prepared = await runtime.prepare(package, lambda stream, text: None)
            call = Call(entry_point="train", arguments=(), workdir=root / "run", env={})
            await runtime.run(prepared, call, lambda stream, text: print(text, flush=True))

    asyncio.run(main(Path(sys.argv[1]), *sys.argv[2:]))
    """


def killed_client(root: Path, client: str, sharing: str, word: str) -> None:
    """Start a client, wait until its run has begun, and kill it."""
    write_package(root / "package", {"train.py": f"import time; print('begun'); time.sleep(1000)  # {word}"})
    (root / "run").mkdir(exist_ok=True)
    arguments = [str(root), engine_host(), base_image(), client, sharing]
    process = subprocess.Popen([sys.executable, "-c", dedent(CLIENT), *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        while "begun" not in (line := process.stdout.readline()):
            assert line, "it has ended"
        process.kill()
        process.wait()


@pytest.fixture
def client() -> Iterator[str]:
    """The identity of a client; what it leaves when the test fails is removed."""
    made = f"killed-{secrets.token_hex(6)}"
    yield made
    for name in containers(made):
        docker("rm", "--force", name)
    for name in volumes(made):
        docker("volume", "rm", name)


@pytest.mark.parametrize("sharing", ["mount", "copy"])
async def test_a_killed_client_leaves_nothing_after_its_next_start(tmp_path: Path, client: str, sharing: str) -> None:
    killed_client(tmp_path / "one", client, sharing, "one")
    killed_client(tmp_path / "other", client, sharing, "two")
    many = 1 if sharing == "mount" else 2
    assert len(containers(client)) == 2 * many

    async def start(name: str, state: Path) -> None:
        async with DockerRuntime(client=name, state=state, environ={}, host=engine_host()):
            pass

    await start(client, tmp_path / "one")
    left = containers(client)
    assert len(left) == many, "another client of that name has its own state folder, and keeps its own"
    await start(f"not-{client}", tmp_path / "other")
    assert containers(client) == left, "another identity"
    await start(client, tmp_path / "other")
    assert containers(client) == []
    assert volumes(client) == []


async def test_containers_of_others_stay(tmp_path: Path) -> None:
    name = f"bystander-{psutil.Process().pid}"
    docker("create", "--name", name, base_image(), "true")
    try:
        async with docker_runtime(tmp_path):
            assert docker("inspect", name).returncode == 0
    finally:
        docker("rm", "--force", name)


async def test_a_container_that_is_removed_under_a_run_is_told(tmp_path: Path) -> None:
    say = Listener()
    async with docker_runtime(tmp_path, client="robbed") as runtime:
        package = write_package(
            tmp_path / "p", {"train.py": "import time; print('begun', flush=True); time.sleep(1000)"}
        )
        prepared = await runtime.prepare(package, say)

        def rob(stream: str, text: str) -> None:
            docker("rm", "--force", *containers("robbed"))

        with pytest.raises(Exception, match=r"SIGKILL|could not|was lost"):
            await run_train(runtime, prepared, rob)  # type: ignore[arg-type]
        await run_train(
            runtime, await runtime.prepare(write_package(tmp_path / "p", {"train.py": "print('ran')"}), say), say
        )
    assert say.said("stdout") == ["ran"]


async def test_an_image_that_was_removed_since_is_told(tmp_path: Path) -> None:
    say = Listener()
    made = f"passing:{psutil.Process().pid}"
    async with docker_runtime(tmp_path) as runtime:
        files = {"train.py": "pass", "runnel.yaml": f"image: {made}"}
        source = docker("create", base_image(), "true").stdout.strip()
        docker("commit", source, made)
        docker("rm", source)
        prepared = await runtime.prepare(write_package(tmp_path / "p", files), say)
        docker("rmi", made)
        with pytest.raises(EnvironmentFailed, match=r"could not create a container: .*[Nn]o such image"):
            await run_train(runtime, prepared, say)


@pytest.mark.parametrize("host", ["unix:///nowhere/docker.sock", "tcp://127.0.0.1:9", "nonsense"])
async def test_no_engine_is_one_clear_sentence(tmp_path: Path, host: str) -> None:
    with pytest.raises(BadSettings, match="Docker engine") as caught:
        async with DockerRuntime(client="c", state=tmp_path, environ={}, host=host):
            pass
    assert host in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_what_answers_may_be_something_else(tmp_path: Path) -> None:
    async def teapot(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 418 No\r\nContent-Length: 6\r\n\r\nteapot")
        writer.close()

    async with await asyncio.start_server(teapot, "127.0.0.1", 0) as server:
        host = f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(BadSettings, match="No Docker engine answers"):
            async with DockerRuntime(client="c", state=tmp_path, environ={}, host=host, sharing=FileSharing.MOUNT):
                pass
