"""Components that can't start: one line that names what is wrong and where it was set, and an exit status."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.needs import needs
from tests.process.forked_process import run_runnel
from tests.process.process_network import ProcessNetwork

pytestmark = [pytest.mark.process, pytest.mark.timeout(60)]


def run(cwd: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("RUNNEL_")} | environ
    return run_runnel(arguments, env=env, cwd=cwd, timeout_s=50)


CLIENT = ("client", "--network", "127.0.0.1:7")
COMBINER = ("combiner", "--network", "127.0.0.1:7", "--listen", "127.0.0.1:0")
REDUCER = ("reducer", "--rpc", "127.0.0.1:0", "--http", "127.0.0.1:0")

BAD_SETTINGS: dict[str, tuple[tuple[str, ...], dict[str, str], str, tuple[str, ...]]] = {
    "no network": (("client",), {}, "", ("network is needed", "--network", "RUNNEL_CLIENT_NETWORK")),
    "no network of a combiner": (("combiner",), {}, "", ("network is needed", "RUNNEL_COMBINER_NETWORK")),
    "unknown in the file": (
        (*CLIENT, "--config", "c.toml"),
        {},
        "paralel = 3",
        ("paralel = 3", "c.toml", "parallel?"),
    ),
    "unknown in the environment": (
        CLIENT,
        {"RUNNEL_CLIENT_PARALEL": "3"},
        "",
        ("RUNNEL_CLIENT_PARALEL = '3'", "environment variable", "RUNNEL_CLIENT_PARALLEL?"),
    ),
    "bad in the file": ((*CLIENT, "--config", "c.toml"), {}, "parallel = 0", ("parallel = 0", "c.toml", "1")),
    "bad in the environment": (
        CLIENT,
        {"RUNNEL_CLIENT_PARALLEL": "two"},
        "",
        ("parallel = 'two'", "RUNNEL_CLIENT_PARALLEL"),
    ),
    "bad flag": ((*CLIENT, "--grace-s", "-1"), {}, "", ("grace_s = -1.0", "--grace-s")),
    "bad name": ((*CLIENT, "--name", "a b"), {}, "", ("name = 'a b'", "--name", "does not fit")),
    "bad address": (("client", "--network", "nowhere"), {}, "", ("network must be HOST:PORT", "'nowhere'")),
    "a file that is not there": ((*CLIENT, "--config", "none.toml"), {}, "", ("none.toml", "No such file")),
    "a file that is no TOML": ((*CLIENT, "--config", "c.toml"), {}, "= =", ("c.toml", "is not TOML")),
    "data that is not there": ((*CLIENT, "--data", "x=/nowhere"), {}, "", ("'x'", "/nowhere", "--data")),
    "no engine": (
        (*CLIENT, "--insecure", "--runtime", "docker", "--docker-host", "unix:///nowhere/docker.sock"),
        {},
        "",
        ("No Docker engine answers at unix:///nowhere/docker.sock", "--docker-host", "--runtime process"),
    ),
    "a runtime that is none": ((*CLIENT, "--runtime", "podman"), {}, "", ("runtime = 'podman'", "--runtime", "docker")),
    "insecure for all": (
        ("reducer", "--rpc", "0.0.0.0:0", "--http", "127.0.0.1:0", "--insecure"),
        {},
        "",
        ("--insecure", "0.0.0.0:0 is not a loopback address"),
    ),
    "insecure HTTP for all": (
        ("reducer", "--rpc", "127.0.0.1:0", "--http", "0.0.0.0:0", "--insecure"),
        {},
        "",
        ("--insecure", "0.0.0.0:0 is not a loopback address"),
    ),
    "an insecure combiner for all": (
        ("combiner", "--network", "127.0.0.1:7", "--listen", "0.0.0.0:0", "--insecure"),
        {},
        "",
        ("--insecure", "0.0.0.0:0"),
    ),
    "an insecure client far away": (
        ("client", "--network", "example.org:7400", "--insecure"),
        {},
        "",
        ("--insecure", "example.org:7400"),
    ),
    "plain text for all": (
        ("reducer", "--rpc", "127.0.0.1:0", "--http", "0.0.0.0:0"),
        {},
        "",
        ("0.0.0.0:0", "--tls-cert", "--allow-plaintext"),
    ),
    "half a certificate": ((*REDUCER, "--tls-key", "c.toml"), {}, "x = 1", ("--tls-cert", "missing")),
    "a certificate that is none": (
        (*REDUCER, "--tls-key", "c.toml", "--tls-cert", "c.toml"),
        {},
        "x = 1",
        ("c.toml", "is not a PEM file"),
    ),
}


@pytest.mark.parametrize("what", BAD_SETTINGS)
def test_bad_settings_end_with_status_2_and_are_named(tmp_path: Path, what: str) -> None:
    arguments, environ, file, words = BAD_SETTINGS[what]
    (tmp_path / "c.toml").write_text(file)
    said = run(tmp_path, *arguments, **environ)
    assert (said.returncode, said.stdout) == (2, ""), said.stderr
    (line,) = [line for line in said.stderr.splitlines() if "level=info" not in line]
    assert line.startswith("runnel: ")
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("flag", "words"), [("--nonsense", "No such option: --nonsense"), ("--grace-s=x", "--grace-s")]
)
def test_a_command_line_that_makes_no_sense(tmp_path: Path, flag: str, words: str) -> None:
    said = run(tmp_path, *CLIENT, flag)
    assert (said.returncode, said.stdout) == (2, "")
    assert words in said.stderr
    assert "Traceback" not in said.stderr
    assert list(tmp_path.iterdir()) == []


# ---- ports and folders


@pytest.fixture
def taken() -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize(
    "arguments",
    [
        ("reducer", "--rpc", "TAKEN", "--http", "127.0.0.1:0"),
        ("reducer", "--rpc", "127.0.0.1:0", "--http", "TAKEN"),
        ("combiner", "--network", "127.0.0.1:7", "--listen", "TAKEN"),
    ],
)
def test_a_port_that_is_taken_is_named(tmp_path: Path, taken: str, arguments: tuple[str, ...]) -> None:
    said = run(tmp_path, *(taken if word == "TAKEN" else word for word in arguments))
    assert (said.returncode, said.stdout) == (1, "")
    (line,) = [line for line in said.stderr.splitlines() if not line.startswith("timestamp=")]
    assert line.startswith("runnel: ")
    assert taken in line
    assert "event=ready" not in said.stderr
    assert not list(tmp_path.rglob("endpoints.json"))


def test_two_reducers_do_not_share_a_state_folder(tmp_path: Path) -> None:
    with ProcessNetwork(tmp_path) as net:
        net.by_exec = True  # once as people do
        net.start_reducer()
        said = run(tmp_path, *REDUCER, "--state", "reducer", "--insecure")
        assert said.returncode == 1
        assert said.stderr.startswith("runnel: Another reducer")
        assert "give this one another --state" in said.stderr
        assert len(said.stderr.splitlines()) == 1
        net.sdk.status()  # the first is none the worse for it
        net.until_ready("reducer")


@pytest.mark.parametrize("arguments", [CLIENT, COMBINER, REDUCER], ids=lambda arguments: arguments[0])
def test_a_state_folder_that_is_none_is_named(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "file").write_text("x")
    said = run(tmp_path, *arguments, "--state", "file")
    assert (said.returncode, said.stdout) == (2, "")
    (line,) = said.stderr.splitlines()
    assert line.startswith("runnel: The state folder")
    assert "/file can't be used" in line or " file can't be used" in line
    assert "--state" in line


@pytest.mark.parametrize("arguments", [CLIENT, COMBINER, REDUCER], ids=lambda arguments: arguments[0])
def test_a_state_folder_that_can_not_be_written_is_named(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    # Nobody, not even root, may make a folder here.
    needs(Path("/proc/self").exists(), "Linux")
    said = run(tmp_path, *arguments, "--state", "/proc/runnel")
    assert (said.returncode, said.stdout) == (2, "")
    (line,) = said.stderr.splitlines()
    assert line.startswith("runnel: The state folder /proc/runnel can't be used")
