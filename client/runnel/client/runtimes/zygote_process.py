"""The zygote: an interpreter that has imported a package's modules and forks a child for each run.

``zygote_start.py``, which is run by its path, imports it with the interpreter of the package's environment, which may
have nothing but the standard library. It talks to its client (:mod:`runnel.client.runtimes.zygote`) over a Unix socket
of whole messages. No code of the package runs here: its folder is not on the path while the modules are imported.

A page of memory that a child or the zygote writes to after a fork is copied first, and counting references is writing.
So what can be found out before the fork is found out there, and children look at no more objects than they need.

A child that comes out of :func:`_serve` has everything that a new ``python SCRIPT ARGUMENTS`` has, and leaves by way of
the interpreter's own end, so that exit handlers, threads, exit status and tracebacks are the interpreter's own. Of a
run that ended well only the last part of that end is done here (:class:`_End`).
"""

import sys

_AS_STARTED = dict(sys.modules["__main__"].__dict__)
# Whatever else is loaded later could be a file of that name beside the script, in a run of its own.
_LOADED_BEFORE = frozenset(sys.modules) - {__name__}

import atexit  # noqa: E402
import fcntl  # noqa: E402
import gc  # noqa: E402
import importlib.machinery  # noqa: E402
import io  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import resource  # noqa: E402
import socket  # noqa: E402
import stat  # noqa: E402
import struct  # noqa: E402
import termios  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402
import warnings  # noqa: E402
from _weakref import ref  # noqa: E402
from types import ModuleType, TracebackType  # noqa: E402
from typing import Any  # noqa: E402

NOT_FORKABLE = frozenset({"grpc", "jax", "jaxlib", "mpi4py", "tensorflow"})
_MESSAGE_BYTES = 4096
_SCRIPT_BYTES = 1 << 20
_REASON_CHARACTERS = 1000
_OUTPUTS = (1, 2)
# What the interpreter's exit status is when the last of what was printed could not be written.
_NOT_WRITTEN = 120
_NONE_AT_THE_END = (
    *("path", "argv", "ps1", "ps2", "last_type", "last_value", "last_traceback"),
    *("path_hooks", "path_importer_cache", "meta_path", "__interactivehook__"),
)
_BUFFERED = (io.BufferedWriter, io.BufferedRandom)


class _Unfit(Exception):
    """Runs have to start cold, for this reason."""


def main(started_with: str) -> None:
    """Import what the first message names, then fork a child for each message; return in the children only.

    Args:
        started_with: the file by whose path the interpreter was started.
    """
    # Neither the folder of these files nor this module would be there in a run of its own.
    sys.path_importer_cache.pop(sys.path.pop(0), None)
    del sys.modules[__name__]
    # The shell through which other runs start sets it.
    os.environ["PWD"] = os.getcwd()  # noqa: PTH109
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    end = _End()
    # Before any other, so it is called after all others.
    atexit.register(end)
    first, descriptors = _receive(control)
    if first is None:
        return
    try:
        _import(_read(descriptors[0])["imports"])
        end.spare()
        _check_fit(control)
    except _Unfit as unfit:
        _tell(control, unfit=str(unfit))
        return
    _tell(control, ready=True)
    # It may have other names: multiprocessing gives it one.
    names_of_main = [name for name, module in sys.modules.items() if module is sys.modules["__main__"]]
    run = _serve(control)
    if run is not None:
        try:
            _become(*run, names_of_main=names_of_main, own_files=(started_with, __file__))
        except SystemExit as said:
            end.is_good = said.code is None or (type(said.code) is int and said.code == 0)
            raise
        end.is_good = True


# ---- what is imported


def _import(wanted: list[tuple[str, list[str]]]) -> None:
    for name, members in wanted:
        try:
            __import__(name, {}, {}, members, 0)
        except ModuleNotFoundError as error:
            # Not installed, or found only beside the script: the run will tell. If "a.b" is missing "a" may be loaded
            # now, as it is in a run that tries.
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise _Unfit(f"importing {name} failed: {error}") from error
        except BaseException as error:
            raise _Unfit(f"importing {name} failed: {type(error).__name__}: {error}") from error


