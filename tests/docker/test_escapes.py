"""What code of a package may try from inside its container, each on the real engine."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from runnel.client import entry_points
from runnel.client.runtimes import Call, Finished, Prepared, Runtime
from runnel.common.errors import BadPackage, EntryPointFailed, EntryPointTimeout
from runnel.common.tensors import write_npz
from tests.docker_engine import cage, docker, docker_runtime, engine_host, with_base
from tests.doubles.client_packages import Listener, run_train, write_package
from tests.small_disk import small_disk

pytestmark = pytest.mark.docker

SECRET = "rnl_the-token-of-this-client"
DISK_BYTES = 8 << 20
Try = Callable[..., Awaitable[Finished]]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A client's state folder as it lies on the disk: its identity, other packages, other runs."""
    state = tmp_path / "client-state"
    for path in ("identity.json", "packages/unpacked/other/secret.py", "work/other-run/model.npz"):
        (state / path).parent.mkdir(parents=True, exist_ok=True)
        (state / path).write_text(SECRET)
    (state / "packages" / "unpacked" / "this").mkdir()
    (state / "work" / "this-run").mkdir()
    return state


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "patients.csv").write_text("1,2\n")
    folder.chmod(0o777)
    (folder / "patients.csv").chmod(0o666)
    return folder


@pytest.fixture
async def runtime(state: Path, tmp_path: Path) -> AsyncIterator[Runtime]:
    environ = {"RUNNEL_CLIENT_TOKEN": SECRET, "LC_ALL": "C.UTF-8"}
    small = cage(memory_bytes=128 << 20, pids=32, tmpfs_bytes=4 << 20, disk_bytes=DISK_BYTES)
    async with docker_runtime(tmp_path, state=state, environ=environ, cage=small) as made:
        yield made


@pytest.fixture
def say() -> Listener:
    return Listener()


@pytest.fixture
def attempt(runtime: Runtime, state: Path, data: Path, tmp_path: Path, say: Listener) -> Try:
    """Run a script as ``train`` of a package, with the data and the folders of a real client."""

    async def go(script: str, *, entry_point: str = "train", timeout_s: float = 60.0) -> Finished:
        root = state / "packages" / "unpacked" / "this"
        prepared: Prepared = await runtime.prepare(
            write_package(root, {"train.py": "", f"{entry_point}.py": script}), say
        )
        run = state / "work" / "this-run"
        call = Call(
            entry_point=entry_point,
            arguments=(str(run / "model_out.npz"), f"a run of {tmp_path.name}"),
            workdir=run,
            env={"RUNNEL_DATA": str(data), "RUNNEL_DATA_ONE_FILE": str(data / "patients.csv")},
            timeout_s=timeout_s,
        )
        return await runtime.run(prepared, call, say)

    return go


def processes_with(words: str) -> list[int]:
    """Return the processes of this machine, in whatever container, that have ``words`` in their command line."""
    return [one.pid for one in psutil.process_iter(["cmdline"]) if words in " ".join(one.info["cmdline"] or ())]


REACH = """
    import os, socket
    for address in {addresses}:
        try:
            socket.create_connection((address, {port}), timeout=2)
            print("reached", address)
        except OSError as error:
            print("no way:", error.strerror)
    print("routes:", open("/proc/net/route").read().splitlines()[1:])
    print("interfaces:", sorted(os.listdir("/sys/class/net")))
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        print("raw socket")
    except PermissionError:
        print("no raw socket")
    """


async def test_the_network_is_out_of_reach(attempt: Try, say: Listener) -> None:
    async with await asyncio.start_server(lambda _, writer: writer.close(), "0.0.0.0", 0) as server:
        port = server.sockets[0].getsockname()[1]
        own = [one.address for each in psutil.net_if_addrs().values() for one in each if one.family.name == "AF_INET"]
        await attempt(REACH.format(addresses=own, port=port))
    *ways, routes, interfaces, raw = say.said("stdout")
    assert len(ways) == len(own) >= 1
    assert all(line.startswith("no way") for line in ways)
    assert (routes, interfaces, raw) == ("routes: []", "interfaces: ['lo']", "no raw socket")


