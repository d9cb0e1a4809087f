"""What a site says about environments holds: from where, with which Python, whether at all, how much is kept."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import uv

from runnel.client.runtimes import EnvironmentCache, Guard, Installs, PreparedProcess, ProcessRuntime
from runnel.client.runtimes.environment_folders import evict
from runnel.client.runtimes.python_versions import read_listing
from runnel.common.errors import EnvironmentFailed
from tests.doubles.client_packages import Listener, run_train, write_package
from tests.doubles.wheels import sha256, write_wheel
from tests.needs import needs

pytestmark = pytest.mark.process

DAY_S = 86400.0
# Nobody listens there: an index that can't be reached.
NO_INDEX = {"UV_DEFAULT_INDEX": "http://127.0.0.1:9/simple", "UV_HTTP_RETRIES": "0", "UV_HTTP_TIMEOUT": "5"}
Open = Callable[..., EnvironmentCache]


@pytest.fixture
def say() -> Listener:
    return Listener()


@pytest.fixture
async def guard() -> AsyncIterator[Guard]:
    made = Guard()
    yield made
    await made.close()


@pytest.fixture
def counted(tmp_path: Path) -> Path:
    """A uv that notes each of its calls in the file ``calls`` beside it."""
    program = tmp_path / "uv"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\nexec {os.fsdecode(uv.find_uv_bin())} "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "calls").touch()
    return program


@pytest.fixture
def open_cache(tmp_path: Path, guard: Guard, counted: Path) -> Open:
    def opened(**installs: object) -> EnvironmentCache:
        return EnvironmentCache(
            tmp_path / "cache",
            environ=dict(os.environ) | NO_INDEX,
            guard=guard,
            installs=Installs(**installs),  # type: ignore[arg-type]
            installer=lambda: str(counted),
        )

    return opened


def write(folder: Path, text: str, name: str = "requirements.txt") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text)
    return path


def calls(tmp_path: Path) -> list[str]:
    return (tmp_path / "calls").read_text().splitlines()


def output(*argv: str | Path) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def imported(python: Path, module: str) -> str:
    return output(python, "-c", f"import {module}; print({module}.__file__)")


async def test_a_second_start_prepares_nothing(open_cache: Open, say: Listener, tmp_path: Path) -> None:
    write_wheel(tmp_path / "package" / "wheels")
    listing = write(tmp_path / "package", "--no-index\n-f wheels\ngreeting\n")
    first = await open_cache().prepare(listing, say)
    assert len(calls(tmp_path)) == 2, "one environment, one installation"
    assert await open_cache().prepare(listing, say) == first
    write(tmp_path / "package", "not required by anything", "train.py")
    assert await open_cache().prepare(listing, say) == first
    assert len(calls(tmp_path)) == 2


async def test_a_local_package_is_built_again_when_one_byte_of_it_changes(
    open_cache: Open, say: Listener, tmp_path: Path
) -> None:
    package = tmp_path / "package"
    write(
        package / "lib", '[build-system]\nrequires = []\nbuild-backend = "b"\nbackend-path = ["."]\n', "pyproject.toml"
    )
    write(package / "lib", "VALUE = 1\n", "mine.py")
    write(
        package / "lib",
        "import zipfile\n"
        "def build_wheel(folder, *_):\n"
        "    name, info = 'mine-1-py3-none-any.whl', 'mine-1.dist-info/'\n"
        "    with zipfile.ZipFile(folder + '/' + name, 'w') as z:\n"
        "        z.write('mine.py')\n"
        "        z.writestr(info + 'METADATA', 'Metadata-Version: 2.1\\nName: mine\\nVersion: 1\\n')\n"
        "        z.writestr(info + 'WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')\n"
        "        z.writestr(info + 'RECORD', 'mine.py,,\\n')\n"
        "    return name\n",
        "b.py",
    )
    listing = write(package, "-e ./lib\n")
    first = await open_cache().prepare(listing, say)
    (package / "lib" / "mine.py").rename(package / "lib" / "gone.py")
    assert "site-packages" in imported(first, "mine"), "the environment does not need the package's files"
    (package / "lib" / "gone.py").rename(package / "lib" / "mine.py")
    assert await open_cache().prepare(listing, say) == first
    built = len(calls(tmp_path))
    write(package / "lib", "VALUE = 2\n", "mine.py")
    second = await open_cache().prepare(listing, say)
    assert second != first
    assert len(calls(tmp_path)) > built


async def test_a_sites_wheels_serve_without_an_index(open_cache: Open, say: Listener, tmp_path: Path) -> None:
    listing = write(tmp_path / "package", "greeting\n")
    with pytest.raises(EnvironmentFailed, match=r"uv pip install ended with status \d"):
        await open_cache().prepare(listing, say)
    write_wheel(tmp_path / "site wheels")
    python = await open_cache(find_links=(str(tmp_path / "site wheels"),)).prepare(listing, say)
    assert "site-packages" in imported(python, "greeting")
    assert any("does not answer" in line for line in say.said("runnel"))


async def test_hashes_are_required_of_all_once_there_is_one(open_cache: Open, say: Listener, tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path / "package" / "wheels")
    good = f"--no-index\n-f wheels\ngreeting==1.0 \\\n  --hash=sha256:{sha256(wheel)}\n"
    cache = open_cache()
    assert await cache.prepare(write(tmp_path / "package", good), say)
    for bad, says in (
        (good.replace(sha256(wheel), "0" * 64), "[Hh]ash"),
        ("--require-hashes\n--no-index\n-f wheels\ngreeting==1.0\n", "[Hh]ash"),
    ):
        with pytest.raises(EnvironmentFailed, match=says):
            await cache.prepare(write(tmp_path / "package", bad), say)


async def test_the_python_that_is_asked_for_runs_it(open_cache: Open, say: Listener, tmp_path: Path) -> None:
    program = os.fsdecode(uv.find_uv_bin())
    listed = output(program, "python", "list", "--only-installed", "--output-format", "text")
    own = ".".join(map(str, sys.version_info[:3]))
    other = next((one for one in read_listing(listed.splitlines()) if one.version != own), None)
    needs(other, "a second Python")
    assert other is not None
    env = write(tmp_path / "package", f"python: {other.version}\n", "python_env.yaml")
    python = await open_cache().prepare(env, say)
    assert output(python, "--version").split()[1] == other.version
    built = len(calls(tmp_path))
    assert await open_cache().prepare(env, say) == python
    assert len(calls(tmp_path)) == built, "nor is its interpreter looked up again"


@pytest.mark.parametrize("where", ["python_env.yaml", "pyproject.toml"])
async def test_a_python_that_is_not_there_is_an_error_with_both_versions(
    open_cache: Open, say: Listener, tmp_path: Path, where: str
) -> None:
    env = write(tmp_path / "package", "python: '2.7'\n" if where == "python_env.yaml" else "name: e", "python_env.yaml")
    requires = "==2.7.*" if where == "pyproject.toml" else ""
    own = ".".join(map(str, sys.version_info[:3]))
    with pytest.raises(EnvironmentFailed, match=rf"{where} asks for Python .*2\.7.*this machine has .*{own}"):
        await open_cache().prepare(env, say, requires_python=requires)
    assert await open_cache().prepare(None, say, requires_python=">=3.11") == Path(sys.executable)


async def test_where_nothing_may_be_installed_what_is_there_runs(
    open_cache: Open, say: Listener, tmp_path: Path
) -> None:
    write_wheel(tmp_path / "package" / "wheels")
    listing = write(tmp_path / "package", "--no-index\n-f wheels\ngreeting\n")
    forbidden = open_cache(allowed=False)
    with pytest.raises(EnvironmentFailed, match="does not install what packages require"):
        await forbidden.prepare(listing, say)
    assert calls(tmp_path) == []
    python = await open_cache().prepare(listing, say)
    assert await forbidden.prepare(listing, say) == python


def age(folder: Path, days: float) -> None:
    then = time.time() - days * DAY_S
    os.utime(folder, (then, then))


async def test_what_is_old_or_too_much_goes_and_what_is_in_use_stays(
    open_cache: Open, say: Listener, tmp_path: Path
) -> None:
    cache, folders = open_cache(), []
    for version in ("1.0", "2.0", "3.0"):
        write_wheel(tmp_path / "package" / "wheels", version)
        listing = write(tmp_path / "package", f"--no-index\n-f wheels\ngreeting=={version}\n")
        folders.append((await cache.prepare(listing, say)).parent.parent)
    root = tmp_path / "cache"
    most = {"most_bytes": 1 << 40, "most_days": 30.0}
    assert evict(root, **most) == ()  # type: ignore[arg-type]
    for folder, days in zip(folders, (40, 20, 10), strict=True):
        age(folder, days)
    async with cache.in_use(folders[0] / "bin" / "python") as there:
        assert there
        age(folders[0], 40)
        assert evict(root, **most) == ()  # type: ignore[arg-type]
    age(folders[0], 40)
    size_bytes = sum(path.lstat().st_size for folder in folders for path in folder.rglob("*"))
    assert evict(root, most_bytes=size_bytes - 1000, most_days=100) == (folders[0].name,), "and then it is enough"
    age(folders[1], 40)
    assert evict(root, **most) == (folders[1].name,)  # type: ignore[arg-type]
    assert evict(root, most_bytes=1, most_days=0.5) == (folders[2].name,)
    assert list(root.iterdir()) == []
    async with cache.in_use(folders[1] / "bin" / "python") as there:
        assert not there


async def test_by_size_the_oldest_goes_first_and_recent_ones_stay(
    open_cache: Open, say: Listener, tmp_path: Path
) -> None:
    cache, folders = open_cache(), []
    for version in ("1.0", "2.0"):
        write_wheel(tmp_path / "package" / "wheels", version)
        listing = write(tmp_path / "package", f"--no-index\n-f wheels\ngreeting=={version}\n")
        folders.append((await cache.prepare(listing, say)).parent.parent)
    age(folders[1], 2)
    assert evict(tmp_path / "cache", most_bytes=1, most_days=30) == (folders[1].name,)
    assert folders[0].is_dir(), "it was used within the hour"


async def test_an_environment_that_went_is_built_again_when_its_package_runs(say: Listener, tmp_path: Path) -> None:
    write_wheel(tmp_path / "package" / "wheels")
    package = write_package(
        tmp_path / "package",
        {"requirements.txt": "--no-index\n-f wheels\ngreeting\n", "train.py": "import greeting; greeting.main()"},
    )
    async with ProcessRuntime(environments=tmp_path / "cache", environ=dict(os.environ), warm=True) as runtime:
        prepared = await runtime.prepare(package, say)
        assert isinstance(prepared, PreparedProcess)
        await run_train(runtime, prepared, say)
        age(prepared.python.parent.parent, 100)
        assert len(evict(tmp_path / "cache", most_bytes=1, most_days=30)) == 1
        await run_train(runtime, prepared, say)
    assert say.said("stdout") == ["hello 1.0", "hello 1.0"]
