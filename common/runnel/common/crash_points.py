"""The moments of a round at which a kill -9 hurts most.

Invariant: a process may be killed at any moment, and no finished work is lost. The tests kill each kind of process at
each of these points; nothing else in the code knows of them. They do nothing unless the process was started with
``RUNNEL_CRASH_AT=<name>``, and then they kill it, once, as the kernel would; or with ``RUNNEL_CRASH_AT=@<file>``, and
then they do so at the point that the file names at the time, and remove it first. The number of a process after the
point names another one that is killed, so that the other end of what is under way can be.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from enum import Enum
from pathlib import Path

VARIABLE = "RUNNEL_CRASH_AT"


class CrashPoint(Enum):
    """A moment; its value names it in :data:`VARIABLE`. In the order in which a round passes them."""

    SLOTS_STORED = "slots-stored"  # reducer: who is asked is stored, nobody was asked
    ASSIGNMENT_ARRIVED = "assignment-arrived"  # reducer: the first client is at work
    BLOB_HALF_FETCHED = "blob-half-fetched"  # client, combiner: half of its bytes, or more
    UPDATE_HALF_KEPT = "update-half-kept"  # client: trained, the update is on disk, its report is not
    UPDATE_KEPT = "update-kept"  # client: nobody else knows
    PAYLOAD_HALF_PUSHED = "payload-half-pushed"  # client, combiner: half of its bytes, or more
    UPDATE_PUSHED = "update-pushed"  # client: not reported
    UPDATE_RECEIVED = "update-received"  # combiner: verified, not folded
    UPDATE_FOLDED = "update-folded"  # combiner: not noted
    SUM_PUSHED = "sum-pushed"  # combiner: not reported
    REPORT_RECEIVED = "report-received"  # reducer: checked, not committed
    REPORT_COMMITTED = "report-committed"  # reducer: not settled
    SETTLED_ABOVE = "settled-above"  # combiner: not passed on
    SETTLED_RECEIVED = "settled-received"  # client: not yet forgotten
    MODEL_STORED = "model-stored"  # reducer: the new model is a file, nothing points to it
    ROUND_COMMITTED = "round-committed"  # reducer: nobody knows
    RUN_ARRIVED = "run-arrived"  # combiner: an order of a run is not passed on
    RUN_HELD = "run-held"  # client: a run of a task is in its book, nobody was told
    RUN_BEGUN = "run-begun"  # client: its container runs
    RUN_ENDED = "run-ended"  # client: its files are kept, its end is not
    RUN_PUSHED = "run-pushed"  # client: its files are above, its end was not told
    RUN_FILE_RECEIVED = "run-file-received"  # combiner: verified, not passed on
    RUN_FILE_KEPT = "run-file-kept"  # reducer: the file lasts, nothing names it
    RUN_END_COMMITTED = "run-end-committed"  # reducer: not settled
    RUN_SETTLED_ABOVE = "run-settled-above"  # combiner: not passed on
    PACKAGE_UPDATED = "package-updated"  # reducer: the session has another package, no round has begun with it


_armed: CrashPoint | None = None
_named_in: Path | None = None


def arm(environ: Mapping[str, str]) -> None:
    """Let this process be killed at the point that ``environ`` names, or its file will name, if it does.

    Raises:
        ValueError: there is no such point.
    """
    global _armed, _named_in
    name = environ.get(VARIABLE, "")
    _named_in = Path(name[1:]) if name.startswith("@") else None
    _armed = CrashPoint(name) if name and _named_in is None else None


def reach(point: CrashPoint) -> None:
    """Pass a point."""
    victim = os.getpid() if _armed is point else None
    if _named_in is not None:
        victim = _takes(_named_in, point)
    if victim is not None:
        os.kill(victim, signal.SIGKILL)


def _takes(file: Path, point: CrashPoint) -> int | None:
    """Remove the file if it names the point; return who is to be killed then."""
    try:
        named, _, process = file.read_text().partition(" ")
        if named != point.value:
            return None
        file.unlink()
    except FileNotFoundError:
        return None
    return int(process or os.getpid())
