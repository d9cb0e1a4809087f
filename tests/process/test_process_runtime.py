"""What every runtime keeps of its promises (the first part), and what is the process runtime's own (the second)."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from textwrap import dedent

import psutil
import pytest

from runnel.client.runtimes import Guard, Limits, Prepared, ProcessRuntime, Runtime
from runnel.common.errors import BadPackage, EntryPointFailed, EntryPointTimeout, EnvironmentFailed
from tests.docker_engine import docker_runtime
from tests.doubles.client_packages import Listener, run_train, write_package
from tests.eventually import eventually, eventually_blocking, let_pass

pytestmark = pytest.mark.process

CLIENT_ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "HOME": "/nowhere",
    "LC_ALL": "C.UTF-8",
    "RUNNEL_TOKEN": "secret",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "UV_INDEX_URL": "secret",
    "PYTHONPATH": "/nowhere",
}
START_S = 60.0  # a busy machine may take so long to begin a run
Prepare = Callable[..., Awaitable[Prepared]]


IN_CONTAINERS = pytest.param("docker", marks=pytest.mark.docker)
as_processes = pytest.mark.parametrize("runtime", ["cold", "warm"], indirect=True)


@pytest.fixture(params=["cold", "warm", IN_CONTAINERS])
async def runtime(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Runtime]:
    if request.param == "docker":
        async with docker_runtime(tmp_path, environ=CLIENT_ENVIRONMENT) as in_containers:
            yield in_containers
        return
    async with ProcessRuntime(
        environments=tmp_path / "environments",
        environ=CLIENT_ENVIRONMENT,
        grace_s=0.3,
        warm=request.param == "warm",
    ) as made:
        yield made


@pytest.fixture
def say() -> Listener:
    return Listener()


@pytest.fixture
def prepare(runtime: Runtime, tmp_path: Path, say: Listener) -> Prepare:
    async def write_and_prepare(train: str, **files: str) -> Prepared:
        names = {"train.py": train} | {name.replace("_", "."): text for name, text in files.items()}
        return await runtime.prepare(write_package(tmp_path / "package", names), say)

    return write_and_prepare


# ---- every runtime


async def test_lines_come_as_they_are_printed_and_arguments_as_they_are_given(
    runtime: Runtime, prepare: Prepare, say: Listener
) -> None:
    prepared = await prepare("""
        import os, sys
        print("one")
        print("two", file=sys.stderr)
        print("has", sorted(os.listdir()), sys.stdin.read() == "")
        print(*sys.argv[1:], sep="|")
        """)
    finished = await run_train(runtime, prepared, say, "a b", "$HOME", "'q'", "ü", "")
    assert say.said("stdout") == ["one", "has ['train.py'] True", "a b|$HOME|'q'|ü|"]
    assert say.said("stderr") == ["two"]
    assert finished.exit_status == 0
    assert "one" in finished.log_tail
    assert finished.elapsed_s > 0


async def test_an_entry_point_sees_its_variables_and_nothing_else_of_the_client(
    runtime: Runtime, prepare: Prepare, say: Listener
) -> None:
    prepared = await prepare("import json, os; print(json.dumps(dict(os.environ)))")
    await run_train(runtime, prepared, say, env={"RUNNEL_DATA": "/data"})
    seen = json.loads(say.said("stdout")[0])
    assert seen["RUNNEL_DATA"] == "/data"
    assert seen["PYTHONUNBUFFERED"] == "1"
    assert "secret" not in seen.values()
    made_by_shells = {"PWD", "SHLVL", "_", "OLDPWD"}
    allowed = {"PATH", "HOME", "LC_ALL", "LC_CTYPE", "PYTHONUNBUFFERED", "RUNNEL_DATA", "VIRTUAL_ENV"}
    if seen.get("HOSTNAME") == "runnel":  # in a container
        allowed.add("HOSTNAME")
    assert seen.keys() <= allowed | made_by_shells


async def test_a_line_is_said_while_the_script_still_runs(runtime: Runtime, prepare: Prepare, say: Listener) -> None:
    prepared = await prepare("""
        import pathlib, time
        print("waiting")
        while not pathlib.Path("go").exists():
            time.sleep(0.01)
        """)
    run = asyncio.create_task(run_train(runtime, prepared, say))
    await eventually(lambda: say.said("stdout") == ["waiting"], timeout_s=START_S)
    (prepared.package.root / "go").touch()
    await run


async def test_an_exit_status_is_told_with_the_last_lines(runtime: Runtime, prepare: Prepare, say: Listener) -> None:
    prepared = await prepare("import sys; print('almost'); sys.exit(3)")
    with pytest.raises(EntryPointFailed, match="train ended with exit status 3") as caught:
        await run_train(runtime, prepared, say)
    assert caught.value.fields["exit_status"] == 3
    assert caught.value.fields["log_tail"] == "almost"


async def test_a_traceback_is_in_the_log_tail(runtime: Runtime, prepare: Prepare, say: Listener) -> None:
    prepared = await prepare("raise ValueError('no such column')")
    with pytest.raises(EntryPointFailed) as caught:
        await run_train(runtime, prepared, say)
    assert caught.value.fields["log_tail"].endswith("ValueError: no such column")


async def test_what_never_ends_is_ended_at_its_time(runtime: Runtime, prepare: Prepare, say: Listener) -> None:
    prepared = await prepare("print('begun'); import time; time.sleep(1000)")
    run = asyncio.create_task(run_train(runtime, prepared, say, timeout_s=START_S))
    await eventually(lambda: say.said("stdout") == ["begun"], timeout_s=START_S)
    let_pass(START_S)
    with pytest.raises(EntryPointTimeout, match=r"still running after 60 s") as caught:
        await run
    assert caught.value.fields["log_tail"] == "begun"


async def test_megabytes_of_output_are_cut_and_counted(runtime: Runtime, prepare: Prepare, say: Listener) -> None:
    prepared = await prepare("""
        for number in range(400_000):
            print("line", number)
        print("the end")
        """)
    finished = await run_train(runtime, prepared, say, limits=Limits(output_bytes=64 * 1024))
    assert 10_000 < sum(map(len, say.said("stdout"))) <= 64 * 1024
    dropped = int(say.said("runnel")[0].split()[0].replace(",", ""))
    assert dropped == 400_001 - len(say.said("stdout"))
    assert finished.log_tail.splitlines()[-2:] == ["line 399999", "the end"]
    assert len(finished.log_tail) <= 4096


async def test_output_without_newlines_and_binary_garbage_are_harmless(
    runtime: Runtime, prepare: Prepare, say: Listener
) -> None:
    prepared = await prepare(r"""
        import sys
        out = sys.stdout.buffer
        out.write(b"\x00\xff\xfe\x1b[2Jgarbage\n" + b"x" * 3_000_000 + b"\nno end")
        """)
    await run_train(runtime, prepared, say)
    first, long, last = say.said("stdout")
    assert first == "���garbage"
    assert long.startswith("xxxx")
    assert long.endswith("(line cut)")
    assert len(long) < 9000
    assert last == "no end"


async def test_an_entry_point_that_the_package_does_not_have(runtime: Runtime, prepare: Prepare, say: Listener) -> None:
    prepared = await prepare("pass")
    with pytest.raises(BadPackage, match="no entry point 'validate'"):
        await run_train(runtime, prepared, say, entry_point="validate")


async def test_runs_do_not_disturb_each_other(runtime: Runtime, prepare: Prepare, say: Listener) -> None:
    prepared = await prepare("import sys; print(sys.argv[1]); sys.exit(int(sys.argv[1]) % 2)")
    listeners = [Listener() for _ in range(12)]
    results = await asyncio.gather(
        *(run_train(runtime, prepared, one, str(n)) for n, one in enumerate(listeners)), return_exceptions=True
    )
    assert [one.said("stdout") for one in listeners] == [[str(n)] for n in range(12)]
    assert [isinstance(result, EntryPointFailed) for result in results] == [bool(n % 2) for n in range(12)]


# ---- every runtime: nothing of a run is left


WITH_CHILD = """
    import os, signal, subprocess, sys, time
    if "stubborn" in sys.argv:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Inherits standard output, so that its being alive would keep the pipe open; whoever looks for it finds its words.
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)", f"child of {sys.argv[-1]}"])
    print(os.getpid(), child.pid)
    if "leave" not in sys.argv:
        time.sleep(1000)
    """


def _alive(pid: str) -> bool:
    try:
        return psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def _pids(say: Listener) -> list[str]:
    return (await eventually(lambda: say.said("stdout"), timeout_s=START_S))[0].split()


def _children_of(name: str) -> list[int]:
    """Return the processes of this machine, in whatever container, that the run ``name`` started."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if f"child of {name}" in (process.info["cmdline"] or ()) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process.pid)
    return found