def _check_fit(control: socket.socket) -> None:
    """Raise if a fork of this process would not be as good as a new one."""
    for output in (sys.stdout, sys.stderr):
        output.flush()
    if any(_unread(output) for output in _OUTPUTS):
        raise _Unfit("importing its modules prints, which belongs to the log of each run")
    if found := sorted(NOT_FORKABLE & sys.modules.keys()):
        raise _Unfit(f"it imports {found[0]}, which does not survive a fork")
    if threading.active_count() > 1:
        raise _Unfit("importing its modules starts threads")
    gc.collect()
    # Their pages stay shared with the children.
    gc.freeze()
    # OpenBLAS has threads, ends them before each fork and starts them again where it computes. Libraries that don't do
    # so still have theirs after one.
    if (child := os.fork()) == 0:
        os._exit(0)
    os.waitpid(child, 0)
    if len(os.listdir("/proc/self/task")) > 1:  # noqa: PTH208
        raise _Unfit("importing its modules starts threads")
    known = {0, 1, 2, control.fileno()}
    if left := [one for one in map(int, os.listdir("/proc/self/fd")) if one not in known and _is_open(one)]:  # noqa: PTH208
        raise _Unfit(f"importing its modules leaves files open: {os.readlink(f'/proc/self/fd/{left[0]}')}")  # noqa: PTH115
    if shared := _shared_memory():
        raise _Unfit(f"importing its modules leaves memory that runs would share: {shared}")


def _shared_memory() -> str:
    """Return what a fork would write to together with its parent and all others, as a semaphore with a name is."""
    with open("/proc/self/maps") as maps:  # noqa: PTH123
        # Addresses, rights, offset, device, inode and path.
        fields = (line.rstrip("\n").split(maxsplit=5) for line in maps)
        return next((" ".join(found[5:]) for found in fields if found[1].startswith("rw") and found[1][3] == "s"), "")


def _is_open(descriptor: int) -> bool:
    """Whether it is more than the listing's own."""
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _unread(pipe: int) -> int:
    count: int = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, b"\0" * 4))[0]
    return count


# ---- the parent


class _Script:
    """The script that was asked for last: where it is, and compiled, which takes as long as many a run."""

    def __init__(self) -> None:
        self.path = ""
        self.folder = ""
        self._source = b""
        self._code: Any = None

    def look_at(self, path: str) -> None:
        """Compile what is at ``path``, if it is not what is here. Nothing is said about it: that is for the run."""
        with open(path, "rb") as file:  # noqa: PTH123
            source = file.read(_SCRIPT_BYTES)
        self.folder = os.path.dirname(os.path.realpath(path))  # noqa: PTH120
        if (source, path) == (self._source, self.path):
            return
        self._source, self.path, self._code = source, path, None
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                self._code = compile(source, path, "exec", dont_inherit=True)
            except (Warning, SyntaxError, ValueError, RecursionError, MemoryError):
                return

    def code(self) -> Any:
        """Return what the file is now when it is compiled; raises what that raises."""
        with open(self.path, "rb") as file:  # noqa: PTH123
            source = file.read()
        if self._code is not None and source == self._source:
            return self._code
        return compile(source, self.path, "exec", dont_inherit=True)


