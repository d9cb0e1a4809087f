"""When a package has a zygote, when its runs start cold, and what happens when something dies."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from pathlib import Path
from textwrap import dedent

import psutil
import pytest
import structlog

from runnel.client.runtimes import Guard, Limits, PreparedProcess, ProcessRuntime, zygote_process
from runnel.client.runtimes.warm_starts import WarmStarts
from runnel.client.runtimes.zygote import ForkedLeader
from runnel.common.errors import EntryPointFailed, EntryPointTimeout
from tests.doubles.client_packages import Listener, run_train, write_package
from tests.doubles.two_starts import ENVIRONMENT, THIS, WHOSE_CHILD, Site, same, told, whose_child
from tests.eventually import eventually, eventually_blocking, let_pass

pytestmark = [
    pytest.mark.process,
    pytest.mark.usefixtures("warm_starts_supported"),
]


# ---- what is imported, and what starts cold


async def test_no_code_of_the_package_runs_in_the_zygote(site: Site) -> None:
    mark = "import os, pathlib; pathlib.Path('ran').open('a').write(f'{os.getpid()}\\n')"
    prepared = await site.package(
        "import os, beside, inside.deep, colorsys; print(os.getpid(), os.getppid(), 'wave' in os.sys.modules)",
        beside=mark + "\nimport wave",
        inside____init__=mark,
        inside__deep=mark,
    )
    words = (await told(site.warm, prepared)).split()
    assert words[1] != THIS
    assert words[2] == "True"
    assert (prepared.package.root / "ran").read_text().split() == [words[0]] * 3


def installed(folder: Path, **modules: str) -> Path:
    """Make an environment without uv whose installed modules are these; return its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    [packages] = folder.glob("lib/*/site-packages")
    for name, text in modules.items():
        (packages / f"{name}.py").write_text(dedent(text))
    return folder / "bin" / "python"


UNFIT = {
    "starts_thread": (
        "import threading, time; threading.Thread(target=time.sleep, args=(9,), daemon=True).start()",
        "threads",
    ),
    "starts_raw_thread": ("import _thread, time; _thread.start_new_thread(time.sleep, (9,))", "threads"),
    "prints": ("print('hello')", "prints"),
    "warns": ("import warnings; warnings.warn('old')", "prints"),
    "opens": ("kept = open('/dev/zero')", "files open: /dev/zero"),
    "shares": ("import mmap; kept = mmap.mmap(-1, 4096)", "share: /dev/zero"),
    "locks": ("import multiprocessing; kept = multiprocessing.Lock()", "share: /dev/shm/sem."),
    "fails": ("1 / 0", "ZeroDivisionError"),
    "fails_at_length": ("raise ValueError('\U0001f600' * 100_000)", "ValueError: \U0001f600"),
    "leaves": ("import sys; sys.exit(0)", "SystemExit"),
    "dies": ("import os\nos.kill(os.getpid(), 9) if not os.environ.get('RUNNEL_ROUND') else 0", "ended with -9"),
    "grpc": ("", "grpc, which does not survive"),
}


async def test_modules_that_a_fork_would_not_carry_over_start_cold(tmp_path: Path) -> None:
    python = installed(tmp_path / "own", **{name: text for name, (text, _) in UNFIT.items()})
    async with ProcessRuntime(environments=tmp_path / "e", environ=ENVIRONMENT, warm=True) as runtime:
        for name, (_, reason) in UNFIT.items():
            package = write_package(tmp_path / name, {"train.py": f"import os; print(os.getppid())\nimport {name}"})
            prepared = PreparedProcess(package=package, python=python)
            with structlog.testing.capture_logs() as logs:
                for _ in range(2):
                    say = Listener()
                    with pytest.raises(EntryPointFailed) if name.startswith("fails") else nullcontext():
                        await run_train(runtime, prepared, say, env={"RUNNEL_ROUND": "1"})
                    assert say.said("stdout")[0] == THIS, name
            [said] = [entry["reason"] for entry in logs if entry["event"] == "runs of a package start cold"]
            assert reason in said


