"""Environments are built whole or not at all, and once. No package index is asked: the wheel is made here."""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from runnel.client.runtimes import EnvironmentCache, Guard
from runnel.common.errors import EnvironmentFailed
from tests.doubles.client_packages import Listener
from tests.doubles.wheels import write_wheel
from tests.eventually import eventually

pytestmark = pytest.mark.process


@pytest.fixture
def say() -> Listener:
    return Listener()


@pytest.fixture
async def guard() -> AsyncIterator[Guard]:
    made = Guard()
    yield made
    await made.close()


@pytest.fixture
def cache(tmp_path: Path, guard: Guard) -> EnvironmentCache:
    return EnvironmentCache(tmp_path / "cache", environ=dict(os.environ), guard=guard)


@pytest.fixture
def requirements(tmp_path: Path) -> Path:
    write_wheel(tmp_path / "package" / "wheels")
    path = tmp_path / "package" / "requirements.txt"
    path.write_text("--no-index\n--find-links wheels\ngreeting==1.0\n")
    return path


def _output(*argv: str | Path) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


async def test_an_environment_is_built_with_progress_kept_and_whole(
    cache: EnvironmentCache, requirements: Path, say: Listener, tmp_path: Path
) -> None:
    python = await cache.prepare(requirements, say)
    assert _output(python, "-c", "import greeting; greeting.main()") == "hello 1.0"
    assert _output(python.parent / "greet") == "hello 1.0", "its commands survived the rename"
    assert any("greeting==1.0" in line for line in say.said("runnel"))
    told = len(say.lines)
    assert await cache.prepare(requirements, say) == python
    assert len(say.lines) == told
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [python.parent.parent.name]


async def test_without_requirements_the_clients_own_interpreter_serves(
    cache: EnvironmentCache, tmp_path: Path, say: Listener
) -> None:
    only_comments = tmp_path / "requirements.txt"
    only_comments.write_text("\n# numpy\n  # scipy\n")
    assert await cache.prepare(None, say) == Path(sys.executable)
    assert await cache.prepare(only_comments, say) == Path(sys.executable)
    assert not (tmp_path / "cache").exists()


async def test_those_who_want_the_same_build_it_once(
    cache: EnvironmentCache, requirements: Path, tmp_path: Path
) -> None:
    listeners = [Listener() for _ in range(4)]
    pythons = await asyncio.gather(*(cache.prepare(requirements, one) for one in listeners))
    assert len(set(pythons)) == 1
    assert [bool(one.lines) for one in listeners].count(True) == 1


async def test_two_processes_that_build_the_same_do_not_disturb_each_other(
    cache: EnvironmentCache, requirements: Path, say: Listener, tmp_path: Path, guard: Guard
) -> None:
    other = EnvironmentCache(tmp_path / "cache", environ=dict(os.environ), guard=guard)
    one, two = await asyncio.gather(cache.prepare(requirements, say), other.prepare(requirements, say))
    assert one == two
    assert _output(one, "-c", "import greeting; greeting.main()") == "hello 1.0"
    assert len(list((tmp_path / "cache").iterdir())) == 1


async def test_a_wheel_beside_the_requirements_counts_by_its_content(
    cache: EnvironmentCache, tmp_path: Path, say: Listener
) -> None:
    listing = tmp_path / "package" / "requirements.txt"
    wheel = write_wheel(listing.parent)
    listing.write_text(f"--no-index\n./{wheel.name}\n")
    first = await cache.prepare(listing, say)
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.comment = b"another"
    assert await cache.prepare(listing, say) != first


async def test_a_python_env_yaml_is_understood(cache: EnvironmentCache, requirements: Path, say: Listener) -> None:
    yaml = requirements.with_name("python_env.yaml")
    yaml.write_text(
        "name: x\npython: '3'\ndependencies: ['--no-index', '--find-links {}', greeting]\n".format(
            yaml.parent / "wheels"
        )
    )
    python = await cache.prepare(yaml, say)
    assert _output(python, "-c", "import greeting; greeting.main()") == "hello 1.0"


async def test_a_failure_has_the_installers_words_and_leaves_nothing(
    cache: EnvironmentCache, requirements: Path, say: Listener, tmp_path: Path
) -> None:
    requirements.write_text("--no-index\n--find-links wheels\ngreeting==2.0\n")
    with pytest.raises(EnvironmentFailed, match=r"uv pip install ended with status 1[\s\S]*greeting==2\.0"):
        await cache.prepare(requirements, say)
    assert list((tmp_path / "cache").iterdir()) == []


async def test_a_cancelled_build_leaves_nothing(
    requirements: Path, say: Listener, tmp_path: Path, guard: Guard
) -> None:
    slow = tmp_path / "package" / "slow"
    slow.mkdir()
    (slow / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "slow"\nversion = "1"\n'
    )
    (slow / "backend.py").write_text(
        f"import os, time\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\ntime.sleep(1000)\n"
    )
    requirements.write_text("--no-index\n./slow\n")
    cache = EnvironmentCache(tmp_path / "cache", environ=dict(os.environ), guard=guard)
    building = asyncio.create_task(cache.prepare(requirements, say))
    await eventually((tmp_path / "pid").exists, timeout_s=30)
    building.cancel()
    with pytest.raises(asyncio.CancelledError):
        await building
    assert list((tmp_path / "cache").iterdir()) == []


async def test_what_a_killed_build_left_is_removed_and_never_taken_for_whole(
    cache: EnvironmentCache, requirements: Path, say: Listener, tmp_path: Path
) -> None:
    root = tmp_path / "cache"
    for name in ("building-dead", "building-busy"):
        (root / name / "bin").mkdir(parents=True)
        (root / f"{name}.lock").touch()
    with (root / "building-busy.lock").open() as busy:
        fcntl.flock(busy, fcntl.LOCK_EX)
        python = await cache.prepare(requirements, say)
    assert {path.name for path in root.iterdir()} == {
        "building-busy",
        "building-busy.lock",
        python.parent.parent.name,
    }


async def test_an_environment_whose_interpreter_is_gone_is_built_again(
    cache: EnvironmentCache, requirements: Path, say: Listener, tmp_path: Path
) -> None:
    python = await cache.prepare(requirements, say)
    python.unlink()
    python.symlink_to(tmp_path / "uninstalled")
    assert await cache.prepare(requirements, say) == python
    assert _output(python, "-c", "import greeting; greeting.main()") == "hello 1.0"
