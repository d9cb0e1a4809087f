"""What every component measures of its process: the lag of its event loop, its folders and its disk."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path

from runnel.common.metrics.values import Metric, MetricKind, Sample

INFO = Metric(name="runnel_info", kind=MetricKind.GAUGE, help="1, with the version.", labels=("component", "version"))
LAG = Metric(
    name="runnel_event_loop_lag_seconds",
    kind=MetricKind.GAUGE,
    help="The longest time by which the event loop was late since the scrape before.",
)
FREE = Metric(
    name="runnel_disk_free_bytes", kind=MetricKind.GAUGE, help="What is free on the disk of the state folder."
)
FOLDER_BYTES = Metric(
    name="runnel_folder_bytes", kind=MetricKind.GAUGE, help="Bytes in a part of the state folder.", labels=("folder",)
)
FOLDER_FILES = Metric(
    name="runnel_folder_files", kind=MetricKind.GAUGE, help="Files in a part of the state folder.", labels=("folder",)
)
PROCESS_METRICS = (INFO, LAG, FREE, FOLDER_BYTES, FOLDER_FILES)
"""Those of every component; the library adds ``process_…``."""

_EACH_S = 0.25


class LoopLag:
    """By how much callbacks of the running event loop come too late; it looks four times a second once it is asked."""

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None
        self._longest_s = 0.0

    def take(self) -> float:
        """Return the longest lag in seconds since the last call; 0 at the first."""
        if self._timer is None:
            self._look_later(asyncio.get_running_loop())
        longest, self._longest_s = self._longest_s, 0.0
        return longest

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look_later(self, loop: asyncio.AbstractEventLoop) -> None:
        due = loop.time() + _EACH_S

        def look() -> None:
            self._longest_s = max(self._longest_s, loop.time() - due)
            self._look_later(loop)

        self._timer = loop.call_at(due, look)


def process_samples(component: str, lag: LoopLag) -> list[Sample]:
    """Return what is known without looking at a disk."""
    return [INFO.sample(1, component, version("runnel")), LAG.sample(lag.take())]


def folder_samples(state: Path, folders: Mapping[str, Iterable[Path]]) -> list[Sample]:
    """Measure the disk and the parts of a state folder: files, or folders with all below them. Blocks: use a thread."""
    samples = [FREE.sample(shutil.disk_usage(state).free)]
    for name, paths in folders.items():
        sizes = [size for path in paths for size in _sizes(path)]
        samples += [FOLDER_BYTES.sample(sum(sizes), name), FOLDER_FILES.sample(len(sizes), name)]
    return samples


def _sizes(path: Path) -> list[int]:
    found = []
    if path.is_dir():
        for folder, _, names in os.walk(path):
            found += [size for name in names if (size := _size(os.path.join(folder, name))) is not None]  # noqa: PTH118
    elif (size := _size(str(path))) is not None:
        found.append(size)
    return found


def _size(path: str) -> int | None:
    try:
        return os.lstat(path).st_size
    except FileNotFoundError:
        return None  # files come and go while they are counted