WRITE = """
    import json, os
    def tried(do, *arguments):
        try:
            do(*arguments)
        except OSError as error:
            return type(error).__name__ + ": " + os.strerror(error.errno)
        return "done"
    def write(path):
        open(path, "w").write("spoiled")
    data, one = os.environ["RUNNEL_DATA"], os.environ["RUNNEL_DATA_ONE_FILE"]
    print(json.dumps({
        "data": tried(write, data + "/patients.csv"),
        "new data": tried(write, data + "/new.csv"),
        "removed data": tried(os.remove, data + "/patients.csv"),
        "one file": tried(write, one),
        "root": tried(write, "/etc/passwd"),
        "new in root": tried(os.mkdir, "/new"),
        "home": tried(write, "/root/x"),
        "package": tried(write, "train.py"),
        "beside the package": tried(write, "/runnel/x"),
        "kernel": tried(write, "/proc/sys/kernel/hostname"),
        "made a device": tried(os.mknod, "/tmp/disk", 0o60600, os.makedev(254, 0)),
        "became root": tried(os.setuid, 0),
        "changed the root": tried(os.chroot, "/tmp"),
    }))
    print(open(data + "/patients.csv").read().strip(), open(one).read().strip(), one)
    mounts = [line.split() for line in open("/proc/mounts")]
    print(*sorted(where for _, where, _, options, *_ in mounts if "rw" in options.split(",")))
    """


async def test_data_root_and_package_cannot_be_written(attempt: Try, say: Listener, data: Path, state: Path) -> None:
    await attempt(WRITE)
    first, read, writable = say.said("stdout")
    outcomes = json.loads(first)
    assert {name for name, outcome in outcomes.items() if outcome == "done"} == set()
    assert outcomes["data"].startswith("OSError: Read-only")
    assert outcomes["root"].startswith(("OSError: Read-only", "PermissionError"))
    assert read == "1,2 1,2 /runnel/databases/one_file/patients.csv"
    of_kernel = {
        "/proc",
        "/dev",
        "/dev/pts",
        "/dev/mqueue",
        "/proc/kcore",
        "/proc/keys",
        "/proc/timer_list",
        "/sys/fs/cgroup",
    }
    assert set(writable.split()) - of_kernel <= {"/tmp", "/dev/shm", "/runnel/run"}
    assert (data / "patients.csv").read_text() == "1,2\n"
    assert sorted(path.name for path in data.iterdir()) == ["patients.csv"]


async def test_startup_may_write_the_package_and_nothing_else(attempt: Try, say: Listener, state: Path) -> None:
    await attempt("open('made', 'w').write('by startup')", entry_point="startup")
    assert (state / "packages" / "unpacked" / "this" / "made").read_text() == "by startup"
    await attempt("print(open('made').read())")
    assert say.said("stdout") == ["by startup"]
    with pytest.raises(EntryPointFailed, match="only the folder of its arguments and /tmp can be written"):
        await attempt("open('/runnel/data/patients.csv', 'w')", entry_point="startup")


async def test_the_cached_model_cannot_be_spoilt_where_others_take_it(
    runtime: Runtime, state: Path, tmp_path: Path, say: Listener
) -> None:
    model = tmp_path / "cached.npz"
    write_npz(model, {"w": np.arange(6, dtype=np.float32)})
    before = model.read_bytes()
    spoil = """
        import os, shutil, sys
        was = os.stat(sys.argv[1])
        shutil.copy(sys.argv[1], sys.argv[2])
        with open(sys.argv[1], "r+b") as file:
            file.write(b"spoilt")
        os.utime(sys.argv[1], ns=(was.st_atime_ns, was.st_mtime_ns))
        print("spoilt")
        """
    prepared = await runtime.prepare(write_package(state / "packages" / "unpacked" / "this", {"train.py": spoil}), say)
    work = state / "work" / "this-run"
    await entry_points.train(
        runtime,
        prepared,
        model=model,
        workdir=work,
        settings_json="{}",
        env={},
        timeout_s=60,
        say=say,
        lend=True,
    )
    assert say.said("stdout") == ["spoilt"]
    assert model.read_bytes() == before
    assert model.stat().st_uid == os.geteuid()


PRIVILEGES = """
    import json
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    names = ("CapEff", "CapPrm", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Uid")
    print(json.dumps({name: status[name].split() for name in names}))
    """


