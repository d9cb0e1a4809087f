"""A client that shares no path with its engine: files go in and out as copies."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runnel.client import entry_points
from runnel.client.domain import TrainResult
from runnel.client.runtimes import Call, Prepared, Runtime
from runnel.client.runtimes.docker_files import FileSharing
from runnel.common.errors import BadOutput, EntryPointFailed, EntryPointTimeout, RunnelError
from runnel.common.tensors import open_npz, write_npz
from tests.docker_engine import cage, docker, docker_runtime, volumes
from tests.doubles.client_packages import ADD_ONE, Listener, run_train, write_package
from tests.eventually import eventually

pytestmark = pytest.mark.docker

CLIENT = "copying-client"
DISK_BYTES = 8 << 20
Train = Callable[..., Coroutine[Any, Any, TrainResult]]


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[Runtime]:
    small = cage(disk_bytes=DISK_BYTES)
    async with docker_runtime(tmp_path, client=CLIENT, sharing=FileSharing.COPY, cage=small) as made:
        yield made


@pytest.fixture
def say() -> Listener:
    return Listener()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "cached.npz"
    write_npz(path, {"w": np.arange(6, dtype=np.float32)})
    return path


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    path = tmp_path / "work"
    path.mkdir()
    return path


@pytest.fixture
def train(runtime: Runtime, tmp_path: Path, model: Path, workdir: Path, say: Listener) -> Train:
    async def go(script: str, *, env: dict[str, str] | None = None, timeout_s: float = 60.0) -> TrainResult:
        prepared = await runtime.prepare(write_package(tmp_path / "package", {"train.py": script}), say)
        return await entry_points.train(
            runtime,
            prepared,
            model=model,
            workdir=workdir,
            settings_json='{"lr": 0.1}',
            env=env or {},
            timeout_s=timeout_s,
            say=say,
        )

    return go


async def test_a_training_gives_what_it_gives_anywhere(train: Train, model: Path, workdir: Path) -> None:
    before = model.read_bytes()
    result = await train(ADD_ONE)
    with open_npz(result.update, source="test") as opened:
        np.testing.assert_array_equal(opened.arrays()["w"], np.arange(6) + 1)
    assert (result.weight, result.metrics, result.extra) == (7.0, {"loss": 0.5}, {"note": "done"})
    assert list(workdir.iterdir()) == [result.update]
    assert model.read_bytes() == before


async def test_it_gets_its_settings_and_lines_come_as_they_are_printed(train: Train, say: Listener) -> None:
    await train("""
        import os, shutil, sys
        print(open(sys.argv[1] + "-metadata").read(), sorted(os.listdir(os.path.dirname(sys.argv[2]))), os.getcwd())
        shutil.copy(sys.argv[1], sys.argv[2])
        """)
    assert say.said("stdout") == ["{\"lr\": 0.1} ['model_in.npz', 'model_in.npz-metadata'] /runnel/package"]


@pytest.mark.parametrize(
    ("script", "error", "says"),
    [
        ("pass", BadOutput, "did not write model_out.npz"),
        ("os.mkdir(sys.argv[2])", BadOutput, "as a file but made something else"),
        ("os.symlink('/etc/passwd', sys.argv[2])", BadOutput, "as a file but made something else"),
        ("os.mkfifo(sys.argv[2])", BadOutput, "as a file but made something else"),
        ("sys.exit(3)", EntryPointFailed, "exit status 3"),
    ],
)
async def test_what_is_no_model_fails_as_anywhere(
    train: Train, workdir: Path, script: str, error: type[RunnelError], says: str
) -> None:
    with pytest.raises(error, match=says):
        await train(f"import os, sys\n{script}")
    assert list(workdir.iterdir()) == []


async def test_a_second_name_of_a_file_comes_back_as_a_file(train: Train) -> None:
    result = await train(
        ADD_ONE + "\n    import os; os.rename(sys.argv[2], sys.argv[2] + '.0')"
        "\n    os.link(sys.argv[2] + '.0', sys.argv[2])\n"
    )
    assert result.weight == 7.0


async def test_data_are_there_read_only_and_as_they_are_now(train: Train, say: Listener, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a.csv").write_text("one")
    (folder / "link").symlink_to("deep/a.csv")
    env = {"RUNNEL_DATA": str(folder), "RUNNEL_DATA_ONE": str(folder / "deep" / "a.csv"), "RUNNEL_DATA_FAR": "db://x"}
    script = """
        import json, os, shutil, sys
        data, one = os.environ["RUNNEL_DATA"], os.environ["RUNNEL_DATA_ONE"]
        failed = []
        for path in (data + "/new", data + "/deep/a.csv", one, "train.py"):
            try:
                open(path, "w")
            except OSError as error:
                failed.append(error.errno)
        print(open(data + "/link").read(), open(one).read(), os.environ["RUNNEL_DATA_FAR"], failed)
        shutil.copy(sys.argv[1], sys.argv[2])
        """
    for content in ("one", "one", "two!"):
        (folder / "deep" / "a.csv").write_text(content)
        os.utime(folder / "deep" / "a.csv", (1, len(content)))
        await train(script, env=env)
    assert say.said("stdout") == [
        "one one db://x [30, 30, 30, 30]",
        "one one db://x [30, 30, 30, 30]",
        "two! two! db://x [30, 30, 30, 30]",
    ]
    assert len(volumes(CLIENT)) == 3, (
        "the package, the folder and the file; what was changed has taken the old one's place"
    )


async def test_what_startup_makes_is_there_for_the_others(
    runtime: Runtime, tmp_path: Path, workdir: Path, say: Listener
) -> None:
    files = {"startup.py": "open('made', 'w').write('by startup')", "train.py": "print(open('made').read())"}
    package = write_package(tmp_path / "package", files)
    for first in (True, False):
        prepared: Prepared = await runtime.prepare(package, say)
        started = entry_points.startup(runtime, prepared, workdir=workdir, env={}, timeout_s=60, say=say)
        assert await started is first
        await run_train(runtime, prepared, say)
    assert say.said("stdout") == ["by startup", "by startup"]


@pytest.mark.parametrize("what", ["one file", "many files"])
async def test_the_runs_folder_ends_at_its_limit(train: Train, what: str) -> None:
    name = "'/runnel/run/x'" if what == "one file" else "f'/runnel/run/{number}'"
    with pytest.raises(EntryPointFailed, match=r"may write 8,388,608 bytes to the run's folder") as caught:
        await train(f"for number in range(100): open({name}, 'ab').write(bytes(1 << 20))")
    assert caught.value.fields["limit"] == "disk"


async def test_a_time_limit_and_a_cancellation_leave_nothing(
    train: Train, runtime: Runtime, workdir: Path, say: Listener
) -> None:
    script = "import time; print('begun'); time.sleep(1000)"
    with pytest.raises(EntryPointTimeout):
        await train(script, timeout_s=0.5)
    said = len(say.said("stdout"))  # the first may have ended before it came to say so
    running = asyncio.create_task(train(script))
    await eventually(lambda: len(say.said("stdout")) == said + 1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert list(workdir.iterdir()) == []
    assert len(volumes(CLIENT)) == 1, "only the package's"


async def test_every_moment_to_cancel_leaves_nothing(runtime: Runtime, tmp_path: Path, say: Listener) -> None:
    prepared = await runtime.prepare(write_package(tmp_path / "package", {"train.py": "print('ran')"}), say)
    call = Call(entry_point="train", arguments=(), workdir=tmp_path / "run", env={}, timeout_s=60)
    call.workdir.mkdir()
    for number in range(12):
        running = asyncio.create_task(runtime.run(prepared, call, say))
        await asyncio.wait([running], timeout=0.03 * number)
        running.cancel()
        await asyncio.wait([running])
        assert len(volumes(CLIENT)) == 1
        left = docker("ps", "--all", "--quiet", "--filter", f"label=runnel.client={CLIENT}").stdout
        assert left == ""