@pytest.fixture
def name() -> str:
    return secrets.token_hex(8)


async def test_a_background_process_ends_with_its_run(
    runtime: Runtime, prepare: Prepare, say: Listener, name: str
) -> None:
    prepared = await prepare(WITH_CHILD)
    started = time.monotonic()
    await run_train(runtime, prepared, say, "leave", name)
    assert time.monotonic() - started < START_S
    assert _children_of(name) == []


@pytest.mark.parametrize("manner", ["polite", "stubborn"])
async def test_a_timeout_leaves_nothing_alive(
    runtime: Runtime, prepare: Prepare, say: Listener, manner: str, name: str
) -> None:
    prepared = await prepare(WITH_CHILD)
    run = asyncio.create_task(run_train(runtime, prepared, say, manner, name, timeout_s=START_S))
    await _pids(say)
    assert len(_children_of(name)) == 1
    let_pass(START_S)
    with pytest.raises(EntryPointTimeout):
        await run
    assert _children_of(name) == []


@pytest.mark.parametrize("manner", ["polite", "stubborn"])
async def test_cancelling_ends_everything_before_it_goes_on(
    runtime: Runtime, prepare: Prepare, say: Listener, manner: str, name: str
) -> None:
    prepared = await prepare(WITH_CHILD)
    run = asyncio.create_task(run_train(runtime, prepared, say, manner, name))
    await _pids(say)
    assert len(_children_of(name)) == 1
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert _children_of(name) == []


