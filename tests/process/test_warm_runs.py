"""A run that was forked from a zygote is what a new interpreter would be, and has nothing of the runs before it."""

from __future__ import annotations

from pathlib import Path

import pytest

from runnel.client.runtimes import Limits
from tests.doubles.client_packages import Listener, run_train, write_package
from tests.doubles.two_starts import THIS, WHOSE_CHILD, Site, same, told, whose_child

pytestmark = [
    pytest.mark.process,
    pytest.mark.usefixtures("warm_starts_supported"),
]


# ---- the same


EVERYTHING = """
    import sys
    names = sorted(globals().items())
    import atexit, gc, json, locale, os, resource, signal, threading, time, warnings
    import numpy as np
    def show(name, value):
        print(name, value)
    show("globals", [(name, type(value).__name__) for name, value in names])
    show("main", [__name__, __file__, __doc__, __spec__, __package__, __builtins__ is sys.modules["builtins"]])
    show("loader", [__loader__.name, __loader__.path, type(__loader__).__module__])
    show("registered", sys.modules["__main__"].__dict__ is globals())
    for name in ("argv", "path", "flags", "executable", "prefix", "base_prefix", "orig_argv", "warnoptions"):
        show(name, getattr(sys, name))
    show("finders", [getattr(finder, "__name__", type(finder)) for finder in sys.meta_path])
    show("hooks", [sys.excepthook is sys.__excepthook__, sys.stdout is sys.__stdout__, sys.gettrace()])
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        show(stream.name, [stream.encoding, stream.errors, stream.line_buffering, stream.write_through, stream.fileno(),
                           stream.isatty(), stream.seekable(), type(stream.buffer).__name__, stream.mode])
    show("environ", sorted((n, v) for n, v in os.environ.items() if n not in ("_", "SHLVL", "OLDPWD")))
    show("cwd", os.getcwd())
    show("group", [os.getpgrp() == os.getpid(), os.getsid(0) == os.getpid()])
    show("umask", os.umask(0o22))
    show("nice", os.nice(0))
    show("cpus", sorted(os.sched_getaffinity(0)))
    show("limits", [(n, resource.getrlimit(getattr(resource, n))) for n in dir(resource) if n.startswith("RLIMIT_")])
    show("signals", [(s, signal.getsignal(s)) for s in sorted(signal.valid_signals())])
    show("masked", signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    show("pending", signal.sigpending())
    show("ignored", [line for line in open("/proc/self/status") if line.startswith(("Sig", "Shd"))][2:])
    show("files", sorted((n, os.path.exists(f"/proc/self/fd/{n}") and os.readlink(f"/proc/self/fd/{n}").split(":")[0])
                         for n in os.listdir("/proc/self/fd") if int(n) < 3 or os.path.exists(f"/proc/self/fd/{n}")))
    show("threads", [threading.active_count(), threading.current_thread() is threading.main_thread(),
                     threading.main_thread().ident == threading.get_ident(), threading.get_native_id() == os.getpid()])
    show("gc", [gc.isenabled(), gc.get_threshold(), gc.get_debug()])
    show("locale", [locale.setlocale(locale.LC_ALL, None), locale.getpreferredencoding(False)])
    show("filters", warnings.filters)
    show("recursion", sys.getrecursionlimit())
    show("used", [resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, time.process_time() < 5])
    show("numpy", [np.__file__, np.geterr(), np.ones((300, 300)).dot(np.ones((300, 300))).sum()])
    show("threads", len(os.listdir("/proc/self/task")))
    """


async def test_a_warm_run_sees_what_a_cold_one_sees(site: Site) -> None:
    prepared = await site.package(EVERYTHING)
    cold, warm = await site.both(prepared, "a b", "ü", "", limits=Limits(memory_bytes=4 << 30, cpu_s=30.5))
    assert "globals" in cold
    same((cold, warm))
    assert await whose_child(site.warm, await site.package(WHOSE_CHILD)) != THIS


ENDS = {
    "well": "pass",
    "with a status": "import sys; sys.exit(7)",
    "with a message": "import sys; sys.exit('no data')",
    "with none": "raise SystemExit",
    "with a status that is good": "import numpy, sys; sys.exit(0)",
    "with what C has not written": """
        import ctypes
        c = ctypes.CDLL(None)
        c.fopen.restype = ctypes.c_void_p
        c.fputs(b"from C", ctypes.c_void_p(c.fopen(b"left.txt", b"w")))
        """,
    "without an output": "import numpy, sys; sys.stdout = open('/dev/full', 'w'); print('lost')",
    "beside a thread": """
        import numpy, threading, time
        def late(): time.sleep(60); print("late")
        threading.Thread(target=late, daemon=True).start()
        """,
    "with what others hold": """
        import numpy, sys, types
        class Last:
            def __init__(self): self.last = print
            def __del__(self): self.last("gone")
        own = sys.modules["own"] = types.ModuleType("own")
        own.last = Last()
        numpy.held = own
        """,
    "at once": "import os; os._exit(9)",
    "with an error": """
        def find(column):
            raise KeyError(column)
        try:
            find("a")
        except KeyError as error:
            raise ValueError("no such column") from error
        """,
    "interrupted": "raise KeyboardInterrupt",
    "with a syntax error": "x = 1\ny = = 2\n",
    "with a warning of its syntax": "print(1 is 1)\n",
    "with bytes that are no text": "x = '\\udcff'; print(x)",
    "with a hook of its own": """
        import sys, traceback
        sys.excepthook = lambda kind, error, trace: print("hooked", kind, error, traceback.format_tb(trace))
        raise OSError("broken")
        """,
    "by a signal": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "asked to": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "in order": """
        import atexit, sys, threading, time, weakref
        import numpy as np
        class Last:
            def __init__(self, name): self.name = name
            def __del__(self): print("gone:", self.name)
        kept = Last("global")
        cycle = Last("cycle"); cycle.itself = cycle
        weakref.finalize(kept, print, "finalised")
        unflushed = open("left.txt", "w"); unflushed.write("all of it")
        atexit.register(lambda: print("first registered", sys.excepthook is sys.__excepthook__))
        atexit.register(lambda: print("last registered", getattr(sys, "last_value", None)))
        def work():
            threading.main_thread().join()  # the script has come to its end
            time.sleep(0.05)
            print("the thread is done")
        threading.Thread(target=work).start()
        print("the script is done", end="")
        if len(sys.argv) > 1:
            raise RuntimeError("after all")
        """,
}