def _serve(control: socket.socket) -> "tuple[dict[str, Any], _Script] | None":
    """Fork and reap as the client says. Returns a run's request in its child, None when the client has gone."""
    script = _Script()
    while True:
        message, descriptors = _receive(control)
        if message is None:
            return None
        if "reap" in message:
            # It has ended already: until it is reaped its number belongs to nobody else.
            _, status = os.waitpid(message["reap"], 0)
            _tell(control, reaped=message["reap"], status=os.waitstatus_to_exitcode(status))
            continue
        try:
            request = _read(descriptors.pop(0))
            # As seen from there: a working directory has no links in its path.
            folder = os.path.realpath(request["folder"])
            script.look_at(os.path.normpath(os.path.join(folder, request["argv"][1])))  # noqa: PTH118
            if shadow := _shadowed(script.folder):
                _tell(control, number=message["run"], cold=f"its file {shadow} has the name of an imported module")
                continue
            if os.fork() == 0:
                try:
                    _stand_alone(control, message["run"], descriptors)
                except BaseException:  # noqa: BLE001 (whatever it is, back there it would be a second zygote)
                    os._exit(125)
                return request, script
        except OSError as error:
            _tell(control, number=message["run"], cold=str(error))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
            descriptors.clear()


def _shadowed(folder: str) -> "str | None":
    """Return a file in ``folder`` that would be imported in place of a module that is imported here."""
    suffixes = importlib.machinery.all_suffixes()
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            stem = next((name.removesuffix(one) for one in suffixes if name.endswith(one)), name)
            if stem in sys.modules and stem not in _LOADED_BEFORE and stem != "__main__":
                package = (f"{entry.path}/__init__{suffix}" for suffix in suffixes)
                if stem != name or any(map(os.path.exists, package)):
                    return name
    return None


def _read(descriptor: int) -> "dict[str, Any]":
    with open(descriptor, "rb") as file:
        file.seek(0)
        content: dict[str, Any] = json.loads(file.read())
    return content


def _receive(control: socket.socket) -> "tuple[Any, list[int]]":
    data, descriptors, _, _ = socket.recv_fds(control, _MESSAGE_BYTES, 4)
    return (json.loads(data) if data else None), descriptors


def _tell(control: socket.socket, **message: object) -> None:
    # What a module raised may be long.
    short = {name: said[:_REASON_CHARACTERS] if isinstance(said, str) else said for name, said in message.items()}
    try:
        control.send(json.dumps(short).encode())
    except (BrokenPipeError, ConnectionResetError):
        # The client has gone; the next message is its end.
        return


# ---- the child


def _stand_alone(control: socket.socket, number: int, descriptors: "list[int]") -> None:
    """Take the place of a process that was just started, and wait until the client says go."""
    os.setsid()
    stdout, stderr, gate = descriptors
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    control.send(b'{"number": %d, "pid": %d}' % (number, os.getpid()))
    control.close()
    # The client has gone, or does not want the run any more.
    if os.read(gate, 16) != b"go\n":
        os._exit(125)


def _become(
    request: "dict[str, Any]", script: _Script, *, names_of_main: "list[str]", own_files: "tuple[str, ...]"
) -> None:
    """Be ``python SCRIPT ARGUMENTS``."""
    for kind, soft, hard in request["limits"]:
        resource.setrlimit(kind, (soft, hard))
    os.chdir(request["folder"])
    os.environ.update(request["variables"])
    _forget_the_past()
    sys.argv = request["argv"][1:]
    sys.orig_argv = request["argv"]
    sys.path.insert(0, script.folder)
    main = _new_main(script.path, names_of_main)
    try:
        exec(script.code(), main)  # noqa: S102
    except SystemExit:
        raise
    except BaseException:
        sys.excepthook = _hide_own_frames(sys.excepthook, own_files)
        raise


def _new_main(script: str, names: "list[str]") -> "dict[str, Any]":
    """Put a new module in the place of this one, which was frozen: what a frozen one holds is never let go."""
    module = ModuleType("__main__")
    module.__dict__.clear()
    module.__dict__.update(
        _AS_STARTED,
        __doc__=None,
        __file__=script,
        __loader__=importlib.machinery.SourceFileLoader("__main__", script),
    )
    for name in names:
        sys.modules[name] = module
    return module.__dict__


