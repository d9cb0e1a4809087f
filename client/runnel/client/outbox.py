"""Finished reports on disk, until the network has settled them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from runnel.common.blobs import SMALL_BYTES, Spares, digest_payload, storage_errors
from runnel.common.crash_points import CrashPoint, reach
from runnel.common.disk import write_json
from runnel.common.protocol import REFUSING, WAITING, AssignmentKey, BlobRef, Failure, Outcome, Work

log = structlog.get_logger()

_REPORT, _PAYLOAD, _LEFT = ".json", ".payload", ".left"


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
    """Files whose names begin alike for each report, which is there when its ``.json`` is. All methods block.

    ``spares``: takes large payloads whose reports are dropped.

    What is kept outlives the death of the client at any moment. It does not wait for the disk: a loss of power may take
    the newest reports, and their work is then done again, for the client does not say any more that it holds them.

    Args:
        root: made if it does not exist; what an earlier process did not finish writing is removed, and so is what only
            says that the site did not take the work: this process watches only for what it has sent away itself.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._light: set[AssignmentKey] = set()
        self.spares = Spares(root)
        root.mkdir(parents=True, exist_ok=True)
        found = {report.stem: self._read_now(report) for report in self._reports()}
        kept = {stem for stem, held in found.items() if held is not None and _is_whole(held) and not _is_waiting(held)}
        for path in root.iterdir():
            if path.stem not in kept:
                _remove(path)

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
            OSError: something else is wrong with the files; they are where they were.
        """
        report = self._report(key)
        with storage_errors(report), ExitStack() as undo:
            payload = None
            if update is not None:
                payload = digest_payload(update)
                undo.callback(shutil.move, shutil.move(update, report.with_suffix(_PAYLOAD)), update)
            if left is not None:
                undo.callback(shutil.move, shutil.move(left, report.with_suffix(_LEFT)), left)
            reach(CrashPoint.UPDATE_HALF_KEPT)
            write_json(
                report,
                {
                    "key": [key.session_id, key.round, key.work.value],
                    "outcome": dataclasses.asdict(outcome),
                    "payload": None if payload is None else dataclasses.asdict(payload),
                    "left": left is not None,
                    "carried": list(carried),
                },
                durable=False,
            )
            undo.pop_all()
        if left is None and not carried and (payload is None or payload.size_bytes <= SMALL_BYTES):
            self._light.add(key)
        return HeldReport(
            key=key,
            outcome=outcome,
            payload=payload,
            file=None if payload is None else report.with_suffix(_PAYLOAD),
            left=None if left is None else report.with_suffix(_LEFT),
            carried=tuple(carried),
        )

    def is_light(self, key: AssignmentKey) -> bool:
        """Whether a report that this process kept is small and has nothing of a compression; it does not block."""
        return key in self._light

    def held(self) -> list[AssignmentKey]:
        """Return what is kept."""
        return [held.key for report in self._reports() if (held := self._read_now(report)) is not None]

    def reports(self, session_id: str) -> list[HeldReport]:
        """Return the reports of a session that are kept.

        Raises:
            OSError: one can't be read, so that nobody knows what it carries.
        """
        found = [self._read(report) for report in self._reports()]
        return [report for report in found if report is not None and report.key.session_id == session_id]

    def get(self, key: AssignmentKey) -> HeldReport | None:
        """Return a kept report; None also if it can't be read, which the log tells: it may be read later."""
        return self._read_now(self._report(key))

    def drop(self, key: AssignmentKey) -> None:
        """Forget a report; one that is not there is no error."""
        self._light.discard(key)
        report = self._report(key)
        for path in (report, report.with_suffix(_LEFT)):
            path.unlink(missing_ok=True)
        self.spares.keep(report.with_suffix(_PAYLOAD))

    def _report(self, key: AssignmentKey) -> Path:
        return self._root / f"{hashlib.sha256(str(key).encode()).hexdigest()[:32]}{_REPORT}"

    def _reports(self) -> list[Path]:
        # Not those that are being written, whose names begin with a dot.
        return sorted(path for path in self._root.iterdir() if path.suffix == _REPORT and path.name[0] != ".")

    def _read_now(self, path: Path) -> HeldReport | None:
        try:
            return self._read(path)
        except OSError as err:  # such as no descriptor being free: it may be whole
            log.error("a report can't be read now", file=str(path), error=str(err))
            return None

    def _read(self, path: Path) -> HeldReport | None:
        try:
            data: dict[str, Any] = json.loads(path.read_text())
            session_id, round_number, work = data["key"]
            outcome = data["outcome"]
            failure = outcome.pop("failure")
            payload = data["payload"]
            return HeldReport(
                key=AssignmentKey(session_id=session_id, round=round_number, work=Work(work)),
                outcome=Outcome(**outcome, failure=None if failure is None else Failure(**failure)),
                payload=None if payload is None else BlobRef(**payload),
                file=None if payload is None else path.with_suffix(_PAYLOAD),
                left=path.with_suffix(_LEFT) if data.get("left") else None,
                carried=tuple(data.get("carried", ())),
            )
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as err:
            log.error("unreadable report dropped", file=str(path), error=str(err))
            _remove(path)
            return None


def _is_whole(held: HeldReport) -> bool:
    """Whether nothing is torn, as far as lengths tell; digests are verified where the payload is pushed to."""
    if held.payload is None or held.file is None:
        return True
    return held.file.exists() and held.file.stat().st_size == held.payload.size_bytes


def _is_waiting(held: HeldReport) -> bool:
    return held.outcome.failure is not None and held.outcome.failure.code in {*WAITING, *REFUSING}


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
