"""The cage as the engine is told of it, and what the end of a container means."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from runnel.client.domain import Cage
from runnel.client.runtimes import Limits
from runnel.client.runtimes.docker_container import Ended, container_config
from runnel.client.runtimes.docker_failures import failed, timed_out
from runnel.client.runtimes.docker_paths import layout
from runnel.common.errors import BadSettings

pytestmark = pytest.mark.unit


def config(cage: Cage, limits: Limits | None = None) -> dict[str, Any]:
    return container_config(
        image="sha256:1",
        argv=["python3", "train.py"],
        env={"A": "b=c"},
        folder="/runnel/package",
        mounts=[],
        cage=cage,
        owner=cage.owner((1000, 100)),
        limits=limits or Limits(),
        cpus=4,
        labels={"l": "x"},
    )


def test_the_usual_cage_is_closed() -> None:
    made = config(Cage())
    host = made["HostConfig"]
    assert made["User"] == "1000:100"
    assert made["NetworkDisabled"] is True
    assert host["NetworkMode"] == "none"
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["Privileged"] is False
    assert host["Memory"] == host["MemorySwap"] == 4 << 30
    assert (host["PidsLimit"], host["NanoCpus"]) == (256, 2_000_000_000)
    assert host["LogConfig"] == {"Type": "none"}
    assert not {"Devices", "Binds", "CapAdd", "PidMode", "UTSMode", "UsernsMode"} & host.keys()
    assert {"Name": "core", "Soft": 0, "Hard": 0} in host["Ulimits"]


def test_what_a_site_widens_is_what_is_widened() -> None:
    wide = Cage(network="study", memory_bytes=1 << 33, cpus=64, pids=1000, tmpfs_bytes=1 << 30, user="7:8")
    made = config(wide, Limits(memory_bytes=1 << 20, cpu_s=1.5))
    host = made["HostConfig"]
    assert (made["User"], made["NetworkDisabled"], host["NetworkMode"]) == ("7:8", False, "study")
    assert host["NanoCpus"] == 4_000_000_000, "no more than the engine has"
    assert host["Tmpfs"]["/tmp"].startswith("rw,nosuid,nodev,size=1073741824")
    limits = {one["Name"]: (one["Soft"], one["Hard"]) for one in host["Ulimits"]}
    assert (limits["data"], limits["cpu"]) == ((1 << 20, 1 << 20), (2, 7))
    assert host["ReadonlyRootfs"] is True


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        ({"network": "host"}, "no cage"),
        ({"network": "container:other"}, "no cage"),
        ({"network": ""}, "network of a cage"),
        ({"user": "0:0"}, "never run as root"),
        ({"user": "0:100"}, "never run as root"),
        ({"user": "nobody"}, "UID:GID"),
        ({"user": "1000"}, "UID:GID"),
        ({"memory_bytes": 1000}, "memory_bytes of a cage should be at least 16,777,216"),
        ({"pids": 0}, "pids of a cage"),
        ({"disk_bytes": -1}, "disk_bytes of a cage"),
        ({"cpus": 0.0}, "cpus of a cage"),
        ({"cpus": float("nan")}, "cpus of a cage"),
    ],
)
def test_what_would_be_no_cage_is_refused(choice: dict[str, Any], says: str) -> None:
    with pytest.raises(BadSettings, match=says):
        Cage(**choice)


@pytest.mark.parametrize(
    ("status", "oom", "tail", "limit", "says"),
    [
        (1, False, "", None, "ended with exit status 1. It printed nothing."),
        (137, False, "", None, "was killed by SIGKILL (out of memory?)"),
        (137, True, "", "memory", "was killed by SIGKILL: it used up the 4,294,967,296 bytes of memory"),
        (1, True, "a child died", "memory", "ended with exit status 1: it used up"),
        (1, False, "BlockingIOError: [Errno 11] Resource temporarily unavailable", "pids", "may have 256 processes"),
        (1, False, "OSError: [Errno 28] No space left on device", "disk", "to /tmp"),
        (1, False, "OSError: [Errno 101] Network is unreachable", "network", "has no network"),
        (1, False, "OSError: [Errno 30] Read-only file system: 'x'", None, "can be written"),
        (
            127,
            False,
            "[FATAL tini (7)] exec Rscript failed: No such file or directory",
            None,
            "not installed in its image",
        ),
        (127, False, "sh: 1: Rscript: not found", None, "ended with exit status 127"),
    ],
)
def test_the_limit_that_was_hit_is_named(status: int, oom: bool, tail: str, limit: str | None, says: str) -> None:
    error = failed("train", "Rscript", Ended(status=status, out_of_memory=oom), cage=Cage(), tail=tail)
    assert says in str(error)
    assert error.fields.get("limit") == limit
    assert error.fields["log_tail"] == tail


def test_a_container_with_a_network_does_not_lack_one() -> None:
    ended = Ended(status=1, out_of_memory=False)
    error = failed("train", "python3", ended, cage=Cage(network="study"), tail="Network is unreachable")
    assert "limit" not in error.fields


@pytest.mark.parametrize(("processes", "limit"), [(256, "pids"), (255, "time"), (0, "time")])
def test_a_run_out_of_time_may_have_been_out_of_processes(processes: int, limit: str) -> None:
    assert timed_out("train", 2.0, cage=Cage(), processes=processes, tail="").fields["limit"] == limit


def test_paths_of_the_client_are_those_of_the_container(tmp_path: Path) -> None:
    for name in ("package", "work/run-1", "data/deep"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "data" / "a.csv").touch()
    data = str(tmp_path / "data")
    env = {
        "RUNNEL_DATA": data,
        "RUNNEL_DATA_LAB_2": f"{data}/a.csv",
        "RUNNEL_DATA___": f"{data}/deep",
        "RUNNEL_DATA_FAR": "postgresql://host/x",
        "RUNNEL_DATA_GONE": str(tmp_path / "gone"),
        "RUNNEL_DATABASE": data,
        "RUNNEL_CLIENT_NAME": "a",
    }
    seen = layout(package=tmp_path / "package", run=tmp_path / "work" / "run-1", env=env)
    assert {str(one.outside.relative_to(tmp_path)): str(one.inside) for one in seen.data} == {
        "data": "/runnel/data",
        "data/a.csv": "/runnel/databases/lab_2/a.csv",
        "data/deep": "/runnel/databases/__",
    }
    assert not any(one.writable for one in (*seen.data, seen.package))
    for outside, inside in (
        (f"{tmp_path}/work/run-1/model_in.npz", "/runnel/run/model_in.npz"),
        (f"{tmp_path}/work/run-1", "/runnel/run"),
        (f"{tmp_path}/work/run-10", f"{tmp_path}/work/run-10"),
        (f"{tmp_path}/package/x", "/runnel/package/x"),
        ("relative", "relative"),
        ("/etc/passwd", "/etc/passwd"),
        ("", ""),
    ):
        assert seen.translate(outside) == inside
    assert PurePosixPath(seen.translate(f"{data}/deep/x")).name == "x"


def test_the_guide_tells_the_usual_cage() -> None:
    page = (Path(__file__).parents[2] / "docs" / "data-provider.md").read_text()
    table = page.partition("<!-- cage -->")[2].partition("<!-- /cage -->")[0]
    usual = Cage()
    for name in ("memory_bytes", "tmpfs_bytes", "shm_bytes", "disk_bytes"):
        assert f"{getattr(usual, name) >> 20} MiB" in table
        assert f"`{name}`" in table
    for words in (f"`{usual.network}`", f"{usual.cpus:g} (`cpus`)", f"{usual.pids} (`pids`)"):
        assert words in table