def _forget_the_past() -> None:
    """Renew what a module made at its import, long before this run; random seeds itself after a fork."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()
    logging = sys.modules.get("logging")
    start = getattr(logging, "_startTime", None)
    if start is not None:
        logging.__dict__["_startTime"] = time.time_ns() if isinstance(start, int) else time.time()


class _End:
    """The end of a run, after all exit handlers of the script.

    An interpreter takes apart all that it has, which takes longer than many a run: each page of it that is written to
    has to be copied first. So the zygote's modules are kept from that, and a run that ended well leaves when what the
    script and its own modules hold is let go, in the interpreter's order, and its outputs are written out. That goes
    only for a process that has one thread: another one might go on, or be waited for.
    """

    def __init__(self) -> None:
        self.is_good = False
        self._loaded: list[tuple[str, object]] = []
        self._exit: Any = None

    def spare(self) -> None:
        """Keep what is imported now. The list is frozen and holds itself: nothing ever lets go of what is in it."""
        self._loaded += [item for item in sys.modules.items() if item[0] not in _LOADED_BEFORE]
        self._loaded.append(("", self._loaded))
        if (ctypes := sys.modules.get("ctypes")) is not None:
            # Libraries have exit handlers of their own, which os._exit would pass over.
            self._exit = ctypes.PyDLL(None).exit

    def __call__(self) -> None:
        # A file that the run has left in a module that is kept would never be written out.
        _write_out_files()
        for name, module in self._loaded:
            if sys.modules.get(name) is module:
                del sys.modules[name]
        if self._exit is None or not self.is_good or len(os.listdir("/proc/self/task")) > 1 or not _flush():  # noqa: PTH208
            return
        _let_go()
        self._exit(0 if _flush() else _NOT_WRITTEN)


def _flush() -> bool:
    """Write out what was printed, and return whether that could be done."""
    for output in (sys.stdout, sys.stderr):
        try:
            if output is not None and not output.closed:
                output.flush()
        except Exception:  # noqa: BLE001 (the script may have put anything there)
            return False
    return True


def _let_go() -> None:
    """Do to the script and its modules what the interpreter does to all modules."""
    atexit._clear()
    if gc.isenabled():
        gc.collect()
    for name in _NONE_AT_THE_END:
        if hasattr(sys, name):
            setattr(sys, name, None)
    sys.stdin, sys.stdout, sys.stderr = sys.__stdin__, sys.__stdout__, sys.__stderr__
    own = [name for name in sys.modules if name not in _LOADED_BEFORE or name == "__main__"]
    modules = [ref(sys.modules[name]) for name in own if isinstance(sys.modules[name], ModuleType)]
    for name in own:
        sys.modules[name] = None  # type: ignore[assignment]
    gc.collect()
    for one in reversed(modules):
        if (module := one()) is not None:
            _empty(module.__dict__)


def _empty(names: "dict[str, Any]") -> None:
    """Let go of what a module holds that others hold, as the interpreter does: first what only it should know."""
    for only_own in (True, False):
        for name in list(names):
            if name != "__builtins__" and (not only_own or (name[:1] == "_" and name[:2] != "__")):
                names[name] = None


def _write_out_files() -> None:
    for held in gc.get_objects():
        try:
            if (
                (type(held) in _BUFFERED or (type(held) is io.TextIOWrapper and type(held.buffer) in _BUFFERED))
                # Who reads a pipe may not do so, and would be waited for.
                and stat.S_ISREG(os.fstat(held.fileno()).st_mode)
            ):
                held.flush()
        except (OSError, ValueError):
            continue  # closed, or broken: where files are let go of, nobody is told either


def _hide_own_frames(hook: Any, own_files: "tuple[str, ...]") -> Any:
    """Let ``hook`` see a traceback that begins in the script."""

    def stripped(kind: Any, error: BaseException, trace: "TracebackType | None") -> None:
        sys.excepthook = hook
        while trace is not None and trace.tb_frame.f_code.co_filename in own_files:
            trace = trace.tb_next
        hook(kind, error.with_traceback(trace), trace)

    return stripped