async def test_a_run_has_no_privileges_and_can_get_none(attempt: Try, say: Listener) -> None:
    await attempt(PRIVILEGES)
    had = json.loads(say.said("stdout")[0])
    assert {int(had[name][0], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {0}
    assert had["NoNewPrivs"] == ["1"]
    assert had["Seccomp"] == ["2"], "the engine's filter of system calls"
    assert "0" not in had["Uid"]


SEARCH = """
    import os
    def look(top):
        for path, folders, files in os.walk(top):
            if path.startswith(("/proc", "/sys")):
                folders.clear()
                continue
            for name in files:
                full = os.path.join(path, name)
                if name.endswith(".sock"):
                    print("socket:", full)
                try:
                    small = os.path.isfile(full) and os.path.getsize(full) < 1_000_000
                    if small and b"{secret}" in open(full, "rb").read():
                        print("secret:", full)
                except OSError:
                    pass
    look("/")
    for process in filter(str.isdecimal, os.listdir("/proc")):
        for one in ("environ", "cmdline"):
            try:
                if b"{secret}" in open("/proc/" + process + "/" + one, "rb").read():
                    print("secret of process", process)
            except OSError:
                pass
    print("processes:", len(list(filter(str.isdecimal, os.listdir("/proc")))))
    print("run:", sorted(os.listdir("/runnel")), sorted(os.listdir("/runnel/run")))
    for link in ("{state}", "/var/run/docker.sock", "/run/docker.sock", "{socket}"):
        print(os.path.exists(link))
    """


async def test_other_packages_state_token_and_engine_are_not_seen(attempt: Try, say: Listener, state: Path) -> None:
    socket = engine_host().removeprefix("unix://")
    script = SEARCH.replace("{secret}", SECRET[4:]).replace("{state}", str(state)).replace("{socket}", socket)
    await attempt(script.replace(SECRET[4:], f'{SECRET[4:8]}" b"{SECRET[8:]}'))
    assert say.said("stdout") == [
        "processes: 2",
        "run: ['data', 'databases', 'package', 'run'] []",
        *["False"] * 4,
    ]


async def test_what_is_mounted_below_the_data_cannot_be_written(attempt: Try, say: Listener, data: Path) -> None:
    with small_disk(data / "below", 1 << 20) as below:
        below.folder.chmod(0o777)
        with pytest.raises(EntryPointFailed) as caught:
            await attempt("import os; open(os.environ['RUNNEL_DATA'] + '/below/new', 'w')")
        assert "Read-only file system" in caught.value.fields["log_tail"]
        assert list(below.folder.iterdir()) == []


async def test_a_link_in_the_runs_folder_leads_nowhere_outside(attempt: Try, say: Listener, state: Path) -> None:
    (state / "work" / "this-run" / "way").symlink_to(state / "identity.json")
    await attempt("import os; print(os.path.lexists('/runnel/run/way'), os.path.exists('/runnel/run/way'))")
    assert say.said("stdout") == ["True False"]


async def test_a_fork_bomb_stays_in_its_container(attempt: Try, tmp_path: Path) -> None:
    with pytest.raises(EntryPointTimeout, match=r"still running after 8 s.*It had all of the 32 processes") as caught:
        await attempt(
            """
            import os, time
            while True:
                try:
                    os.fork()
                except OSError:
                    time.sleep(0.01)
            """,
            timeout_s=8,
        )
    assert caught.value.fields["limit"] == "pids"
    assert processes_with(tmp_path.name) == [], "nothing of it is left"


async def test_too_many_processes_are_named(attempt: Try) -> None:
    with pytest.raises(EntryPointFailed, match="may have 32 processes and threads") as caught:
        await attempt("import subprocess; keep = [subprocess.Popen(['sleep', '60']) for _ in range(100)]")
    assert caught.value.fields["limit"] == "pids"


@pytest.mark.parametrize(
    "script",
    [
        "keep = []\nwhile True: keep.append(bytearray(8 << 20))",
        "open('/dev/shm/x', 'wb').write(bytes(1 << 20)); bytearray(512 << 20)",
    ],
    ids=["slowly", "at once"],
)
async def test_memory_ends_at_the_limit_and_is_named(attempt: Try, script: str) -> None:
    with pytest.raises(EntryPointFailed, match=r"used up the 134,217,728 bytes of memory") as caught:
        await attempt(script)
    assert caught.value.fields["limit"] == "memory"
    assert caught.value.fields["exit_status"] == -9


@pytest.mark.parametrize("folder", ["/tmp", "/dev/shm"])
async def test_what_is_memory_ends_at_its_limit(attempt: Try, folder: str) -> None:
    with pytest.raises(EntryPointFailed, match="may write") as caught:
        await attempt(f"for n in range(99): open('{folder}/' + str(n), 'wb').write(bytes(1 << 20))")
    assert caught.value.fields["limit"] == "disk"


async def test_a_file_of_the_run_ends_at_the_limit(attempt: Try, state: Path) -> None:
    with pytest.raises(EntryPointFailed, match=r"may write") as caught:
        await attempt("""
            import sys
            with open(sys.argv[1], "wb") as file:
                while True:
                    file.write(bytes(1 << 20))
            """)
    assert caught.value.fields["limit"] == "disk"
    assert (state / "work" / "this-run" / "model_out.npz").stat().st_size <= DISK_BYTES


@pytest.mark.parametrize("size", [1 << 20, 0], ids=["large files", "empty files"])
async def test_many_files_of_the_run_end_it(attempt: Try, size: int) -> None:
    started = time.monotonic()
    with pytest.raises(EntryPointFailed, match=r"wrote more than the 8,388,608 bytes of disk") as caught:
        await attempt(f"""
            import signal, time
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            for number in range({(16 << 20) // max(size, 4096)}):
                open("/runnel/run/" + str(number), "wb").write(bytes({size}))
            time.sleep(1000)
            """)
    assert caught.value.fields["limit"] == "disk"
    assert time.monotonic() - started < 50


async def test_folders_too_deep_to_be_looked_at_end_the_run_and_are_removed(
    runtime: Runtime, state: Path, tmp_path: Path, say: Listener
) -> None:
    deep = """
        import os, sys, time
        os.chdir("/runnel/run")
        for _ in range(1500):
            os.mkdir("deep")
            os.chdir("deep")
        print("deep", flush=True)
        time.sleep(1000)
        """
    prepared = await runtime.prepare(write_package(state / "packages" / "unpacked" / "this", {"train.py": deep}), say)
    model, work = tmp_path / "cached.npz", state / "work" / "this-run"
    write_npz(model, {"w": np.arange(6, dtype=np.float32)})
    with pytest.raises(EntryPointFailed, match="bytes of disk"):
        await entry_points.train(
            runtime, prepared, model=model, workdir=work, settings_json="{}", env={}, timeout_s=60, say=say
        )
    assert list(work.iterdir()) == []


async def test_a_volume_of_the_image_has_a_limit_and_its_entry_point_is_passed_over(
    runtime: Runtime, tmp_path: Path, say: Listener
) -> None:
    lines = ["RUN mkdir /vol && chmod 777 /vol", "VOLUME /vol", 'ENTRYPOINT ["/bin/false"]', "USER 0"]
    script = "for n in range(99): open('/vol/' + str(n), 'wb').write(bytes(1 << 20))"
    prepared = await runtime.prepare(
        write_package(tmp_path / "p", {"train.py": script, "Dockerfile": with_base(lines)}), say
    )
    try:
        with pytest.raises(EntryPointFailed, match="may write") as caught:
            await run_train(runtime, prepared, say)
        assert caught.value.fields["limit"] == "disk"
    finally:
        docker("rmi", prepared.image.id)  # type: ignore[attr-defined]


async def test_the_image_of_another_package_is_not_to_be_had(runtime: Runtime, tmp_path: Path, say: Listener) -> None:
    files = {"train.py": "pass", "runnel.yaml": f"image: runnel-package:{'0' * 64}-{'0' * 32}"}
    with pytest.raises(BadPackage, match="for these alone"):
        await runtime.prepare(write_package(tmp_path / "p", files), say)


async def test_nothing_outlives_the_time_limit(attempt: Try) -> None:
    started = time.monotonic()
    with pytest.raises(EntryPointTimeout) as caught:
        await attempt(
            """
            import os, signal, time
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            if os.fork() == 0:
                os.setsid()
            time.sleep(1000)
            """,
            timeout_s=0.5,
        )
    assert caught.value.fields["limit"] == "time"
    assert time.monotonic() - started < 50


async def test_a_daemon_does_not_outlive_its_run(attempt: Try, say: Listener) -> None:
    words = f"daemon of {os.getpid()} {time.monotonic_ns()}"
    await attempt(f"""
        import os, subprocess, sys, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(1000)", "{words}"])
            os._exit(0)
        def runs():
            numbers = filter(str.isdecimal, os.listdir("/proc"))
            return any(b"{words}" in open("/proc/" + one + "/cmdline", "rb").read() for one in numbers)
        while not runs():
            time.sleep(0.01)
        print("it runs")
        """)
    assert say.said("stdout") == ["it runs"]
    assert processes_with(words) == []


async def test_a_run_finds_nothing_of_the_one_before(runtime: Runtime, tmp_path: Path, say: Listener) -> None:
    package = write_package(
        tmp_path / "p",
        {
            "train.py": """
                import os
                print(sorted(os.listdir("/tmp") + os.listdir("/dev/shm")))
                for folder in ("/tmp", "/dev/shm"):
                    open(folder + "/left", "w").write("x")
                """
        },
    )
    prepared = await runtime.prepare(package, say)
    for _ in range(2):
        await run_train(runtime, prepared, say)
    assert say.said("stdout") == ["[]", "[]"]
