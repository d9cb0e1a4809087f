"""A forked command is what the same command by exec is, and none outlives the process that asked for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.eventually import eventually_blocking
from tests.needs import needs
from tests.process.forked_process import ROOT, RUNNEL, ForkedProcess, run_runnel, start_runnel
from tests.process.living import living

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]

ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("RUNNEL_")}
# It tries for ever to reach somebody at a port where nobody is.
WAITING = ("client", "--network", "127.0.0.1:7", "--name", "site", "--insecure", "--state", "state")

KILLED = """
import os, pathlib, sys
from tests.process.forked_process import ForkedProcess

log = open("log", "wb")
forked = ForkedProcess(sys.argv[1:], env=os.environ, stdout=log, stderr=log)
while not pathlib.Path("log").stat().st_size:
    pass
print(forked.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _linux() -> None:
    needs(sys.platform == "linux", "Linux, where a child can end with its parent")


@pytest.fixture
def waiting(tmp_path: Path) -> Iterator[ForkedProcess]:
    """A client that has come to write its log."""
    with (tmp_path / "log").open("wb") as log:
        process = ForkedProcess(WAITING, env=ENVIRON, stdout=log, stderr=log, cwd=tmp_path)
    try:
        eventually_blocking(lambda: (tmp_path / "log").stat().st_size, state=process.poll)
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("arguments", "environ", "status"),
    [
        (("version",), {}, 0),
        (("reducer", "--nonsense"), {}, 2),
        (("client",), {"RUNNEL_CLIENT_PARALLEL": "two"}, 2),
        (("combiner", "--network", "127.0.0.1:7", "--state", "/proc/runnel"), {}, 2),
        (("status",), {"RUNNEL_URL": "http://127.0.0.1:7"}, 1),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_it_says_and_returns_what_one_by_exec_does(
    tmp_path: Path, arguments: tuple[str, ...], environ: dict[str, str], status: int
) -> None:
    forked = run_runnel(arguments, env=ENVIRON | environ, cwd=tmp_path)
    started = subprocess.run(
        [*RUNNEL, *arguments], env=ENVIRON | environ, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (forked.returncode, forked.stdout, forked.stderr) == (status, started.stdout, started.stderr)


def files_of(process: Path) -> dict[str, str]:
    """Return what the descriptors of a process lead to; it opens and closes files while one looks."""
    found = {}
    for descriptor in (process / "fd").iterdir():
        with suppress(FileNotFoundError):
            found[descriptor.name] = str(descriptor.readlink())
    return found


def test_it_has_its_own_folder_and_nothing_of_the_servers_files(waiting: ForkedProcess, tmp_path: Path) -> None:
    me = Path("/proc") / str(waiting.pid)
    server = Path("/proc") / str(psutil.Process(waiting.pid).ppid())
    has, servers = (files_of(each) for each in (me, server))
    assert str((me / "cwd").readlink()) == str(tmp_path)
    assert (has["0"], has["1"], has["2"]) == ("/dev/null", str(tmp_path / "log"), str(tmp_path / "log"))
    assert {link for link in servers.values() if link.startswith(("socket", "pipe"))}.isdisjoint(has.values())
    assert len(list((server / "task").iterdir())) == 1


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 0), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_signal_ends_it(waiting: ForkedProcess, number: signal.Signals, status: int) -> None:
    assert waiting.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(0.01)
    waiting.send_signal(number)
    assert waiting.wait(30) == status
    assert waiting.poll() == status
    assert not psutil.pid_exists(waiting.pid)
    waiting.kill()  # of what has ended is nothing


def test_variables_that_are_read_at_load_have_it_started_by_exec(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        process = start_runnel(["version"], env=ENVIRON | {"PYTHONUTF8": "1"}, stdout=log, stderr=log)
        assert isinstance(process, subprocess.Popen)
        assert process.wait(60) == 0


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "at its end"])
def test_nothing_outlives_who_asked(tmp_path: Path, killed: bool) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, *WAITING],
        cwd=tmp_path,
        env=ENVIRON | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as asking:
        assert asking.stdout is not None
        pid = int(asking.stdout.readline())
        family = psutil.Process(asking.pid).children(recursive=True)
        assert pid in {each.pid for each in family}
        if killed:
            asking.kill()

    eventually_blocking(lambda: not living(family), state=lambda: living(family))