async def test_a_script_that_prepares_its_imports_starts_cold(site: Site, tmp_path: Path) -> None:
    python = installed(tmp_path / "own", reads="import os; mark = os.environ.get('MARK')", found="where = 'installed'")
    prepared = await site.package(
        """
        import os, sys
        os.environ["MARK"] = "mine"
        sys.path.insert(0, "vendor")
        import reads, found
        print(reads.mark, found.where)
        """,
        vendor__found="where = 'vendor'",
    )
    with structlog.testing.capture_logs() as logs:
        same(both := await site.both(PreparedProcess(package=prepared.package, python=python)))
    assert both[1].startswith("mine vendor")
    [cold] = [entry["reason"] for entry in logs if entry["event"] == "runs of a package start cold"]
    assert cold == "train.py prepares its imports (os.environ, line 3) before it imports reads"


async def test_a_file_that_hides_an_imported_module_starts_cold(site: Site) -> None:
    script = "import os, json, fractions; print(os.getppid(), fractions.__file__)"
    prepared = await site.package(script)
    assert not (await told(site.warm, prepared)).startswith(THIS)
    (prepared.package.root / "fractions.py").write_text("pass")
    assert f"{THIS} {prepared.package.root}/fractions.py" in await told(site.warm, prepared)
    (prepared.package.root / "fractions.py").unlink()
    assert not (await told(site.warm, prepared)).startswith(THIS)
    (prepared.package.root / "fractions").mkdir()
    assert not (await told(site.warm, prepared)).startswith(THIS), "a mere folder hides nothing that is installed"
    (prepared.package.root / "fractions" / "__init__.py").touch()
    assert f"{THIS} {prepared.package.root}/fractions/__init__.py" in await told(site.warm, prepared)


@pytest.mark.parametrize("command", ["python -u train.py", "python -m train", "sh -c 'exec python train.py'"])
async def test_other_commands_start_cold(site: Site, command: str) -> None:
    prepared = await site.package(WHOSE_CHILD)
    (prepared.package.root / "runnel.yaml").write_text(f"entry_points: {{train: {json.dumps(command)}}}")
    prepared = await site.warm.prepare(write_package(prepared.package.root, {}), Listener())
    assert await whose_child(site.warm, prepared) == THIS


async def test_variables_that_change_how_an_interpreter_starts_start_cold(site: Site) -> None:
    prepared = await site.package("import os, sys; print(os.getppid(), sys.flags.optimize, hash('a'))")
    say = Listener()
    for env in ({"PYTHONOPTIMIZE": "1"}, {"PYTHONHASHSEED": "0"}):
        await run_train(site.warm, prepared, say, env=env)
        await run_train(site.cold, prepared, say, env=env)
    (a, b, _), (_, c, _), (d, _, e), (_, _, f) = (line.split() for line in say.said("stdout"))
    assert (a, b, c) == (THIS, "1", "1")
    assert d != THIS
    assert e == f


async def test_an_environment_of_the_package_is_used(site: Site, tmp_path: Path) -> None:
    python = installed(tmp_path / "own", only_here="value = 42")
    prepared = await site.package(
        "import os, sys, only_here; print(only_here.value, sys.prefix, os.environ['VIRTUAL_ENV'])"
    )
    own = PreparedProcess(package=prepared.package, python=python)
    cold, warm = await site.both(own)
    assert f"42 {tmp_path}/own {tmp_path}/own" in cold
    same((cold, warm))


