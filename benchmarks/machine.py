"""The machine that figures come from; without them they say little."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

LIBRARIES = ("runnel", "grpcio", "protobuf", "numpy", "sqlalchemy")


def describe() -> dict[str, Any]:
    """Return processor, memory, system and versions, and how busy the machine is now."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
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


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
