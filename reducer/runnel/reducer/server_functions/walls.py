"""Walls around a process, by the namespaces of Linux: no network, no other process, no file but what is shown to it.

The program that is to be walled in calls :func:`enclose` itself, before it has threads and before it runs anything of a
stranger. Only the standard library is used here.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

NOBODY = 65534
"""Who it is inside, when the reducer is root or has user namespaces."""

_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = (
    0x00020000,
    0x04000000,
    0x08000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _NOATIME, _NODIRATIME = 1, 2, 4, 8, 32, 1024, 2048
_BIND, _REC, _PRIVATE, _RELATIME = 4096, 16384, 1 << 18, 1 << 21
_DETACH = 2
_PDEATHSIG, _NO_NEW_PRIVS = 1, 38
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_CAPABILITIES = 0x20080522  # version 3: two words of each set
# Flags of a mount that a user namespace may not take away, as statvfs tells them.
_KEPT = {
    os.ST_RDONLY: _RDONLY,
    os.ST_NOSUID: _NOSUID,
    getattr(os, "ST_NODEV", 4): _NODEV,
    getattr(os, "ST_NOEXEC", 8): _NOEXEC,
    getattr(os, "ST_NOATIME", 1024): _NOATIME,
    getattr(os, "ST_NODIRATIME", 2048): _NODIRATIME,
    getattr(os, "ST_RELATIME", 4096): _RELATIME,
}
_DEVICES = ("null", "zero", "random", "urandom")
_SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/ld.so.conf.d", "/etc/localtime")


class NoWalls(OSError):
    """The system does not let this process build them; the message says at which step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What is seen from inside.

    Args:
        mountpoint: an empty folder, where the new root is built; nothing is left in it.
        read: folders and files, by their path outside, that are at the same path inside; none of them can be written.
        placed: path outside by path inside, to be read.
        written: files outside by path inside, to be written; they are there and empty.
        hidden: folders and files that are shown empty, should they lie within ``read``.
        scratch_bytes: of a folder ``/tmp`` in memory.
    """

    mountpoint: Path
    read: Sequence[Path]
    placed: Sequence[tuple[Path, str]]
    written: Sequence[tuple[Path, str]]
    hidden: Sequence[Path]
    scratch_bytes: int


def python_folders() -> list[Path]:
    """Return the folders that this interpreter needs to import what it can import now."""
    wanted = [sys.prefix, sys.base_prefix, sys.exec_prefix, *sys.path, *_SYSTEM]
    found: list[Path] = []
    for path in sorted({Path(each).resolve() for each in wanted if each and Path(each).exists()}):
        if not any(path.is_relative_to(other) for other in found):
            found.append(path)
    # Where links lead through: a virtual environment names its parts by paths that are not resolved.
    spelled = {Path(each) for each in wanted if each and Path(each).exists()}
    return found + sorted(each for each in spelled if not any(each.is_relative_to(other) for other in found))


def die_with_parent(parent: int | None = None) -> None:
    """Be killed when the process that started this one dies; Linux only.

    Args:
        parent: its id; if it is dead already, this process ends here.
    """
    if sys.platform == "linux":
        _libc().prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent is not None and os.getppid() != parent:
        os._exit(1)


def enclose(view: View) -> None:
    """Return within the walls, in a child of the calling process, which waits and ends as that child does.

    Inside there is no network but a loopback that is down, no process but this one, which is nobody and may start
    none, no capability, and only the files of ``view``.

    Raises:
        NoWalls: this system or its administrator does not allow it.
    """
    if sys.platform != "linux" or os.uname().machine not in _PIVOT_ROOT:
        raise NoWalls(f"there are no walls for {sys.platform} on {os.uname().machine}")
    root, user, group = os.geteuid() == 0, os.geteuid(), os.getegid()
    flags = _NEWNS | _NEWUTS | _NEWIPC | _NEWPID | _NEWNET
    _call("unshare", flags if root else flags | _NEWUSER, what="namespaces (unshare)")
    if not root:
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{NOBODY} {user} 1")
        _write("/proc/self/gid_map", f"{NOBODY} {group} 1")
    outside_lives, outside = os.pipe()
    child = os.fork()
    if child:
        os.close(outside_lives)
        _, status = os.waitpid(child, 0)
        # Not by sys.exit: nothing that the caller registered is to run twice.
        os._exit(os.waitstatus_to_exitcode(status) & 0x7F if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))
    os.close(outside)
    _build(view)
    _become_nobody(root)
    # After the change of user, which clears it. Whoever died before this shows by its end of the pipe.
    die_with_parent()
    if select.select([outside_lives], [], [], 0)[0]:
        os._exit(1)


def _build(view: View) -> None:
    root = str(view.mountpoint)
    for path in view.hidden:
        for shown in view.read:
            if shown.is_relative_to(path):
                raise NoWalls(f"{path}, which is not to be seen, holds {shown}, which the interpreter needs")
    _mount("none", "/", None, _REC | _PRIVATE)
    _mount("tmpfs", root, "tmpfs", _NOSUID | _NODEV, "size=16m,mode=755")
    Path(root, "tmp").mkdir()
    scratch = f"size={view.scratch_bytes},nr_inodes=4096,mode=1777"
    _mount("tmpfs", f"{root}/tmp", "tmpfs", _NOSUID | _NODEV, scratch)  # noqa: S108 (its own, and in memory)
    for path in view.read:
        _show(path, root + str(path))
    for path in view.hidden:
        covered = Path(root + str(path))
        if covered.is_dir():
            _mount("tmpfs", str(covered), "tmpfs", _NOSUID | _NODEV | _RDONLY, "size=4k,mode=755")
        elif covered.exists():
            _mount("/dev/null", str(covered), None, _BIND)
    for path, inside in view.placed:
        _show(path, root + inside)
    for name in _DEVICES:
        if (device := Path("/dev", name)).exists():
            _bind(device, f"{root}/dev/{name}")
    for path, inside in view.written:
        _bind(path, root + inside)
    old = Path(root, "old")
    old.mkdir()
    os.chdir(root)
    _syscall(_PIVOT_ROOT[os.uname().machine], b".", b"old", what="a root of its own (pivot_root)")
    os.chdir("/")
    _call("umount2", b"/old", _DETACH, what="a root of its own (umount)")
    Path("/old").rmdir()
    _mount("none", "/", None, _REMOUNT | _BIND | _RDONLY | _NOSUID | _NODEV)


def _show(path: Path, inside: str) -> None:
    """Bind a file or folder so that it can be read and not written."""
    _bind(path, inside)
    found = os.statvfs(inside).f_flag
    kept = 0
    for told, flag in _KEPT.items():
        if found & told:
            kept |= flag
    _mount("none", inside, None, _REMOUNT | _BIND | _RDONLY | _NOSUID | _NODEV | kept)


def _bind(path: Path, inside: str) -> None:
    target = Path(inside)
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        target.mkdir(exist_ok=True)
    elif not target.exists():
        target.touch()
    _mount(str(path), inside, None, _BIND | _REC)


def _become_nobody(root: bool) -> None:
    if root:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES, 0)
    _call("capset", header, (ctypes.c_uint32 * 6)(), what="no capabilities (capset)")
    _call("prctl", _NO_NEW_PRIVS, 1, 0, 0, 0, what="no new privileges (prctl)")


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    arguments = (
        source.encode(),
        target.encode(),
        kind and kind.encode(),
        ctypes.c_ulong(flags),
        data and data.encode(),
    )
    _call("mount", *arguments, what=f"mounts ({target})")


def _call(name: str, *arguments: object, what: str) -> None:
    if getattr(_libc(), name)(*arguments) != 0:
        raise _refused(what)


def _syscall(number: int, *arguments: object, what: str) -> None:
    if _libc().syscall(ctypes.c_long(number), *arguments) != 0:
        raise _refused(what)


def _refused(what: str) -> NoWalls:
    number = ctypes.get_errno()
    return NoWalls(number, f"{what}: {os.strerror(number)}")


def _write(path: str, text: str) -> None:
    try:
        Path(path).write_text(text)
    except OSError as error:
        raise NoWalls(error.errno, f"a user of its own ({path}): {error.strerror}") from error


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
