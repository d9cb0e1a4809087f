"""What a process of this machine has used so far: processor time, memory and disk."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import psutil

from runnel.client.audit import AUDIT_FILE

MB = 1e6


def cpu_seconds(pid: int) -> float:
    """Return the processor seconds of a process, user and system, without those of its children.

    Linux tells nanoseconds for each thread; elsewhere, and for threads that have ended, it is hundredths of a second.
    """
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def running_seconds(pid: int) -> float:
    """Return the processor seconds of a process' living threads, to the nanosecond where the system tells."""
    try:
        return sum(
            int((task / "schedstat").read_text().split()[0]) / 1e9 for task in Path(f"/proc/{pid}/task").iterdir()
        )
    except FileNotFoundError:
        return cpu_seconds(pid)


def switches(pid: int) -> int:
    """Return how often all threads of a process have gone to sleep, and so been woken, of their own will."""
    return sum(_status(task / "status", "voluntary_ctxt_switches") for task in Path(f"/proc/{pid}/task").iterdir())


def forget_peak(pid: int) -> None:
    """Let :func:`peak_bytes` begin anew at what the process holds now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_bytes(pid: int) -> int:
    """Return the most resident memory that the process has had (``VmHWM``)."""
    return _status(Path(f"/proc/{pid}/status"), "VmHWM") * 1024


def resident_bytes(pid: int) -> int:
    """Return the resident memory of the process now (``VmRSS``)."""
    return _status(Path(f"/proc/{pid}/status"), "VmRSS") * 1024


def open_descriptors(pid: int) -> int:
    """Return how many files, sockets and pipes the process has open."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def threads(pid: int) -> int:
    """Return how many threads the process has."""
    return _status(Path(f"/proc/{pid}/status"), "Threads")


def total_cpu_seconds(pids: Iterable[int]) -> float:
    """Return the sum of :func:`cpu_seconds`."""
    return sum(map(cpu_seconds, pids))


def bounded_bytes(state: Path) -> int:
    """Return the bytes of a state folder's files without those that are meant to grow: the database and the audit log.

    A file that has two names counts once.
    """
    sizes: dict[tuple[int, int], int] = {}
    for parent, _, names in os.walk(state):
        for name in names:
            if name != AUDIT_FILE and not name.startswith("reducer.db"):
                try:
                    found = (Path(parent) / name).lstat()
                except FileNotFoundError:  # it went meanwhile
                    continue
                sizes[found.st_dev, found.st_ino] = found.st_size
    return sum(sizes.values())


def file_bytes(file: Path) -> int:
    """Return the bytes of a file; one that is not there counts nothing."""
    try:
        return file.lstat().st_size
    except FileNotFoundError:
        return 0


def _status(file: Path, key: str) -> int:
    for line in file.read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1])
    raise KeyError(key)
