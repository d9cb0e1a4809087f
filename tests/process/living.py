"""Processes of the machine that have not ended."""

from __future__ import annotations

from collections.abc import Iterable

import psutil


def living(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Return those that have not ended; one may end, and be forgotten by the system, while it is looked at."""
    return [each for each in processes if _lives(each)]


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