SAID = {"in order": "gone: global", "with what others hold": "gone", "without an output": "-- 120"}
LEFT = {"in order": "all of it", "with what C has not written": "from C"}


@pytest.mark.parametrize("how", ENDS)
async def test_a_warm_run_ends_as_a_cold_one(site: Site, how: str) -> None:
    prepared = await site.package(ENDS[how])
    cold, warm = await site.both(prepared)
    same((cold, warm))
    assert SAID.get(how, "") in warm
    if how in LEFT:
        assert (prepared.package.root / "left.txt").read_text() == LEFT[how]
    if how == "in order":
        same(await site.both(prepared, "fail"))


async def test_other_processes_and_pickles_find_the_script(site: Site) -> None:
    prepared = await site.package(
        """
        import multiprocessing, os, pickle, sys
        from concurrent.futures import ProcessPoolExecutor
        import beside
        class Point:
            def __init__(self, x): self.x = x
        def double(point):
            return Point(2 * point.x), __name__, sys.argv[1:], beside.__file__
        if __name__ == "__main__":
            print(pickle.loads(pickle.dumps(Point(3))).x, pickle.dumps(Point(3)))
            for method in ("fork", "spawn"):
                with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
                    point, *rest = pool.submit(double, Point(4)).result()
                    print(method, point.x, rest)
        """,
        beside="import os",
    )
    cold, warm = await site.both(prepared, "word")
    assert "spawn 8 ['__mp_main__', ['word']" in cold
    same((cold, warm))


async def test_a_script_in_a_folder_and_one_behind_a_link(site: Site, tmp_path: Path) -> None:
    files = {
        "runnel.yaml": "entry_points: {train: 'python code/train.py --fast'}",
        "code/train.py": "import sys, near; print(__file__, sys.path[0], sys.argv, near.here)\n1 / 0",
        "code/near.py": "here = __file__",
        "train.py": "raise AssertionError",
    }
    write_package(tmp_path / "package", files)
    (tmp_path / "link").symlink_to(tmp_path / "package")
    say = Listener()
    prepared = await site.warm.prepare(write_package(tmp_path / "link", files), say)
    same(await site.both(prepared, "x"))


# ---- nothing is handed on from run to run


async def test_runs_leave_nothing_to_each_other(site: Site) -> None:
    prepared = await site.package("""
        import json, os, random, sys, tempfile, uuid
        import numpy as np
        print(getattr(json, "mark", "clean"), os.environ.get("MARK"), np.geterr()["divide"], os.getcwd() == sys.path[0])
        print(random.random(), np.random.random(), np.random.default_rng().random(), uuid.uuid4(), os.urandom(8).hex())
        json.mark = "dirty"
        os.environ["MARK"] = "dirty"
        np.seterr(divide="raise")
        np.random.seed(1); random.seed(1)
        os.chdir("/")
        """)
    seen = [(await told(site.warm, prepared)).splitlines() for _ in range(3)]
    assert {lines[0] for lines in seen} == {"clean None warn True"}
    draws = [value for lines in seen for value in lines[1].split()]
    assert len(set(draws)) == len(draws) == 15


async def test_a_script_that_is_changed_runs_as_it_is_now(site: Site) -> None:
    prepared = await site.package("import beside; print('old', beside.value)", beside="value = 1")
    assert "old 1" in await told(site.warm, prepared)
    (prepared.package.root / "train.py").write_text("import beside; print('new', beside.value)")
    (prepared.package.root / "beside.py").write_text("value = 'changed'")
    assert "new changed" in await told(site.warm, prepared)


async def test_what_one_run_has_of_its_own_does_not_need_another_zygote(site: Site) -> None:
    prepared = await site.package("import os; print(os.environ['RUNNEL_ROUND'], os.environ.get('OTHER'), os.getppid())")
    say = Listener()
    for env in ({"RUNNEL_ROUND": "1"}, {"RUNNEL_ROUND": "2"}, {"RUNNEL_ROUND": "3", "OTHER": "x"}):
        await run_train(site.warm, prepared, say, env=env)
    first, second, third = (line.split() for line in say.said("stdout"))
    assert (first[:2], second[:2], third[:2]) == (["1", "None"], ["2", "None"], ["3", "x"])
    assert first[2] == second[2] != third[2]
