"""A client that is itself a container, with the engine's socket and a volume, and nothing of the host's paths."""

from __future__ import annotations

import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from tests.docker_engine import base_image, containers, docker, engine_host

pytestmark = pytest.mark.docker

ROOT = Path(__file__).parents[2]
CLIENT = """
    import asyncio, sys
    from pathlib import Path
    from runnel.client import entry_points
    from runnel.client.runtimes import PackageFiles
    from runnel.client.runtimes.docker import DockerRuntime
    from runnel.client.runtimes.docker_files import FileSharing
    from runnel.common.tensors import write_npz
    from runnel.compute_package import read_manifest
    import numpy as np

    TRAIN = '''
    import os, shutil, sys
    print(open(os.environ["RUNNEL_DATA"] + "/a.csv").read(), os.path.exists("/state"))
    shutil.copy(sys.argv[1], sys.argv[2])
    '''

    async def main(state, data, image, client, sharing):
        root, work = state / "package", state / "work"
        for folder in (root, work):
            folder.mkdir(parents=True)
        (root / "train.py").write_text("\\n".join(line.strip() for line in TRAIN.splitlines()))
        write_npz(state / "model.npz", {"w": np.ones(3, np.float32)})
        host = "unix:///var/run/docker.sock"
        sharing = FileSharing(sharing) if sharing else None
        choices = {"environ": {}, "host": host, "base_image": image, "sharing": sharing}
        say = lambda stream, text: print(stream, text, flush=True)
        async with DockerRuntime(client=client, state=state, **choices) as runtime:
            print(type(runtime._files).__name__)
            package = PackageFiles(digest="0" * 64, root=root, manifest=read_manifest(root))
            prepared = await runtime.prepare(package, say)
            trained = await entry_points.train(
                runtime, prepared, model=state / "model.npz", workdir=work, settings_json="{}",
                env={"RUNNEL_DATA": str(data)}, timeout_s=60, say=say,
            )
            print("update", trained.update.stat().st_size > 0)

    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:]))
    """


@pytest.fixture
def name() -> Iterator[str]:
    made = f"client-{secrets.token_hex(6)}"
    yield made
    docker("rm", "--force", made, check=False)
    docker("volume", "rm", "--force", f"{made}-state")


def run_client(name: str, tmp_path: Path, sharing: str, *, state: str) -> subprocess.CompletedProcess[str]:
    """Run the script above in a container that has this Python and the source read-only; tell what it printed."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.csv").write_text("patient")
    script = tmp_path / "client.py"
    script.write_text(dedent(CLIENT))
    seen = {Path(sys.base_prefix), Path(sys.prefix), ROOT}
    mounts = [f"--volume={path}:{path}:ro" for path in sorted(seen, key=lambda path: len(path.parts))]
    return docker(
        "run",
        f"--name={name}",
        "--network=none",
        *mounts,
        f"--volume={engine_host().removeprefix('unix://')}:/var/run/docker.sock",
        f"--volume={name}-state:/state",
        f"--volume={data}:/site/data:ro",
        f"--volume={script}:/client.py:ro",
        base_image(),
        sys.executable,
        "/client.py",
        state,
        "/site/data",
        base_image(),
        name,
        sharing,
        check=False,
    )


@pytest.mark.parametrize(
    ("sharing", "state", "files"),
    [
        ("", "/state/of-client", "MountedFiles"),
        ("", "/elsewhere", "CopiedFiles"),
        ("copy", "/state/of-client", "CopiedFiles"),
    ],
)
def test_it_trains(name: str, tmp_path: Path, sharing: str, state: str, files: str) -> None:
    done = run_client(name, tmp_path, sharing, state=state)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "[info" not in line]
    assert lines == [files, "stdout patient False", "update True"]
    assert containers(name) == []


def test_what_cannot_be_mounted_is_named(name: str, tmp_path: Path) -> None:
    done = run_client(name, tmp_path, "mount", state="/elsewhere")
    assert done.returncode == 1
    assert "/elsewhere/package is in this client's own container" in done.stderr
    assert "--docker-files copy" in done.stderr
