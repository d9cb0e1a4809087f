"""The rules of conftest.py are kept: each way to leave something behind fails the test that did, a clean one passes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.eventually import eventually, eventually_blocking
from tests.needs import in_ci, needs

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]

LEAKS = {
    "task": "async def test_it(): keep.append(asyncio.ensure_future(asyncio.Event().wait()))",
    "file": "def test_it(tmp_path): keep.append(open(tmp_path / 'left.txt', 'w'))",
    "socket": "async def test_it(): keep.append(await asyncio.start_server(print, '127.0.0.1', 0))",
    "process": "def test_it(): keep.append(subprocess.Popen(['sleep', '30']))",
    "fork_server": "def test_it(tmp_path): keep.append(forked(tmp_path))",
    "thread": "def test_it(): threading.Thread(target=over.wait, args=(30,), name='left').start()",
}
CLEAN = """
def test_fork(tmp_path):
    process = forked(tmp_path)
    process.kill()
    process.wait()

async def test_it(tmp_path):
    await asyncio.to_thread((tmp_path / "x").write_text, "x")
    server = await asyncio.start_server(print, "127.0.0.1", 0)
    async with server:
        process = await asyncio.create_subprocess_exec("true")
        await process.wait()
    asyncio.ensure_future(asyncio.sleep(0.01))
"""
HEADER = """
import asyncio, os, subprocess, threading
import pytest
from leftovers import keep, over
from tests.process.forked_process import ForkedProcess
def forked(folder):
    with open(folder / "log", "wb") as log:
        command = ["client", "--network", "127.0.0.1:7", "--insecure", "--state", str(folder)]
        return ForkedProcess(command, env=os.environ, stdout=log, stderr=log)
pytestmark = pytest.mark.process
"""
CONFTEST = """
import leftovers, tests.leaks
tests.leaks.PATIENCE_S = {patience_s}
from tests.conftest import *
def pytest_sessionfinish():
    leftovers.end()
"""
# What the tests leave is ended after the last of them was judged.
LEFTOVERS = """
import subprocess, threading
keep = []
over = threading.Event()
def end():
    over.set()
    for each in keep:
        if hasattr(each, "kill"):
            each.kill()
            each.wait()
"""


def run_test(code: str, folder: Path, patience_s: float) -> str:
    (folder / "conftest.py").write_text(CONFTEST.format(patience_s=patience_s))
    (folder / "leftovers.py").write_text(LEFTOVERS)
    (folder / "test_one.py").write_text(f"{HEADER}\n{code}\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:unraisableexception", "-q"]
    where = [f"--rootdir={folder}", f"--config-file={ROOT / 'pyproject.toml'}", str(folder)]
    result = subprocess.run(
        [*command, *where],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"},
        capture_output=True,
        text=True,
        check=False,
    )
    return result.stdout + result.stderr


@pytest.mark.parametrize("kind", LEAKS)
def test_what_is_left_behind_fails_the_test(kind: str, tmp_path: Path) -> None:
    output = run_test(LEAKS[kind], tmp_path, 0.5)
    assert "1 passed, 1 error" in output, output
    (line,) = [line for line in output.splitlines() if line.startswith(("left behind: ", "Failed: left behind: "))]
    assert kind in line.lower()


def test_a_clean_test_passes(tmp_path: Path) -> None:
    output = run_test(CLEAN, tmp_path, 20)
    assert "2 passed in" in output, output


@pytest.mark.parametrize("environ", [{}, {"CI": "false"}, {"CI": ""}])
def test_a_missing_part_skips_at_home(environ: dict[str, str]) -> None:
    with pytest.raises(pytest.skip.Exception, match="needs a dragon"):
        needs(None, "a dragon", environ=environ)


def test_a_missing_part_fails_in_ci() -> None:
    assert in_ci({"CI": "true"})
    with pytest.raises(pytest.fail.Exception, match="needs a dragon, which CI has to provide"):
        needs(None, "a dragon", environ={"CI": "true"})


def test_a_part_that_is_there_is_no_matter() -> None:
    needs("/bin/sh", "a shell", environ={"CI": "true"})


def test_no_law_is_held_against_the_clock() -> None:
    assert settings().deadline is None
    assert HealthCheck.too_slow in settings().suppress_health_check


async def test_eventually_gives_the_first_true_answer() -> None:
    answers = iter([0, None, "", "yes", "later"])
    assert await eventually(lambda: next(answers)) == "yes"
    waiting = iter([False, True])

    async def check() -> bool:
        return next(waiting)

    assert await eventually(check)
    assert eventually_blocking(lambda: next(answers)) == "later"


async def test_eventually_gives_up_and_tells_what_it_waited_for() -> None:
    def unmet() -> bool:
        assert [] == [1]
        return True

    with pytest.raises(AssertionError, match=r"not within 0.02 s: (.|\n)*def unmet(.|\n)*state: 7") as caught:
        await eventually(unmet, timeout_s=0.02, state=lambda: 7)
    assert isinstance(caught.value.__cause__, AssertionError)
    with pytest.raises(AssertionError, match=r"not within 0.02 s"):
        eventually_blocking(lambda: False, timeout_s=0.02)


async def test_an_error_of_the_check_itself_is_not_a_not_yet() -> None:
    with pytest.raises(KeyError):
        await eventually(lambda: os.environ["NO_SUCH_VARIABLE"])
