"""The machine that figures come from; without them they say little."""

from __future__ import annotations

import os
import platform
import re
import time
import timeit
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

LIBRARIES = ("runnel", "grpcio", "protobuf", "numpy", "sqlalchemy")


def describe() -> dict[str, Any]:
    """Return processor, memory, system and versions, and how busy the machine is now.

    ``python_work_ms``: processor time of one and the same piece of Python, by which builds of one version differ.
    """
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "python_work_ms": round(min(timeit.repeat(_work, time.process_time, number=1, repeat=9)) * 1000, 1),
        "load_1min": round(os.getloadavg()[0], 2),
        **{library: version(library) for library in LIBRARIES},
    }


def short_name(machine: dict[str, Any]) -> str:
    """Return a name for files.

    >>> short_name({"processor": "Intel(R) Xeon(R) Processor", "cores": 2})
    'intel-xeon-processor-2-cores'
    """
    words = re.sub(r"[^a-z0-9]+", " ", str(machine["processor"]).lower().replace("(r)", "").replace("(tm)", ""))
    return "-".join([*words.split()[:4], str(machine["cores"]), "cores"])


class _Adder:
    def __init__(self, number: int) -> None:
        self._number = number

    def add(self, number: int) -> int:
        return self._number + number


def _work() -> int:
    seen: dict[str, int] = {}
    for number in range(50_000):
        seen[f"{number % 1000}"] = _Adder(number).add(1)
    return sum(seen.values())


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
