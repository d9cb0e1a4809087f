"""The folders of environments on disk: claimed to build in, taken as a whole, held while in use, evicted."""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import structlog

_BUILDING = "building-"
_KEY = re.compile(r"[0-9a-f]{64}")
_RECORD = "runnel-environment.json"
# A zygote that has imported from an environment ends sooner than this after its last run.
_RECENT_S = 3600.0
_DAY_S = 86400.0

log = structlog.get_logger()


def claim_place(root: Path) -> tuple[Path, int]:
    """Sweep what killed builds left, then return a new name to build at and the lock that says that it is in use."""
    root.mkdir(parents=True, exist_ok=True)
    for claim in root.glob(f"{_BUILDING}*.lock"):
        _sweep(claim)
    return _claim(root)


def _claim(root: Path) -> tuple[Path, int]:
    place = root / f"{_BUILDING}{secrets.token_hex(6)}"
    descriptor = os.open(_claim_of(place), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return place, descriptor


def _sweep(claim: Path) -> None:
    try:
        descriptor = os.open(claim, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:  # its owner ended meanwhile
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # its owner is at work
        os.close(descriptor)
    else:
        release_place(claim.with_suffix(""), descriptor)
        log.info("an unfinished environment was removed", place=claim.stem)


def release_place(place: Path, claim: int) -> None:
    """Remove what is left at ``place``, then the claim on it."""
    # The folder first: while it is there, the claim must be.
    if place.exists():
        shutil.rmtree(place)
    _claim_of(place).unlink(missing_ok=True)
    os.close(claim)


def _claim_of(place: Path) -> Path:
    return place.with_name(f"{place.name}.lock")


def interpreter(folder: Path) -> Path:
    """Return where an environment has its interpreter."""
    return folder / "bin" / "python"


def take_place(place: Path, final: Path) -> None:
    """Give the whole environment at ``place`` its name."""
    (place / _RECORD).write_text(json.dumps({"bytes": _size_of(place)}), encoding="utf-8")
    if final.exists() and not interpreter(final).exists():
        shutil.rmtree(final)  # its interpreter was uninstalled
    os.utime(place)
    try:
        place.rename(final)
    except OSError:
        if not interpreter(final).exists():
            raise
        # Another process that shares the cache was quicker; its environment is as good.


def hold(folder: Path) -> int | None:
    """Keep the environment ``folder`` from being evicted while the returned descriptor is open, and note its use.

    Returns:
        None if there is no whole environment of this name, or it is about to go.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        # Between the two calls it may have lost its name to an eviction, and another may have taken it.
        same = folder.stat().st_ino == os.fstat(descriptor).st_ino
        if same and interpreter(folder).exists():
            os.utime(folder)
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass  # it is being evicted
    os.close(descriptor)
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """An environment: where, when it was used last (seconds since the epoch), how large it is."""

    folder: Path
    used_at: float
    size_bytes: int


def evict(root: Path, *, most_bytes: int, most_days: float, now: float | None = None) -> tuple[str, ...]:
    """Remove the environments that were not used for ``most_days``, and the oldest while all are above ``most_bytes``.

    One that is in use, or was within the last hour, stays in any case.

    Returns:
        The names of those that went.
    """
    now = time.time() if now is None else now
    kept = sorted(_kept(root), key=lambda one: one.used_at)
    total_bytes, gone = sum(one.size_bytes for one in kept), []
    for one in kept:
        idle_s = now - one.used_at
        wanted = idle_s <= most_days * _DAY_S and total_bytes <= most_bytes
        if not wanted and idle_s > _RECENT_S and _remove(root, one.folder):
            total_bytes -= one.size_bytes
            gone.append(one.folder.name)
            log.info(
                "an environment was removed",
                environment=one.folder.name,
                size_bytes=one.size_bytes,
                idle_days=round(idle_s / _DAY_S, 1),
            )
    return tuple(gone)


def _kept(root: Path) -> list[_Kept]:
    found = []
    for folder in root.iterdir() if root.is_dir() else ():
        if _KEY.fullmatch(folder.name):
            try:
                found.append(_Kept(folder=folder, used_at=folder.stat().st_mtime, size_bytes=_recorded_size(folder)))
            except FileNotFoundError:  # another process evicts too
                continue
    return found


def _recorded_size(folder: Path) -> int:
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        return int(record["bytes"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # built by a version that did not note it, or spoilt
        return _size_of(folder)


def _size_of(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*"))


def _remove(root: Path, folder: Path) -> bool:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Under a name that the next build sweeps if this process is killed before all is gone.
        place, claim = _claim(root)
        try:
            folder.rename(place)
        finally:
            release_place(place, claim)
    except (BlockingIOError, FileNotFoundError):
        return False  # in use, or another process was quicker
    finally:
        os.close(descriptor)
    return True