async def test_the_crash_of_a_run_does_not_touch_the_next(
    runtime: Runtime, prepare: Prepare, say: Listener, name: str
) -> None:
    prepared = await prepare("""
        import os, signal, subprocess, sys
        subprocess.Popen(["sleep", "1000"], stdout=subprocess.DEVNULL)
        if "crash" in sys.argv:
            os.kill(os.getpid(), signal.SIGSEGV)
        print("ran")
        """)
    with pytest.raises(EntryPointFailed, match="SIGSEGV"):
        await run_train(runtime, prepared, say, "crash", name)
    await run_train(runtime, prepared, say, name)
    assert say.said("stdout") == ["ran"]


async def test_a_signal_is_named(runtime: Runtime, prepare: Prepare, say: Listener) -> None:
    prepared = await prepare("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(EntryPointFailed, match=r"train was killed by SIGKILL \(out of memory\?\)"):
        await run_train(runtime, prepared, say)


async def test_limits_of_memory_and_processor_time_hold(runtime: Runtime, prepare: Prepare, say: Listener) -> None:
    prepared = await prepare("""
        import sys
        if sys.argv[1] == "memory":
            len(bytearray(400 << 20))
        while sys.argv[1] == "time":
            pass
        """)
    await run_train(runtime, prepared, say, "memory")
    with pytest.raises(EntryPointFailed, match="exit status 1") as caught:
        await run_train(runtime, prepared, say, "memory", limits=Limits(memory_bytes=200 << 20))
    assert "MemoryError" in caught.value.fields["log_tail"]
    assert "a process of it may have 209,715,200 bytes of memory" in str(caught.value)
    assert caught.value.fields["limit"] == "memory"
    with pytest.raises(EntryPointFailed, match=r"SIGXCPU \(its processor time was used up\)") as caught:
        await run_train(runtime, prepared, say, "time", limits=Limits(cpu_s=1))
    assert caught.value.fields["limit"] == "cpu"


COMMANDS = "name: p\nentry_points: {{train: '{command}', validate: python train.py}}"


@pytest.mark.parametrize(
    ("command", "error", "says"),
    [
        ("no-such-command x", EntryPointFailed, "'no-such-command', which is not installed"),
        ("./tool x", EntryPointFailed, "'./tool', which is not executable"),
        ("./gone x", BadPackage, "./gone, which the package does not have"),
    ],
)
async def test_a_command_that_is_not_there(
    runtime: Runtime, prepare: Prepare, say: Listener, command: str, error: type[Exception], says: str
) -> None:
    prepared = await prepare("pass", tool="#!/bin/sh\n", runnel_yaml=COMMANDS.format(command=command))
    with pytest.raises(error, match=says):
        await run_train(runtime, prepared, say)


async def test_no_shell_reads_a_command_unless_the_package_is_fedns(
    runtime: Runtime, prepare: Prepare, say: Listener
) -> None:
    script = "import sys; print(sys.argv[1:])"
    prepared = await prepare(script, runnel_yaml=COMMANDS.format(command="python train.py $WORD; a"))
    await run_train(runtime, prepared, say, "x y", env={"WORD": "w"})
    (prepared.package.root / "runnel.yaml").unlink()
    prepared = await prepare(script, fedn_yaml='entry_points: {train: {command: "python train.py $WORD"}}')
    await run_train(runtime, prepared, say, "x y", env={"WORD": "w"})
    assert say.said("stdout") == ["['$WORD;', 'a', 'x y']", "['w', 'x y']"]


async def test_a_failure_in_a_shell_names_the_signal_too(runtime: Runtime, prepare: Prepare, say: Listener) -> None:
    prepared = await prepare("pass", fedn_yaml='entry_points: {train: {command: "sh -c \\"kill -9 $$\\"; exit $?; "}}')
    with pytest.raises(EntryPointFailed, match="SIGKILL"):
        await run_train(runtime, prepared, say)


# ---- the process runtime


@as_processes
async def test_a_daemon_does_not_hold_up_the_end_of_its_run(runtime: Runtime, prepare: Prepare, say: Listener) -> None:
    prepared = await prepare("""
        import subprocess, sys
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"], start_new_session=True)
        print(child.pid)
        """)
    await run_train(runtime, prepared, say)
    os.kill(int(say.said("stdout")[0]), signal.SIGKILL)


async def test_a_script_has_its_grace_to_end_well_and_a_second_cancellation_ends_it(
    tmp_path: Path, say: Listener
) -> None:
    files = {"train.py": WITH_CHILD}
    async with ProcessRuntime(environments=tmp_path / "e", environ=CLIENT_ENVIRONMENT, grace_s=1000) as runtime:
        prepared = await runtime.prepare(write_package(tmp_path / "package", files), say)
        run = asyncio.create_task(run_train(runtime, prepared, say, "stubborn", "grace"))
        pids = await _pids(say)
        run.cancel()
        await asyncio.wait([run], timeout=0.3)
        assert _alive(pids[0])
        run.cancel()
        await asyncio.sleep(0)
        run.cancel()  # while it waits for what was killed
        with pytest.raises(asyncio.CancelledError):
            await run
    assert not any(map(_alive, pids))


async def test_what_a_script_started_has_its_grace_too(tmp_path: Path, say: Listener) -> None:
    child = """
        import pathlib, signal, sys, time
        def end(*_):
            pathlib.Path("asked").touch()
            while not pathlib.Path("saved").exists():
                time.sleep(0.01)
            pathlib.Path("done").touch()
            sys.exit()
        signal.signal(signal.SIGTERM, end)
        print("ready")
        time.sleep(1000)
        """
    files = {"child.py": child, "train.py": "import subprocess, sys; subprocess.run([sys.executable, 'child.py'])"}
    async with ProcessRuntime(environments=tmp_path / "e", environ=CLIENT_ENVIRONMENT, grace_s=20) as runtime:
        prepared = await runtime.prepare(write_package(tmp_path / "package", files), say)
        run = asyncio.create_task(run_train(runtime, prepared, say))
        await eventually(lambda: say.said("stdout") == ["ready"])
        run.cancel()
        await eventually((tmp_path / "package" / "asked").exists)
        (tmp_path / "package" / "saved").touch()
        with pytest.raises(asyncio.CancelledError):
            await run
    assert (tmp_path / "package" / "done").exists()


@as_processes
@pytest.mark.parametrize(
    ("file", "says"),
    [
        ({"Dockerfile": "FROM x"}, "the image that its Dockerfile makes"),
        ({"runnel.yaml": "image: x:1"}, "the image x:1"),
    ],
)
async def test_a_package_that_needs_an_image_is_refused_with_what_to_do(
    runtime: Runtime, tmp_path: Path, say: Listener, file: dict[str, str], says: str
) -> None:
    package = write_package(tmp_path / "package", {"train.py": "pass"} | file)
    with pytest.raises(EnvironmentFailed, match=f"{says}.*Start the client with --runtime docker"):
        await runtime.prepare(package, say)


CLIENT = """
    import asyncio, sys
    from pathlib import Path
    from runnel.client.runtimes import Call, PackageFiles, ProcessRuntime
    from runnel.compute_package import read_manifest

    async def main(root):
        async with ProcessRuntime(environments=root / "e", environ={"PATH": "/usr/bin:/bin"}) as runtime:
            package = PackageFiles(digest="", root=root, manifest=read_manifest(root))
            prepared = await runtime.prepare(package, print)
            call = Call(entry_point="train", arguments=("stubborn",), workdir=root, env={})
            await runtime.run(prepared, call, lambda stream, text: print(text, flush=True))

    asyncio.run(main(Path(sys.argv[1])))
    """


def test_a_killed_client_takes_its_runs_along(tmp_path: Path) -> None:
    write_package(tmp_path, {"train.py": WITH_CHILD})
    client = subprocess.Popen([sys.executable, "-c", dedent(CLIENT), str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert client.stdout is not None
    with client.stdout:
        pids = client.stdout.readline().split()
        helpers = [str(child.pid) for child in psutil.Process(client.pid).children(recursive=True)]
        assert len(pids) == 2
        assert set(pids) < set(helpers), "the guard is there as well"
        client.kill()
        client.wait()
    eventually_blocking(lambda: not any(map(_alive, helpers)))


def _guards() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if child.name() == "sh"]


@as_processes
async def test_a_guard_that_was_killed_is_replaced(runtime: Runtime, prepare: Prepare, say: Listener) -> None:
    prepared = await prepare("print('ran')")
    await run_train(runtime, prepared, say)
    [guard] = _guards()
    guard.kill()
    await eventually(lambda: guard.status() == psutil.STATUS_ZOMBIE)
    await run_train(runtime, prepared, say)
    [other] = _guards()
    assert other.pid != guard.pid
    assert say.said("stdout") == ["ran", "ran"]


async def test_a_guard_kills_what_it_watches_and_spares_what_it_was_told_to_forget() -> None:
    guard = Guard()
    sleep = ["sleep", "1000"]
    watched, forgotten = (subprocess.Popen(sleep, start_new_session=True) for _ in range(2))  # noqa: ASYNC220
    for process in (watched, forgotten):
        guard.watch(process.pid)
    guard.forget(forgotten.pid)
    await guard.close()
    assert watched.wait(timeout=10) == -signal.SIGKILL
    assert forgotten.poll() is None
    forgotten.kill()
    forgotten.wait()
