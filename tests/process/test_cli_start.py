"""How fast the command answers, as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.process

HEAVY = ("grpc", "httpx", "numpy", "rich", "pydantic", "fastapi", "sqlalchemy", "asyncio")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_help_answers_within_0_3_seconds() -> None:
    """Of processor time: it waits for nothing, and other processes of a busy machine should not count."""

    def once() -> float:
        with subprocess.Popen([sys.executable, "-m", "runnel.cli", "--help"], stdout=subprocess.DEVNULL) as process:
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        return used.ru_utime + used.ru_stime

    assert min(once() for _ in range(3)) < 0.3


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from runnel.cli.main import main; status = main(['--help']); "
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr); sys.exit(status)"
    )
    done = run("-c", program)
    assert (done.returncode, done.stderr) == (0, "[]\n")


@pytest.mark.parametrize("module", ["runnel.cli", "runnel.cli.main"])
def test_it_runs_as_a_module_without_a_word_on_standard_error(module: str) -> None:
    done = run("-m", module, "version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("runnel ")


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "runnel.cli", "version", "--json"],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writing)
    assert done.returncode == 1
    assert done.stderr == ""
