"""What the people of a site decide about results: once, in a file beside the run, which the client looks for."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from runnel.client.audit import AuditLog
from runnel.client.tasks.book import HeldRun, read_runs, result_path
from runnel.common.disk import read_json, sync_folder, write_json
from runnel.common.errors import Conflict, CorruptData, NotFound
from runnel.common.protocol import ResultFile

RUNS = "runs"
"""The folder of the book in a client's state folder."""

_FILE = "decision.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What ``by`` said about the results of a run: they may leave, or they stay and are removed."""

    release: bool
    by: str
    at: datetime
    reason: str = ""


class Decisions:
    """Decisions about the runs in the book at ``root``; all methods block.

    A decision is there, whole and on the disk, or it is not, and there is never a second one.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def of(self, run_id: str) -> Decision | None:
        """Return what was decided.

        Raises:
            CorruptData: the file is not what is written here.
        """
        path = self._root / run_id / _FILE
        try:
            told: dict[str, Any] = read_json(path)
            return Decision(**{**told, "at": datetime.fromisoformat(told["at"])})
        except NotFound:
            return None
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptData(f"{path} is not what is written there.", hint="Remove it, and decide again.") from error

    def decide(self, run_id: str, decision: Decision) -> None:
        """Decide about a run.

        Raises:
            Conflict: that was done before.
            NotFound: the run is not held here any more.
        """
        folder = self._root / run_id
        beside = folder / f".{secrets.token_hex(8)}"
        try:
            write_json(beside, dataclasses.asdict(decision) | {"at": decision.at.isoformat()}, mode=0o600)
            os.link(beside, folder / _FILE)
        except FileExistsError:
            raise self._decided(run_id) from None
        except FileNotFoundError:
            raise NotFound(f"The run {run_id} is not here any more.", run=run_id) from None
        finally:
            with contextlib.suppress(FileNotFoundError):
                beside.unlink()
        sync_folder(folder)

    def require_none(self, run_id: str) -> None:
        """Raise Conflict if there is a decision about a run."""
        if self.of(run_id) is not None:
            raise self._decided(run_id)

    def _decided(self, run_id: str) -> Conflict:
        known = self.of(run_id)
        said = "" if known is None else f": {known.by} {'released' if known.release else 'blocked'} them"
        return Conflict(f"About the results of {run_id} was decided before{said}.", run=run_id)


def record_decision(
    audit: AuditLog, decisions: Decisions, run_id: str, decision: Decision, *, remote: bool = False
) -> None:
    """Decide about results, with a record before it: whatever leaves, the log has who let it. Blocks.

    Raises:
        Conflict: that was done before.
        NotFound: the run is not here.
    """
    decisions.require_none(run_id)
    note = {"run": run_id, "by": decision.by, "reason": decision.reason, "remote": remote}
    audit.append("results.released" if decision.release else "results.blocked", note)
    decisions.decide(run_id, decision)


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A run whose results wait, and where each of its files is."""

    held: HeldRun
    files: tuple[tuple[ResultFile, Path], ...]


def record_look(audit: AuditLog, waiting: Waiting, *, by: str, copied: bool) -> None:
    """Record, before it is shown, that somebody looks at results which nobody has decided about. Blocks.

    Args:
        audit: the site's log.
        waiting: the run.
        by: who looks.
        copied: whether its files are copied to look at them.
    """
    names = [file.name for file, _ in waiting.files]
    audit.append("results.shown", {"run": waiting.held.run_id, "by": by, "files": names, "copied": copied})


def waiting_results(state: Path) -> list[Waiting]:
    """Return the runs of the client with the folder ``state`` whose results wait for a decision. Blocks."""
    root = state / RUNS
    decisions = Decisions(root)
    found = []
    for held in read_runs(root):
        if held.reviewed and held.result is not None and decisions.of(held.run_id) is None:
            files = [(each, result_path(root, held.run_id, number)) for number, each in enumerate(held.result.files)]
            found.append(Waiting(held=held, files=tuple(files)))
    return found


def find_waiting(state: Path, run_id: str) -> Waiting:
    """Return the run that is meant; the first characters after ``run-`` will do. Blocks.

    Raises:
        NotFound: no results of such a run wait.
        Conflict: it was decided about before, or several are meant.
    """
    found = [
        each
        for each in waiting_results(state)
        if run_id and (each.held.run_id.startswith(run_id) or each.held.run_id.startswith(f"run-{run_id}"))
    ]
    if len(found) > 1:
        raise Conflict(f"More than one run starts with {run_id!r}.", hint="Give more of its characters.")
    if not found:
        if (state / RUNS / run_id / _FILE).is_file() and run_id == Path(run_id).name:
            Decisions(state / RUNS).require_none(run_id)
        raise NotFound(
            f"No results of a run {run_id!r} wait here.", hint="`runnel client results` lists those that do."
        )
    return found[0]
