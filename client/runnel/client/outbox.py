"""Finished reports on disk, until the network has settled them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from runnel.common.blobs import SMALL_BYTES, digest_payload, storage_errors
from runnel.common.crash_points import CrashPoint, reach
from runnel.common.disk import write_json
from runnel.common.protocol import REFUSING, WAITING, AssignmentKey, BlobRef, Failure, Outcome, Work

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """An update as it is to be pushed, and what its compression left out.

    ``left``: a file of that, for the session's next update. ``carried``: names of what earlier updates left and this
    one has in it. See :mod:`runnel.client.compressor`.
    """

    file: Path
    left: Path | None = None
    carried: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldReport:
    """A report and the file of its payload, if it has one; ``left`` and ``carried`` as of :class:`Update`."""

    key: AssignmentKey
    outcome: Outcome
    payload: BlobRef | None
    file: Path | None
    left: Path | None = None
    carried: tuple[str, ...] = ()


class Outbox:
    """One folder for each report; a report is there when its ``report.json`` is. All methods block.

    What is kept outlives the death of the client at any moment. It does not wait for the disk: a loss of power may take
    the newest reports, and their work is then done again, for the client does not say any more that it holds them.

    Args:
        root: made if it does not exist; what an earlier process did not finish writing is removed, and so is what only
            says that the site did not take the work: this process watches only for what it has sent away itself.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._light: set[AssignmentKey] = set()
        root.mkdir(parents=True, exist_ok=True)
        for folder in root.iterdir():
            if not (folder / "report.json").exists() or not self._is_whole(folder) or self._is_waiting(folder):
                shutil.rmtree(folder, ignore_errors=True)

    def keep(
        self,
        key: AssignmentKey,
        outcome: Outcome,
        update: Path | None,
        *,
        left: Path | None = None,
        carried: Sequence[str] = (),
    ) -> HeldReport:
        """Keep a report, and return it; ``update`` and ``left`` are moved here. The latter two are those of
        :class:`Update`.

        Raises:
            StorageFull: no room.
        """
        folder = self._folder(key)
        with storage_errors(folder):
            folder.mkdir(exist_ok=True)
            payload = None
            if update is not None:
                payload = digest_payload(update)
                shutil.move(update, folder / "payload")
            if left is not None:
                shutil.move(left, folder / "left")
            reach(CrashPoint.UPDATE_HALF_KEPT)
            write_json(
                folder / "report.json",
                {
                    "key": [key.session_id, key.round, key.work.value],
                    "outcome": dataclasses.asdict(outcome),
                    "payload": None if payload is None else dataclasses.asdict(payload),
                    "left": left is not None,
                    "carried": list(carried),
                },
                durable=False,
            )
        if left is None and not carried and (payload is None or payload.size_bytes <= SMALL_BYTES):
            self._light.add(key)
        return HeldReport(
            key=key,
            outcome=outcome,
            payload=payload,
            file=None if payload is None else folder / "payload",
            left=None if left is None else folder / "left",
            carried=tuple(carried),
        )

    def is_light(self, key: AssignmentKey) -> bool:
        """Whether a report that this process kept is small and has nothing of a compression; it does not block."""
        return key in self._light

    def held(self) -> list[AssignmentKey]:
        """Return what is kept."""
        return [report.key for folder in sorted(self._root.iterdir()) if (report := self._read(folder)) is not None]

    def reports(self, session_id: str) -> list[HeldReport]:
        """Return the reports of a session that are kept."""
        found = [self._read(folder) for folder in self._root.iterdir()]
        return [report for report in found if report is not None and report.key.session_id == session_id]

    def get(self, key: AssignmentKey) -> HeldReport | None:
        """Return a kept report."""
        return self._read(self._folder(key))

    def drop(self, key: AssignmentKey) -> None:
        """Forget a report; one that is not there is no error."""
        self._light.discard(key)
        folder = self._folder(key)
        (folder / "report.json").unlink(missing_ok=True)
        try:
            for name in ("payload", "left"):
                (folder / name).unlink(missing_ok=True)
            folder.rmdir()
        except OSError:  # something else is in it, or it is not there
            shutil.rmtree(folder, ignore_errors=True)

    def _is_whole(self, folder: Path) -> bool:
        """Whether nothing is torn, as far as lengths tell; digests are verified where the payload is pushed to."""
        report = self._read(folder)
        if report is None or report.payload is None or report.file is None:
            return report is not None
        return report.file.exists() and report.file.stat().st_size == report.payload.size_bytes

    def _is_waiting(self, folder: Path) -> bool:
        report = self._read(folder)
        if report is None or report.outcome.failure is None:
            return False
        return report.outcome.failure.code in WAITING or report.outcome.failure.code in REFUSING

    def _folder(self, key: AssignmentKey) -> Path:
        return self._root / hashlib.sha256(str(key).encode()).hexdigest()[:32]

    def _read(self, folder: Path) -> HeldReport | None:
        try:
            data: dict[str, Any] = json.loads((folder / "report.json").read_text())
            session_id, round_number, work = data["key"]
            outcome = data["outcome"]
            failure = outcome.pop("failure")
            payload = data["payload"]
            return HeldReport(
                key=AssignmentKey(session_id=session_id, round=round_number, work=Work(work)),
                outcome=Outcome(**outcome, failure=None if failure is None else Failure(**failure)),
                payload=None if payload is None else BlobRef(**payload),
                file=None if payload is None else folder / "payload",
                left=folder / "left" if data.get("left") else None,
                carried=tuple(data.get("carried", ())),
            )
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as err:
            log.error("unreadable report dropped", folder=str(folder), error=str(err))
            shutil.rmtree(folder, ignore_errors=True)
            return None