async def test_a_file_that_a_run_leaves_in_an_installed_module_is_written_out(site: Site, tmp_path: Path) -> None:
    python = installed(tmp_path / "own", keeps="")
    prepared = await site.package("""
        import keeps, os, subprocess
        print("the parent of", os.getpid(), "is", os.getppid())
        keeps.text = open("text", "w")
        keeps.bytes = open("bytes", "wb")
        keeps.full = os.fdopen(os.pipe()[1], "wb", buffering=1 << 20)
        keeps.closed = open("closed", "w")
        keeps.closed.close()
        for kept in (keeps.text, keeps.bytes, keeps.full):
            kept.write("all of it" if kept is keeps.text else b"x" * 100_000)
        """)
    assert THIS not in await told(site.warm, PreparedProcess(package=prepared.package, python=python))
    assert (prepared.package.root / "text").read_text() == "all of it"
    assert (prepared.package.root / "bytes").read_bytes() == b"x" * 100_000


def test_a_child_that_cant_begin_ends_and_is_no_second_zygote(tmp_path: Path) -> None:
    def ask(message: object, content: object = None, *more: int) -> object:
        with os.fdopen(os.memfd_create("test"), "w+") as file:
            json.dump(content, file)
            file.flush()
            files = [] if content is None else [file.fileno(), *more]
            socket.send_fds(control, [json.dumps(message).encode()], files)
        return json.loads(control.recv(4096))

    control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, str(Path(zygote_process.__file__).with_name("zygote_start.py")), str(theirs.fileno())]
    with (
        subprocess.Popen(
            command, pass_fds=[theirs.fileno()], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process,
        control,  # which ends it
    ):
        theirs.close()
        assert ask({}, {"imports": []}) == {"ready": True}
        (tmp_path / "train.py").touch()
        request = {"argv": ["python", "train.py"], "folder": str(tmp_path), "variables": {}, "limits": []}
        with Path(os.devnull).open("wb") as gate:  # nothing can be read from it
            begun = ask({"run": 1}, request, *[gate.fileno()] * 3)
        assert isinstance(begun, dict)
        assert begun["number"] == 1
        assert ask({"reap": begun["pid"]}) == {"reaped": begun["pid"], "status": 125}
    assert process.returncode == 0


# ---- when something dies


SLEEP = "import os, time; print(os.getpid(), os.getppid())\ntime.sleep(1000)"


async def begun(say: Listener) -> list[int]:
    return [int(pid) for pid in (await eventually(lambda: say.said("stdout")))[0].split()]


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def test_a_killed_zygote_takes_its_runs_along_and_is_replaced(site: Site) -> None:
    prepared = await site.package(SLEEP)
    say = Listener()
    run = asyncio.create_task(run_train(site.warm, prepared, say))
    pid, zygote = await begun(say)
    os.kill(zygote, signal.SIGKILL)
    with pytest.raises(EntryPointFailed, match="SIGKILL"):
        await run
    assert gone(pid)
    (prepared.package.root / "train.py").write_text(WHOSE_CHILD)
    assert await whose_child(site.warm, prepared) not in (str(zygote), THIS)


async def test_a_zygote_that_dies_again_and_again_is_given_up(site: Site) -> None:
    script = f"import os; print(os.getppid())\nif os.getppid() != {THIS}: os.kill(os.getppid(), 9)"
    prepared = await site.package(script)
    parents = []
    for _ in range(5):
        say = Listener()
        with suppress(EntryPointFailed):  # the first ones end with their zygote
            await run_train(site.warm, prepared, say)
        parents.append(say.said("stdout")[0])
    assert THIS not in parents[:3]
    assert parents[3:] == [THIS, THIS]


async def test_a_run_that_is_not_wanted_any_more_before_it_began(site: Site) -> None:
    prepared = await site.package("import os, pathlib; print(os.getppid())\npathlib.Path('ran').open('a').write('x')")
    zygote = psutil.Process(int(await whose_child(site.warm, prepared)))
    for steps in range(40):
        run = asyncio.create_task(run_train(site.warm, prepared, Listener()))
        await asyncio.wait([run], timeout=steps * 1e-4)
        run.cancel()
        await asyncio.wait([run])
    await eventually(lambda: not zygote.children())
    assert await whose_child(site.warm, prepared) == str(zygote.pid)


@asynccontextmanager
async def warm_starts(**limits: float) -> AsyncIterator[WarmStarts]:
    guard = Guard()
    warm = WarmStarts(guard=guard, **limits)  # type: ignore[arg-type]
    try:
        yield warm
    finally:
        await warm.close()
        await guard.close()


async def forked(warm: WarmStarts, folder: Path, script: str = "input()") -> ForkedLeader | None:
    write_package(folder, {"train.py": script})
    return await fork(warm, folder)


async def fork(warm: WarmStarts, folder: Path) -> ForkedLeader | None:
    python = folder / "own" / "bin" / "python"
    argv = [str(python) if python.exists() else sys.executable, "train.py"]
    return await warm.fork(argv, folder=folder, env=ENVIRONMENT, limits=Limits(), scripts=["train.py"])


@asynccontextmanager
async def waiting(warm: WarmStarts, folder: Path) -> AsyncIterator[psutil.Process | None]:
    """Yield the zygote of a run that waits at its gate, or None; the run ends without having begun."""
    leader = await forked(warm, folder)
    if leader is None:
        yield None
        return
    with leader.watch as watch:
        yield psutil.Process(leader.pid).parent()
        for pipe in (leader.gate, leader.stdout, leader.stderr):
            pipe.close()
        await watch.exited.wait()
        assert await leader.reap() == 125


async def test_a_stopped_zygote_does_not_hold_up_runs(tmp_path: Path) -> None:
    async with warm_starts(answer_s=5) as warm:  # those that are not stopped have so long, too
        async with waiting(warm, tmp_path) as zygote:
            assert zygote is not None
        zygote.suspend()
        async with waiting(warm, tmp_path) as none:
            assert none is None
        await eventually(lambda: gone(zygote.pid))
        async with waiting(warm, tmp_path) as other:
            assert other not in (None, zygote)


async def test_a_zygote_without_runs_ends(tmp_path: Path) -> None:
    async with warm_starts(idle_s=0.3) as warm:
        async with waiting(warm, tmp_path) as zygote, waiting(warm, tmp_path) as same_one:
            assert zygote is not None
            assert zygote == same_one
        assert not gone(zygote.pid)
        await eventually(lambda: gone(zygote.pid))


async def test_the_zygote_that_was_used_least_makes_room(tmp_path: Path) -> None:
    async with warm_starts(most=2) as warm:
        async with (
            waiting(warm, tmp_path / "a") as a,
            waiting(warm, tmp_path / "b") as b,
            waiting(warm, tmp_path / "c") as c,
        ):
            assert c is None, "the others have runs"
        async with waiting(warm, tmp_path / "a") as again:
            assert again == a
        async with waiting(warm, tmp_path / "c") as c:
            assert None not in (a, b, c)
        await eventually(lambda: b is not None and gone(b.pid))
        assert a is not None
        assert not gone(a.pid)


async def test_a_zygote_that_imports_or_owes_a_status_makes_no_room(tmp_path: Path) -> None:
    slow = f"""
        import os, time
        open({str(tmp_path / "imports")!r}, "w").close()
        while not os.path.exists({str(tmp_path / "go on")!r}):
            time.sleep(0.01)
        """
    installed(tmp_path / "a" / "own", slow=slow)
    async with warm_starts(most=1) as warm:
        first = asyncio.create_task(forked(warm, tmp_path / "a", "import slow"))
        await eventually((tmp_path / "imports").exists)
        assert await forked(warm, tmp_path / "b") is None
        (tmp_path / "go on").touch()
        leader = await first
        assert leader is not None
        zygote = psutil.Process(leader.pid).parent()
        assert zygote is not None
        with leader.watch as watch:
            for pipe in (leader.gate, leader.stdout, leader.stderr):
                pipe.close()
            await watch.exited.wait()
            zygote.suspend()
            status = asyncio.create_task(leader.reap())
            await asyncio.wait([status], timeout=0)
            assert await forked(warm, tmp_path / "b") is None
            zygote.resume()
            assert await status == 125
        async with waiting(warm, tmp_path / "b") as b:
            assert b is not None, "now there is room"


@contextmanager
def no_more_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_without_another_file_runs_start_cold(tmp_path: Path) -> None:
    write_package(tmp_path, {"train.py": "input()"})
    async with warm_starts() as warm:
        with no_more_files():
            assert await fork(warm, tmp_path) is None
        async with waiting(warm, tmp_path) as zygote:
            assert zygote is not None
        with no_more_files():
            assert await fork(warm, tmp_path) is None
        async with waiting(warm, tmp_path) as again:
            assert again == zygote


# As a sandbox does: memfd_create is refused (EPERM), all else allowed.
SANDBOXED = """
    import ctypes, os, platform, struct
    number = {"x86_64": 319, "aarch64": 279}[platform.machine()]
    steps = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x50001), (0x06, 0, 0, 0x7FFF0000)]
    rules = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((38, 1, 0, 0, 0), (22, 2, struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(rules)))):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), "prctl")
    from runnel.client.runtimes.warm_starts import WarmStarts
    print(WarmStarts.supported())
    """


def test_a_sandbox_that_refuses_what_it_takes_is_not_supported() -> None:
    done = subprocess.run([sys.executable, "-c", dedent(SANDBOXED)], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "False\n"


CLIENT = """
    import asyncio, sys
    from pathlib import Path
    from runnel.client.runtimes import Call, PackageFiles, ProcessRuntime
    from runnel.compute_package import read_manifest

    async def main(root):
        async with ProcessRuntime(environments=root / "e", environ={"PATH": "/usr/bin:/bin"}, warm=True) as runtime:
            package = PackageFiles(digest="", root=root, manifest=read_manifest(root))
            prepared = await runtime.prepare(package, print)
            call = Call(entry_point="train", arguments=(), workdir=root, env={})
            await runtime.run(prepared, call, lambda stream, text: print(text, flush=True))

    asyncio.run(main(Path(sys.argv[1])))
    """


def test_a_killed_client_takes_its_zygote_and_its_runs_along(tmp_path: Path) -> None:
    write_package(tmp_path, {"train.py": SLEEP})
    environ = os.environ | {"RUNNEL_LOG_LEVEL": "error"}
    client = subprocess.Popen(
        [sys.executable, "-c", dedent(CLIENT), str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environ
    )
    assert client.stdout is not None
    with client.stdout:
        line = next(line for line in client.stdout if line.split()[0].isdigit() and len(line.split()) == 2)
        pid, zygote = map(int, line.split())
        helpers = [child.pid for child in psutil.Process(client.pid).children(recursive=True)]
        assert {pid, zygote} < set(helpers), "the guard is there as well"
        assert zygote != client.pid
        client.kill()
        client.wait()
    eventually_blocking(lambda: all(map(gone, helpers)))


async def test_a_time_limit_ends_a_warm_run(site: Site) -> None:
    prepared = await site.package(SLEEP)
    say = Listener()
    run = asyncio.create_task(run_train(site.warm, prepared, say, timeout_s=30.0))
    pid, zygote = await begun(say)
    let_pass(30.0)
    with pytest.raises(EntryPointTimeout):
        await run
    assert gone(pid)
    assert not gone(zygote)


async def test_crashes_and_exhaustion_of_one_run_do_not_reach_the_next(site: Site) -> None:
    prepared = await site.package("""
        import ctypes, os, sys
        print(os.getppid())
        if sys.argv[1:] == ["crash"]:
            ctypes.string_at(0)
        if sys.argv[1:] == ["exhaust"]:
            len(bytearray(1 << 30))
        """)
    before = await whose_child(site.warm, prepared)
    assert "-- -11" in await told(site.warm, prepared, "crash")
    assert "MemoryError" in await told(site.warm, prepared, "exhaust", limits=Limits(memory_bytes=300 << 20))
    assert await whose_child(site.warm, prepared) == before
